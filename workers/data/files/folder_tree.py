"""Folders of pictures: their splits, class folders and files, from directory listings alone. Light."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from workers.data.confinement import inside
from workers.data.dataset_kind import SPLIT_NAMES
from workers.data.files.linked_files import FoundFiles
from workers.errors import InvalidDataset
from workers.texts import listed

if TYPE_CHECKING:
    from workers.events import Split

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Of pictures without a label, beside class folders.
UNLABELLED = "_unlabelled"
EXPECTED = (
    "expected train/CLASS/*.jpg (or another picture format), test/CLASS/* and, if there is one, val/CLASS/*; or, "
    "without splits, CLASS/*.jpg. Pictures without labels lie in train/ itself, if it has no class folders, or in "
    f"train/{UNLABELLED}/ beside them"
)
# Of class folders in each other; a link to a folder above would go on for ever.
_DEPTH_MAX = 16


def may_hold_classes(folder: Path) -> bool:
    """Whether a folder has one named as a training split, or a first one with a picture in it."""
    entries = _listed(folder)
    if any(entry.name.lower() in SPLIT_NAMES["train"] for entry in entries):
        return True
    first = next((entry for entry in entries if entry.is_dir()), None)
    return first is not None and any(map(_is_picture, _listed(Path(first.path))))


def split_folders(path: Path, root: Path, *, nested: bool) -> "tuple[dict[Split, Path], list[str]]":
    """The folder of each split that is there, and the names of the other folders beside them.

    Where no folder has a split's name, all of ``path`` is the training split, if it may hold two classes.

    Args:
        nested: whether one folder may hold several classes.

    Raises:
        InvalidDataset: no folder, two folders for one split, or other splits but no ``train``.
    """
    if not path.is_dir():
        advice = ": unpack an archive (tar shards are of the kind webdataset)" if path.is_file() else ""
        raise InvalidDataset(f"{path} is not a folder{advice}; {EXPECTED}")
    found = [entry for entry in _entries(path, root) if entry.is_dir()]
    folders: dict[Split, Path] = {}
    for split, names in SPLIT_NAMES.items():
        of_split = [Path(entry.path) for entry in found if entry.name.lower() in names]
        if len(of_split) > 1:
            raise InvalidDataset(
                f"{path} has the folders {of_split[0].name!r} and {of_split[1].name!r}, which both mean the {split} "
                "split: leave one of them"
            )
        if of_split:
            folders[split] = of_split[0]
    others = [entry.name for entry in found if Path(entry.path) not in folders.values()]
    if not folders and len(others) >= (1 if nested else 2):
        return {"train": path}, []
    if "train" not in folders:
        raise InvalidDataset(f"{path} has no folder 'train'; {EXPECTED}{_ambiguous(folders, others)}")
    return folders, others


def _ambiguous(folders: "Mapping[Split, Path]", others: list[str]) -> str:
    if not folders or not others:
        return ""
    splits = [repr(folder.name) for folder in folders.values()]
    return (
        f". {listed(splits)} may be a split or a class beside {listed(map(repr, others))}: for classes without splits "
        "put all class folders into a folder 'train'; for splits put those of the training split there"
    )


def class_folders(folder: Path, root: Path, *, nested: bool) -> dict[str, Path]:
    """Class folders of a split by the name of their class: the folders in it, or all below it that hold pictures.

    That of the pictures without a label is among them, under its name.

    Raises:
        InvalidDataset: nested too deep, or outside ``root``.
    """
    if nested:
        return dict(_nested(folder, root, ""))
    return {entry.name: Path(entry.path) for entry in _entries(folder, root) if entry.is_dir()}


def _nested(folder: Path, root: Path, name: str) -> Iterator[tuple[str, Path]]:
    """A folder with pictures, or without folders, is a class; its name is its path below the split."""
    if name.count("/") >= _DEPTH_MAX:
        raise InvalidDataset(
            f"{folder} is deeper than {_DEPTH_MAX} folders below its split: is there a link to a folder above it?"
        )
    entries = _entries(folder, root)
    below = [entry for entry in entries if entry.is_dir()]
    if name and (not below or any(_is_picture(entry) for entry in entries)):
        yield name, folder
    for entry in below:
        if not name and entry.name == UNLABELLED:
            yield entry.name, Path(entry.path)
            continue
        yield from _nested(Path(entry.path), root, f"{name}/{entry.name}" if name else entry.name)


def holds_pictures(folder: Path) -> bool:
    """Whether a picture lies in a folder itself."""
    return any(map(_is_picture, _listed(folder)))


def pictures_beside_classes(folder: Path) -> list[Path]:
    """Pictures in the folder of a split itself, in order of name."""
    return [Path(entry.path) for entry in _listed(folder) if _is_picture(entry)]


def check_flat(folder: Path) -> None:
    """Raise InvalidDataset if the folder of the pictures without a label has folders in it."""
    below = [entry.name for entry in _listed(folder) if entry.is_dir()]
    if below:
        raise InvalidDataset(
            f"{folder} holds the folders {listed(map(repr, below))}: put pictures without labels into {UNLABELLED} "
            "itself"
        )


def add_pictures(
    folder: Path, *, root: Path, found: FoundFiles, ignored: list[Path], nested: bool, what: str = "class folder"
) -> int:
    """Add a class's pictures to ``found``, in order of file name, all else to ``ignored``; return how many there are.

    Args:
        what: the folder is, for messages.

    Raises:
        InvalidDataset: there is none.
    """
    entries = _entries(folder, root)
    pictures = [entry for entry in entries if _is_picture(entry)]
    # In nested classes, a folder is a class of its own.
    others = [Path(e.path) for e in entries if not _is_picture(e) and not (nested and e.is_dir())]
    if not pictures:
        raise InvalidDataset(
            f"the {what} {folder} is empty: it holds {len(others)} files but no picture "
            f"({', '.join(PICTURE_SUFFIXES)}). Fill it, or remove the class from every split"
            + _advice_for_nested(entries, nested=nested)
        )
    for entry in pictures:
        found.add(entry)
    ignored += others
    return len(pictures)


def _advice_for_nested(entries: list[os.DirEntry[str]], *, nested: bool) -> str:
    if nested or not any(entry.is_dir() for entry in entries):
        return ""
    return '; it holds folders, which are classes of their own with `"classes": "nested"`'


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(PICTURE_SUFFIXES) and entry.is_file()


def _entries(folder: Path, root: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder in order of name, hidden ones left out, links checked."""
    entries = _listed(folder)
    for entry in entries:
        if entry.is_symlink():
            inside(Path(entry.path), root)
    return entries


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
