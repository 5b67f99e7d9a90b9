"""Feed of training batches: the student's view of the box that the teacher saw, labels, the teacher's logits.

Decoded pictures (uint8) and cached logits are moved to the device once when they fit there; what does not fit stays
memory-mapped on the host, shared by all runs of the machine, and is gathered and copied ahead of the loop by a thread
(see ``prefetch``); pictures that stay files are decoded ahead by worker processes (see ``image_loader``). Nothing here
is random: the order of an epoch is a pure function of (seed, epoch), the pictures of (recipe, seed, view, sample), so a
resumed run sees what it would have seen.

Shapes as in ``batches``.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store import CacheReader
from workers.augmentation.apply import apply, apply_table
from workers.augmentation.draw import draw
from workers.config.views import Views, output_size
from workers.data.prepared import Dataset, FilesDataset
from workers.events import Log, ignore
from workers.training.batches import BatchInputs, TrainingBatch, ViewBatch
from workers.training.image_loader import PictureStream, nothing, worker_processes
from workers.training.on_device import SplitPictures, TeacherRows
from workers.training.prefetch import on_device_ahead

# On a CPU a batch takes a third of the time if another was made just before: the network's arithmetic has driven the
# code that makes it out of the processor's caches. So many are made in a row, in so much memory as float32 inputs.
_MOST_AT_ONCE, _AT_ONCE_BYTES, _INPUT_BYTES = 8, 8 << 20, 4


@dataclass(frozen=True)
class Share:
    """Part of every batch that this process computes: part ``rank`` of ``ranks`` nearly equal ones."""

    rank: int = 0
    ranks: int = 1

    def of(self, rows: int) -> slice:
        """Return its part of a batch of so many rows; empty if there are fewer rows than parts."""
        return slice(rows * self.rank // self.ranks, rows * (self.rank + 1) // self.ranks)


ALL = Share()


def epoch_order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the samples in one epoch, int64 [samples]; the same on every machine."""
    # Philox is counter-based: (seed, epoch) is its key, no state is carried from epoch to epoch.
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(samples)


