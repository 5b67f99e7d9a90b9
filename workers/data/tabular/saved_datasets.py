"""Folders that ``datasets.Dataset.save_to_disk`` and ``DatasetDict.save_to_disk`` write: their splits and Arrow files.

A ``dataset_dict.json`` names the splits, each a folder; a folder's ``state.json`` names its files in their order.
"""

import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from workers.data.confinement import inside, resolve, root_folder
from workers.data.dataset_kind import SPLIT_NAMES, SPLITS
from workers.data.files.split_files import SplitFiles
from workers.errors import InvalidDataset
from workers.texts import listed, storable

if TYPE_CHECKING:
    from workers.events import Split

SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"
_JSON_MAX_BYTES = 16 << 20


def find_saved_files(path: str, data_root: Path) -> SplitFiles:
    """Find the Arrow files of a saved dataset at a client's path below ``data_root``.

    One without splits is the training split.

    Raises:
        InvalidDataset: it is none, a file is missing, or a split's name is none of this project's.
    """
    folder, root = resolve(path, data_root), root_folder(data_root)
    if not (folder / SPLITS_FILE).is_file():
        if not (folder / STATE_FILE).is_file():
            raise InvalidDataset(
                f"{folder} has neither {SPLITS_FILE} nor {STATE_FILE}: give the folder that `save_to_disk` of the "
                "package datasets has written"
            )
        return SplitFiles(folder, {"train": _files(folder, root)})
    names = _read(inside(folder / SPLITS_FILE, root)).get("splits")
    found: dict[Split, tuple[Path, ...]] = {}
    names = names if isinstance(names, list) else []
    for name in names:
        split = next((split for split, known in SPLIT_NAMES.items() if name in known), None)
        if split is None or split in found:
            raise InvalidDataset(
                f"{folder / SPLITS_FILE} names the splits {listed(map(str, names))}: each must be one of "
                f"{listed(name for known in SPLIT_NAMES.values() for name in known)}, and each split there once"
            )
        found[split] = _files(folder / str(name), root)
    if "train" not in found:
        raise InvalidDataset(f"{folder / SPLITS_FILE} names no training split")
    return SplitFiles(folder, {split: found[split] for split in SPLITS if split in found})


def _files(folder: Path, root: Path) -> tuple[Path, ...]:
    state = _read(inside(folder / STATE_FILE, root))
    if state.get("_indices_data_files"):
        raise InvalidDataset(
            f"{folder / STATE_FILE} names a file of indices, as old versions of the package datasets did: load it and "
            "save it again"
        )
    entries = state.get("_data_files")
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidDataset(f"{folder / STATE_FILE} names no files of data (_data_files)")
    outside = [str(name) for name in names if not _is_below(str(name))]
    if outside:
        raise InvalidDataset(
            f"{folder / STATE_FILE} names {listed(map(repr, outside))}: files of data lie in the same folder; save the "
            "dataset again"
        )
    files = tuple(folder / str(name) for name in names)
    for file in files:
        if not inside(file, root).is_file():
            raise InvalidDataset(f"{file} is missing, which {STATE_FILE} names: complete the folder")
    return files


def _is_below(name: str) -> bool:
    """Whether a name is one of a file below a folder, and can be one at all."""
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\0" in name or storable(name) != name)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size."""
    try:
        with path.open("rb") as file:
            data = file.read(_JSON_MAX_BYTES + 1)
        found = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidDataset(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidDataset(f"{path} holds no JSON object")
    return found
