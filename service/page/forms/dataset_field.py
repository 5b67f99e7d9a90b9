"""Field of a dataset: one of those that are registered, or a description by kind."""

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from service.page.elements import more_note
from service.page.forms.catalog import Catalog
from service.page.forms.schema_form import SchemaForm

_KIND = "kind:"


def dataset_field(catalog: Catalog, given: object, on_change: Callable[[object], None]) -> None:
    """Build the choice, with the fields of the kind that is chosen.

    Args:
        given: name, id or description that it begins with; None is nothing.
        on_change: called with id or description after every change, and at first where something is given.
    """
    names = {each["id"]: each["name"] for each in catalog.lists["datasets"]}
    kinds = catalog.dataset_kinds()
    options = {**names, **{f"{_KIND}{kind}": f"describe: {kind}" for kind in kinds}}
    by_name = {name: id for id, name in names.items()}
    first = f"{_KIND}{given.get('kind')}" if isinstance(given, Mapping) else by_name.get(str(given), given)
    chosen = ui.select(options, value=first if first in options else None, label="Dataset").classes("wide")
    more_note("datasets", catalog.longer["datasets"])
    place = ui.element("div").classes("nested")

    def fill(choice: str | None, value: Mapping[str, Any]) -> None:
        place.clear()
        if choice is None or not choice.startswith(_KIND):
            on_change(choice)
            return
        kind = choice.removeprefix(_KIND)
        with place:
            form = SchemaForm(kinds[kind], catalog.components, {**value, "kind": kind}, on_change)
        on_change(form.value)

    if first in options:
        fill(str(first), given if isinstance(given, Mapping) else {})
    chosen.on_value_change(lambda event: fill(event.value, {}))
