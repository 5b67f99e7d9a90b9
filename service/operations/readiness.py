"""Readiness in parts: database, lease, Ray, GPU, disk, clock; each with why it is not ready, and its last error.

The engine says what it knows of its own parts in its row of the database (``EngineParts``). ``look`` joins that with
what this process sees: it is asked every few seconds by load balancers, so it is one query and some system calls.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import SQLAlchemyError

from service.db.columns import UtcDateTime
from service.db.connection.connections import LogGone
from service.db.database import Database, DatabaseDiskError
from service.db.engine_queries import EngineQueries
from service.db.lease import AHEAD_MAX_S, ENGINE_ROW, Lease
from service.db.models import EngineRecord, Json, utc_now
from service.errors import LeaseLost
from service.gpus import gpu_reason
from service.operations import disk
from service.settings import Settings
from workers.texts import without_folders

PARTS = ("database", "lease", "ray", "gpu", "disk", "clock")
RAY_STARTS = "the engine is starting Ray"
log = structlog.get_logger("retort.engine")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LastError(_Model):
    """The newest error of a part, kept when it works again."""

    message: str
    at: datetime


class ReadinessPart(_Model):
    """One part of readiness."""

    ok: bool | None = Field(default=None, description="null where nobody knows: no engine leads, say")
    reason: str | None = Field(default=None, description="why it does not work")
    since: datetime | None = Field(default=None, description="when that began")
    last_error: LastError | None = None


class Readiness(_Model):
    """Whether jobs are taken and worked on, and if not, why."""

    ready: bool
    reasons: list[str]
    heartbeat_age_s: float | None = Field(description="of the leading engine")
    parts: dict[str, ReadinessPart] = Field(
        description="`database`, `lease` (an engine leads), `ray`, `gpu`, `disk`, `clock`; not ready means that one is "
        "not ok"
    )


class EngineParts:
    """Parts of the leading engine, stored whenever one changes.

    Args:
        queries: of the engine, which leads.
    """

    def __init__(self, queries: EngineQueries) -> None:
        self._queries = queries
        self._lock = threading.Lock()
        self._parts: dict[str, ReadinessPart] = {}
        self._is_stored = True

    def begin(self, stored: Json | None) -> Json:
        """Begin anew, and return what is stored with the lease: Ray is to be started; the last errors are kept."""
        with self._lock:
            earlier = _parts_of(stored)
            self._parts = {name: ReadinessPart(ok=True, last_error=part.last_error) for name, part in earlier.items()}
            before = self._parts.get("ray", ReadinessPart())
            # To be starting is no error.
            self._parts["ray"] = before.model_copy(update={"ok": False, "reason": RAY_STARTS, "since": utc_now()})
            return self._dump()

    def set(self, name: str, reason: str | None, *, is_error: bool = True) -> None:
        """Say why a part does not work, or that it does.

        Args:
            is_error: whether a reason is an error, to be shown as the last one later.
        """
        with self._lock:
            before = self._parts.get(name, ReadinessPart())
            if (before.ok, before.reason) == (reason is None, reason):
                return
            now = utc_now()
            since = None if reason is None else before.since if before.reason is not None else now
            last = LastError(message=reason, at=now) if reason is not None and is_error else before.last_error
            self._parts[name] = ReadinessPart(ok=reason is None, reason=reason, since=since, last_error=last)
            self._is_stored = False
        self.store()

    def note(self, name: str, message: str) -> None:
        """Keep an error of a part that works all the same."""
        with self._lock:
            before = self._parts.get(name, ReadinessPart(ok=True))
            last = LastError(message=message, at=utc_now())
            self._parts[name] = before.model_copy(update={"last_error": last})
            self._is_stored = False
        self.store()

    def store(self) -> None:
        """Store what could not be stored when it changed. Raises LeaseLost."""
        with self._lock:
            if self._is_stored:
                return
            try:
                self._queries.record_parts(self._dump())
            except LeaseLost:
                raise
            except SQLAlchemyError as error:
                log.warning("the parts of readiness cannot be stored", error=str(error).partition("\n")[0])
                return
            self._is_stored = True

    def _dump(self) -> Json:
        return {name: part.model_dump(mode="json") for name, part in self._parts.items()}


class ReadinessCheck:
    """Looks at all the parts, for one process.

    Args:
        database: of the service.
        settings: likewise.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        row = EngineRecord.__table__.c
        # PostgreSQL's own time, by which leases run.
        now = "NULL" if database.is_sqlite else "clock_timestamp()"
        self._query = text(
            f"SELECT version_num, holder, heartbeat_at, gpus, parts, {now} AS now FROM alembic_version, engine "
            f"WHERE id = {ENGINE_ROW}"
        ).columns(heartbeat_at=row.heartbeat_at.type, gpus=row.gpus.type, parts=row.parts.type, now=UtcDateTime())
        self._disk_since: datetime | None = None
        self._places: Sequence[Path] = ()

    def look(self) -> Readiness:
        """Every part, of this moment."""
        try:
            row = self._row()
            reason = None if row is not None else self._database.why_not_at_head()
        except (LogGone, DatabaseDiskError) as error:
            # Anybody may ask, without a key.
            row, reason = None, without_folders(str(error), self._settings.folder_names)
        except SQLAlchemyError as error:
            row, reason = None, f"the database cannot be read ({type(error).__name__})"
        parts = dict.fromkeys(PARTS, ReadinessPart())
        parts["database"] = ReadinessPart(ok=reason is None, reason=reason)
        if row is None:
            parts["disk"] = self._disk(ReadinessPart())
            return _look(None, parts)
        beat = None if row.holder is None else row.heartbeat_at
        age_s = None if beat is None else ((row.now or datetime.now(UTC)) - beat).total_seconds()
        parts["database"] = self._written(age_s)
        lease = Lease(row.holder, beat, age_s, self._database.clock)
        stored = _parts_of(row.parts)
        silence = lease.silence(self._settings.heartbeat_max_age_s)
        if silence is None:
            parts |= {name: stored.get(name, ReadinessPart(ok=True)) for name in ("ray", "clock")}
            broken = gpu_reason(row.gpus)
            parts["gpu"] = stored.get("gpu", ReadinessPart()).model_copy(
                update={"ok": broken is None, "reason": broken}
            )
            parts["disk"] = self._disk(stored.get("disk", ReadinessPart()))
            parts["lease"] = ReadinessPart(ok=True)
        else:
            ended_with = stored.get("ray", ReadinessPart()).reason
            if row.holder is None and ended_with not in (None, RAY_STARTS):
                silence = f"{silence}; the last one gave up: {ended_with}"
            # Nobody vouches for them any more.
            parts |= {name: ReadinessPart(last_error=part.last_error) for name, part in stored.items() if name in PARTS}
            parts["disk"] = self._disk(parts["disk"])
            is_ahead = age_s is not None and age_s < -AHEAD_MAX_S
            parts["clock" if is_ahead else "lease"] = ReadinessPart(ok=False, reason=silence)
        return _look(age_s, parts)

    def _written(self, age_s: float | None) -> ReadinessPart:
        """Whether the database could be written when this process has tried that last, or the engine with its heartbeat
        since."""
        error = self._database.write_error
        if error is None:
            return ReadinessPart(ok=True)
        message, at = error
        error_age_s = time.monotonic() - at
        if age_s is not None and 0 <= age_s < error_age_s:
            return ReadinessPart(ok=True)
        return ReadinessPart(ok=False, reason=message, since=utc_now() - timedelta(seconds=error_age_s))

    def _row(self) -> Row[Any] | None:
        """The engine's row with the newest migration; None if the tables are not those that this version expects."""
        try:
            with self._database.connect() as connection:
                row = self._one(connection)
        except (LogGone, DatabaseDiskError):
            raise
        except SQLAlchemyError:
            # No such table or column: it has other tables. If that is not it, this raises as well.
            if self._database.is_at_head():
                raise
            return None
        return row if row is not None and row[0] == self._database.newest_migration() else None

    def _one(self, connection: Connection) -> Row[Any] | None:
        rows = connection.execute(self._query).all()
        return rows[0] if len(rows) == 1 else None

    def _disk(self, reported: ReadinessPart) -> ReadinessPart:
        """The disk as the engine reports it; where it reports nothing, as this process sees its own."""
        if reported.reason is not None:
            return reported
        if not self._places:
            self._places = disk.places(self._settings, self._database.url)
        found = disk.fault(self._places, self._settings.disk_floor_bytes)
        if found is None:
            self._disk_since = None
            return reported.model_copy(update={"ok": True})
        self._disk_since = self._disk_since or utc_now()
        return reported.model_copy(update={"ok": False, "reason": found.message, "since": self._disk_since})


def _look(age_s: float | None, parts: dict[str, ReadinessPart]) -> Readiness:
    reasons = [part.reason for part in parts.values() if part.reason is not None]
    return Readiness(ready=not reasons, reasons=reasons, heartbeat_age_s=age_s, parts=parts)


def _parts_of(stored: Mapping[str, object] | None) -> dict[str, ReadinessPart]:
    """Parts that an engine has stored; none where they are of another version."""
    try:
        return {name: ReadinessPart.model_validate(part) for name, part in (stored or {}).items()}
    except (ValidationError, AttributeError):
        return {}
