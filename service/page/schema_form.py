"""Form fields made from the API's JSON schemas: one element for each property, of its type, default and bounds.

What the viewer does not touch is left out of the value, so that the API's own defaults and recipes decide.
"""

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from service.page.elements import set_props
from service.page.number_field import Schema, number_field

_REFERENCE = "#/components/schemas/"


def resolve(schema: Schema, components: Schema) -> Schema:
    """Follow the reference of a schema, and take its kind that is not null where it may be null."""
    while True:
        reference = str(schema.get("$ref", ""))
        kinds = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
        if reference.startswith(_REFERENCE):
            schema = {**components[reference.removeprefix(_REFERENCE)], **_beside(schema)}
        elif len(kinds) == 1:
            schema = {**kinds[0], **_beside(schema)}
        else:
            return schema


def _beside(schema: Schema) -> Schema:
    return {name: schema[name] for name in ("title", "description", "default") if name in schema}


def variants(schema: Schema, components: Schema) -> dict[str, Schema]:
    """Schemas that a discriminated union allows, by the value of its discriminator; empty where it is none."""
    mapping = schema.get("discriminator", {}).get("mapping", {})
    return {kind: resolve({"$ref": reference}, components) for kind, reference in mapping.items()}


class SchemaForm:
    """Form of an object: its fields, and the value that they make.

    Args:
        schema: of the object, in which references stand for ``components``.
        value: fields that are given already.
        on_change: called with the value after every change of the viewer.
        left_out: properties that have no field here.
    """

    def __init__(
        self,
        schema: Schema,
        components: Schema,
        value: Mapping[str, Any],
        on_change: Callable[[dict[str, Any]], None],
        *,
        left_out: frozenset[str] = frozenset(),
    ) -> None:
        self._components = components
        self._on_change = on_change
        self.value: dict[str, Any] = dict(value)
        self._is_built = False
        with ui.element("div").classes("fields"):
            for name, property_schema in schema.get("properties", {}).items():
                if name not in left_out:
                    self._field(name, resolve(property_schema, components))
        self._is_built = True

    def _set(self, name: str, value: object) -> None:
        if value is None or value == "":
            self.value.pop(name, None)
        else:
            self.value[name] = value
        if self._is_built:
            self._on_change(self.value)

    def _field(self, name: str, schema: Schema) -> None:
        """Element for a property; a property of a kind that has none here stays in the JSON alone."""
        kinds = variants(schema, self._components)
        given = self.value.get(name)
        if "const" in schema:
            return
        if kinds:
            self._union(name, schema, kinds)
        elif "enum" in schema:
            options = {value: str(value) for value in schema["enum"]}
            shown = given if given in options else None
            element = ui.select(options, value=shown, label=_label(name, schema), clearable=True)
            element.on_value_change(lambda event: self._set(name, event.value))
        elif schema.get("type") == "boolean":
            is_on = bool(given if given is not None else schema.get("default", False))
            box = ui.checkbox(_label(name, schema), value=is_on)
            box.on_value_change(lambda event: self._set(name, event.value))
        elif schema.get("type") in ("integer", "number"):
            self._number(name, schema, given)
        elif schema.get("type") == "string":
            text = ui.input(_label(name, schema), value=str(given or ""))
            set_props(text, placeholder=_placeholder(schema))
            text.on_value_change(lambda event: self._set(name, event.value))

    def _number(self, name: str, schema: Schema, given: object) -> None:
        number = number_field(_label(name, schema), schema, given, lambda value: self._set(name, value))
        set_props(number, placeholder=_placeholder(schema))

    def _union(self, name: str, schema: Schema, kinds: Mapping[str, Schema]) -> None:
        """Choice of a kind, such as an optimizer's, with the fields of the kind that is chosen."""
        tag = schema["discriminator"]["propertyName"]
        given = dict(self.value.get(name) or {})
        chosen = ui.select(list(kinds), value=given.get(tag), label=_label(name, schema), clearable=True)
        place = ui.element("div").classes("nested")

        def fill(kind: str | None, value: Mapping[str, Any]) -> None:
            place.clear()
            if kind is None:
                self._set(name, None)
                return
            with place:
                form = SchemaForm(
                    kinds[kind], self._components, {**value, tag: kind}, lambda changed: self._set(name, changed)
                )
            self._set(name, form.value)

        if given.get(tag) in kinds:
            fill(given[tag], given)
        chosen.on_value_change(lambda event: fill(event.value, {}))


def _label(name: str, schema: Schema) -> str:
    unit = {"_s": " (seconds)", "_bytes": " (bytes)"}
    ending = next((text for suffix, text in unit.items() if name.endswith(suffix)), "")
    return name.removesuffix("_s").removesuffix("_bytes").replace("_", " ").capitalize() + ending


def _placeholder(schema: Schema) -> str:
    default = schema.get("default")
    return "" if default is None or default == "" else f"{default} if left empty"
