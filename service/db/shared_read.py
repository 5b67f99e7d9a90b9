"""Shared read: one call of a blocking function, in a thread, for all coroutines that wait for its result."""

import asyncio
from collections.abc import Callable, Collection, Hashable
from functools import partial
from typing import Generic, TypeVar

import anyio
import anyio.to_thread

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class SharedRead(Generic[Result]):
    """Calls ``function`` so that each caller's call begins after it has asked, however few calls that takes.

    All who wait are woken in the same turn of the event loop. A lock would let them in one turn after the other, and
    under load a turn takes as long as all the requests that it begins. Belongs to one event loop.
    """

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._turn = asyncio.Lock()
        # Of its own: the common threads may all be busy with long requests.
        self._thread = anyio.CapacityLimiter(1)
        self._next: asyncio.Task[Result] | None = None

    async def __call__(self) -> Result:
        """The function's result, or its exception, of a call that has not begun yet."""
        if self._next is None:
            self._next = asyncio.create_task(self._call())
            # It is passed on to whoever waits; if all of them have left, nobody misses it.
            self._next.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._next)

    async def _call(self) -> Result:
        async with self._turn:
            self._next = None
            return await anyio.to_thread.run_sync(self._begin(), limiter=self._thread)

    def _begin(self) -> Callable[[], Result]:
        """The call for all who have asked so far."""
        return self._function


class BatchRead(SharedRead[Result], Generic[Key, Result]):
    """Shared read of what several coroutines ask for: ``function`` is called with the keys of all who wait."""

    def __init__(self, function: Callable[[Collection[Key]], Result]) -> None:
        super().__init__(partial(function, ()))
        self._read = function
        self._keys: set[Key] = set()

    async def read(self, key: Key) -> Result:
        """The function's result, or its exception, of a call with this key that has not begun yet."""
        self._keys.add(key)
        return await self()

    def _begin(self) -> Callable[[], Result]:
        keys, self._keys = self._keys, set()
        return partial(self._read, keys)
