"""Columns of a table that hold pictures and labels: which they are, and the names of the classes.

Hugging Face notes what a column is in the schema's metadata, as JSON under ``huggingface``: pictures are of the type
``Image`` (a struct of ``bytes`` and ``path``), labels of the type ``ClassLabel``, with the names of the classes.
"""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from workers.data.label_values import check_number
from workers.data.tables import Table
from workers.errors import InvalidDataset
from workers.texts import listed

if TYPE_CHECKING:
    import pyarrow as pa


class Features:
    """Features of a table's columns, as Hugging Face notes them and by their Arrow types."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._noted = _noted_features(table.schema)

    def image(self, given: str | None) -> str:
        """Name of the column of pictures.

        Args:
            given: by the client; None looks for it.

        Raises:
            InvalidDataset: it is none of pictures, or which one cannot be told.
        """
        noted = [name for name in self._table.schema.names if self._kind(name) == "Image"]
        fitting = [field.name for field in self._table.schema if _holds_bytes(field.type)]
        return self._chosen("image", given, fitting, [name for name in noted if name in fitting])

    def label(self, given: str | None) -> str | None:
        """Name of the column of labels; None without any. Arguments and errors as those of ``image``."""
        noted = [name for name in self._table.schema.names if self._kind(name) == "ClassLabel"]
        fitting = [field.name for field in self._table.schema if _holds_labels(field.type)]
        if given is None and not fitting:
            return None
        return self._chosen("label", given, fitting, [name for name in noted if name in fitting])

    def class_names(self, label: str) -> tuple[str, ...] | None:
        """Names of the classes in label order; None where they are not noted."""
        noted = self._noted.get(label)
        names = noted.get("names") if isinstance(noted, dict) and noted.get("_type") == "ClassLabel" else None
        if not isinstance(names, list) or not names:
            return None
        check_number(len(names), self._table.path)
        return tuple(map(str, names))

    def _kind(self, name: str) -> object:
        noted = self._noted.get(name)
        return noted.get("_type") if isinstance(noted, dict) else None

    def _chosen(self, field: str, given: str | None, fitting: Sequence[str], noted: Sequence[str]) -> str:
        wanted = {"image": "pictures (a struct with bytes, or binary)", "label": "labels (integers or strings)"}[field]
        columns = listed(f"{name} ({column.type})" for name, column in self._columns())
        if given is not None:
            if given in fitting:
                return given
            raise InvalidDataset(
                f"{self._table.path} has no column {given!r} of {wanted}: set {field!r} to one of its columns, "
                f"{columns}"
            )
        among = noted or fitting
        if len(among) == 1 or field in among:
            return among[0] if len(among) == 1 else field
        found = f"several columns that may hold {wanted}, {listed(among)}" if among else f"no column of {wanted}"
        raise InvalidDataset(f"{self._table.path} has {found}: set {field!r} to one of its columns, {columns}")

    def _columns(self) -> "Iterator[tuple[str, pa.Field]]":
        return ((field.name, field) for field in self._table.schema)


def _noted_features(schema: "pa.Schema") -> dict[str, Any]:
    """Features in the schema's metadata, by column; empty where there are none, or they cannot be read."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _holds_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _holds_labels(kind.value_type)
    is_kind = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)
    return any(check(kind) for check in is_kind)
