"""Base classes of the dataset kinds, and the source that an examination finds.

A kind's module loads neither numpy nor a decoder, because the command line's help lists the kinds. What reads files is
imported where it is used.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Self

from workers.data.confinement import resolve
from workers.spec import RelativePath, Size, Spec

if TYPE_CHECKING:
    from workers.data.decoding.blocks import Decoding
    from workers.events import ShouldStop, Split

# In the order in which they are listed; a dataset has the first, and may have the others.
SPLITS: "Final[tuple[Split, ...]]" = ("train", "validation", "test")
# Names of a split's folder or arrays, in lower case.
SPLIT_NAMES: "Final[Mapping[Split, tuple[str, ...]]]" = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}

# Increased when the meaning of a source changes (another order, another split of the digits), so that
# copies prepared under the old rules are not taken for the new ones.
_RULES = 1

# Pixels a side from which a random area of a picture is cropped, not a picture that is moved by four pixels.
_LARGE_SIDE = 64


@dataclass(frozen=True)
class Option:
    """Documentation of a kind's field, for the command line's help and the documents' table.

    Attributes:
        help: one sentence.
        unset: what holds without the field, where its default is None.
        metavar: its value on the command line; None takes its type's.
    """

    help: str
    unset: str = ""
    metavar: str | None = None


class DatasetKind(Spec, ABC):
    """Base of the kinds: the description that a client gives, and how such a dataset is found and decoded.

    Class attributes:
        kinds: what lies below the data root, as Markdown, for each value of ``kind`` that the class describes.
        options: the fields but ``kind``.
        sought: what the doctor advises to put below the data root, in the plural; empty for a built-in dataset, which
            needs nothing there.
        recipes: for a value of ``kind``, the recipe of ``workers.config.recipes`` that a job takes which names none;
            a kind without one goes by the size of its pictures.
    """

    kinds: ClassVar[Mapping[str, str]]
    options: ClassVar[Mapping[str, Option]] = {}
    sought: ClassVar[str] = ""
    recipes: ClassVar[Mapping[str, str]] = {}

    kind: str

    @abstractmethod
    def examine(self, data_root: Path) -> "Source":
        """Find the files and read sizes and class names from their headers; no picture is decoded.

        Callers use ``workers.data.preparation.discovery.examine``, which names files in messages below the data root.

        Raises:
            InvalidDataset: files are missing, malformed or outside the data root.
        """

    @abstractmethod
    def decode(self, source: "Source", split: "Split", should_stop: "ShouldStop") -> "Decoding":
        """Begin to read a split of what ``examine`` found.

        The order of the samples is part of the dataset's identity: cached logits are joined by position.

        Raises:
            InvalidDataset: unreadable, of several sizes, or with labels that are not 0..classes-1, or -1 for a picture
                without one, with every class in a training split that is labelled throughout.
            Stopped: ``should_stop`` returned true.
        """

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield descriptions that may fit ``entry``, the data root or something in it, called ``name`` below the root.

        The doctor examines them.
        """
        return iter(())

    @property
    def picture_size(self) -> Size | None:
        """Size (height, width) in pixels of every picture, where the description alone tells."""
        return self.resized_to

    @property
    def resized_to(self) -> Size | None:
        """Size (height, width) in pixels that pictures are resized to when they are decoded; None leaves them."""
        return None

    @property
    def turns_upright(self) -> bool:
        """Whether pictures are turned as their EXIF data says."""
        return False

    @property
    def leaves_out(self) -> bool:
        """Whether pictures that cannot be decoded are left out, so that only decoding tells how many there are."""
        return False

    @property
    def recipe(self) -> str:
        """Name of the recipe that a job on this dataset takes which names none."""
        size = self.picture_size
        by_size = "large-pictures" if size is not None and min(size) >= _LARGE_SIDE else "small-pictures"
        return self.recipes.get(self.kind, by_size)

    @property
    def keeps_files(self) -> bool:
        """Whether pictures stay image files, without a decoded copy."""
        return False

    def content_description(self) -> dict[str, object]:
        """Description as JSON without the fields that do not change what the pictures are."""
        return self.model_dump(mode="json")


