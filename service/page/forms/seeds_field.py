"""Field of the seeds of runs."""

from collections.abc import Callable, Sequence

from nicegui import ui

SEEDS = "0, 1, 2"


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
    return f"{(text or '')[:40]!r} is not whole numbers from 0, separated by commas, like {SEEDS}"


def seeds_field(given: Sequence[int], on_change: Callable[[list[int]], None]) -> None:
    """Build the field; ``on_change`` is called with seeds that can be read, at first with those that it shows."""

    def read(text: str | None) -> None:
        if seeds_error(text) is None:
            on_change(seeds_of(text or ""))

    shown = ", ".join(map(str, given)) or SEEDS
    label = "Seeds, separated by commas"
    ui.input(label, value=shown, validation=seeds_error, on_change=lambda event: read(event.value))
    read(shown)
