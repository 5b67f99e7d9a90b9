"""Labels of jobs, which clients may change: tags and a note; and the one text that a job is found by.

The text (column ``search_text``) holds all that a list of jobs is filtered by and that is no column of its own, each
value between a mark of its kind and an end, case aside: a filter is one LIKE on it. With SQLite the index ``LISTING``
holds it beside what lists are sorted by, so that a filter reads 0.3 kB of a job and not its whole row of 5 kB and more.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, Index, Text, text
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import Mapped, mapped_column

from workers.texts import case_aside

_CONTROL = re.compile("[\x00-\x1f]")
_END = "\x1f"
# Columns of a job that its text is made of.
SEARCHED = ("id", "name", "note", "tags", "teacher_id", "teacher", "plan", "retry_of")
# PostgreSQL keeps long values apart from the row, and an entry of its indexes holds 2.7 kB at most.
_LISTED = ("id", "state", "created_at", "finished_at", "name", "search_text")
LISTING = Index(None, *_LISTED).ddl_if(dialect="sqlite")


class Mark(StrEnum):
    """Marks of the kinds of values in a job's text; none of them can be part of a value."""

    NAME = "\x01"
    NOTE = "\x02"
    TAG = "\x03"
    TEACHER = "\x04"
    DATASET = "\x05"
    ID = "\x06"


def search_text(job: Mapping[str, Any]) -> str:
    """The text that a job is found by; ``job`` has columns of ``JobRecord`` by name."""
    dataset = dataset_text((job.get("plan") or {}).get("dataset") or {})
    values = [(Mark.NAME, job["name"]), (Mark.NOTE, job.get("note"))]
    values += [(Mark.TAG, tag) for tag in job.get("tags") or ()]
    teacher = job.get("teacher") or {}
    values += [(Mark.TEACHER, job["teacher_id"]), (Mark.TEACHER, teacher.get("name"))]
    values += [(Mark.TEACHER, each.get(name)) for each in teacher.get("members", ())[1:] for name in ("id", "name")]
    values += [(Mark.DATASET, part) for part in {dataset, *dataset.split(" ", 1)}]
    values += [(Mark.ID, job["id"]), (Mark.ID, job.get("retry_of"))]
    return "".join(f"{mark}{_plain(value or '')}{_END}" for mark, value in values)


def dataset_text(spec: Mapping[str, Any]) -> str:
    """Kind and path of a dataset: ``folder flowers``, ``digits``."""
    return " ".join(str(spec[name]) for name in ("kind", "path") if spec.get(name))


def pattern_of_value(mark: Mark, value: str) -> str:
    """LIKE pattern (escape ``/``) of a text with just this value."""
    return f"%{mark}{_escaped(value)}{_END}%"


def pattern_of_part(part: str) -> str:
    """LIKE pattern (escape ``/``) of a text with a value that holds ``part``."""
    return f"%{_escaped(part)}%"


def pattern_of_name(part: str) -> str:
    """LIKE pattern (escape ``/``) of a text whose name holds ``part``: the name comes first, and one note after it."""
    return f"%{_escaped(part)}%{Mark.NOTE}%"


def _plain(value: str) -> str:
    return _CONTROL.sub(" ", case_aside(value))


def _escaped(value: str) -> str:
    return re.sub("[/%_]", r"/\g<0>", _plain(value))


def _of_insert(context: DefaultExecutionContext) -> str:
    return search_text(context.get_current_parameters())  # type: ignore[no-untyped-call]  # SQLAlchemy's


class JobLabels:
    """Columns of ``JobRecord``: what people write on a job beside its name, and the text that it is found by.

    ``tags`` is NULL without any. Whoever changes ``name``, ``tags`` or ``note`` sets ``search_text`` anew.
    """

    tags: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    note: Mapped[str] = mapped_column(Text, default="", server_default=text("''"))
    search_text: Mapped[str] = mapped_column(Text, default=_of_insert, server_default=text("''"))
