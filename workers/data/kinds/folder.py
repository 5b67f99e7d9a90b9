"""Datasets in folders of image files, one folder per class."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from workers.data.class_names import check_class_names, check_told_apart
from workers.data.confinement import inside, root_folder
from workers.data.kinds.base import SPLIT_NAMES, Option, Source
from workers.data.kinds.encoded import EncodedPictures
from workers.errors import InvalidDataset
from workers.texts import composed, differences, listed

if TYPE_CHECKING:
    from workers.data.encoded_rows import EncodedRows
    from workers.events import Split

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_EXPECTED = "expected train/CLASS/*.jpg (or another picture format), test/CLASS/* and, if there is one, val/CLASS/*"


class FolderDataset(EncodedPictures):
    """``path/train/CLASS/*.jpg`` (or png ...), ``path/val/CLASS/*`` and ``path/test/CLASS/*``; classes alphabetically.

    The folders of the splits may be called ``train`` or ``training``, ``val``, ``valid`` or ``validation``, ``test`` or
    ``testing``, in any case; all but the training split may be missing.

    Attributes:
        storage: ``decoded`` keeps a decoded copy, which is mapped; ``files`` keeps none and decodes a
        picture whenever it is wanted, for data larger than memory or disk. Both give the same bits,
        and so the same caches and weights.
    """

    kinds: ClassVar[Mapping[str, str]] = {
        "folder": "`train/CLASS/*.jpg`, `test/CLASS/*` and, if there is one, `val/CLASS/*` (`valid`, `validation`; "
        "in any case); classes alphabetically"
    }
    options: ClassVar[Mapping[str, Option]] = {
        **EncodedPictures.options,
        "storage": Option("Of a folder: keep a decoded copy, or decode whenever needed."),
    }
    sought: ClassVar[str] = "folders of pictures"

    kind: Literal["folder"] = "folder"
    storage: Literal["decoded", "files"] = "decoded"

    @classmethod
    def candidates(cls, entry: Path, name: str) -> Iterator[Self]:
        """Yield a folder with a training split."""
        if entry.is_dir() and any(found.name.lower() in SPLIT_NAMES["train"] for found in entry.iterdir()):
            yield cls(path=name)

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
        names = sorted(classes["train"])
        for split, folder in folders.items():
            check_told_apart(sorted(classes[split]), folder)
        # A class is spelt as train/ spells it: copied by another machine, test/ may be in another normal form.
        spelt = {composed(name): name for name in names}
        for split in folders:
            classes[split] = {spelt.get(composed(name), name): folder for name, folder in classes[split].items()}
            _check_same_classes(path, (folders["train"].name, classes["train"]), (folders[split].name, classes[split]))
        check_class_names(names, path)
        ignored: list[Path] = []
        files: dict[Split, tuple[Path, ...]] = {}
        counts: dict[Split, tuple[int, ...]] = {}
        for split in folders:
            pictures = [_pictures(classes[split][name], root, ignored) for name in names]
            files[split] = tuple(picture for group in pictures for picture in group)
            counts[split] = tuple(len(group) for group in pictures)
        return Source(
            spec=self,
            path=path,
            samples={split: len(found) for split, found in files.items()},
            classes=len(names),
            class_names=tuple(names),
            files=files,
            class_counts=counts,
            ignored=tuple(ignored),
        )

    def encoded(self, source: Source, split: "Split") -> "EncodedRows":
        """List in order of class name, then file name."""
        import numpy as np

        from workers.data.encoded_rows import rows_of_files

        assert source.path is not None
        counts = source.class_counts[split]
        labels_N = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        return rows_of_files(source.files[split], source.path, labels_N)


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


def _pictures(folder: Path, root: Path, ignored: list[Path]) -> list[Path]:
    """A class's pictures in order of file name; everything else is added to ``ignored``."""
    pictures: list[Path] = []
    others: list[Path] = []
    for entry in _entries(folder, root):
        is_picture = entry.name.lower().endswith(PICTURE_SUFFIXES) and entry.is_file()
        (pictures if is_picture else others).append(Path(entry.path))
    if not pictures:
        raise InvalidDataset(
            f"the class folder {folder} is empty: it holds {len(others)} files but no picture "
            f"({', '.join(PICTURE_SUFFIXES)}). Fill it, or remove the class from every split"
        )
    ignored += others
    return pictures
