"""Packed events: those of an ended job, some hundred of a run in one compressed row, read like any others.

The event of an epoch takes 1 kB of the database (566 bytes of JSON; the rest is ids and indexes), and 0.3 kB when
packed. Nothing of it changes: ``seq``, attempt, number, time and data are kept, so pages, streams and metrics of the
job are what they were. Two kinds are dropped, because later events say more than they do: ``step`` (progress within an
epoch, one every two seconds), and every ``inference_progress`` of a cache but the last.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.models import EventRecord, JobRecord, Json, PackedEventsRecord, RunRecord
from service.db.states import TERMINAL
from service.db.transitions import event_rows

# Of one packed row: few enough that a page of events does not unpack many more than it shows.
PACK_MAX = 200
# Types of events that later ones make superfluous.
PROGRESS = ("step", "inference_progress")
# Of one transaction, which holds up every other writer.
SLICE = 2000
_LEVEL = 6


def pack(rows: Sequence[EventRecord], *, of_another_run: bool = False) -> bytes:
    """Events of one job and run as compressed JSON.

    Args:
        of_another_run: whose attempts say nothing here; they become 0, without a number.
    """
    documents = [
        [
            row.seq,
            0 if of_another_run else row.attempt,
            None if of_another_run else row.n,
            row.type,
            row.data,
            row.at.isoformat(),
        ]
        for row in rows
    ]
    return zlib.compress(json.dumps(documents, separators=(",", ":"), allow_nan=False).encode(), _LEVEL)


def unpack(packed: PackedEventsRecord) -> list[EventRecord]:
    """The events of a packed row, oldest first; none of them is in the session."""
    return [
        EventRecord(
            seq=seq,
            job_id=packed.job_id,
            run_id=packed.run_id,
            attempt=attempt,
            n=n,
            type=type_,
            data=data,
            at=datetime.fromisoformat(at),
        )
        for seq, attempt, n, type_, data, at in json.loads(zlib.decompress(packed.content))
    ]


def events_of(session: Session, owner: JobRecord | RunRecord, after: int, limit: int) -> list[EventRecord]:
    """Events of a job (its runs' included) or of a run, packed or not, later than ``after``, oldest first."""
    is_job = isinstance(owner, JobRecord)
    plain = (EventRecord.job_id if is_job else EventRecord.run_id) == owner.id
    query = select(EventRecord).where(plain, EventRecord.seq > after).order_by(EventRecord.seq).limit(limit)
    # In this order: what is packed between the two queries is found twice, and never not at all.
    rows = {row.seq: row for row in event_rows(session, query)}
    packed = (PackedEventsRecord.job_id if is_job else PackedEventsRecord.run_id) == owner.id
    packed &= PackedEventsRecord.last_seq > after
    if len(rows) == limit:
        packed &= PackedEventsRecord.first_seq < max(rows)
    query_packed = select(PackedEventsRecord).where(packed).order_by(PackedEventsRecord.first_seq)
    with closing(session.scalars(query_packed.execution_options(yield_per=10))) as found:
        for some in found:
            # Those of several runs overlap; what begins later than the last event that is wanted holds none.
            if len(rows) >= limit and sorted(rows)[limit - 1] < some.first_seq:
                break
            rows |= {row.seq: row for row in unpack(some) if row.seq > after}
    return [rows[seq] for seq in sorted(rows)[:limit]]


def events_before(
    session: Session, owner: JobRecord | RunRecord, *, after: int, before: int, limit: int
) -> list[EventRecord]:
    """Events as ``events_of`` finds them, between two numbers, newest first and without those of ``PROGRESS``."""
    is_job = isinstance(owner, JobRecord)
    plain = (EventRecord.job_id if is_job else EventRecord.run_id) == owner.id
    plain &= (EventRecord.seq > after) & (EventRecord.seq < before) & EventRecord.type.not_in(PROGRESS)
    query = select(EventRecord).where(plain).order_by(EventRecord.seq.desc()).limit(limit)
    # In this order, as above.
    rows = {row.seq: row for row in event_rows(session, query)}
    packed = (PackedEventsRecord.job_id if is_job else PackedEventsRecord.run_id) == owner.id
    packed &= (PackedEventsRecord.last_seq > after) & (PackedEventsRecord.first_seq < before)
    query_packed = select(PackedEventsRecord).where(packed).order_by(PackedEventsRecord.last_seq.desc())
    with closing(session.scalars(query_packed.execution_options(yield_per=10))) as found:
        for some in found:
            # Those of several runs overlap; what ends earlier than the last event that is wanted holds none.
            if len(rows) >= limit and sorted(rows, reverse=True)[limit - 1] > some.last_seq:
                break
            shown = (row for row in unpack(some) if after < row.seq < before and row.type not in PROGRESS)
            rows |= {row.seq: row for row in shown}
    return [rows[seq] for seq in sorted(rows, reverse=True)[:limit]]


def epoch_events(session: Session, run_id: str) -> list[EventRecord]:
    """The events of a run of type ``epoch``, packed or not, oldest first."""
    plain = select(EventRecord).where(EventRecord.run_id == run_id, EventRecord.type == "epoch")
    # In this order, as above.
    rows = {row.seq: row for row in event_rows(session, plain)}
    for some in session.scalars(select(PackedEventsRecord).where(PackedEventsRecord.run_id == run_id)):
        rows |= {row.seq: row for row in unpack(some) if row.type == "epoch"}
    return [rows[seq] for seq in sorted(rows)]


def metrics_by_epoch(session: Session, run_id: str) -> dict[int, Json]:
    """The metrics of each epoch by the events of a run; of one that was trained twice, the later ones."""
    found: list[object] = [row.data for row in epoch_events(session, run_id)]
    return {data["epoch"]: data["metrics"] for data in found if isinstance(data, dict) and "epoch" in data}


def hand_over_epochs(session: Session, run_id: str, retry: RunRecord) -> None:
    """Give a retry the epochs that it has not trained itself, of the run that it tries again and that is deleted next.

    The first one in the chain of retries that has trained an epoch gets them; where none has, nobody misses them.
    """
    heir: RunRecord | None = retry
    while heir is not None and not (own := metrics_by_epoch(session, heir.id)):
        heir = session.scalars(select(RunRecord).where(RunRecord.retry_of == heir.id)).one_or_none()
    if heir is None:
        return
    rows = [
        row
        for row in epoch_events(session, run_id)
        if isinstance(epoch := row.data.get("epoch"), int) and epoch < min(own)
    ]
    _store(session, heir.job_id, heir.id, rows, of_another_run=True)


def compact(database: Database, job_id: str, should_stop: Callable[[], bool] = lambda: False) -> int:
    """Pack the events of a job that has ended, a slice at a time; killed anywhere, each event is there once.

    One that is damaged stays as it is.

    Returns:
        How many rows are fewer.
    """
    saved = 0
    with database.read() as session:
        run_ids = session.scalars(select(RunRecord.id).where(RunRecord.job_id == job_id).order_by(RunRecord.id)).all()
    # The job's own last: they are found among fewer.
    for run_id in (*run_ids, ""):
        after: int | None = 0
        while after is not None and not should_stop():
            with database.write() as session:
                after, fewer = _pack_slice(session, job_id, run_id, after)
            saved += fewer
    return saved


def _pack_slice(session: Session, job_id: str, run_id: str, after: int) -> tuple[int | None, int]:
    """Pack what comes next of a run, or of the job itself; returns after which event to go on, and the rows saved."""
    job = session.get(JobRecord, job_id)
    if job is None or job.state not in TERMINAL:
        return None, 0
    ours = (EventRecord.job_id == job_id) & (EventRecord.run_id == run_id)
    query = select(EventRecord).where(ours, EventRecord.seq > after).order_by(EventRecord.seq).limit(SLICE)
    rows = event_rows(session, query)
    if not rows:
        return None, 0
    whole = [row for row in rows if row in session]
    newest = {row.data.get("cache"): row.seq for row in whole if row.type == "inference_progress"}
    kept = [
        row
        for row in whole
        if row.type != "step" and (row.type != "inference_progress" or newest[row.data.get("cache")] == row.seq)
    ]
    packs = _store(session, job_id, run_id, kept)
    seqs = [row.seq for row in whole]
    session.expunge_all()
    for start in range(0, len(seqs), PACK_MAX):
        session.execute(delete(EventRecord).where(EventRecord.seq.in_(seqs[start : start + PACK_MAX])))
    return rows[-1].seq, len(seqs) - packs


def _store(
    session: Session, job_id: str, run_id: str, rows: Sequence[EventRecord], *, of_another_run: bool = False
) -> int:
    """Add packed rows, and return how many."""
    parts = [rows[start : start + PACK_MAX] for start in range(0, len(rows), PACK_MAX)]
    for part in parts:
        columns = {"job_id": job_id, "run_id": run_id, "first_seq": part[0].seq, "last_seq": part[-1].seq}
        content = pack(part, of_another_run=of_another_run)
        session.execute(insert(PackedEventsRecord), [{**columns, "content": content}])
    return len(parts)
