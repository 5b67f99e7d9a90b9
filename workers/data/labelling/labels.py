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
from workers.data.labelling.class_names import NAME_MAX_CHARACTERS
from workers.data.labelling.label_values import Classes, check_number, classes_of, distinct, zero_based_note
from workers.errors import InvalidDataset
from workers.events import Split
from workers.unlabelled import NO_LABEL, numbered

Labels = NDArray[np.int64]
Pieces = Callable[[Split], Iterable[NDArray[Any]]]

# ImageNet-21k has 14 million labels of 21,841 classes.
LABELS_MAX = 1 << 25
NAMES_MAX_BYTES = 16 << 20
_NONE = np.empty(0, np.int64)


def npz_classes(
    path: Path, headers: Headers, arrays: Mapping[Split, str], given: Sequence[str] | None = None
) -> Classes:
    """Classes of an ``.npz`` whose headers fit.

    Without an array ``class_names`` they are called by their labels. Where not all training pictures have one, classes
    are 0, 1, ... up to the largest label of any split; there are none where nothing tells.

    Args:
        arrays: the array that holds the labels of each split that has some.
        given: names that win.

    Returns:
        The names; empty where nothing tells.

    Raises:
        InvalidDataset: damaged, too large, no strings, fewer than two classes, or too many classes or labels.
    """
    for array in arrays.values():
        count = headers[array].shape[0]
        if count > LABELS_MAX:
            raise InvalidDataset(
                f"{path}: {array} announces {count} labels, at most {LABELS_MAX} are read: split the dataset"
            )
    names = given
    if names is None and "class_names" in headers:
        names = _named(path, headers["class_names"])
    values, count = distinct(npz_pieces(path, arrays["train"]), path) if "train" in arrays else (_NONE, 0)
    if not len(values) or values[0] == NO_LABEL:
        return _of_some(path, arrays, names)
    if names is None:
        check_labels(values[values < 0], int((values >= 0).sum()), f"{path}: {arrays['train']}")
        if len(values) < 2:
            raise InvalidDataset(
                f"{path}: all {count} training labels are {values[0]}: at least two classes are needed"
            )
    return classes_of(values, names)


def _of_some(path: Path, arrays: Mapping[Split, str], names: Sequence[str] | None) -> Classes:
    """Classes of an ``.npz`` whose training pictures have no labels, or not all of them."""
    said: tuple[str, ...] = ()
    if names is None:
        every = [distinct(npz_pieces(path, array), path)[0] for array in arrays.values()]
        largest = max((int(values_C[-1]) for values_C in every if len(values_C)), default=NO_LABEL)
        if largest == 0:
            raise InvalidDataset(f"{path}: all labels are 0; labels are 0..classes-1, with at least two classes")
        check_number(largest + 1, path)
        names, said = numbered(largest + 1), zero_based_note(every)
    return Classes(tuple(names), np.arange(len(names), dtype=np.int64), said)


def check_npz_labels(path: Path, classes: Classes, arrays: Mapping[Split, str]) -> dict[Split, int]:
    """Check the labels of each split of an ``.npz``, piece by piece, and count those that are not -1.

    Raises:
        InvalidDataset: damaged, with labels of no class, or without a picture of a class in a training split that is
            labelled throughout.
    """
    return check_pieces(_npz_pieces(path, classes, arrays), classes.names, _npz_places(path, arrays), path)


def npz_labels(path: Path, classes: Classes, arrays: Mapping[Split, str]) -> dict[Split, Labels]:
    """Read, number and check the labels int64 [N] of each split of an ``.npz``.

    Raises:
        InvalidDataset: as ``check_npz_labels``.
    """
    return _whole(_npz_pieces(path, classes, arrays), classes.names, _npz_places(path, arrays), path)


def check_idx_labels(paths: Mapping[Split, Path], names: Sequence[str]) -> None:
    """Check the labels of each split in its IDX file, piece by piece.

    Raises:
        InvalidDataset: as ``check_npz_labels``.
    """
    check_pieces(lambda split: idx_pieces(paths[split]), names, paths, paths["train"])


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


def _npz_pieces(path: Path, classes: Classes, arrays: Mapping[Split, str]) -> Pieces:
    places = _npz_places(path, arrays)
    return lambda split: (
        # One column is what MedMNIST has.
        classes.number(piece.reshape(-1), places[split])
        for piece in npz_pieces(path, arrays[split])
    )


def _npz_places(path: Path, arrays: Mapping[Split, str]) -> dict[Split, str]:
    return {split: f"{path}: {array}" for split, array in arrays.items()}


def _whole(pieces: Pieces, names: Sequence[str], where: Mapping[Split, object], path: Path) -> dict[Split, Labels]:
    labels = {split: np.concatenate([piece.astype(np.int64) for piece in pieces(split)]) for split in where}
    check_pieces(lambda split: [labels[split]], names, where, path)
    return labels


def check_pieces(pieces: Pieces, names: Sequence[str], where: Mapping[Split, object], path: Path) -> dict[Split, int]:
    """Check labels 0..classes-1, or -1, of each split, piece by piece; return how many of them are not -1.

    Args:
        pieces: the labels of a split.
        where: they are, for messages.
        path: of the dataset.

    Raises:
        InvalidDataset: others are among them, or a class has no picture in a training split that is labelled
            throughout.
    """
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


def _named(path: Path, header: Header) -> tuple[str, ...]:
    if header.dtype.kind != "U" or len(header.shape) != 1:
        raise InvalidDataset(f"{path}: class_names is {header}, not strings [C]")
    check_number(header.shape[0], path)
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
