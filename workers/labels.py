"""Labels of the array files that data sets come in: read whole, and all checked to be 0..classes-1. Light.

The API process asks while the client still waits, ``workers.decoding`` when the data set is prepared.

Legend: N samples.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.array_files import DAMAGED, idx_content
from workers.errors import InvalidDataset
from workers.events import Split

Labels = NDArray[np.int64]


def npz_labels(path: Path, names: Sequence[str] | None) -> tuple[dict[Split, Labels], tuple[str, ...]]:
    """Labels int64 [N] of each split of an ``.npz`` whose headers fit, and the names of the classes.

    Args:
        names: None counts them, "0", "1", ... up to the largest training label.

    Raises:
        InvalidDataset: damaged, or with labels that are not 0..classes-1 with every class in the training split.
    """
    labels: dict[Split, Labels] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for split in ("train", "test"):
                labels[split] = arrays[f"{split}_labels"].astype(np.int64)
    except DAMAGED as error:
        raise InvalidDataset(f"{path} cannot be read: {error}") from error
    found = _counted_names(labels["train"], path) if names is None else tuple(names)
    _check(labels, found, {split: f"{path}: {split}_labels" for split in labels}, path)
    return labels, found


def idx_labels(paths: Mapping[Split, Path], names: Sequence[str]) -> dict[Split, Labels]:
    """Labels int64 [N] of each split from its IDX file.

    Raises:
        InvalidDataset: as ``npz_labels``.
    """
    labels: dict[Split, Labels] = {split: idx_content(path).astype(np.int64) for split, path in paths.items()}
    _check(labels, names, paths, paths["train"])
    return labels


def check_labels(labels_N: Labels, classes: int, where: object) -> None:
    """Raises InvalidDataset unless all are 0..classes-1."""
    wrong = labels_N[(labels_N < 0) | (labels_N >= classes)]
    if len(wrong):
        raise InvalidDataset(f"{where} holds the label {wrong[0]}; labels are 0..{classes - 1}")


def _check(
    labels: Mapping[Split, Labels], names: Sequence[str], where: Mapping[Split, object], train_path: Path
) -> None:
    for split, labels_N in labels.items():
        check_labels(labels_N, len(names), where[split])
        if split == "train":
            _check_every_class(labels_N, names, train_path)


def _check_every_class(labels_N: Labels, names: Sequence[str], where: Path) -> None:
    missing = np.setdiff1d(np.arange(len(names)), labels_N)
    if len(missing):
        first, lowest = int(missing[0]), int(labels_N.min()) if len(labels_N) else 0
        advice = f": they begin at {lowest}, so subtract {lowest} from those of both splits" if lowest else ""
        raise InvalidDataset(
            f"{where}: class {first} ({names[first]!r}) has no training picture ({len(missing)} of "
            f"{len(names)} classes have none); labels must be 0..classes-1 without gaps{advice}"
        )


def _counted_names(labels_N: Labels, path: Path) -> tuple[str, ...]:
    largest = int(labels_N.max())
    if not 1 <= largest < len(labels_N):
        raise InvalidDataset(
            f"{path}: the largest of {len(labels_N)} training labels is {largest}; labels must be "
            "0..classes-1 without gaps, with at least two classes"
        )
    return tuple(str(label) for label in range(largest + 1))
