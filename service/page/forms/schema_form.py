"""Form fields made from the API's JSON schemas: one element for each property, of its type, default and bounds.

What the viewer does not touch is left out of the value, so that the API's own defaults and recipes decide.
"""

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from service.page.elements import set_props
from service.page.forms.number_field import Schema, number_field, numbers_field

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
            found = {name: resolve(each, components) for name, each in schema.get("properties", {}).items()}
            # Single values first: parts that open take the whole width.
            for name in sorted(found, key=lambda name: _has_fields(found[name])):
                if name not in left_out:
                    self._field(name, found[name])
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
        if "const" in schema:
            return
        if kinds:
            self._union(name, schema, kinds)
        elif _has_fields(schema):
            self._part(name, schema)
        elif options := _choices(schema):
            self._choice(name, schema, options)
        elif schema.get("type") == "boolean":
            given = self.value.get(name)
            box = ui.checkbox(_label(name, schema), value=bool(schema.get("default") if given is None else given))
            box.on_value_change(lambda event: self._set(name, event.value))
        elif schema.get("type") in ("integer", "number", "array"):
            self._numbers(name, schema)
        elif schema.get("type") == "string":
            text = ui.input(_label(name, schema), value=str(self.value.get(name) or ""))
            set_props(text, placeholder=_placeholder(schema))
            text.on_value_change(lambda event: self._set(name, event.value))

    def _choice(self, name: str, schema: Schema, options: Mapping[Any, str]) -> None:
        given = self.value.get(name)
        shown = given if given in options else None
        element = ui.select(dict(options), value=shown, label=_label(name, schema), clearable=True)
        element.on_value_change(lambda event: self._set(name, event.value))

    def _numbers(self, name: str, schema: Schema) -> None:
        """One number, or several that commas separate; none of an array of something else."""
        label, given = _label(name, schema), self.value.get(name)
        field: ui.element | None
        if schema["type"] == "array":
            field = numbers_field(label, schema, given, lambda values: self._set(name, values))
        else:
            field = number_field(label, schema, given, lambda value: self._set(name, value))
        if field is not None:
            set_props(field, placeholder=_placeholder(schema))

    def _union(self, name: str, schema: Schema, kinds: Mapping[str, Schema]) -> None:
        """Choice of a kind, such as an optimizer's, with the fields of the kind that is chosen."""
        tag = schema["discriminator"]["propertyName"]
        given = dict(self.value.get(name) or {})
        chosen = ui.select(list(kinds), value=given.get(tag), label=_label(name, schema), clearable=True)
        place = self._nested(name, schema)

        def fill(kind: str | None, value: Mapping[str, Any]) -> None:
            self._fill(place, name, kinds.get(kind or ""), {**value, tag: kind})

        if given.get(tag) in kinds:
            fill(given[tag], given)
        chosen.on_value_change(lambda event: fill(event.value, {}))

    def _part(self, name: str, schema: Schema) -> None:
        """Object that may be left out, such as mixup, with its fields while it is there."""
        given = self.value.get(name)
        box = ui.checkbox(_label(name, schema), value=given is not None).classes("part")
        place = self._nested(name, schema)
        if given is not None:
            self._fill(place, name, schema, given)
        box.on_value_change(lambda event: self._fill(place, name, schema if event.value else None, {}))

    def _nested(self, name: str, schema: Schema) -> ui.element:
        place = ui.element("div").classes("nested").props("role=group")
        set_props(place, aria_label=_label(name, schema))
        return place

    def _fill(self, place: ui.element, name: str, schema: Schema | None, value: Mapping[str, Any]) -> None:
        """Show the fields of an object, and take its value up; leave it out where it has no schema."""
        place.clear()
        if schema is None:
            self._set(name, None)
            return
        with place:
            form = SchemaForm(schema, self._components, value, lambda changed: self._set(name, changed))
        self._set(name, form.value)


def _has_fields(schema: Schema) -> bool:
    """Whether a value of this schema has fields of its own: an object, or one of several kinds."""
    return bool(schema.get("properties")) or "discriminator" in schema


def _choices(schema: Schema) -> dict[Any, str]:
    """Words that a schema allows, and beside a word ``yes`` and ``no``; empty of any other schema."""
    if "enum" in schema:
        return {value: str(value) for value in schema["enum"]}
    found = schema.get("anyOf", ())
    words = {each["const"]: str(each["const"]) for each in found if "const" in each}
    if not words or len(found) != len(words) + sum(each.get("type") == "boolean" for each in found):
        return {}
    return {True: "yes", False: "no", **words}


def _label(name: str, schema: Schema) -> str:
    unit = {"_s": " (seconds)", "_bytes": " (bytes)"}
    ending = next((text for suffix, text in unit.items() if name.endswith(suffix)), "")
    return name.removesuffix("_s").removesuffix("_bytes").replace("_", " ").capitalize() + ending


def _placeholder(schema: Schema) -> str:
    default = schema.get("default")
    if schema.get("type") == "array" and default is None:
        return "numbers, separated by commas"
    if isinstance(default, list):
        default = ", ".join(f"{each:g}" if isinstance(each, int | float) else str(each) for each in default)
    return "" if default is None or default == "" else f"{default} if left empty"
