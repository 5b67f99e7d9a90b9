"""Prefetch from the host to a GPU: gathered, pinned and copied ahead of the loop, so that no step waits for a copy.

A thread gathers the next items into pinned memory, because copies of a memory map gather whole pages from the disk and
would hold up the loop; the copies to the device run on a stream of their own, beside the computation.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor

from workers.devices import new_stream

T = TypeVar("T")

# One is used, one is being copied, one is being gathered.
_AHEAD = 3
_POLL_S = 1.0


def prefetch(
    gather: Callable[[T], tuple[Tensor, ...]],
    items: Iterable[T],
    device: torch.device,
    waiting: Callable[[], None] | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield ``gather(item)`` of each item in turn, on a GPU.

    ``gather`` is called in one other thread, in order, and at most three items ahead; what it raises is raised here, at
    that item's turn.

    Args:
        gather: gives tensors on the host; no two calls overlap.
        waiting: called here about every second while the next item is gathered; what it raises ends the wait, once
            the call of ``gather`` that is under way has ended.
    """

    def pinned(item: T) -> tuple[Tensor, ...]:
        # torch keeps pinned blocks for the next batch, and does not give one out while a copy still reads it.
        return tuple(tensor.pin_memory() for tensor in gather(item))

    side = new_stream(device)
    gathered: deque[Future[tuple[Tensor, ...]]] = deque()
    copied: deque[tuple[tuple[Tensor, ...], torch.cuda.Event]] = deque()
    left = iter(items)
    thread = ThreadPoolExecutor(1, "retort-prefetch")

    def submit() -> None:
        while len(gathered) + len(copied) < _AHEAD and (item := next(left, None)) is not None:
            gathered.append(thread.submit(pinned, item))

    def wait_for_next() -> None:
        while waiting is not None and gathered and not copied and not gathered[0].done():
            if not wait([gathered[0]], _POLL_S).done:
                waiting()

    def start_copy(*, is_awaited: bool) -> None:
        """Of the next item; only if it is gathered, unless somebody waits for it: then its error is raised, too."""
        if gathered and not copied and (is_awaited or (gathered[0].done() and gathered[0].exception() is None)):
            with torch.cuda.stream(side):
                tensors = tuple(t.to(device, non_blocking=True) for t in gathered.popleft().result())
                copied.append((tensors, side.record_event()))

    try:
        while True:
            submit()
            wait_for_next()
            start_copy(is_awaited=True)
            if not copied:
                return
            tensors, is_there = copied.popleft()
            current = torch.cuda.current_stream(device)
            current.wait_event(is_there)
            for tensor in tensors:
                # Its memory is the side stream's, which must not give it away while this one still reads.
                tensor.record_stream(current)
            submit()
            start_copy(is_awaited=False)
            yield tensors
    finally:
        thread.shutdown(cancel_futures=True)
