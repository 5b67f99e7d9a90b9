"""Views of pictures that stay files, decoded and augmented ahead of the training loop by worker processes.

The loop's process draws which views there are to be, and sends each batch's sample numbers and ``ViewParameters`` to
the workers of a torch ``DataLoader``; they decode, apply, and send uint8 pictures back through shared memory. So the
pictures are the bytes that the resident path makes, whatever the number of workers, and an epoch can begin at any
batch. Labels and cached logits stay away from the workers: the loop gathers them itself, by the sample numbers that it
has drawn, in a tenth of the time that it takes to send them from process to process.

Shared memory is often small: a container has 64 MiB of it, unless more is asked for. There are only as many workers as
have room in it for their batches, and a batch that finds none after all is made by the loop's process.

Workers are started afresh ("spawn"), once for all epochs: the process of a training run has threads (Ray's, gRPC's),
and the copy that a fork would make of them is not safe to run. They end with ``close``, and within seconds when the
process that started them has died.

Legend: B samples of a batch, H x W pixels of a view, C channels.
"""

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data

from workers.augmentation.apply import apply_all
from workers.augmentation.draw import ViewParameters, pictures_of
from workers.config.views import Augmentation
from workers.data.preparation.image_files import PictureFiles
from workers.errors import BatchOverdue, WorkerError, first_line
from workers.events import Log, ignore

Work = tuple[NDArray[np.int64], tuple[ViewParameters, ...]]
"""A batch to make: sample numbers [B], and for each view that is wanted of them its parameters [B]."""

SHARED_MEMORY = Path("/dev/shm")
OVERDUE_S = 600.0
_POLL_S = 1.0
# What a loader has asked of each worker and not been given; and what the loop holds besides, of this step and the last.
_ASKED_OF_EACH, _HELD = 2, 2
# The semaphores of queues lie there, too, a page each.
_QUEUES_BYTES = 1 << 20


@dataclass(frozen=True)
class _NoRoom:
    """Reason why a worker could not put a batch in shared memory."""

    reason: str


_Made = tuple[Tensor, ...] | _NoRoom | WorkerError | OSError


def nothing() -> None:
    """Do nothing while a batch is waited for."""


def worker_processes(threads: int) -> int:
    """Return the number of workers of a run with so many threads: all but the one that its loop needs.

    0 with one thread, or on one core; a ``PictureStream`` for a GPU has one all the same.
    """
    return min(threads, len(os.sched_getaffinity(0))) - 1


