"""Labels as files have them, integers or names, and the class that each of them stands for. Light.

Integers are not always 0..classes-1: some count from 1, some have gaps. The values that training pictures have are
numbered in ascending order, and the dataset's notes say so where that changes a label. Names are numbered in the order
of a list that comes with the dataset, or else alphabetically, as those of folders are.

Legend: N samples, C classes.
"""

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from workers.errors import InvalidDataset
from workers.texts import listed, shortened
from workers.unlabelled import NO_LABEL

if TYPE_CHECKING:
    from workers.events import Split

Values = NDArray[np.int64]

CLASSES_MAX = 100_000


@dataclass(frozen=True, eq=False)
class Classes:
    """Classes of a dataset.

    Attributes:
        names: in the order of their numbers, 0..C-1.
        values_C: int64, ascending: the label in the file of each class.
        said: sentences about them that hold whatever the labels are.
    """

    names: tuple[str, ...]
    values_C: Values
    said: tuple[str, ...] = ()

    @property
    def are_numbered(self) -> bool:
        """Whether the labels in the file are 0..C-1 already."""
        return not len(self.values_C) or (int(self.values_C[0]), int(self.values_C[-1])) == (0, len(self.values_C) - 1)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences of ``said``, and one where labels in the file are not 0..C-1."""
        if self.are_numbered:
            return self.said
        pairs = [f"{value} is class {label}" for label, value in enumerate(self.values_C[:10].tolist())]
        more = f", ... ({len(self.values_C)} in all)" if len(self.values_C) > 10 else ""
        return (
            *self.said,
            f"the labels in the file are not 0..{len(self.names) - 1}, and were numbered in ascending order: "
            f"{', '.join(pairs)}{more}",
        )

    def number(self, labels_N: NDArray[Any], where: object) -> Values:
        """Class 0..C-1 of each label, int64 [N]; a label that is -1 stays -1.

        Raises:
            InvalidDataset: a label that no training picture has. Where labels are 0..C-1 already they are given back
                unchecked.
        """
        labels = labels_N.astype(np.int64, copy=False)
        if self.are_numbered:
            return labels
        places = np.minimum(np.searchsorted(self.values_C, labels), len(self.values_C) - 1)
        unknown = labels[(self.values_C[places] != labels) & (labels != NO_LABEL)]
        if len(unknown):
            raise InvalidDataset(
                f"{where} holds the label {unknown[0]}, which no training picture has: those are "
                f"{listed(map(str, self.values_C.tolist()))}"
            )
        return np.where(labels == NO_LABEL, NO_LABEL, places)


@dataclass(frozen=True, eq=False)
class NamedClasses:
    """Classes whose labels are their names.

    Attributes:
        names: in the order of their numbers, 0..C-1.
    """

    names: tuple[str, ...]
    notes: ClassVar[tuple[str, ...]] = ()

    def number(self, labels_N: Iterable[str | None], where: object) -> Values:
        """Class 0..C-1 of each label, int64 [N]; -1 of None, which is no label.

        Raises:
            InvalidDataset: a label that is none of the names.
        """
        try:
            return np.array([-1 if label is None else self._numbers[label] for label in labels_N], dtype=np.int64)
        except KeyError as error:
            raise InvalidDataset(
                f"{where} holds the label {shortened(repr(error.args[0]))}, which is none of the classes: those are "
                f"{listed(self.names)}"
            ) from None

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}


def classes_of_names(found: Collection[str], names: Sequence[str] | None, where: object) -> NamedClasses:
    """Classes of labels that are names.

    Args:
        found: the labels that training pictures have.
        names: in the order of their numbers, where the dataset lists them; None is alphabetical.

    Raises:
        InvalidDataset: too many classes.
    """
    check_number(len(found), where)
    return NamedClasses(tuple(sorted(found) if names is None else names))


def classes_of(values_C: Values, names: Sequence[str] | None) -> Classes:
    """Classes of the labels that training pictures have.

    Args:
        values_C: those labels, ascending and different, as ``distinct`` gives them.
        names: of the classes, where the dataset has them. They are names of 0..C-1, unless the labels are 1..C.
    """
    if names is None:
        return Classes(tuple(map(str, values_C.tolist())), values_C)
    counted = np.arange(len(names), dtype=np.int64)
    return Classes(tuple(names), counted + 1 if np.array_equal(values_C, counted + 1) else counted)


def distinct(pieces: Iterable[NDArray[Any]], where: object) -> tuple[Values, int]:
    """Different labels, ascending, and how many labels there are in all; no more than a piece is in memory.

    Raises:
        InvalidDataset: too many classes.
    """
    values, count = np.zeros(0, np.int64), 0
    for piece in pieces:
        values, count = np.union1d(values, piece.astype(np.int64, copy=False)), count + piece.size
        check_number(len(values), where)
    return values, count


def trained_values(found: "Mapping[Split, Values]", names: Sequence[str] | None, where: object) -> Values:
    """Labels that stand for the classes: int64, ascending, empty where no picture has one and nothing names them.

    They are those of the training pictures; where not all of these have one, 0 up to the largest of any split or to the
    last name, for a class may be without a labelled picture.

    Args:
        found: different labels of each split that has some, ascending; -1 stands for none.
        names: of the classes, where they are known.

    Raises:
        InvalidDataset: too many classes.
    """
    trained = found.get("train")
    if trained is not None and NO_LABEL not in trained:
        return trained
    largest = max((int(values[-1]) for values in found.values()), default=NO_LABEL)
    check_number(largest + 1, where)
    return np.arange(largest + 1 if names is None else len(names), dtype=np.int64)


def zero_based_note(found: Iterable[Values]) -> tuple[str, ...]:
    """A sentence where labels that are taken as 0..C-1 lack 0; else none.

    Args:
        found: different labels of each split that has some; -1 stands for none.
    """
    lowest = min((int(values_C[values_C >= 0].min()) for values_C in found if (values_C >= 0).any()), default=0)
    if not lowest:
        return ()
    lacking = "class 0 has" if lowest == 1 else f"classes 0 to {lowest - 1} have"
    return (
        f"{lacking} no labelled picture; labels are taken as 0-based: if they count from {lowest}, subtract {lowest} "
        "from those of every split, but for -1",
    )


def trained_names(found: "Mapping[Split, Collection[str | None]]") -> set[str]:
    """Labels that are names of the classes: those of train, or of all splits where not all training pictures have one.

    Args:
        found: different labels of each split that has some; None stands for none.
    """
    trained = found.get("train", {None})
    chosen = set().union(*found.values()) if None in trained else set(trained)
    return {label for label in chosen if label is not None}


def check_number(classes: int, where: object) -> None:
    """Raise InvalidDataset if there are more classes than a dataset may have."""
    if classes > CLASSES_MAX:
        raise InvalidDataset(f"{where} has {classes} classes, at most {CLASSES_MAX} are allowed")
