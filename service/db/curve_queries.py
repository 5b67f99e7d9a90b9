"""Queries of curves: the metrics of every epoch of every run of a job, and those that came since a moment."""

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.models import EventRecord, JobRecord, Json, PackedEventsRecord, RunRecord
from service.db.packed_events import unpack
from service.db.states import State
from service.db.transitions import DAMAGED, event_rows, existing


class CurveRun(NamedTuple):
    """Run as curves name it: columns of ``RunRecord``."""

    id: str
    name: str
    student: str
    method: str
    method_spec: Json
    seed: int
    state: State
    epochs: int
    retry_of: str | None


class Curves(NamedTuple):
    """Metrics of a job's runs.

    Attributes:
        runs: in the order of the plan.
        epochs: metrics by run and epoch (from 1); of an epoch that was trained twice, the later ones.
        last_seq: number of the newest event in it; that which was asked for where there is none.
    """

    runs: list[CurveRun]
    epochs: dict[str, dict[int, Json]]
    last_seq: int


def curves_of(database: Database, job_id: str, after: int) -> Curves:
    """Read the metrics that events later than ``after`` brought, packed or not, at one moment. Raises NotFound.

    Epochs that a retried run has from another job are not among them, see ``ApiQueries.metrics``.
    """
    with database.read() as session:
        existing(session, JobRecord, job_id)
        columns = [getattr(RunRecord, name) for name in CurveRun._fields]
        query = select(*columns).where(RunRecord.job_id == job_id).order_by(RunRecord.index)
        runs = [CurveRun._make(row) for row in session.execute(query)]
        found = sorted(_epoch_events(session, job_id, after), key=lambda event: event[0])
    epochs: dict[str, dict[int, Json]] = {run.id: {} for run in runs}
    for _, run_id, data in found:
        if run_id in epochs and "epoch" in data and "metrics" in data:
            epochs[run_id][data["epoch"]] = data["metrics"]
    return Curves(runs, epochs, found[-1][0] if found else after)


def _epoch_events(session: Session, job_id: str, after: int) -> Iterator[tuple[int, str, Json]]:
    """Number, run and data of each event of an epoch, in no order."""
    plain = (EventRecord.job_id == job_id) & (EventRecord.seq > after) & (EventRecord.type == "epoch")
    # In this order, as ``packed_events.events_of``: what is packed between the two queries is found twice, never not.
    yield from _plain_events(session, select(EventRecord).where(plain))
    packed = (PackedEventsRecord.job_id == job_id) & (PackedEventsRecord.last_seq > after)
    for some in session.scalars(select(PackedEventsRecord).where(packed, PackedEventsRecord.run_id != "")):
        yield from (
            (event.seq, event.run_id, event.data)
            for event in unpack(some)
            if event.type == "epoch" and event.seq > after
        )


def _plain_events(session: Session, query: Select[EventRecord]) -> list[tuple[int, str, Json]]:
    columns = query.with_only_columns(EventRecord.seq, EventRecord.run_id, EventRecord.data)
    try:
        # Without an object for each: there may be 24,000.
        return [(seq, run_id, data) for seq, run_id, data in session.execute(columns)]
    except DAMAGED:
        return [(row.seq, row.run_id, row.data) for row in event_rows(session, query)]