def workers_with_room(processes: int, batch_bytes: int) -> tuple[int, str | None]:
    """Count the workers that shared memory has room for, of so many that are wanted.

    Args:
        batch_bytes: of a batch's pictures.

    Returns:
        Their number, perhaps 0; and why it is smaller than what is wanted, with the next step, or None if it is not.
    """
    free_bytes = _free_bytes()
    fitting = max(0, ((free_bytes - _QUEUES_BYTES) // max(1, batch_bytes) - _HELD) // _ASKED_OF_EACH)
    if fitting >= processes:
        return processes, None
    needed = (processes * _ASKED_OF_EACH + _HELD) * batch_bytes + _QUEUES_BYTES
    makers = f"{fitting} of {processes} worker processes decode" if fitting else "the loop's own process decodes"
    return fitting, (
        f"{makers} the pictures: {processes} would have up to {needed:,} bytes in {SHARED_MEMORY}, where "
        f"{free_bytes:,} are free. Training goes on, but slower: give the engine more shared memory (`shm_size` in "
        "docker/compose.yaml, or `docker run --shm-size`), or the job a smaller batch_size"
    )


def _is_timeout(error: RuntimeError) -> bool:
    """Whether a loader has waited as long as it was to; that has no class of its own. Asked again, it goes on."""
    return str(error).startswith("DataLoader timed out")


def _overdue(waited_s: float) -> BatchOverdue:
    return BatchOverdue(
        f"the worker processes that decode pictures have given no batch in {waited_s:,.0f} s: does the file system of "
        "the dataset answer? The run starts again from its checkpoint"
    )


def _free_bytes() -> int:
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return 0


def _shared(pictures: Iterable[Tensor]) -> tuple[Tensor, ...] | _NoRoom:
    """Copy tensors to shared memory. Put there by the queue, in a thread of its own, one without room would be lost."""
    made = tuple(pictures)
    missing = sum(tensor.nbytes for tensor in made) - _free_bytes()
    if missing > 0:
        return _NoRoom(f"{missing:,} bytes are missing")
    try:
        return tuple(tensor.share_memory_() for tensor in made)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        return _NoRoom(first_line(error))


class _Maker(data.Dataset[_Made]):
    """Maker of views in a worker; to torch, a dataset whose indices are ``Work``."""

    def __init__(self, files: PictureFiles, recipes: tuple[Augmentation, ...]) -> None:
        self._files = files
        self._recipes = recipes

    def __getitem__(self, work: Work) -> _Made:
        rows_B, parameters = work
        try:
            plain = torch.from_numpy(self._files.take(pictures_of(rows_B, parameters)))
        except (WorkerError, OSError) as error:
            # Raised here, it would arrive with torch's words and a traceback for a message.
            return error
        made = apply_all(plain, self._recipes, parameters)
        return made if data.get_worker_info() is None else _shared(made)


class _Sampler:
    """Sampler of the work of an epoch: a loader keeps its workers, and its sampler, for all epochs.

    Attributes:
        asked: what the workers were asked for and have not given, in order.
    """

    def __init__(self) -> None:
        self.work: Iterator[Work] = iter(())
        self.asked: deque[Work] = deque()

    def __iter__(self) -> Iterator[Work]:
        self.asked.clear()
        # Whoever replaces the work ends an epoch that is under way.
        while (work := next(self.work, None)) is not None:
            self.asked.append(work)
            yield work


class PictureStream:
    """Batches of views, made ahead; close it when no more are wanted.

    Args:
        files: the pictures.
        recipes: of each view of a batch.
        processes: workers; 0 makes each batch when it is asked for, in this process. A GPU would wait meanwhile,
            so it gets one worker at least; fewer where shared memory is too small.
        device: where the batches will go; for a GPU they lie in pinned memory.
        batch_bytes: of a batch's pictures, all views.
        emit: takes a warning of what shared memory is too small for.
    """

    def __init__(
        self,
        files: PictureFiles,
        recipes: tuple[Augmentation, ...],
        processes: int,
        device: torch.device,
        batch_bytes: int = 0,
        emit: Callable[[Log], None] = ignore,
    ) -> None:
        on_gpu = device.type == "cuda"
        processes, why = workers_with_room(max(processes, int(on_gpu)), batch_bytes)
        if why is not None:
            emit(Log(level="warning", message=why))
        self._emit = emit
        self._has_told = False
        self._left = threading.Event()
        self._maker = _Maker(files, recipes)
        self._sampler = _Sampler()
        self._batches: Generator[tuple[Tensor, ...], None, None] | None = None
        self._loading: Any = None  # the loader's iterator, whose time limit has no public name
        self._loader: data.DataLoader[_Made] | None = data.DataLoader(
            self._maker,
            batch_size=None,
            sampler=self._sampler,
            num_workers=processes,
            persistent_workers=processes > 0,
            multiprocessing_context="spawn" if processes else None,
            pin_memory=on_gpu,
            timeout=OVERDUE_S if processes else 0,
            # From torch's global generator it would take numbers that dropout is to have.
            generator=torch.Generator(),
        )

    def batches(self, work: Iterable[Work], waiting: Callable[[], None] = nothing) -> Iterator[tuple[Tensor, ...]]:
        """Yield the views of each piece of work in turn, uint8 [B, H, W, C] on the host, one tensor for each view.

        What an earlier call has not given yet is dropped.

        Args:
            waiting: called about every second while a batch is waited for; what it raises ends the wait.

        Raises:
            BatchOverdue: a batch has not come in ten minutes, or ``leave`` was called.
            InvalidDataset: a picture is gone, has changed or cannot be decoded; names it.
            OSError: the disk or the network in front of it fails.
            RuntimeError: a worker was killed, or the stream is closed.
        """
        if self._loader is None:
            raise RuntimeError("the stream of pictures is closed")
        self._left.clear()
        self._batches = self._made(iter(work), waiting)
        return self._batches

    def leave(self) -> None:
        """End the wait of a thread for its next batch, within about a second: no more are wanted of this epoch."""
        self._left.set()

    def close(self) -> None:
        """End the workers, in the middle of an epoch if need be; nothing happens the second time."""
        if self._batches is not None:
            self._batches.close()
        # A loader ends its workers when nobody holds it any more; so nothing but this object ever does.
        self._loader = self._loading = None

    def _made(self, work: Iterator[Work], waiting: Callable[[], None]) -> Generator[tuple[Tensor, ...], None, None]:
        assert self._loader is not None
        # A loader waits for what an earlier epoch has left, too, but asks nobody meanwhile.
        self._sampler.work = iter(())
        while self._loading is not None and self._next(waiting) is not None:
            pass
        self._sampler.work = work
        # So its workers have nothing to do; a loader that gives up on them here has lost count.
        self._wait_at_most(OVERDUE_S)
        try:
            self._loading = iter(self._loader)
        except RuntimeError as error:
            raise _overdue(OVERDUE_S) if _is_timeout(error) else error from None
        # A batch is waited for little by little, so that somebody can be asked whether to go on.
        self._wait_at_most(_POLL_S)
        while (made := self._next(waiting)) is not None:
            asked = self._sampler.asked.popleft()
            if isinstance(made, _NoRoom):
                self._tell_of(made)
                made = self._maker[asked]
            if isinstance(made, Exception):
                raise made
            assert not isinstance(made, _NoRoom)
            # A loader makes lists of tuples.
            yield tuple(made)

    def _next(self, waiting: Callable[[], None]) -> _Made | None:
        """Return the next batch, None at the end of the epoch."""
        begun = time.monotonic()
        while True:
            try:
                made: _Made | None = next(self._loading, None)
                return made
            except RuntimeError as error:
                if not _is_timeout(error):
                    raise
            waiting()
            if (waited := time.monotonic() - begun) > OVERDUE_S or self._left.is_set():
                raise _overdue(waited)

    def _wait_at_most(self, seconds: float) -> None:
        if self._loading is not None:
            # Otherwise fixed when the first epoch begins.
            self._loading._timeout = seconds

    def _tell_of(self, no_room: _NoRoom) -> None:
        if not self._has_told:
            self._has_told = True
            message = (
                f"a batch found no room in {SHARED_MEMORY} ({no_room.reason}), so the loop's own process decodes it, "
                "and others like it. Training goes on, but slower: give the engine more shared memory (`shm_size` in "
                "docker/compose.yaml, or `docker run --shm-size`), or run fewer jobs at once"
            )
            self._emit(Log(level="warning", message=message))
