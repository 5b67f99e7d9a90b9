"""Field of a number of a JSON schema: what is beyond its bounds is said beside it, and is no value of the form."""

import math
from collections.abc import Callable, Mapping
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