class FilesBelowRoot(DatasetKind, ABC):
    """Base of the kinds whose files lie at a path below the data root."""

    options: ClassVar[Mapping[str, Option]] = {"path": Option("Below the service's data root.")}

    path: RelativePath

    def resolve(self, data_root: Path) -> Path:
        """Absolute path for ``path``, symbolic links followed.

        Raises:
            InvalidDataset: it is absolute, contains ``..``, leads out of ``data_root`` or does not exist.
        """
        return resolve(self.path, data_root)


@dataclass(frozen=True)
class Source:
    """Dataset that was found and looks complete.

    Attributes:
        spec: what the client asked for.
        path: the file or folder, inside the data root; None for a built-in dataset.
        samples: pictures of each split that is there, in the order of ``SPLITS``.
        classes: how many; 0 where nothing names them, so that only a teacher's outputs tell.
        class_names: in label order; None where only decoding tells (CIFAR's), empty where nothing names them.
        files: what has to be read for each split. A folder's pictures are ordered by class name, then file name.
        class_counts: of files in folders or lists, pictures of each class in label order; empty for other kinds.
        labelled: pictures that have a label, of each split where some have none, see ``workers.unlabelled``.
        ignored: files below a folder's classes that are no pictures, and pictures beside the classes.
        release: of a built-in dataset.
        notes: sentences about how the files were understood, where that is not plain: labels that were numbered anew.
        lists: files that say which pictures there are, and their labels, where ``files`` are the pictures alone.
        labels: of listed files, the label of each, in the order of ``files``; empty for other kinds.
        pictures: files that tables among ``files`` name, in the order of the rows; empty for other kinds.
    """

    spec: DatasetKind
    path: Path | None
    samples: "Mapping[Split, int]"
    classes: int
    class_names: tuple[str, ...] | None
    files: "Mapping[Split, tuple[Path, ...]]"
    class_counts: "Mapping[Split, tuple[int, ...]]" = field(default_factory=dict)
    labelled: "Mapping[Split, int]" = field(default_factory=dict)
    ignored: tuple[Path, ...] = ()
    release: str | None = None
    notes: tuple[str, ...] = ()
    lists: tuple[Path, ...] = ()
    labels: "Mapping[Split, Sequence[int]]" = field(default_factory=dict)
    pictures: "Mapping[Split, Sequence[Path]]" = field(default_factory=dict)

    @property
    def advice(self) -> tuple[str, ...]:
        """Sentences about what a job on it has to set."""
        if "test" in self.samples:
            return ()
        holdout = "" if "validation" in self.samples else ' and `"validation": {"holdout": 0.1}`'
        return (f'there is no test split: a job on this dataset needs `"test": null`{holdout}',)

    @property
    def splits(self) -> "tuple[Split, ...]":
        """The splits that are there."""
        return tuple(split for split in SPLITS if split in self.samples)

    @property
    def labelled_samples(self) -> "dict[Split, int]":
        """Pictures that have a label, of each split that is there."""
        return {split: self.labelled.get(split, self.samples[split]) for split in self.splits}

    def size_bytes(self, split: "Split") -> int:
        """Bytes of the files that are read for a split; of a built-in dataset 0."""
        return sum(path.stat().st_size for path in self._read_for(split))

    def key(self) -> str:
        """SHA-256 (64 hex) of the description and of every file's path, size in bytes and modification time.

        A file changed in place without a new size or time is not noticed, as with make and rsync.
        """
        digest = hashlib.sha256()
        header = [_RULES, self.spec.content_description(), str(self.path)]
        if self.release is not None:
            header.append(self.release)
        digest.update(json.dumps(header, sort_keys=True).encode())
        of_splits = ((split, path) for split in self.splits for path in self._read_for(split))
        for role, path in (*(("lists", path) for path in self.lists), *of_splits):
            status = path.stat()
            line = [role, str(path), status.st_size, status.st_mtime_ns]
            digest.update(json.dumps(line).encode())
        return digest.hexdigest()

    def _read_for(self, split: "Split") -> "Iterator[Path]":
        yield from self.files[split]
        yield from self.pictures.get(split, ())
