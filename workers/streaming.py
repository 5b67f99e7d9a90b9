"""Views of pictures that stay files, decoded and augmented ahead of the training loop by worker processes.

The loop's process draws which views there are to be, and sends each batch's sample numbers and ``ViewParameters`` to
the workers of a torch ``DataLoader``; they decode, apply, and send uint8 pictures back through shared memory. So the
pictures are the bytes that the resident path makes, whatever the number of workers, and an epoch can begin at any
batch. Labels and cached logits stay away from the workers: the loop gathers them itself, by the sample numbers that it
has drawn, in a tenth of the time that it takes to send them from process to process.

Workers are started afresh ("spawn"), once for all epochs: the process of a training run has threads (Ray's, gRPC's),
and the copy that a fork would make of them is not safe to run. They end with ``close``, and within seconds when the
process that started them has died.

Legend: B samples of a batch, H x W pixels of a view, C channels.
"""

import os
from collections.abc import Generator, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data

from workers import views
from workers.config import Augmentation
from workers.errors import WorkerError
from workers.picture_files import PictureFiles
from workers.views import ViewParameters

Work = tuple[NDArray[np.int64], tuple[ViewParameters, ...]]
"""A batch to make: sample numbers [B], and for each view that is wanted of them its parameters [B]."""

_Made = tuple[Tensor, ...] | WorkerError | OSError


def worker_processes(threads: int) -> int:
    """How many workers a run with so many threads gets: all but the one that its loop needs.

    None with one thread, or on one core; a ``PictureStream`` for a GPU has one all the same.
    """
    return min(threads, len(os.sched_getaffinity(0))) - 1


class _Maker(data.Dataset[_Made]):
    """What a worker does with its work; to torch, a data set whose indices are ``Work``."""

    def __init__(self, files: PictureFiles, recipe: Augmentation) -> None:
        self._files = files
        self._recipe = recipe

    def __getitem__(self, work: Work) -> _Made:
        rows_B, parameters = work
        try:
            plain = torch.from_numpy(self._files.take(rows_B))
        except (WorkerError, OSError) as error:
            # Raised here, it would arrive with torch's words and a traceback for a message.
            return error
        return tuple(views.apply(plain, self._recipe, drawn) for drawn in parameters)


class _Sampler:
    """What is to be made in this epoch: a loader keeps its workers, and its sampler, for all epochs."""

    def __init__(self) -> None:
        self.work: Iterable[Work] = ()

    def __iter__(self) -> Iterator[Work]:
        return iter(self.work)


class PictureStream:
    """Batches of views, made ahead; close it when no more are wanted.

    Args:
        files: the pictures.
        recipe: of the views.
        processes: workers; 0 makes each batch when it is asked for, in this process. A GPU would wait meanwhile,
            so it gets one worker at least.
        device: where the batches will go; for a GPU they lie in pinned memory.
    """

    def __init__(self, files: PictureFiles, recipe: Augmentation, processes: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        processes = max(processes, int(on_gpu))
        self._sampler = _Sampler()
        self._batches: Generator[tuple[Tensor, ...], None, None] | None = None
        self._loader: data.DataLoader[_Made] | None = data.DataLoader(
            _Maker(files, recipe),
            batch_size=None,
            sampler=self._sampler,
            num_workers=processes,
            persistent_workers=processes > 0,
            multiprocessing_context="spawn" if processes else None,
            pin_memory=on_gpu,
            # From torch's global generator it would take numbers that dropout is to have.
            generator=torch.Generator(),
        )

    def batches(self, work: Iterable[Work]) -> Iterator[tuple[Tensor, ...]]:
        """The views of each piece of work in turn, uint8 [B, H, W, C] on the host, one tensor for each view.

        What an earlier call has not given yet is dropped.

        Raises:
            InvalidDataset: a picture is gone, has changed or cannot be decoded; names it.
            OSError: the disk or the network in front of it fails.
            RuntimeError: a worker was killed, or the stream is closed.
        """
        if self._loader is None:
            raise RuntimeError("the stream of pictures is closed")
        self._sampler.work = work
        self._batches = self._made()
        return self._batches

    def close(self) -> None:
        """End the workers, in the middle of an epoch if need be; nothing happens the second time."""
        if self._batches is not None:
            self._batches.close()
        # A loader ends its workers when nobody holds it any more; so nothing but this object ever does.
        self._loader = None

    def _made(self) -> Generator[tuple[Tensor, ...], None, None]:
        assert self._loader is not None
        for made in self._loader:
            if isinstance(made, Exception):
                raise made
            # A loader makes lists of tuples.
            yield tuple(made)
