"""Form of a new job: its sections, and the JSON that they make.

``document`` is the whole truth: fields that the form does not show (of an old job, say) stay in it as they are.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.validation_element import ValidationElement

from service.page.elements import more_note, set_props
from service.page.job_students import students_of
from service.page.number_field import Schema, number_field
from service.page.schema_form import SchemaForm, resolve, variants
from service.page.texts import count
from service.page.viewer import Document, ViewerApi

_SEEDS = "0, 1, 2"
# Of an expression, as the preview has it, too.
EXPRESSION = "clip(max / log(classes), 1, 16)"


class Catalog:
    """Catalog of what a job may be made of, by the API: schemas, teachers, datasets, students, methods, recipes."""

    def __init__(self, documents: Mapping[str, Any]) -> None:
        self.components: Schema = documents["openapi"]["components"]["schemas"]
        self.teachers: list[Document] = documents["teachers"]
        self.datasets: list[Document] = documents["datasets"]
        self.students: list[Document] = documents["students"]
        self.methods: dict[str, Document] = {each["id"]: each for each in documents["methods"]}
        self.recipes: list[Document] = documents["recipes"]
        # Of teachers and datasets, whether there are more.
        self.longer: dict[str, bool] = documents["longer"]

    @classmethod
    async def load(cls, api: ViewerApi) -> "Catalog":
        """Ask the API for all of it. Raises Problem."""
        lists = {name: (await api.get(f"/v1/{name}"))["data"] for name in ("students", "methods", "recipes")}
        longer = {}
        for name in ("teachers", "datasets"):
            lists[name], longer[name] = await api.list(f"/v1/{name}")
        return cls({**lists, "longer": longer, "openapi": await api.get("/openapi.json")})

    def schema(self, field: str) -> Schema:
        """Schema of a field of a job request."""
        return resolve(self.components["JobRequest"]["properties"][field], self.components)

    def dataset_kinds(self) -> dict[str, Schema]:
        """Schemas of datasets that a job describes outright, by kind."""
        described = next(each for each in self.schema("dataset")["oneOf"] if "discriminator" in each)
        return variants(described, self.components)


def expression_method(temperature: str, name: str) -> Document:
    """Method of a job that distils at a temperature written as an expression, with the weights of ``kd``."""
    term = {"policy": {"kind": "expression", "temperature": temperature}, "loss": "kl", "weight": 0.9}
    return {"preset": "custom", "name": name, "ce_weight": 0.1, "terms": [term]}


def seeds_of(text: str) -> list[int]:
    """Seeds that commas or semicolons separate. Raises ValueError."""
    return [int(part) for part in text.replace(";", ",").split(",") if part.strip()]


def seeds_error(text: str | None) -> str | None:
    """Message on seeds that are none, cannot be read, or are less than 0; None if all is well."""
    try:
        found = seeds_of(text or "")
    except ValueError:
        found = []
    if found and min(found) >= 0:
        return None
    return f"{(text or '')[:40]!r} is not whole numbers from 0, separated by commas, like {_SEEDS}"


class JobForm:
    """Form of a job.

    Args:
        document: with which it begins.
        on_change: called after every change, with the document.
    """

    def __init__(self, catalog: Catalog, document: Document, on_change: Callable[[Document], None]) -> None:
        self._catalog = catalog
        self._report = on_change
        self.document = copy.deepcopy(document)
        self._place = ui.context.slot.parent
        self._basics()
        self._dataset()
        self._students()
        self._methods()
        for field, title in (("training", "Training"), ("views", "Views of the pictures"), ("export", "Exports")):
            with ui.expansion(title).classes("wide"):
                self._object(field)

    def set(self, field: str, value: object) -> None:
        """Set a field of the document, or remove it by None or an empty value."""
        if value in (None, "", [], {}):
            self.document.pop(field, None)
        else:
            self.document[field] = value
        self._report(self.document)

    def _choose_teacher(self, id: str | None) -> None:
        """Set the teacher, in place of several, or of imported logits, that an old job had."""
        for field in ("teachers", "combine", "caches") if id else ():
            self.document.pop(field, None)
        self.set("teacher", id)

    def _basics(self) -> None:
        given = self.document
        name = ui.input("Name", value=given.get("name", ""), on_change=lambda event: self.set("name", event.value))
        name.props("maxlength=200").classes("wide")
        teachers = {each["id"]: each["name"] for each in self._catalog.teachers}
        ui.select(
            teachers,
            value=given.get("teacher") if given.get("teacher") in teachers else None,
            label="Teacher",
            with_input=True,
            on_change=lambda event: self._choose_teacher(event.value),
        ).classes("wide")
        more_note("teachers", self._catalog.longer["teachers"])
        if not teachers:
            ui.link("Upload a teacher first", "/teachers")
        seeds = ", ".join(map(str, given.get("seeds", []))) or _SEEDS
        self._seeds = ui.input(
            "Seeds, separated by commas", value=seeds, validation=seeds_error, on_change=self._read_seeds
        )
        self._read_seeds()
        recipes = {each["id"]: f"{each['id']}: {each['title']}" for each in self._catalog.recipes}
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
            "Share of the training pictures that is held out for validation",
            self._catalog.schema("validation")["properties"]["holdout"],
            holdout.get("holdout"),
            lambda share: self.set("validation", None if share is None else {**holdout, "holdout": share}),
            step=0.05,
        ).classes("wide")

    def unreadable(self) -> list[str]:
        """Fields that show something else than the document says, each with the reason; they show it, too."""
        fields = [field for field in self._place.descendants() if isinstance(field, ValidationElement)]
        return [f"{field.props.get('label')}: {field.error}" for field in fields if not field.validate()]

    def _read_seeds(self) -> None:
        """Take the seeds up, unless they cannot be read."""
        text = str(self._seeds.value or "")
        if seeds_error(text) is None:
            self.set("seeds", seeds_of(text))

    def _dataset(self) -> None:
        """Choice between the registered datasets and a description of one, by kind."""
        names = {each["id"]: each["name"] for each in self._catalog.datasets}
        kinds = self._catalog.dataset_kinds()
        options = {**names, **{f"kind:{kind}": f"describe: {kind}" for kind in kinds}}
        given = self.document.get("dataset")
        by_name = {name: id for id, name in names.items()}
        first = f"kind:{given['kind']}" if isinstance(given, dict) else by_name.get(str(given), given)
        chosen = ui.select(options, value=first if first in options else None, label="Dataset").classes("wide")
        more_note("datasets", self._catalog.longer["datasets"])
        place = ui.element("div").classes("nested")

        def fill(choice: str | None, value: Mapping[str, Any]) -> None:
            place.clear()
            if choice is None or not choice.startswith("kind:"):
                self.set("dataset", choice)
                return
            kind = choice.removeprefix("kind:")
            with place:
                form = SchemaForm(
                    kinds[kind],
                    self._catalog.components,
                    {**value, "kind": kind},
                    lambda changed: self.set("dataset", changed),
                )
            self.set("dataset", form.value)

        if first in options:
            fill(str(first), given if isinstance(given, dict) else {})
        chosen.on_value_change(lambda event: fill(event.value, {}))

    def _students(self) -> None:
        options = {
            each["name"]: each["name"]
            if each["parameters_100"] is None
            else f"{each['name']} ({count(each['parameters_100'])} parameters)"
            for each in self._catalog.students
        }
        given = list(self.document.get("students", []))
        names = [each if isinstance(each, str) else each["name"] for each in given]
        ui.select(
            options,
            value=[name for name in names if name in options],
            label="Students",
            multiple=True,
            with_input=True,
            on_change=lambda event: self.set("students", students_of(event.value, given)),
        ).props("use-chips").classes("wide")

    def _methods(self) -> None:
        ui.label("Methods").classes("section-heading").props("role=heading aria-level=2")
        self._rows = [each if isinstance(each, dict) else {"preset": each} for each in self.document.get("methods", [])]
        self._method_list = ui.element("div").classes("methods")
        options = {id: f"{id}: {method['title']}" for id, method in self._catalog.methods.items() if id != "custom"}
        with ui.row().classes("wide"):
            add = ui.select(options, label="Add a method", with_input=True).classes("grow")
            ui.button("Add an expression", icon="functions", on_click=self._add_expression).props("no-caps outline")

        def added(preset: str | None) -> None:
            if preset is not None:
                self._rows.append({"preset": preset})
                add.set_value(None)
                self._show_methods()

        add.on_value_change(lambda event: added(event.value))
        self._show_methods()

    def _add_expression(self) -> None:
        taken = {row.get("name") for row in self._rows}
        name = next(f"mine{number}" for number in range(1, 1000) if f"mine{number}" not in taken)
        self._rows.append(expression_method(EXPRESSION, name))
        self._show_methods()

    def _show_methods(self) -> None:
        self._method_list.clear()
        with self._method_list:
            for index, row in enumerate(self._rows):
                with ui.element("section").classes("method"):
                    self._method(index, row)
        self.set("methods", self._methods_now())

    def _methods_now(self) -> list[Any]:
        return [row["preset"] if set(row) == {"preset"} else row for row in self._rows]

    def _method(self, index: int, row: Document) -> None:
        preset = row["preset"]

        def remove() -> None:
            self._rows.pop(index)
            self._show_methods()

        with ui.row().classes("wide method-head"):
            known = self._catalog.methods.get(preset)
            ui.label(row.get("name") or preset).classes("method-name")
            ui.label(known["title"] if known else "own terms").classes("muted grow")
            set_props(ui.button(icon="close", on_click=remove).props("flat dense round"), aria_label=f"Remove {preset}")
        policy = row["terms"][0]["policy"] if preset == "custom" and row.get("terms") else {}
        if policy.get("kind") == "expression":
            self._expression(row, policy)
        elif known:
            with ui.expansion("Parameters").classes("wide"):
                SchemaForm(
                    known["json_schema"],
                    self._catalog.components,
                    row,
                    lambda changed: self._change_method(index, changed),
                    left_out=frozenset({"preset", "terms"}),
                )

    def _change_method(self, index: int, row: Document) -> None:
        self._rows[index] = row
        self.set("methods", self._methods_now())

    def _expression(self, row: Document, policy: Document) -> None:
        def write(name: str, value: str) -> None:
            policy[name] = value
            self.set("methods", self._methods_now())

        def rename(value: str) -> None:
            row["name"] = value
            self.set("methods", self._methods_now())

        ui.input("Name of the method", value=row["name"], on_change=lambda event: rename(event.value)).classes("wide")
        ui.input(
            "Temperature, from max, sharpness, std, mean, min, classes, epoch, epochs",
            value=policy.get("temperature") or "",
            on_change=lambda event: write("temperature", event.value),
        ).classes("wide mono")

    def _object(self, field: str) -> None:
        SchemaForm(
            self._catalog.schema(field),
            self._catalog.components,
            self.document.get(field) or {},
            lambda changed: self.set(field, changed),
        )
