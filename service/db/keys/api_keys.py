"""API keys: 32 random bytes each, shown once, and kept as their SHA-256 with a scope.

``Keys`` is the table. ``KeyRing`` is what a process that answers requests knows of it: a picture that is never older
than two seconds, so a request costs no query of its own and a key that was revoked is refused within seconds, in every
process. When a key was used last is noted once a minute for all keys together.
"""

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import anyio
import anyio.to_thread
from sqlalchemy import exists, inspect, select, update
from sqlalchemy.exc import SQLAlchemyError

from service.db.database import Database
from service.db.ids import new_id
from service.db.keys.scopes import OPERATOR, THIS_MACHINE, Caller, Scope
from service.db.models import KeyRecord, utc_now
from service.db.shared_read import SharedRead
from service.db.transitions import existing

PREFIX = "rt_"
SECRET_BYTES = 32
FRESH_S = 2.0
NOTE_USES_S = 60.0


def digest_of_secret(secret: str) -> str:
    """SHA-256, 64 hex digits. A key is as random as the digest is long, so no salt and no slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Keys:
    """The keys in the database.

    Args:
        database: migrated to head.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def issue(self, name: str, scope: Scope) -> tuple[KeyRecord, str]:
        """A new key, and its secret, which is nowhere kept."""
        secret = PREFIX + secrets.token_hex(SECRET_BYTES)
        record = KeyRecord(id=new_id("key"), name=name, digest=digest_of_secret(secret), scope=scope)
        with self.database.write() as session:
            session.add(record)
        return record, secret

    def list(self, after: str | None = None, limit: int | None = None) -> tuple[Sequence[KeyRecord], bool]:
        """Keys before the id ``after``, newest first, the revoked ones too; and whether there are more."""
        query = select(KeyRecord).order_by(KeyRecord.id.desc())
        if after is not None:
            query = query.where(KeyRecord.id < after)
        with self.database.read() as session:
            rows = session.scalars(query.limit(None if limit is None else limit + 1)).all()
        return rows[:limit], limit is not None and len(rows) > limit

    def get(self, id: str) -> KeyRecord:
        """One key. Raises NotFound."""
        with self.database.read() as session:
            return existing(session, KeyRecord, id)

    def revoke(self, id: str) -> KeyRecord:
        """End a key for good; one that is revoked stays as it is. Raises NotFound."""
        with self.database.write() as session:
            key = existing(session, KeyRecord, id)
            key.revoked_at = key.revoked_at or utc_now()
            return key

    def live(self) -> tuple[Sequence[KeyRecord], bool]:
        """The keys that are not revoked, and whether there has ever been one."""
        with self.database.read() as session:
            rows = session.scalars(select(KeyRecord).where(KeyRecord.revoked_at.is_(None))).all()
            return rows, bool(rows) or bool(session.scalar(select(exists().select_from(KeyRecord))))

    def note_uses(self, used: Mapping[str, datetime]) -> None:
        """Set when these keys were used last."""
        with self.database.write() as session:
            for id, at in used.items():
                session.execute(update(KeyRecord).where(KeyRecord.id == id).values(last_used_at=at))


def any_live_key(url: str) -> bool:
    """Whether the database behind ``url`` has a key that is not revoked; nothing is created or migrated for that.

    Raises:
        NewerDatabase: its tables may be others.
    """
    database = Database(url)
    try:
        if not database.exists():
            return False
        database.check_version()
        with database.read() as session:
            if not inspect(session.connection()).has_table(KeyRecord.__tablename__):
                return False
        return bool(Keys(database).live()[0])
    finally:
        database.close()


@dataclass(frozen=True)
class _Picture:
    """The table as it was at ``began_s``: id, digest and caller of each good key, and whether there ever was one."""

    live: Sequence[tuple[str, str, Caller]]
    ever: bool
    began_s: float


class KeyRing:
    """Tells who a secret belongs to. Its coroutines belong to one event loop.

    A service that has had a key asks for one ever after: revoking the last one closes the door, it does not open it.

    Args:
        keys: the table.
        file_digest: of the key in ``RETORT_API_KEY_FILE``; None without a file.
        is_local: whether the service can be reached from its own machine only.
    """

    def __init__(self, keys: Keys, file_digest: str | None, *, is_local: bool) -> None:
        self._keys = keys
        self._file_digest = file_digest
        self._is_local = is_local
        self._picture: _Picture | None = None
        self._forgotten_s = -math.inf
        self._look = SharedRead(self._read)
        # Of its own: the common threads may all be busy with long requests.
        self._thread = anyio.CapacityLimiter(1)
        self._used: dict[str, datetime] = {}

    async def find(self, secret: str | None) -> Caller | None:
        """Find the caller who brings a secret; None for nobody who may call.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the table cannot be read, and the key is not that of the file.
        """
        digest = None if secret is None else digest_of_secret(secret)
        if digest is not None and self._file_digest is not None and hmac.compare_digest(digest, self._file_digest):
            return OPERATOR
        picture = await self._fresh(FRESH_S)
        if digest is not None:
            # Every key is compared, each in constant time: how long it takes tells nothing.
            found = [(id, caller) for id, known, caller in picture.live if hmac.compare_digest(known, digest)]
            if found:
                id, caller = found[0]
                self._used[id] = utc_now()
                return caller
        return None if self._asks(picture) else THIS_MACHINE

    async def knows(self, caller: Caller) -> bool:
        """Whether ``find`` would still find this caller; while the table cannot be read, whoever was in may stay."""
        try:
            # Twice as old as requests take it: where there are any, a stream does not wait for the table itself.
            picture = await self._fresh(2 * FRESH_S)
        except SQLAlchemyError:
            return True
        if caller.key_id is None:
            return caller is OPERATOR or not self._asks(picture)
        return any(id == caller.key_id for id, _, _ in picture.live)

    def forget(self) -> None:
        """Let the next request look at the table: this process has changed it."""
        self._picture, self._forgotten_s = None, time.monotonic()

    async def note_uses(self) -> None:
        """Write down when keys were used last."""
        used, self._used = self._used, {}
        if used:
            await anyio.to_thread.run_sync(self._keys.note_uses, used, limiter=self._thread)

    def _asks(self, picture: _Picture) -> bool:
        return self._file_digest is not None or picture.ever or not self._is_local

    async def _fresh(self, age_s: float) -> _Picture:
        picture = self._picture
        if picture is None or time.monotonic() - picture.began_s > age_s:
            picture = await self._look()
            # One that began before this process changed the table may not show the change.
            if picture.began_s > self._forgotten_s:
                self._picture = picture
        return picture

    def _read(self) -> _Picture:
        began_s = time.monotonic()
        rows, ever = self._keys.live()
        live = [(row.id, row.digest, Caller(row.id, row.name, Scope(row.scope))) for row in rows]
        return _Picture(live, ever, began_s)
