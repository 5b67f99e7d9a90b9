"""Labels of IDX and NPZ files, all checked to be 0..classes-1, and names of their classes. Light.

Those of an NPZ may be -1, see ``unlabelled``, or left out for a split.

The API process asks while the client still waits: it holds a piece of them at a time, and of what a file announces it
reads a bounded part. Decoding reads them whole when the dataset is prepared.

Legend: N samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.data.headers import Header, Headers, idx_pieces, npz_pieces
from workers.errors import InvalidDataset
from workers.events import Split
from workers.unlabelled import NO_LABEL

Labels = NDArray[np.int64]
Pieces = Callable[[Split], Iterable[NDArray[Any]]]

# ImageNet-21k has 14 million labels of 21,841 classes.
LABELS_MAX = 1 << 25
CLASSES_MAX = 100_000
NAMES_MAX_BYTES = 16 << 20
NAME_MAX_CHARACTERS = 255  # as of a folder


def npz_class_names(
    path: Path, headers: Headers, arrays: Mapping[Split, str], given: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Names of the classes of an ``.npz`` whose headers fit.

    Without an array ``class_names`` they are counted, "0", "1", ... up to the largest training label, or, where not all
    training pictures have one, up to the largest of any split.

    Args:
        arrays: the array that holds the labels of each split that has some.
        given: names that win.

    Returns:
        The names; empty where nothing tells.

    Raises:
        InvalidDataset: damaged, too large, no strings, or too many classes or labels.
    """
    for array in arrays.values():
        (count,) = headers[array].shape
        if count > LABELS_MAX:
            raise InvalidDataset(
                f"{path}: {array} announces {count} labels, at most {LABELS_MAX} are read: split the dataset"
            )
    if given is not None:
        return given
    return _named(path, headers["class_names"]) if "class_names" in headers else _counted(path, arrays)


def check_npz_labels(path: Path, names: Sequence[str], arrays: Mapping[Split, str]) -> dict[Split, int]:
    """Check the labels of each split of an ``.npz``, piece by piece, and count those that are not -1.

    Raises:
        InvalidDataset: damaged, or with labels that are neither -1 nor 0..classes-1, with every class in a training
            split that is labelled throughout.
    """
    return _check(lambda split: npz_pieces(path, arrays[split]), names, _npz_places(path, arrays), path)


def npz_labels(path: Path, names: Sequence[str], arrays: Mapping[Split, str]) -> dict[Split, Labels]:
    """Read and check the labels int64 [N] of each split of an ``.npz``.

    Raises:
        InvalidDataset: as ``check_npz_labels``.
    """
    return _whole(lambda split: npz_pieces(path, arrays[split]), names, _npz_places(path, arrays), path)


def check_idx_labels(paths: Mapping[Split, Path], names: Sequence[str]) -> None:
    """Check the labels of each split in its IDX file, piece by piece.

    Raises:
        InvalidDataset: as ``check_npz_labels``.
    """
    _check(lambda split: idx_pieces(paths[split]), names, paths, paths["train"])


def idx_labels(paths: Mapping[Split, Path], names: Sequence[str]) -> dict[Split, Labels]:
    """Read and check the labels int64 [N] of each split from its IDX file.

    Raises:
        InvalidDataset: as ``check_npz_labels``.
    """
    return _whole(lambda split: idx_pieces(paths[split]), names, paths, paths["train"])


def check_labels(labels_N: Labels, classes: int, where: object, least: int = 0) -> None:
    """Raise InvalidDataset unless all are ``least``..classes-1."""
    wrong = labels_N[(labels_N < least) | (labels_N >= classes)]
    if len(wrong):
        raise InvalidDataset(f"{where} holds the label {wrong[0]}; labels are 0..{classes - 1}")


def _npz_places(path: Path, arrays: Mapping[Split, str]) -> dict[Split, str]:
    return {split: f"{path}: {array}" for split, array in arrays.items()}


