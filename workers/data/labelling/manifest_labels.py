"""Labels of the pictures that a manifest lists, and the classes that they stand for. It loads no numpy by itself."""

import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workers.errors import InvalidDataset
from workers.texts import listed

if TYPE_CHECKING:
    from workers.data.labelling.label_values import Classes, NamedClasses
    from workers.events import Split

_NONE = -1
_INTEGER = re.compile(r"0|[1-9][0-9]{0,17}")
# As pandas writes integers beside rows without one.
_WHOLE = re.compile(r"(0|[1-9][0-9]{0,15})\.0")

Numbered = tuple[tuple[str, ...], list[int], tuple[str, ...]]


class ManifestLabels:
    """Labels as a manifest has them, by split, and their classes once ``number`` has told them."""

    def __init__(self) -> None:
        # Each distinct label in the order of its first row, and its place there for every picture; -1 without one.
        self._texts: dict[str, int] = {}
        self._places: dict[Split, array[int]] = {}
        self._class_of: list[int] = []
        self._classes = 0

    def add(self, split: "Split", label: str | None) -> None:
        """Add the label of the next picture of a split; None of one without."""
        place = _NONE if label is None else self._texts.setdefault(label, len(self._texts))
        self._places.setdefault(split, array("q")).append(place)

    def number(self, given: Sequence[str] | None, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Give every label its class; returns the names of the classes, and sentences about what is not plain.

        Args:
            given: names of the classes, which win.
            path: of the manifest.

        Returns:
            The names, empty where nothing tells, and the sentences.

        Raises:
            InvalidDataset: labels of no class, or classes without a training picture where all of these have one.
        """
        texts = list(self._texts)
        trained = {texts[place] for place in set(self._places["train"]) if place != _NONE}
        of_all = given is None and _NONE not in self._places["train"]
        names, self._class_of, notes = self._all_labelled(trained, path) if of_all else self._some(given, path)
        self._classes = len(names)
        return names, notes

    def of(self, split: "Split") -> "array[int]":
        """Class of each picture of a split, or -1."""
        return array("q", (place if place == _NONE else self._class_of[place] for place in self._places[split]))

    def counts(self, labels: Sequence[int]) -> tuple[int, ...]:
        """Pictures of each class among these labels of a split."""
        counts = [0] * self._classes
        for label in labels:
            if label != _NONE:
                counts[label] += 1
        return tuple(counts)

    def _all_labelled(self, trained: set[str], path: Path) -> Numbered:
        """Labels of training pictures that all have one, in their order."""
        others = [text for text in self._texts if text not in trained]
        if others:
            raise InvalidDataset(
                f"{path}: {len(others)} labels have no training picture: {listed(map(repr, others))}; every class "
                "needs one"
            )
        if not all(_INTEGER.fullmatch(text) for text in self._texts):
            return _numbered(sorted(self._texts), self._texts)
        names, class_of, _ = _numbered(sorted(self._texts, key=int), self._texts)
        if int(names[-1]) == len(names) - 1:
            return names, class_of, ()
        note = (
            f"the labels {names[0]} to {names[-1]} have gaps or do not begin at 0: they stand, in their order, for the "
            f"classes 0 to {len(names) - 1}, whose names are the labels"
        )
        return names, class_of, (note,)

    def _some(self, given: Sequence[str] | None, path: Path) -> Numbered:
        """Labels beside pictures without one, or beside names that the client gives; as those of other kinds."""
        import numpy as np

        from workers.data.labelling.label_values import classes_of_names, trained_names
        from workers.data.labelling.labels import check_pieces

        texts = list(self._texts)
        found = {
            split: {None if place == _NONE else texts[place] for place in set(places)}
            for split, places in self._places.items()
        }
        classes: Classes | NamedClasses
        if all(_INTEGER.fullmatch(text) or _WHOLE.fullmatch(text) for text in texts):
            classes = _integers(found, given, path)
            values = np.array([_integer(text) for text in texts], dtype=np.int64)
            numbers = classes.number(values, path)
        else:
            classes = classes_of_names(trained_names(found), given, path)
            numbers = classes.number(texts, path)
        self._class_of = numbers.tolist()
        # The place of a picture without a label is -1, and so its label.
        pieces = {split: np.append(numbers, _NONE)[np.asarray(places)] for split, places in self._places.items()}
        check_pieces(lambda split: [pieces[split]], classes.names, dict.fromkeys(pieces, path), path)
        return classes.names, self._class_of, classes.notes


def _numbered(names: Sequence[str], texts: "dict[str, int]") -> Numbered:
    place_of = {name: place for place, name in enumerate(names)}
    return tuple(names), [place_of[text] for text in texts], ()


def _integer(text: str) -> int:
    return int(text.removesuffix(".0"))


def _integers(found: "dict[Split, set[str | None]]", given: Sequence[str] | None, path: Path) -> "Classes":
    """Classes of labels that are integers."""
    from dataclasses import replace

    import numpy as np

    from workers.data.labelling.label_values import classes_of, trained_values, zero_based_note

    values = {
        split: np.array(sorted({_NONE if text is None else _integer(text) for text in of_split}), dtype=np.int64)
        for split, of_split in found.items()
    }
    classes = classes_of(trained_values(values, given, path), given)
    return classes if given else replace(classes, said=zero_based_note(values.values()))
