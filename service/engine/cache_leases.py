"""Cache leases of jobs: caches are kept from eviction until the jobs end, paused or not, and then noted as used.

The locks behind it die with the engine's process; its successor takes them again from what the database says.
"""

import errno
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress

import structlog

from service.db.engine_queries import EngineQueries
from service.db.states import State
from service.operations.open_files import open_files_max
from store import CacheLease, Catalog, StoreError
from workers.disk_errors import disk_error

log = structlog.get_logger("retort.engine")

_NO_FILE_LEFT = frozenset({errno.EMFILE, errno.ENFILE})
# Between two looks at jobs that nobody works on; where there are many, looks take this part of the engine's time: 30 to
# 60 ms each for 10,000 live jobs, and 1.3 s once for 10,000 new ones, on two cores that other work shared.
_EVERY_S, _EVERY_MAX_S = 1.0, 10.0
_SHARE = 0.02
# Job ids of one query: SQLite and PostgreSQL bind 32,766 and 65,535 values at most.
_IDS_MAX = 500


class CacheLeases:
    """Leases by cache and by job; a cache of several jobs is held once, for a lock is an open file.

    Args:
        catalog: of the service's caches.
        waiting_max: caches that are held once jobs that wait are given no more; None for half of the files that this
            process may open, for it needs others to work at all.
    """

    def __init__(self, catalog: Catalog, waiting_max: int | None = None) -> None:
        self._catalog = catalog
        self._waiting_max = (open_files_max() or sys.maxsize) // 2 if waiting_max is None else waiting_max
        self._keys: defaultdict[str, set[str]] = defaultdict(set)
        self._left: defaultdict[str, set[str]] = defaultdict(set)
        self._held: dict[str, CacheLease] = {}

    @property
    def job_ids(self) -> set[str]:
        """Jobs that something is held for, or will be, see ``retry``."""
        return {*self._keys, *self._left}

    def take(self, job_id: str, keys: Iterable[str], *, waits: bool = False) -> None:
        """Hold these caches for a job; those that are gone are left out: the job makes them anew, or fails on them.

        What the disk does not let it open, or for which there is no file left, is left for ``retry``.

        Args:
            waits: nobody works on the job, so it gets only what is left of ``waiting_max``.
        """
        for key in keys:
            if self._take(job_id, key, waits=waits):
                self._left[job_id].discard(key)
            else:
                self._left[job_id].add(key)
        if not self._left[job_id]:
            del self._left[job_id]

    def _take(self, job_id: str, key: str, *, waits: bool) -> bool:
        """Whether nothing is left to do: the cache is held, or gone."""
        if waits and key not in self._held and len(self._held) >= self._waiting_max:
            return False
        try:
            # Also one that is held already: it may have been made again since.
            fresh = self._catalog.hold(key)
        except StoreError:
            return True
        except OSError as error:
            _check_passes(error)
            if key not in self._left[job_id]:
                log.warning("cache is not held yet", job_id=job_id, cache=key, error=str(error))
            return False
        if key in self._held:
            self._held[key].release()
        self._held[key] = fresh
        self._keys[job_id].add(key)
        return True

    def retry(self, at_work: Collection[str]) -> None:
        """Try again to hold what could not be held, first for the jobs that somebody works on."""
        for job_id in sorted(self._left, key=lambda id: id not in at_work):
            self.take(job_id, list(self._left[job_id]), waits=job_id not in at_work)

    def release(self, job_id: str) -> None:
        """Let go of a job's caches, whose last use was now. Nothing happens if nothing is held."""
        self._left.pop(job_id, None)
        for key in self._keys.pop(job_id, set()):
            try:
                with suppress(StoreError):
                    self._catalog.touch(key)
            except OSError as error:
                _check_passes(error)
                log.warning("last use of a cache is not noted", cache=key, error=str(error))
            if not any(key in others for others in self._keys.values()):
                self._held.pop(key).release()


def _check_passes(error: OSError) -> None:
    """Raise it again unless it passes: the disk's errors do, and a lack of open files."""
    if error.errno not in _NO_FILE_LEFT and disk_error(error) is None:
        raise error


class LeaseKeeper:
    """Keeps the leases of jobs that nobody works on: queued ones get them, ended and deleted ones lose them.

    A queued job may name caches: imported ones, which nobody can make anew, or its own, if runs were added to it.

    Args:
        queries: of the jobs.
        leases: of their caches.
    """

    def __init__(self, queries: EngineQueries, leases: CacheLeases) -> None:
        self._queries, self._leases = queries, leases
        # Queued jobs that name none: what a job names changes only while it is worked on.
        self._nameless: set[str] = set()
        self._next_s = 0.0

    def look(self, at_work: Collection[str]) -> None:
        """Look at all live jobs, if it is time.

        Args:
            at_work: jobs that this engine works on, by id.
        """
        began_s = time.monotonic()
        if began_s < self._next_s:
            return
        live = self._queries.live_states()
        for ended in self._leases.job_ids - live.keys() - set(at_work):
            self._leases.release(ended)
        queued = {id for id, state in live.items() if state is State.QUEUED}
        self._nameless &= queued
        self._leases.retry(at_work)
        new = sorted(queued - self._nameless - self._leases.job_ids)
        for first in range(0, len(new), _IDS_MAX):
            some = new[first : first + _IDS_MAX]
            named = self._queries.caches_in_use(some)
            self._nameless |= set(some) - named.keys()
            for job_id, keys in named.items():
                self._leases.take(job_id, keys, waits=True)
        now_s = time.monotonic()
        self._next_s = now_s + min(_EVERY_MAX_S, max(_EVERY_S, (now_s - began_s) / _SHARE))
