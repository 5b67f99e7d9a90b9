"""The caches of the jobs that an engine works on: kept from eviction until the job ends, then noted as used.

The locks behind it die with the engine's process; its successor takes them again from what the database says.
"""

from collections.abc import Iterable
from contextlib import suppress

from store import Catalog, Hold, StoreError


class CacheHolds:
    """What is held for each job.

    Args:
        catalog: of the service's caches.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._held: dict[str, dict[str, Hold]] = {}

    def take(self, job_id: str, keys: Iterable[str]) -> None:
        """Hold these caches for a job; those that are gone are left out: the job makes them anew, or fails on them."""
        held = self._held.setdefault(job_id, {})
        for key in keys:
            with suppress(StoreError):
                # Also one that is held already: it may have been made again since.
                fresh = self._catalog.hold(key)
                if key in held:
                    held[key].release()
                held[key] = fresh

    def release(self, job_id: str) -> None:
        """Let go of a job's caches, whose last use was now. Nothing happens if nothing is held."""
        for key, hold in self._held.pop(job_id, {}).items():
            with suppress(StoreError):
                self._catalog.touch(key)
            hold.release()
