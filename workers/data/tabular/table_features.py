"""Columns of a table that hold pictures and labels: which they are, and the names of the classes.

Hugging Face notes what a column is in the schema's metadata, as JSON under ``huggingface``: pictures are of the type
``Image`` (a struct of ``bytes`` and ``path``), labels of the type ``ClassLabel``, with the names of the classes.
"""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from workers.data.labelling.label_values import check_number
from workers.data.tabular.tables import Table, holds_bytes, holds_paths
from workers.errors import InvalidDataset
from workers.texts import listed

if TYPE_CHECKING:
    import pyarrow as pa


# Names of a column of labels that is not noted as such.
_LABEL_NAMES = ("label", "labels")
_WANTED = {
    "image": "pictures (a struct with bytes or path, or binary; paths as texts, if 'image' names them)",
    "label": "labels (integers or strings)",
}


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
        fitting = [
            field.name
            for field in self._table.schema
            if holds_bytes(field.type) or (holds_paths(field.type) and (field.type.num_fields or field.name == given))
        ]
        return self._chosen("image", given, fitting, [name for name in noted if name in fitting])

    def label(self, given: str | None, image: str) -> str | None:
        """Name of the column of labels; None without the given one, or one noted or called so.

        Args:
            image: name of the column of pictures.

        Raises:
            InvalidDataset: the given one holds none, or which of several it is cannot be told.
        """
        fitting = [name for name in self._fitting_labels() if name != image]
        noted = [name for name in fitting if self._kind(name) == "ClassLabel"]
        known = noted or [name for name in fitting if name in _LABEL_NAMES]
        is_there = given in self._table.schema.names if given is not None else known or len(fitting) > 1
        if not is_there:
            return None
        return self._chosen("label", given, fitting, known)

    def passed_over(self, image: str) -> str | None:
        """A sentence about a table of which no column is taken for labels, though one might be; None for another."""
        might = {*self._fitting_labels(), *_LABEL_NAMES} - {image}
        columns = [f"{name} ({field.type})" for name, field in self._columns() if name in might]
        if not columns:
            return None
        return (
            f"no column is taken for labels, but there is {listed(columns)}: one is taken that holds integers or "
            "strings and is a ClassLabel or called label or labels, or that is named by 'label'"
        )

    def lacking_label(self, given: str) -> InvalidDataset:
        """Error of a dataset of which no table has the given column of labels."""
        return self._lacking("label", given)

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
        if given is not None:
            if given in fitting:
                return given
            raise self._lacking(field, given)
        among = noted or fitting
        if len(among) == 1 or field in among:
            return among[0] if len(among) == 1 else field
        wanted = _WANTED[field]
        found = f"several columns that may hold {wanted}, {listed(among)}" if among else f"no column of {wanted}"
        raise self._error(found, field)

    def _lacking(self, field: str, given: str) -> InvalidDataset:
        return self._error(f"no column {given!r} of {_WANTED[field]}", field)

    def _error(self, found: str, field: str) -> InvalidDataset:
        columns = listed(f"{name} ({column.type})" for name, column in self._columns())
        return InvalidDataset(f"{self._table.path} has {found}: set {field!r} to one of its columns, {columns}")

    def _fitting_labels(self) -> list[str]:
        return [field.name for field in self._table.schema if _holds_labels(field.type)]

    def _columns(self) -> "Iterator[tuple[str, pa.Field]]":
        return ((field.name, field) for field in self._table.schema)


def _noted_features(schema: "pa.Schema") -> dict[str, Any]:
    """Features in the schema's metadata, by column; empty where there are none, or they cannot be read."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _holds_labels(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_kind = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)
    return any(check(kind) for check in is_kind)
