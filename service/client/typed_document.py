"""Base of the documents that the client returns: a dictionary whose fields are attributes as well.

A field that a newer service adds is there at once, as an item and as an attribute; a type checker knows those of
``service.client.documents`` alone. Times are texts in ISO 8601, UTC: ``datetime.fromisoformat`` reads them.
"""

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, get_args, get_type_hints


class TypedDocument(dict[str, Any]):
    """JSON object of the API: ``job.state`` is ``job["state"]``."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Field of this name; objects in it have fields as attributes, too. Raises AttributeError without one."""
            if name not in self:
                raise AttributeError(f"{type(self).__name__} has no field {name!r}; it has {', '.join(self)}")
            kind = _kinds(type(self)).get(name)
            if kind is not None:
                self[name] = _typed(kind, self[name])
            return self[name]

    def __dir__(self) -> Iterable[str]:
        """Names for completion: the fields, too."""
        return sorted({*super().__dir__(), *self})


@cache
def _kinds(cls: type[TypedDocument]) -> dict[str, type[TypedDocument]]:
    """Class of the objects in each field that holds some: itself, in a list, or by name."""
    found = ((name, _kind(hint)) for name, hint in get_type_hints(cls).items())
    return {name: kind for name, kind in found if kind is not None}


def _kind(hint: object) -> type[TypedDocument] | None:
    if isinstance(hint, type) and issubclass(hint, TypedDocument):
        return hint
    return next((kind for part in get_args(hint) if (kind := _kind(part)) is not None), None)


def _typed(kind: type[TypedDocument], value: object) -> object:
    if isinstance(value, list):
        return [_typed(kind, item) for item in value]
    if not isinstance(value, dict) or isinstance(value, kind):
        return value
    return kind(value)
