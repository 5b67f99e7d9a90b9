"""Datasets in folders of image files, one folder per class."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from workers.data.class_names import check_class_names, check_told_apart
from workers.data.class_names_option import OPTION, ClassNames, choose_names
from workers.data.confinement import inside, root_folder
from workers.data.kinds.base import SPLIT_NAMES, FilesBelowRoot, Option, Source
from workers.errors import InvalidDataset
from workers.spec import Size
from workers.texts import composed, differences, listed

if TYPE_CHECKING:
    from workers.data.blocks import Decoding
    from workers.events import ShouldStop, Split

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
UNLABELLED = "_unlabelled"
_EXPECTED = "expected train/CLASS/*.jpg (or another picture format), test/CLASS/* and, if there is one, val/CLASS/*"


class FolderDataset(FilesBelowRoot):
    """``path/train/CLASS/*.jpg`` (or png ...), ``path/val/CLASS/*`` and ``path/test/CLASS/*``; classes alphabetically.

    The folders of the splits may be called ``train`` or ``training``, ``val``, ``valid`` or ``validation``, ``test`` or
    ``testing``, in any case; all but the training split may be missing. Pictures without a label lie in the split's
    folder itself, if it has no class folders, or in ``_unlabelled`` beside them; they follow the others.

    Attributes:
        image_size: (height, width) every picture is resized to; None demands that all have one
        size.
        storage: ``decoded`` keeps a decoded copy, which is mapped; ``files`` keeps none and decodes a
        picture whenever it is wanted, for data larger than memory or disk. Both give the same bits,
        and so the same caches and weights.
        class_names: of a dataset whose training pictures have no labels, or not all of them.
    """

    kinds: ClassVar[Mapping[str, str]] = {
        "folder": "`train/CLASS/*.jpg`, `test/CLASS/*` and, if there is one, `val/CLASS/*` (`valid`, `validation`; "
        "in any case); classes alphabetically; pictures without labels in `train/` itself or in `train/_unlabelled/`"
    }
    options: ClassVar[Mapping[str, Option]] = {
        **FilesBelowRoot.options,
        "image_size": Option("Resize the pictures of a folder to this.", "the pictures' own", "HEIGHT WIDTH"),
        "storage": Option("Of a folder: keep a decoded copy, or decode whenever needed."),
        "class_names": OPTION,
    }
    sought: ClassVar[str] = "folders of pictures"

    kind: Literal["folder"] = "folder"
    image_size: Size | None = None
    storage: Literal["decoded", "files"] = "decoded"
    class_names: ClassNames | None = Field(None, exclude_if=lambda given: given is None)

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield a folder with a training split."""
        if entry.is_dir() and any(found.name.lower() in SPLIT_NAMES["train"] for found in entry.iterdir()):
            yield cls(path=name)

    @property
    def resized_to(self) -> Size | None:
        """Value of ``image_size``."""
        return self.image_size

    @property
    def keeps_files(self) -> bool:
        """Whether ``storage`` is ``files``."""
        return self.storage == "files"

    def content_description(self) -> dict[str, object]:
        """Description without ``storage``."""
        return self.model_dump(mode="json", exclude={"storage"})

    def examine(self, data_root: Path) -> Source:
        """List class folders and pictures; none is opened."""
        path, root = self.resolve(data_root), root_folder(data_root)
        folders = _split_folders(path, root)
        classes = {split: _class_folders(folder, root) for split, folder in folders.items()}
        without = {split: _without_labels(classes[split], folder) for split, folder in folders.items()}
        if without["train"] or self.class_names:
            names = choose_names(self.class_names, classes, path)
        else:
            names = tuple(sorted(classes["train"]))
        for split, folder in folders.items():
            check_told_apart(sorted(classes[split]), folder)
        # A class is spelt as train/ spells it: copied by another machine, test/ may be in another normal form.
        spelt = {composed(name): name for name in names}
        for split in folders:
            classes[split] = {spelt.get(composed(name), name): folder for name, folder in classes[split].items()}
            if not (without["train"] or without[split] or self.class_names):
                both = ((folders[each].name, classes[each]) for each in ("train", split))
                _check_same_classes(path, *both)
        if names or not all(without.values()):
            check_class_names(names, path)
        ignored: list[Path] = []
        files: dict[Split, tuple[Path, ...]] = {}
        counts: dict[Split, tuple[int, ...]] = {}
        labelled: dict[Split, int] = {}
        for split in folders:
            pictures = [
                _pictures(classes[split][name], root, ignored) if name in classes[split] else [] for name in names
            ]
            counts[split] = tuple(len(group) for group in pictures)
            if (own := without[split]) is not None:
                labelled[split] = sum(counts[split])
                pictures.append(_pictures(own, root, ignored, what="folder of pictures without labels"))
            files[split] = tuple(picture for group in pictures for picture in group)
        return Source(
            spec=self,
            path=path,
            samples={split: len(found) for split, found in files.items()},
            classes=len(names),
            class_names=names,
            files=files,
            class_counts=counts,
            labelled=labelled,
            ignored=tuple(ignored),
        )

    def decode(self, source: Source, split: "Split", should_stop: "ShouldStop") -> "Decoding":
        """Decode in order of class name, then file name; pictures without a label last."""
        import numpy as np

        from workers.data.blocks import Decoding
        from workers.data.picture_blocks import first_size, read_blocks
        from workers.unlabelled import with_unlabelled

        files, names = source.files[split], source.class_names or ()
        labels = np.repeat(np.arange(len(names), dtype=np.int64), source.class_counts[split])
        labels = with_unlabelled(labels, len(files))
        size = self.image_size or first_size(source.files["train"], should_stop)
        shape = (len(files), *size, 3)
        return Decoding(shape, labels, names, read_blocks(files, self.image_size, size, should_stop))


def _entries(folder: Path, root: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder in order of name, hidden ones left out, links checked."""
    with os.scandir(folder) as found:
        entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in entries:
        if entry.is_symlink():
            inside(Path(entry.path), root)
    return entries


def _split_folders(path: Path, root: Path) -> "dict[Split, Path]":
    """The folder of each split that is there."""
    if not path.is_dir():
        raise InvalidDataset(f"{path} is not a folder; {_EXPECTED}")
    entries = [entry for entry in _entries(path, root) if entry.is_dir()]
    folders: dict[Split, Path] = {}
    for split, names in SPLIT_NAMES.items():
        found = [Path(entry.path) for entry in entries if entry.name.lower() in names]
        if len(found) > 1:
            raise InvalidDataset(
                f"{path} has the folders {found[0].name!r} and {found[1].name!r}, which both mean the {split} split: "
                "leave one of them"
            )
        if found:
            folders[split] = found[0]
    if "train" not in folders:
        raise InvalidDataset(f"{path} has no folder 'train'; {_EXPECTED}")
    return folders


def _check_same_classes(path: Path, *splits: tuple[str, Mapping[str, Path]]) -> None:
    """Refuse splits, each a folder's name and its classes, with other classes than each other."""
    for (here, classes), (there, others) in (splits, splits[::-1]):
        only = sorted(classes.keys() - others.keys())
        if only:
            alike = differences([*only, *sorted(others.keys() - classes.keys())])
            raise InvalidDataset(
                f"{path}: {here}/ has the classes {listed(only)}, which {there}/ lacks; both must "
                f"hold the same class folders{''.join(f' ({found})' for found in alike[:1])}"
            )


def _class_folders(folder: Path, root: Path) -> dict[str, Path]:
    return {entry.name: Path(entry.path) for entry in _entries(folder, root) if entry.is_dir()}


def _without_labels(classes: dict[str, Path], folder: Path) -> Path | None:
    """Take the folder of the pictures without a label out of a split's class folders; None if all have one."""
    return classes.pop(UNLABELLED, None if classes else folder)


def _pictures(folder: Path, root: Path, ignored: list[Path], what: str = "class folder") -> list[Path]:
    """A class's pictures in order of file name; everything else is added to ``ignored``."""
    pictures: list[Path] = []
    others: list[Path] = []
    for entry in _entries(folder, root):
        is_picture = entry.name.lower().endswith(PICTURE_SUFFIXES) and entry.is_file()
        (pictures if is_picture else others).append(Path(entry.path))
    if not pictures:
        raise InvalidDataset(
            f"the {what} {folder} is empty: it holds {len(others)} files but no picture "
            f"({', '.join(PICTURE_SUFFIXES)}). Fill it, or remove the class from every split"
        )
    ignored += others
    return pictures
