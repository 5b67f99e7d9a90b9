"""Datasets of image files that a CSV or JSONL file lists."""

import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from workers.data.class_names import check_class_names
from workers.data.confinement import inside, resolve, root_folder
from workers.data.kinds.base import SPLITS, Option, Source
from workers.data.kinds.encoded import EncodedFiles
from workers.data.linked_files import FoundFiles, linked_warnings
from workers.data.manifest_rows import CSV_SUFFIXES, JSONL_SUFFIXES, Columns, Faults, read_rows
from workers.errors import InvalidDataset
from workers.spec import RelativePath
from workers.texts import listed

if TYPE_CHECKING:
    from workers.data.encoded_rows import EncodedRows
    from workers.events import Split

ColumnName = Annotated[str, Field(min_length=1, max_length=255)]
_INTEGER = re.compile(r"0|[1-9][0-9]{0,17}")


class ManifestDataset(EncodedFiles):
    """A ``.csv``, ``.tsv`` or ``.jsonl`` of pictures: path, label and, optionally, split of each; in the file's order.

    Labels are names or integers; classes are in alphabetical order, or in that of the integers.

    Attributes:
        root: folder below the data root that the paths are relative to; None is the manifest's own.
        path_column, label_column, split_column: names of the columns, or of the keys of a JSON object. Without one for
            the split, all pictures are of the training split.
    """

    kinds: ClassVar[Mapping[str, str]] = {
        "manifest": "a `.csv` (`.tsv`) or `.jsonl` that lists image files: `path`, `label` (names or integers) and, "
        "optionally, `split` (`train`, `val`, `test`)"
    }
    options: ClassVar[Mapping[str, Option]] = {
        **EncodedFiles.options,
        "root": Option(
            "Of a manifest: the folder below the data root that its paths start from.", "the manifest's own"
        ),
        "path_column": Option("Of a manifest: the column of paths."),
        "label_column": Option("Of a manifest: the column of labels."),
        "split_column": Option("Of a manifest: the column of splits, which may be missing."),
    }
    sought: ClassVar[str] = "manifests of pictures"

    kind: Literal["manifest"] = "manifest"
    root: RelativePath | None = None
    path_column: ColumnName = "path"
    label_column: ColumnName = "label"
    split_column: ColumnName = "split"

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield a file of such a name."""
        if entry.suffix.lower() in (*CSV_SUFFIXES, *JSONL_SUFFIXES):
            yield cls(path=name)

    def examine(self, data_root: Path) -> Source:
        """Read the manifest, and look whether each file is there; no picture is opened."""
        path, root = self.resolve(data_root), root_folder(data_root)
        if not path.is_file():
            raise InvalidDataset(f"{path} is not a file; a manifest is a .csv, .tsv or .jsonl that lists pictures")
        folder = path.parent if self.root is None else resolve(self.root, data_root)
        faults = Faults()
        columns = Columns(self.path_column, self.label_column, self.split_column)
        found = _Listing(folder, root, faults)
        for row in read_rows(path, columns, faults):
            found.add(row.line, row.path, row.label, row.split)
        faults.check(path)
        names, notes = found.class_names(path)
        check_class_names(names, path)
        files = {split: found.files[split] for split in SPLITS if split in found.files}
        labels = {split: found.labels_by(names, split) for split in files}
        return Source(
            spec=self,
            path=folder,
            samples={split: len(of_split.paths) for split, of_split in files.items()},
            classes=len(names),
            class_names=names,
            files={split: tuple(of_split.paths) for split, of_split in files.items()},
            class_counts={split: _counts(of_split, len(names)) for split, of_split in labels.items()},
            lists=(path,),
            labels=labels,
            notes=(*notes, *linked_warnings(files, folder)),
        )

    def encoded(self, source: Source, split: "Split") -> "EncodedRows":
        """List in the order of the manifest."""
        import numpy as np

        from workers.data.encoded_rows import rows_of_files

        assert source.path is not None
        return rows_of_files(source.files[split], source.path, np.asarray(source.labels[split], dtype=np.int64))


class _Listing:
    """Pictures that a manifest lists, by split.

    Args:
        folder: that paths are relative to.
        root: the data root, its links followed.
        faults: counts the rows whose files are not there, or were listed before.
    """

    def __init__(self, folder: Path, root: Path, faults: Faults) -> None:
        self.files: dict[Split, FoundFiles] = {}
        self._folder, self._root, self._faults = folder, root, faults
        # Each distinct label in the order of its first row, and its place there for every picture.
        self._labels: dict[str, int] = {}
        self._places: dict[Split, array[int]] = {}
        self._seen: set[str] = set()
        self._inside: set[str] = set()

    def add(self, line: int, path: str, label: str, split: "Split") -> None:
        """Add a picture, or count what is wrong with it."""
        if path in self._seen:
            self._faults.add("files are listed twice", line, path)
            return
        inode = self._inode(path)
        if inode is None:
            self._faults.add(f"files are not there (below {self._folder})", line, path)
            return
        self._seen.add(path)
        files = self.files.setdefault(split, FoundFiles())
        files.paths.append(self._folder / path)
        files.inodes.append(inode)
        self._places.setdefault(split, array("q")).append(self._labels.setdefault(label, len(self._labels)))

    def _inode(self, path: str) -> int | None:
        """Inode of a file, links followed; None if it is no file, or JSON names it by half a surrogate pair."""
        full = os.path.join(self._folder, path)
        parent = os.path.dirname(full)
        try:
            if parent not in self._inside:
                inside(Path(parent), self._root)
                self._inside.add(parent)
            status = os.lstat(full)
            if S_ISLNK(status.st_mode):
                status = inside(Path(full), self._root).stat()
        except (OSError, UnicodeEncodeError):
            return None
        return status.st_ino if S_ISREG(status.st_mode) else None

    def class_names(self, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Labels of the training split in their order, and a warning if integers among them leave gaps.

        Raises:
            InvalidDataset: there is no training picture, or another split has labels that it lacks.
        """
        if "train" not in self.files:
            raise InvalidDataset(
                f"{path} lists no picture of the split train; it has {listed(self.files) or 'no rows'}"
            )
        texts = list(self._labels)
        trained = {texts[place] for place in set(self._places["train"])}
        others = [text for text in texts if text not in trained]
        if others:
            raise InvalidDataset(
                f"{path}: {len(others)} labels have no training picture: {listed(map(repr, others))}; every class "
                "needs one"
            )
        if not all(_INTEGER.fullmatch(text) for text in texts):
            return tuple(sorted(texts)), ()
        names = tuple(sorted(texts, key=int))
        if int(names[-1]) == len(names) - 1:
            return names, ()
        return names, (
            f"the labels {names[0]} to {names[-1]} have gaps or do not begin at 0: they stand, in their order, for the "
            f"classes 0 to {len(names) - 1}, whose names are the labels",
        )

    def labels_by(self, names: Sequence[str], split: "Split") -> "array[int]":
        """Label of each picture of a split, as a place in ``names``."""
        place_of = {name: place for place, name in enumerate(names)}
        label_of = [place_of[text] for text in self._labels]
        return array("q", (label_of[place] for place in self._places[split]))


def _counts(labels: Sequence[int], classes: int) -> tuple[int, ...]:
    counts = [0] * classes
    for label in labels:
        counts[label] += 1
    return tuple(counts)
