"""Filters and orders of lists, for the client."""

from collections.abc import Mapping
from datetime import datetime
from typing import TypedDict


class JobFilters(TypedDict, total=False):
    """Filters and order of a list of jobs; ``/openapi.json`` describes them. ``status`` is ``state`` by its old name.

    A time is a ``datetime`` or ISO 8601; without a zone it is UTC.
    """

    state: str
    status: str
    tag: str
    name: str
    teacher: str
    dataset: str
    created_after: datetime | str
    created_before: datetime | str
    q: str
    sort: str


class RunFilters(TypedDict, total=False):
    """Filters of a job's runs; ``method`` is a label (``kd(temperature=2)``) or what comes before the parameters."""

    state: str
    student: str
    method: str


def filters_query(filters: Mapping[str, object]) -> dict[str, str]:
    """Query of a list: those of the filters that are not None."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else str(value)
        for name, value in filters.items()
        if value is not None
    }