def _whole(pieces: Pieces, names: Sequence[str], where: Mapping[Split, object], path: Path) -> dict[Split, Labels]:
    labels = {split: np.concatenate([piece.astype(np.int64) for piece in pieces(split)]) for split in where}
    _check(lambda split: [labels[split]], names, where, path)
    return labels


def _check(pieces: Pieces, names: Sequence[str], where: Mapping[Split, object], path: Path) -> dict[Split, int]:
    """Check each split; returns how many labels of it are not -1."""
    labelled: dict[Split, int] = {}
    for split in where:
        has_class_N, samples, labelled[split] = np.zeros(len(names), dtype=bool), 0, 0
        for piece in pieces(split):
            labels_N = piece.astype(np.int64, copy=False)
            check_labels(labels_N, len(names), where[split], least=NO_LABEL)
            labels_N = labels_N[labels_N >= 0]
            has_class_N[labels_N] = True
            samples, labelled[split] = samples + len(piece), labelled[split] + len(labels_N)
        if split == "train" and labelled[split] == samples:
            _check_every_class(has_class_N, names, path)
    return labelled


def _check_every_class(has_class_N: NDArray[np.bool_], names: Sequence[str], where: Path) -> None:
    missing = np.flatnonzero(np.logical_not(has_class_N))
    if len(missing):
        first, lowest = int(missing[0]), int(has_class_N.argmax())
        advice = f": they begin at {lowest}, so subtract {lowest} from those of every split" if lowest else ""
        raise InvalidDataset(
            f"{where}: class {first} ({names[first]!r}) has no training picture ({len(missing)} of "
            f"{len(names)} classes have none); labels must be 0..classes-1 without gaps{advice}"
        )


def _counted(path: Path, arrays: Mapping[Split, str]) -> tuple[str, ...]:
    count, largest, least = _extent(path, arrays["train"]) if "train" in arrays else (0, NO_LABEL, NO_LABEL)
    if least == NO_LABEL:
        largest = max((_extent(path, array)[1] for array in arrays.values()), default=NO_LABEL)
        if largest == NO_LABEL:
            return ()
        if largest == 0:
            raise InvalidDataset(f"{path}: all labels are 0; labels are 0..classes-1, with at least two classes")
    elif not 1 <= largest < count:
        raise InvalidDataset(
            f"{path}: the largest of {count} training labels is {largest}; labels must be "
            "0..classes-1 without gaps, with at least two classes"
        )
    _check_number(largest + 1, path)
    return tuple(str(label) for label in range(largest + 1))


def _extent(path: Path, array: str) -> tuple[int, int, int]:
    """(number of labels, the largest, the least, or 0 where that is above it)."""
    count, largest, least = 0, NO_LABEL, 0
    for piece in npz_pieces(path, array):
        count, largest, least = count + len(piece), max(largest, int(piece.max())), min(least, int(piece.min()))
    return count, largest, least


def _named(path: Path, header: Header) -> tuple[str, ...]:
    if header.dtype.kind != "U" or len(header.shape) != 1:
        raise InvalidDataset(f"{path}: class_names is {header}, not strings [C]")
    _check_number(header.shape[0], path)
    if header.size_bytes > NAMES_MAX_BYTES:
        raise InvalidDataset(
            f"{path}: class_names has {header.size_bytes} bytes, at most {NAMES_MAX_BYTES} are read: each takes as "
            f"many as the longest, {header.dtype.itemsize}, so shorten that"
        )
    try:
        names = tuple(str(name) for piece in npz_pieces(path, "class_names") for name in piece)
    except (ValueError, SystemError) as error:  # a number that is no character
        raise InvalidDataset(f"{path}: class_names cannot be read: {error}") from error
    longest = max(map(len, names), default=0)
    if longest > NAME_MAX_CHARACTERS:
        raise InvalidDataset(
            f"{path}: a class name has {longest} characters, at most {NAME_MAX_CHARACTERS} are allowed: shorten it"
        )
    return names


def _check_number(classes: int, path: Path) -> None:
    if classes > CLASSES_MAX:
        raise InvalidDataset(f"{path} has {classes} classes, at most {CLASSES_MAX} are allowed")
