"""Form of a new job: its sections, and the JSON that they make."""

from collections.abc import Callable

from nicegui import ui

from service.page.elements import more_note
from service.page.forms.catalog import SPLITS, Catalog
from service.page.forms.dataset_field import dataset_field
from service.page.forms.methods_field import MethodsField
from service.page.forms.number_field import number_field
from service.page.forms.request_form import RequestForm
from service.page.forms.schema_form import SchemaForm
from service.page.forms.seeds_field import seeds_field
from service.page.forms.students_field import StudentsField
from service.page.texts import short_digest
from service.page.viewer import Document

_SECTIONS = (("training", "Training"), ("views", "Views of the pictures"), ("export", "Exports"))


class JobForm(RequestForm):
    """Form of a job."""

    def __init__(self, catalog: Catalog, document: Document, on_change: Callable[[Document], None]) -> None:
        super().__init__(document, on_change)
        self._catalog = catalog
        self._basics()
        dataset_field(catalog, self.document.get("dataset"), lambda dataset: self.set("dataset", dataset))
        StudentsField(catalog, self.document.get("students", ()), lambda students: self.set("students", students))
        MethodsField(catalog, self.document.get("methods", ()), lambda methods: self.set("methods", methods))
        for field, title in _SECTIONS:
            with ui.expansion(title).classes("wide"):
                self._object(field)

    def _basics(self) -> None:
        given = self.document
        name = ui.input("Name", value=given.get("name", ""), on_change=lambda event: self.set("name", event.value))
        name.props("maxlength=200").classes("wide")
        self._teachers()
        self._logits()
        seeds_field(given.get("seeds", ()), lambda seeds: self.set("seeds", seeds))
        recipes = {each["id"]: f"{each['id']}: {each['title']}" for each in self._catalog.lists["recipes"]}
        chosen = (given.get("recipe") or {}).get("name") if isinstance(given.get("recipe"), dict) else None
        ui.select(
            recipes,
            value=given.get("recipe") if given.get("recipe") in recipes else chosen,
            label="Recipe (by the dataset, if none is chosen)",
            clearable=True,
            on_change=lambda event: self.set("recipe", event.value),
        ).classes("wide")
        holdout = given.get("validation") or {}
        number_field(
            "Share held out of training for validation",
            self._catalog.schema("validation")["properties"]["holdout"],
            holdout.get("holdout"),
            lambda share: self.set("validation", None if share is None else {**holdout, "holdout": share}),
            step=0.05,
        ).classes("wide")

    def _teachers(self) -> None:
        teachers = {each["id"]: each["name"] for each in self._catalog.lists["teachers"]}
        given = self.document.get("teacher")
        self._teacher = ui.select(
            teachers,
            value=given if given in teachers else None,
            label="Teacher",
            with_input=True,
            on_change=lambda event: self._choose_teacher(event.value),
        ).classes("wide")
        more_note("teachers", self._catalog.longer["teachers"])
        if not teachers:
            ui.link("Upload a teacher first", "/teachers")

    def _choose_teacher(self, id: str | None) -> None:
        """Set the teacher, in place of several, or of imported logits."""
        if id:
            self._leave_out("teachers", "combine", "caches")
            for select in self._logits_of.values():
                select.set_value(None)
        self.set("teacher", id)

    def _logits(self) -> None:
        """Choices of imported logits in place of a teacher, for each split that has some."""
        self._logits_of: dict[str, ui.select] = {}
        given = self.document.get("caches", {})
        for split in SPLITS:
            options = self._catalog.logits_options(split)
            # One that the list is too long for, or that was deleted since.
            if (key := given.get(split)) is not None and key not in options:
                options[key] = short_digest(key)
            if options:
                self._logits_of[split] = ui.select(
                    options,
                    value=key,
                    label=f"Or imported logits, split {split}",
                    clearable=True,
                    on_change=lambda event, split=split: self._choose_logits(split, event.value),
                ).classes("wide")
        more_note("caches of imported logits, by key", self._catalog.longer["imported"], order="first")

    def _choose_logits(self, split: str, key: str | None) -> None:
        """Set the imported logits of a split, in place of a teacher."""
        kept = {name: value for name, value in self.document.get("caches", {}).items() if name != split}
        if key:
            self._leave_out("teacher", "teachers", "combine")
            self._teacher.set_value(None)
        self.set("caches", {**kept, split: key} if key else kept)

    def _leave_out(self, *fields: str) -> None:
        for field in fields:
            self.document.pop(field, None)

    def _object(self, field: str) -> None:
        SchemaForm(
            self._catalog.schema(field),
            self._catalog.components,
            self.document.get(field) or {},
            lambda changed: self.set(field, changed),
        )
