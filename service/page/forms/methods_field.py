"""Field of the methods of runs: presets with their parameters, and temperatures written as expressions."""

from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui

from service.page.elements import section_heading, set_props
from service.page.forms.catalog import Catalog
from service.page.forms.schema_form import SchemaForm
from service.page.viewer import Document

# Of an expression, as the preview has it, too.
EXPRESSION = "clip(max / log(classes), 1, 16)"


def expression_method(temperature: str, name: str) -> Document:
    """Method of a job that distils at a temperature written as an expression, with the weights of ``kd``."""
    term = {"policy": {"kind": "expression", "temperature": temperature}, "loss": "kl", "weight": 0.9}
    return {"preset": "custom", "name": name, "ce_weight": 0.1, "terms": [term]}


class MethodsField:
    """Field of methods.

    Args:
        given: those that it begins with, as they are posted.
        on_change: called with the methods after every change, and at first.
    """

    def __init__(self, catalog: Catalog, given: Sequence[Any], on_change: Callable[[list[Any]], None]) -> None:
        self._catalog = catalog
        self._report = on_change
        section_heading("Methods")
        self._rows = [each if isinstance(each, dict) else {"preset": each} for each in given]
        self._list = ui.element("div").classes("methods")
        options = {id: f"{id}: {method['title']}" for id, method in catalog.methods.items() if id != "custom"}
        with ui.row().classes("wide"):
            add = ui.select(options, label="Add a method", with_input=True).classes("grow")
            ui.button("Add an expression", icon="functions", on_click=self._add_expression).props("no-caps outline")

        def added(preset: str | None) -> None:
            if preset is not None:
                self._rows.append({"preset": preset})
                add.set_value(None)
                self._show()

        add.on_value_change(lambda event: added(event.value))
        self._show()

    def _add_expression(self) -> None:
        taken = {row.get("name") for row in self._rows}
        name = next(f"mine{number}" for number in range(1, 1000) if f"mine{number}" not in taken)
        self._rows.append(expression_method(EXPRESSION, name))
        self._show()

    def _show(self) -> None:
        self._list.clear()
        with self._list:
            for index, row in enumerate(self._rows):
                with ui.element("section").classes("method"):
                    self._method(index, row)
        self._changed()

    def _changed(self) -> None:
        self._report([row["preset"] if set(row) == {"preset"} else row for row in self._rows])

    def _method(self, index: int, row: Document) -> None:
        preset = row["preset"]

        def remove() -> None:
            self._rows.pop(index)
            self._show()

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
                    lambda changed: self._change(index, changed),
                    left_out=frozenset({"preset", "terms"}),
                )

    def _change(self, index: int, row: Document) -> None:
        self._rows[index] = row
        self._changed()

    def _expression(self, row: Document, policy: Document) -> None:
        def write(given: Document, name: str, value: str) -> None:
            given[name] = value
            self._changed()

        name = ui.input("Name of the method", value=row["name"]).classes("wide")
        name.on_value_change(lambda event: write(row, "name", event.value))
        ui.input(
            "Temperature, from max, sharpness, std, mean, min, classes, epoch, epochs",
            value=policy.get("temperature") or "",
            on_change=lambda event: write(policy, "temperature", event.value),
        ).classes("wide mono")
