"""Models of the tables (SQLAlchemy); rows leave a transaction detached and are read as plain records.

Times are UTC and timezone-aware. JSON columns hold what pydantic dumped. ``seq`` of an event rises with the order of
commits (see ``Database.write``), so a reader that has seen ``seq`` has missed nothing before it.
"""

from datetime import datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base as Base
from service.db.base import Json as Json
from service.db.base import utc_now as utc_now
from service.db.columns import STATE
from service.db.job_labels import LISTING, JobLabels
from service.db.states import State


class TeacherRecord(Base):
    """An ONNX classifier that was uploaded and inspected. Several may share one file, never one ``identity``.

    ``reading`` is what a client has stated of its output, classes and other inputs (``config.teacher.TeacherReading``),
    NULL for nothing; ``file_class_names`` are those of the file's metadata, empty for
    none, NULL where an earlier version has not read them.
    """

    __tablename__ = "teachers"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    identity: Mapped[str] = mapped_column(String(64), unique=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    inputs: Mapped[list[Json]] = mapped_column()
    outputs: Mapped[list[Json]] = mapped_column()
    output: Mapped[str] = mapped_column(Text)
    preprocessing: Mapped[Json] = mapped_column()
    reading: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    file_class_names: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class DatasetRecord(Base):
    """A dataset with a name of its own; jobs may also describe theirs outright."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    spec: Mapped[Json] = mapped_column()
    classes: Mapped[int | None] = mapped_column()
    samples: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class JobRecord(JobLabels, Base):
    """A posted job. ``plan`` and ``teacher`` are copies: a teacher may be deleted after its jobs have ended.

    ``attempt`` counts the engines that have worked on it, and fences the writes of earlier ones. ``parallel_runs`` is
    how many of its runs may be at work at once, NULL for as many as there is room for; ``key_id`` is the API key that
    posted it, NULL without keys; ``retry_of`` is the job whose runs it tries again. ``backoff`` (``backoff.Backoff``)
    is of the losses in a row of the process that completes its caches, NULL without any. ``set_aside`` says why it is
    paused although no client has asked for that, see ``service.db.scheduling.set_aside``. ``pinned_at`` keeps it from
    deletion. ``samples`` are the pictures of each split of its dataset, or its holdout, when it was posted; ``eta`` is
    ``estimates.forecast.Eta``.
    """

    __tablename__ = "jobs"
    # The engine looks for queued ones, the newest ones of a state are listed; the live ones of a key are counted.
    __table_args__ = (Index(None, "state", "id"), Index(None, "key_id", "state"), LISTING)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    state: Mapped[State] = mapped_column(STATE, default=State.QUEUED)
    attempt: Mapped[int] = mapped_column(default=0)
    holder: Mapped[str | None] = mapped_column(String(200))
    stage: Mapped[str | None] = mapped_column(String(32))
    teacher_id: Mapped[str] = mapped_column(String(40), index=True)
    teacher: Mapped[Json] = mapped_column()
    plan: Mapped[Json] = mapped_column()
    inference: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    caches: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    teacher_forwards: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    teacher_accuracy: Mapped[float | None] = mapped_column()
    teacher_views_accuracy: Mapped[float | None] = mapped_column()
    teacher_metrics: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    set_aside: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    priority: Mapped[int] = mapped_column(default=0, server_default="0")
    parallel_runs: Mapped[int | None] = mapped_column()
    key_id: Mapped[str | None] = mapped_column(String(40))
    retry_of: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    backoff: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    pinned_at: Mapped[datetime | None] = mapped_column()
    samples: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    eta: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None] = mapped_column()
    finished_at: Mapped[datetime | None] = mapped_column()


class JobRevisionRecord(Base):
    """Count of the changes of a job and its runs, kept by triggers (migration 0011).

    Read by ``service.db.queries.version``.
    """

    __tablename__ = "job_revisions"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger)


class RunRecord(Base):
    """One student to train. ``attempt`` rises with every start; a write that brings an older one does not land.

    ``actor`` names the process that the newest attempt was given to, ``slot`` (column ``piece``) is its place there.
    ``share`` is what each process of that attempt was given: ``{"processes", "cpus", "gpu_share"}``; NULL before the
    first, and of one that an earlier version has started. ``whole_gpu``: it had too little memory on a share of a GPU,
    and is tried with a whole one. ``waits_for`` says why it waits although it is its turn.
    ``lost_attempts`` (column ``losses``) counts the attempts whose process vanished, ``backoff`` (``backoff.Backoff``)
    those since the last epoch. ``retry_of`` is the run that this one tries again, each at most once.
    ``set_aside`` says why it is paused although no client has asked for that, see ``service.db.scheduling.set_aside``.
    ``eta`` is ``estimates.forecast.Eta``.
    """

    __tablename__ = "runs"
    # /metrics counts states, attempts and losses of all runs from the index alone.
    __table_args__ = (UniqueConstraint("job_id", "index"), Index(None, "state", "attempt", "losses"))

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    index: Mapped[int] = mapped_column()
    name: Mapped[str] = mapped_column(Text)
    student: Mapped[str] = mapped_column(String(128))
    method: Mapped[str] = mapped_column(Text)
    method_spec: Mapped[Json] = mapped_column()
    seed: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[State] = mapped_column(STATE, default=State.QUEUED)
    attempt: Mapped[int] = mapped_column(default=0)
    epoch: Mapped[int] = mapped_column(default=0)
    epochs: Mapped[int] = mapped_column()
    progress: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    metrics: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    result: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    set_aside: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    lost_attempts: Mapped[int] = mapped_column("losses", default=0, server_default="0")
    actor: Mapped[str | None] = mapped_column(String(80))
    slot: Mapped[int | None] = mapped_column("piece")
    share: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    whole_gpu: Mapped[bool] = mapped_column(default=False, server_default=false())
    waits_for: Mapped[str | None] = mapped_column(Text)
    backoff: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    eta: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    retry_of: Mapped[str | None] = mapped_column(ForeignKey("runs.id"), index=True, unique=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None] = mapped_column()
    finished_at: Mapped[datetime | None] = mapped_column()


class EventRecord(Base):
    """One event. ``run_id`` is empty for an event of the job itself.

    ``n`` numbers the events of an attempt, so that one sent twice is stored once; it is NULL, which is never equal to
    itself, for what the service adds of its own: the changes of state.
    """

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("job_id", "run_id", "attempt", "n"),
        Index(None, "job_id", "seq"),
        Index(None, "run_id", "seq"),
        # Without AUTOINCREMENT SQLite may give a deleted row's number to a later event.
        {"sqlite_autoincrement": True},
    )

    # SQLite counts up an INTEGER primary key only.
    seq: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    run_id: Mapped[str] = mapped_column(String(40), default="")
    attempt: Mapped[int] = mapped_column()
    n: Mapped[int | None] = mapped_column()
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[Json] = mapped_column()
    at: Mapped[datetime] = mapped_column(default=utc_now)


class PackedEventsRecord(Base):
    """Events of an ended job in one row, compressed, see ``service.db.queries.packed_events``.

    ``run_id`` is as in EventRecord. ``first_seq`` and ``last_seq`` are the smallest and the largest ``seq`` of the
    events in it.
    """

    __tablename__ = "packed_events"
    __table_args__ = (Index(None, "job_id", "last_seq"), Index(None, "run_id", "last_seq"))

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    run_id: Mapped[str] = mapped_column(String(40), default="")
    first_seq: Mapped[int] = mapped_column(BigInteger)
    last_seq: Mapped[int] = mapped_column(BigInteger)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class ArtifactRecord(Base):
    """A file that an attempt of a run has left; ``path`` is relative to the data directory."""

    __tablename__ = "artifacts"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    path: Mapped[str] = mapped_column(String(1024))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    media_type: Mapped[str] = mapped_column(String(200))


class KeyRecord(Base):
    """An API key: never the secret itself, only its SHA-256. A revoked one stays, so that its jobs keep their name."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    last_used_at: Mapped[datetime | None] = mapped_column()
    revoked_at: Mapped[datetime | None] = mapped_column()


class IdempotencyRecord(Base):
    """An Idempotency-Key that was used, a digest of its body, and its job; ``key_id`` is empty without an API key."""

    __tablename__ = "idempotency_keys"

    key_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class DeletedPathRecord(Base):
    """Tombstone of a file or folder below the data directory that no row names any more, and that is to be removed.

    It is written in the transaction that deletes the row. A file that nobody knows and that has no tombstone is never
    removed: then the database is likely to be an older one.
    """

    __tablename__ = "deleted_paths"

    path: Mapped[str] = mapped_column(String(1024), primary_key=True)
    deleted_at: Mapped[datetime] = mapped_column(default=utc_now)


class DeletedSumRecord(Base):
    """Sum that deleted jobs and runs had added to a counter of ``/metrics``, so that it does not fall."""

    __tablename__ = "deleted_sums"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[float] = mapped_column(default=0.0)


class EngineRecord(Base):
    """The lease of the one engine that may lead: a single row, ``id`` 1.

    ``gpus`` is what its holder has found out about its GPUs (``gpus.GpuReport``); NULL where it has none, or not yet.
    ``parts`` is what it says of the parts of its readiness (``readiness.EngineParts``); ``capacity`` what runs get, as
    the last one that led has chosen it (``estimates.workload.Slots``).
    """

    __tablename__ = "engine"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    holder: Mapped[str | None] = mapped_column(String(200))
    heartbeat_at: Mapped[datetime | None] = mapped_column()
    gpus: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    parts: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    capacity: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
