"""Settings of a view in its URL, so that every state of a view can be linked to and survives a reload."""

from collections.abc import Collection, Mapping
from urllib.parse import urlencode

from nicegui import ui


class UrlState:
    """Query parameters of the view that is being built; a setting at its default is not in the URL.

    Args:
        path: of the view.
        given: the query parameters that it was asked with.
        defaults: of all settings by name; others in ``given`` are dropped.
    """

    def __init__(self, path: str, given: Mapping[str, str], defaults: Mapping[str, str]) -> None:
        self._path = path
        self._defaults = dict(defaults)
        self._values = {name: given.get(name, default) for name, default in defaults.items()}

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def choice(self, name: str, allowed: Collection[str]) -> str:
        """Setting that is one of ``allowed``; what is none of them is the default."""
        value = self._values[name]
        return value if value in allowed else self._defaults[name]

    def number(self, name: str, least: float, most: float) -> float:
        """Setting that is a number, held within bounds; what is none is the default."""
        try:
            value = float(self._values[name])
        except ValueError:
            value = float(self._defaults[name])
        # NaN is within no bounds.
        return min(max(value, least), most) if value == value else float(self._defaults[name])

    @property
    def url(self) -> str:
        """Address of the view with its present settings."""
        changed = {name: value for name, value in self._values.items() if value != self._defaults[name]}
        return f"{self._path}?{urlencode(changed)}" if changed else self._path

    def set(self, **changes: str) -> None:
        """Change settings, and the browser's address without loading anything."""
        self._values |= changes
        ui.navigate.history.replace(self.url)
