"""Field of the students of runs, and of the weights that each begins with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui

from service.page.elements import more_note
from service.page.forms.catalog import Catalog
from service.page.viewer import Document

_UPLOADED = "uploaded/"
# Of a choice of first weights: those of the network itself, and those that a copied job has.
_OWN, _GIVEN = "", "given"
_SOURCES = ("run", "upload", "weights")


def students_of(names: Sequence[str], given: Sequence[Any]) -> list[Any]:
    """Students by these names: as they were given (with first weights, say), or the bare name."""
    described = {each["name"]: each for each in given if isinstance(each, Mapping)}
    return [described.get(name, name) for name in names]


def with_first_weights(student: str | Document, init: object) -> str | Document:
    """The student with these first weights; with its own by None."""
    described: Document = {"name": student} if isinstance(student, str) else dict(student)
    described.pop("init", None)
    if init is not None:
        described["init"] = init
    return described if len(described) > 1 else str(described["name"])


class StudentsField:
    """Field of students.

    Args:
        given: those that it begins with, as they are posted.
        on_change: called with the students after every change.
    """

    def __init__(self, catalog: Catalog, given: Sequence[Any], on_change: Callable[[list[Any]], None]) -> None:
        self._uploads = catalog.weights_options()
        self._given = list(given)
        self._students = list(given)
        self._report = on_change
        options = catalog.student_options()
        names = [name for name in map(_name, given) if name in options]
        ui.select(
            options,
            value=names,
            label="Students",
            multiple=True,
            with_input=True,
            on_change=lambda event: self._choose(event.value),
        ).props("use-chips").classes("wide")
        more_note("uploaded files of students", catalog.longer["uploads"])
        self._place = ui.element("div").classes("nested")
        self._show_weights()

    def _choose(self, names: Sequence[str]) -> None:
        # As they are now; what was taken out and comes back is as it was given.
        now = set(map(_name, self._students))
        self._students = students_of(
            names, [*(each for each in self._given if _name(each) not in now), *self._students]
        )
        self._show_weights()
        self._report(self._students)

    def _show_weights(self) -> None:
        """Show a choice of first weights for each student that has one: uploads, and what a copied job names."""
        self._place.clear()
        with self._place:
            for place, student in enumerate(self._students):
                init = {} if isinstance(student, str) else student.get("init") or {}
                if self._uploads or init:
                    self._weights(place, _name(student), init)

    def _weights(self, place: int, name: str, init: Document | str) -> None:
        own = "the program's own" if name.startswith(_UPLOADED) else "drawn from the seed"
        options = {_OWN: own, **self._uploads}
        value = _OWN
        if isinstance(init, Mapping) and init:
            kind = next(each for each in _SOURCES if each in init)
            value = init[kind] if init[kind] in self._uploads else _GIVEN
            if value == _GIVEN:
                options[_GIVEN] = f"those of the {kind} {init[kind]}"

        def choose(chosen: str) -> None:
            made = {_OWN: None, _GIVEN: init}.get(chosen, {"upload": chosen})
            self._students[place] = with_first_weights(self._students[place], made)
            self._report(self._students)

        label = f"First weights of {name}"
        ui.select(options, value=value, label=label, on_change=lambda event: choose(event.value)).classes("wide")


def _name(student: str | Document) -> str:
    return student if isinstance(student, str) else str(student["name"])