class TrainingFeed:
    """Shuffled, augmented batches of the training split, epoch by epoch.

    Args:
        dataset: the training split.
        plan: which views there are; epoch e (from 0) uses view ``plan.view(e)``, and the next one as the second.
        reader: the teacher's cache over the same boxes, or None for plain cross-entropy.
        batch_size: rows of a batch; of a larger one a last batch of one row is left out, because batch
            normalisation cannot train on it (students with it are refused where there would be no other).
        seed: of the order.
        device: where batches are wanted.
        views_per_step: 1 or 2.
        share: of each batch's pictures; labels and logits are always the whole batch's.
        threads: of the run; pictures that stay files are decoded by a worker process for each but the first.
        emit: takes a warning where there is no room for what these processes make.
        rows_N: int64, the rows of the split that are trained on; None are all of them.

    Attributes:
        samples: how many pictures an epoch shows.
        batches_at_once: how many are best made in a row, before the first is trained on.

    Close it when no more batches are wanted.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Views,
        reader: CacheReader | None,
        batch_size: int,
        seed: int,
        device: torch.device,
        views_per_step: int = 1,
        share: Share = ALL,
        threads: int = 1,
        emit: Callable[[Log], None] = ignore,
        rows_N: NDArray[np.int64] | None = None,
    ) -> None:
        self.device = device
        self._rows_N = rows_N
        self.samples = len(dataset.labels_N) if rows_N is None else len(rows_N)
        self._pictures = SplitPictures(dataset, device)
        self._stream: PictureStream | None = None
        if isinstance(dataset, FilesDataset):
            height, width = output_size(plan.augmentation, dataset.height, dataset.width)
            own = share.of(min(batch_size, self.samples))
            batch_bytes = (own.stop - own.start) * views_per_step * height * width * dataset.channels
            processes = worker_processes(threads)
            self._stream = PictureStream(dataset.files, plan.augmentation, processes, device, batch_bytes, emit)
        self._plan = plan
        self._views_per_step = views_per_step
        self._teachers = [] if reader is None else [TeacherRows(reader, device) for _ in range(views_per_step)]
        self._batch_size = batch_size
        self._seed = seed
        self._share = share
        self._fetching: Generator[tuple[Tensor, ...], None, None] | None = None
        full, rest = divmod(self.samples, batch_size)
        self.steps = full + (rest > 1 or full == 0)
        self.batches_at_once = 1
        if device.type == "cpu" and self._stream is None:
            height, width = output_size(plan.augmentation, dataset.height, dataset.width)
            pixels = min(batch_size, self.samples) * views_per_step * height * width * dataset.channels
            self.batches_at_once = min(max(_AT_ONCE_BYTES // (_INPUT_BYTES * pixels), 1), _MOST_AT_ONCE)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[TrainingBatch]:
        """Yield the batches of epoch ``epoch`` from step ``first_step`` on, both counted from 0."""
        return map(self.make, self.inputs(epoch, first_step))

    def inputs(self, epoch: int, first_step: int = 0, waiting: Callable[[], None] = nothing) -> Iterator[BatchInputs]:
        """Yield the inputs of an epoch's batches, for ``make``, from step ``first_step`` on, both counted from 0.

        Args:
            waiting: called about every second while pictures are waited for; what it raises ends the epoch here.
        """
        # Before anything changes that the thread of an epoch that was left reads.
        self._stop_fetching()
        dataset, plan = self._pictures.dataset, self._plan
        order_N = epoch_order(self.samples, self._seed, epoch)
        self._order_N = order_N if self._rows_N is None else self._rows_N[order_N]
        shown = [plan.view(epoch, place) for place in range(self._views_per_step)]
        self._drawn = [
            draw(plan.augmentation, plan.seed, view, self._order_N, dataset.height, dataset.width) for view in shown
        ]
        for teacher, view in zip(self._teachers, shown, strict=False):
            teacher.begin(view, self._order_N)
        # One copy to the device for a whole epoch; a step takes a slice, which is no work at all.
        labels_N = np.asarray(dataset.labels_N)[self._order_N]
        integers = np.concatenate([[self._order_N, labels_N], *(drawn.table() for drawn in self._drawn)])
        self._integers = torch.from_numpy(integers).to(self.device)
        self._statistics: Tensor | None = None
        if self._teachers:
            all_of = np.concatenate([teacher.statistics(self._order_N) for teacher in self._teachers])
            self._statistics = torch.from_numpy(all_of).to(self.device)
        steps = range(first_step, self.steps)
        self._fetching = self._fetched(steps, waiting)
        for step, fetched in zip(steps, self._fetching, strict=True):
            yield self._inputs(step, fetched)

    def inputs_again(self, step: int) -> BatchInputs:
        """Return the inputs of a step of the epoch that is under way, once more."""
        whole, _, here = self._part(step)
        fetched = self._mapped_logits(whole)
        if self._pictures.resident_NHWK is None:
            images: tuple[Tensor, ...] = (torch.from_numpy(self._pictures.dataset.take(self._order_N[here])),)
            if self._stream is not None:
                images = tuple(apply(images[0], self._plan.augmentation, of_N[here]) for of_N in self._drawn)
            fetched = (*images, *fetched)
        return self._inputs(step, tuple(tensor.to(self.device) for tensor in fetched))

    def make(self, inputs: BatchInputs) -> TrainingBatch:
        """Gather and augment, on the device alone: no copy from the host, no synchronisation."""
        rows_B, labels_B = inputs.integers[0], inputs.integers[1]
        local_slice, plan, images = inputs.local_slice, self._plan, inputs.images
        if self._stream is None:
            if self._pictures.resident_NHWK is not None:
                plain = self._pictures.resident_NHWK.index_select(0, rows_B[local_slice])
            else:
                (plain,) = inputs.images
            drawn = [inputs.integers[first : first + 5, local_slice] for first in range(2, len(inputs.integers), 5)]
            images = tuple(apply_table(plain, plan.augmentation, table_5b) for table_5b in drawn)
        mapped_logits = iter(inputs.logits)
        seen = []
        for place, of_view in enumerate(images):
            logits_BC, statistics = None, None
            if self._teachers:
                resident_NC = self._teachers[place].resident_NC
                logits_BC = next(mapped_logits) if resident_NC is None else resident_NC.index_select(0, rows_B)
                assert inputs.statistics is not None
                names = self._teachers[place].names
                statistics = dict(zip(names, inputs.statistics[place * len(names) :], strict=False))
            seen.append(ViewBatch(of_view, logits_BC, statistics))
        rows = torch.from_numpy(inputs.rows)
        return TrainingBatch(rows, rows_B, labels_B, tuple(seen), local_slice=local_slice)

    def close(self) -> None:
        """End the thread and the worker processes that fetch ahead, if there are any."""
        self._stop_fetching()
        if self._stream is not None:
            self._stream.close()

    def _part(self, step: int) -> tuple[slice, slice, slice]:
        """A batch's place in the order, this process's share of the batch, and the place of that in the order."""
        start = step * self._batch_size
        stop = min(start + self._batch_size, self.samples)
        local_slice = self._share.of(stop - start)
        return slice(start, stop), local_slice, slice(start + local_slice.start, start + local_slice.stop)

    def _inputs(self, step: int, fetched: tuple[Tensor, ...]) -> BatchInputs:
        """``fetched``: what is not resident, pictures first."""
        whole, local_slice, _ = self._part(step)
        statistics = None if self._statistics is None else self._statistics[:, whole]
        pictures = len(fetched) - len(self._mapped_teachers)
        integers = self._integers[:, whole]
        return BatchInputs(
            self._order_N[whole], local_slice, integers, statistics, fetched[:pictures], fetched[pictures:]
        )

    def _fetched(self, steps: range, waiting: Callable[[], None]) -> Generator[tuple[Tensor, ...], None, None]:
        """Yield what is not resident of each step, on the device."""
        if self._pictures.resident_NHWK is not None and not self._mapped_teachers:
            yield from (() for _ in steps)
            return
        pictures: Iterator[tuple[Tensor, ...]]
        parts = [self._part(step)[2] for step in steps]
        if self._stream is not None:
            work = ((self._order_N[here], tuple(of_N[here] for of_N in self._drawn)) for here in parts)
            # For a GPU it is another thread that waits there.
            pictures = self._stream.batches(work, waiting if self.device.type == "cpu" else nothing)
        elif self._pictures.resident_NHWK is None:
            pictures = ((torch.from_numpy(self._pictures.dataset.take(self._order_N[here])),) for here in parts)
        else:
            pictures = (() for _ in parts)

        def gather(step: int) -> tuple[Tensor, ...]:
            return (*next(pictures), *self._mapped_logits(self._part(step)[0]))

        def ask() -> None:
            try:
                waiting()
            except BaseException:
                self._leave()
                raise

        yield from on_device_ahead(gather, steps, self.device, ask)

    def _leave(self) -> None:
        """End the wait of a thread for pictures that are not needed any more."""
        if self._stream is not None:
            self._stream.leave()

    def _stop_fetching(self) -> None:
        if self._fetching is not None:
            self._leave()
            self._fetching.close()

    @property
    def _mapped_teachers(self) -> list[TeacherRows]:
        return [teacher for teacher in self._teachers if teacher.resident_NC is None]

    def _mapped_logits(self, whole: slice) -> tuple[Tensor, ...]:
        return tuple(teacher.gather(whole.start, whole.stop) for teacher in self._mapped_teachers)
