"""Fields of numbers of JSON schemas: what is beyond its bounds is said beside it, and is no value."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui

Schema = Mapping[str, Any]


def number_error(value: float | None, schema: Schema) -> str | None:
    """Message on a number that its schema does not allow; None if all is well, or nothing was entered."""
    if value is None:
        return None
    if not math.isfinite(value):
        return f"{value} is no finite number"
    if schema.get("type") == "integer" and value != int(value):
        return f"{value:g} is no whole number"
    checks = (
        ("minimum", value >= schema.get("minimum", value), "at least"),
        ("exclusiveMinimum", value > schema.get("exclusiveMinimum", -math.inf), "more than"),
        ("maximum", value <= schema.get("maximum", value), "at most"),
        ("exclusiveMaximum", value < schema.get("exclusiveMaximum", math.inf), "less than"),
    )
    return next((f"{value:g} has to be {words} {schema[name]:g}" for name, is_met, words in checks if not is_met), None)


def number_field(
    label: str,
    schema: Schema,
    given: object,
    on_change: Callable[[float | int | None], None],
    *,
    step: float | None = None,
) -> ui.number:
    """Build the field.

    Args:
        schema: with ``type`` and bounds.
        given: value at first; what is no number is none.
        on_change: called with a number that the schema allows, or None where the field is empty.
    """

    def change(value: float | None) -> None:
        if number_error(value, schema) is None:
            on_change(int(value) if value is not None and schema.get("type") == "integer" else value)

    # Without bounds of its own: leaving the field would put another number in place of what was entered.
    return ui.number(
        label,
        value=given if isinstance(given, int | float) else None,
        step=step,
        validation=lambda value: number_error(value, schema),
        on_change=lambda event: change(event.value),
    )


def numbers_of(text: str | None) -> list[float]:
    """Numbers that commas or semicolons separate, whole ones as such. Raises ValueError."""
    parts = [part.strip() for part in (text or "").replace(";", ",").split(",") if part.strip()]
    return [int(part) if part.isdecimal() else float(part) for part in parts]


def numbers_error(text: str | None, schema: Schema) -> str | None:
    """Message on numbers that the schema of an array does not allow; None if all is well, or there are none."""
    try:
        found = numbers_of(text)
    except ValueError:
        return f"{(text or '')[:40]!r} is not numbers, separated by commas"
    least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if found and not least <= len(found) <= most:
        return f"{len(found)} numbers, and it takes {least if least == most else f'{least} to {most}'}"
    errors = (number_error(value, item) for value, item in zip(found, _items(schema, len(found)), strict=False))
    return next((error for error in errors if error is not None), None)


def numbers_field(
    label: str, schema: Schema, given: object, on_change: Callable[[list[float] | None], None]
) -> ui.input | None:
    """Build the field of an array of numbers; none of an array of something else.

    Args:
        on_change: called with numbers that the schema allows, or None where the field is empty.
    """
    if any(item.get("type") not in ("integer", "number") for item in _items(schema, 1)):
        return None

    def change(text: str | None) -> None:
        if numbers_error(text, schema) is None:
            on_change(numbers_of(text) or None)

    shown = ", ".join(map(str, given)) if isinstance(given, list | tuple) else ""
    return ui.input(
        label,
        value=shown,
        validation=lambda text: numbers_error(text, schema),
        on_change=lambda event: change(event.value),
    )


def _items(schema: Schema, number: int) -> Sequence[Schema]:
    """Schema of each of so many items of an array."""
    fixed: Sequence[Schema] = schema.get("prefixItems") or [schema.get("items", {})] * number
    return fixed
