"""Cache leases of jobs: caches are kept from eviction until the jobs end, paused or not, and then noted as used.

The locks behind it die with the engine's process; its successor takes them again from what the database says.
"""

from collections.abc import Iterable
from contextlib import suppress

from store import CacheLease, Catalog, StoreError
from workers.disk_errors import passing_over_disk_errors


class CacheLeases:
    """Leases by cache and by job; a cache of several jobs is held once, for a lock is an open file.

    Args:
        catalog: of the service's caches.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._keys: dict[str, set[str]] = {}
        self._held: dict[str, CacheLease] = {}

    @property
    def job_ids(self) -> set[str]:
        """Jobs that something is held for."""
        return set(self._keys)

    def take(self, job_id: str, keys: Iterable[str]) -> None:
        """Hold these caches for a job; those that are gone are left out: the job makes them anew, or fails on them."""
        for key in keys:
            with suppress(StoreError), passing_over_disk_errors():
                # Also one that is held already: it may have been made again since.
                fresh = self._catalog.hold(key)
                if key in self._held:
                    self._held[key].release()
                self._held[key] = fresh
                self._keys.setdefault(job_id, set()).add(key)

    def release(self, job_id: str) -> None:
        """Let go of a job's caches, whose last use was now. Nothing happens if nothing is held."""
        for key in self._keys.pop(job_id, set()):
            with suppress(StoreError), passing_over_disk_errors():
                self._catalog.touch(key)
            if not any(key in others for others in self._keys.values()):
                self._held.pop(key).release()
