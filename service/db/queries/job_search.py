"""Search of jobs: filters and orders of their list, paged by key.

A filter beside the state reads the texts of all jobs (``job_labels``), some 5 ms for 10,000.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, func, literal, or_, select, tuple_
from sqlalchemy.orm import Session, defer

from service.db.columns import UtcDateTime
from service.db.ids import is_id
from service.db.job_labels import Mark, pattern_of_name, pattern_of_part, pattern_of_value
from service.db.models import JobRecord, RunRecord
from service.db.states import State
from service.errors import NotFound

# For the state alone SQLite would take the index of states, and then read a whole row for each job of them.
_STATE = func.coalesce(JobRecord.state, JobRecord.state)

# PostgreSQL gives times in its server's zone, where the ends of the calendar would be out of it.
_FIRST, _LAST = datetime(1, 1, 3, tzinfo=UTC), datetime(9999, 12, 29, tzinfo=UTC)


class JobOrder(StrEnum):
    """Orders of a list of jobs; ``-`` is the reverse one. Equal jobs are in the order of their making."""

    CREATED = "created_at"
    NEWEST = "-created_at"
    FINISHED = "finished_at"
    LAST_FINISHED = "-finished_at"
    NAME = "name"
    NAME_REVERSED = "-name"
    STATE = "state"
    STATE_REVERSED = "-state"


@dataclass(frozen=True)
class JobFilter:
    """Filter of jobs: those for which all of it holds that is not None. Texts are compared case aside.

    Attributes:
        state: their state.
        tag: one of their tags.
        name: part of the name.
        teacher: id or name of the teacher.
        dataset: kind, path, or both with a blank between; each of several will do.
        created_after: the earliest time at which they may have been posted.
        created_before: the time before which they were posted.
        text: part of name, note, a tag, teacher or dataset, or of the id; or the id of a run.
    """

    state: State | None = None
    tag: str | None = None
    name: str | None = None
    teacher: str | None = None
    dataset: tuple[str, ...] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    text: str | None = None


@dataclass(frozen=True)
class RunFilter:
    """Filter of a job's runs: those for which all of it holds that is not None.

    Attributes:
        method: its label (``kd(temperature=2)``), or what comes before the parameters (``kd``).
    """

    state: State | None = None
    student: str | None = None
    method: str | None = None

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """Conditions of a query for runs."""
        found: list[ColumnElement[bool]] = []
        if self.state is not None:
            found.append(RunRecord.state == self.state)
        if self.student is not None:
            found.append(RunRecord.student == self.student)
        if self.method is not None:
            of_parameters = RunRecord.method.startswith(f"{self.method}(", autoescape=True)
            found.append(or_(RunRecord.method == self.method, of_parameters))
        return found


def find_jobs(
    session: Session, wanted: JobFilter, order: JobOrder, *, after: str | None, limit: int
) -> tuple[list[JobRecord], bool]:
    """Jobs without their plans, which may be long, those behind the id ``after``; and whether there are more.

    Raises:
        NotFound: there is no job ``after``, whose place another order than that of ids needs.
    """
    keys = _keys(order)
    is_descending = order.startswith("-")
    query = select(JobRecord).options(defer(JobRecord.plan, raiseload=True))
    by = [key.desc() if is_descending else key.asc() for key in keys]
    ids = select(JobRecord.id).where(*_conditions(wanted, order)).order_by(*by).limit(limit + 1)
    if after is not None:
        behind = _place_of(session, keys, after)
        ids = ids.where(tuple_(*keys) < behind if is_descending else tuple_(*keys) > behind)
    # The ids first: what chooses and sorts them need not read whole rows.
    rows = list(session.scalars(query.where(JobRecord.id.in_(ids)).order_by(*by)))
    return rows[:limit], len(rows) > limit


def _conditions(wanted: JobFilter, order: JobOrder) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.state is not None:
        is_plain = replace(wanted, state=None) == JobFilter() and order in (JobOrder.CREATED, JobOrder.NEWEST)
        conditions.append((JobRecord.state if is_plain else _STATE) == wanted.state)
    if wanted.created_after is not None:
        conditions.append(JobRecord.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(JobRecord.created_at < wanted.created_before)
    if wanted.tag is not None:
        conditions.append(_is_like(pattern_of_value(Mark.TAG, wanted.tag)))
    if wanted.name is not None:
        conditions.append(_is_like(pattern_of_name(wanted.name)))
    if wanted.teacher is not None:
        conditions.append(_is_like(pattern_of_value(Mark.TEACHER, wanted.teacher)))
    if wanted.dataset is not None:
        conditions.append(or_(*(_is_like(pattern_of_value(Mark.DATASET, text)) for text in wanted.dataset)))
    if wanted.text is not None:
        conditions.append(_has_text(wanted.text))
    return conditions


def _has_text(text: str) -> ColumnElement[bool]:
    found = _is_like(pattern_of_part(text))
    if not is_id(text):
        return found
    of_run = select(RunRecord.job_id).where(RunRecord.id == text)
    return or_(found, JobRecord.id.in_(of_run))


def _is_like(pattern: str) -> ColumnElement[bool]:
    return JobRecord.search_text.like(pattern, escape="/")


def _keys(order: JobOrder) -> list[ColumnElement[Any]]:
    """Sort keys of an order, the id last, which is all there is of the time of their making: ids rise with it."""
    id: ColumnElement[Any] = JobRecord.id.expression
    match order.removeprefix("-"):
        case JobOrder.NAME:
            return [func.lower(JobRecord.name), id]
        case JobOrder.STATE:
            return [_STATE, id]
        case JobOrder.FINISHED:
            # Those that have not ended come last either way.
            never = _FIRST if order.startswith("-") else _LAST
            return [func.coalesce(JobRecord.finished_at, literal(never, UtcDateTime())), id]
    return [id]


def _place_of(session: Session, keys: Sequence[ColumnElement[Any]], id: str) -> ColumnElement[Any]:
    """The keys of a job. Raises NotFound where it takes more than its id to know them."""
    if len(keys) == 1:
        return tuple_(literal(id))
    found = session.execute(select(*keys).where(JobRecord.id == id)).one_or_none()
    if found is None:
        raise NotFound("job", id)
    return tuple_(*(literal(value, key.type) for key, value in zip(keys, found, strict=True)))
