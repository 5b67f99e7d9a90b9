"""Queries of curves: the metrics of the epochs of every run of a job, and those that came since a moment.

So many epochs are left out that about ``NUMBERS_MAX`` numbers are kept: a job may have 1,000 runs of 10,000 epochs,
each with dozens of metrics.
"""

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.models import EventRecord, JobRecord, Json, PackedEventsRecord, RunRecord
from service.db.queries.packed_events import unpack
from service.db.states import State
from service.db.transitions import DAMAGED, event_rows, existing

NUMBERS_MAX = 1 << 20
_ROWS_AT_ONCE = 5000


class CurveRun(NamedTuple):
    """Run as curves name it: columns of ``RunRecord``; ``epoch`` and ``metrics`` are of the last one."""

    id: str
    name: str
    student: str
    method: str
    method_spec: Json
    seed: int
    state: State
    epochs: int
    epoch: int
    metrics: Json | None
    retry_of: str | None


class Curves(NamedTuple):
    """Metrics of a job's runs.

    Attributes:
        runs: in the order of the plan.
        epochs: metrics by run and epoch (from 1); of an epoch that was trained twice, the later ones.
        last_seq: number of the newest event in it; that which was asked for where there is none.
        every: 1 if no epoch was left out; else each run has its first, its last and every so many.
    """

    runs: list[CurveRun]
    epochs: dict[str, dict[int, Json]]
    last_seq: int
    every: int

    def has(self, epoch: int, last: int) -> bool:
        """Whether an epoch is kept, of a run with this last one."""
        return epoch % self.every == 0 or epoch in (1, last)


def curves_of(database: Database, job_id: str, after: int, metrics: int | None) -> Curves:
    """Read the metrics that events later than ``after`` brought, packed or not, at one moment. Raises NotFound.

    Epochs that a retried run has from another job are not among them, see ``ApiQueries.metrics``.

    Args:
        metrics: how many of an epoch are shown; None for all.
    """
    with database.read() as session:
        existing(session, JobRecord, job_id)
        columns = [getattr(RunRecord, name) for name in CurveRun._fields]
        query = select(*columns).where(RunRecord.job_id == job_id).order_by(RunRecord.index)
        runs = [CurveRun._make(row) for row in session.execute(query)]
        # Of packed rows nobody knows how many events are later: as if all were.
        is_all = after == 0 or session.scalar(select(_packed(job_id, after).exists()))
        ended = sum(run.epoch for run in runs) if is_all else _count_later(session, job_id, after)
        width = metrics or max((len(run.metrics or ()) for run in runs), default=0)
        curves = Curves(runs, {run.id: {} for run in runs}, after, _stride(ended * width))
        return curves._replace(last_seq=_fill(curves, _epoch_events(session, job_id, after)))


def _stride(numbers: int) -> int:
    """Power of two: of every so many epochs one is kept, so that a next answer has the same ones and more."""
    every = 1
    while numbers > every * NUMBERS_MAX:
        every *= 2
    return every


def _fill(curves: Curves, events: Iterator[tuple[int, str, Json]]) -> int:
    """Put the metrics of events into their runs; returns the number of the newest event."""
    newest, kept = curves.last_seq, list[tuple[int, str, Json]]()
    last = {run.id: run.epoch for run in curves.runs}
    for seq, run_id, data in events:
        newest = max(newest, seq)
        is_epoch = run_id in last and "epoch" in data and "metrics" in data
        if is_epoch and curves.has(data["epoch"], last[run_id]):
            kept.append((seq, run_id, data))
    for _, run_id, data in sorted(kept, key=lambda event: event[0]):
        curves.epochs[run_id][data["epoch"]] = data["metrics"]
    return newest


def _count_later(session: Session, job_id: str, after: int) -> int:
    """Epochs that have ended since, none of which is packed."""
    return session.scalar(select(func.count()).where(_plain(job_id, after))) or 0


def _plain(job_id: str, after: int) -> ColumnElement[bool]:
    return (EventRecord.job_id == job_id) & (EventRecord.seq > after) & (EventRecord.type == "epoch")


def _packed(job_id: str, after: int) -> Select[PackedEventsRecord]:
    later = (PackedEventsRecord.job_id == job_id) & (PackedEventsRecord.last_seq > after)
    return select(PackedEventsRecord).where(later, PackedEventsRecord.run_id != "")


def _epoch_events(session: Session, job_id: str, after: int) -> Iterator[tuple[int, str, Json]]:
    """Number, run and data of each event of an epoch, in no order."""
    # In this order, as ``packed_events.events_of``: what is packed between the two queries is found twice, never not.
    yield from _plain_events(session, select(EventRecord).where(_plain(job_id, after)))
    for some in session.scalars(_packed(job_id, after)):
        yield from (
            (event.seq, event.run_id, event.data)
            for event in unpack(some)
            if event.type == "epoch" and event.seq > after
        )


def _plain_events(session: Session, query: Select[EventRecord]) -> Iterator[tuple[int, str, Json]]:
    columns = query.with_only_columns(EventRecord.seq, EventRecord.run_id, EventRecord.data)
    try:
        # Without an object for each, and not all at once: there may be millions.
        found = session.execute(columns.execution_options(yield_per=_ROWS_AT_ONCE))
        yield from ((row[0], row[1], row[2]) for row in found)
    except DAMAGED:
        # From the beginning: an event that comes twice changes nothing.
        yield from ((row.seq, row.run_id, row.data) for row in event_rows(session, query))
