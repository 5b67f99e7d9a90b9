"""Feed of training batches: the student's view of the box that the teacher saw, labels, the teacher's logits.

Decoded pictures (uint8) and cached logits are moved to the device once when they fit there; what does not fit stays
memory-mapped on the host, shared by all runs of the machine, and is gathered and copied ahead of the loop by a thread
(see ``prefetch``); pictures that stay files are decoded ahead by worker processes (see ``image_loader``). Nothing here
is random: the order of an epoch is a pure function of (seed, epoch), the pictures of (recipe, seed, view, sample), so a
resumed run sees what it would have seen. Shapes as in ``batches``.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store import CacheReader
from workers.augmentation.apply import apply_tables, to_input
from workers.config.views import Views, is_mixed, output_size
from workers.data.preparation.prepared import Dataset
from workers.events import Log, ignore
from workers.objective.mixed_labels import MixedLabels
from workers.training.feed.batches import (
    ALL,
    BatchInputs,
    BatchShare,
    LoadedBatch,
    NotWanted,
    TrainingBatch,
    ViewBatch,
    batches_at_once,
    count_steps,
    epoch_order,
    student_preprocessing,
)
from workers.training.feed.epoch_tables import EpochTables
from workers.training.feed.image_loader import Work, nothing
from workers.training.feed.on_device import TrainingPictures, room_for_logits
from workers.training.feed.prefetch import prefetch

# Where logits come from the disk, it is told so early what will be wanted.
_BATCHES_AHEAD = 4


class TeacherRows:
    """The teacher's logits and statistics of one view: on the device, or mapped on the host.

    Attributes:
        names: of the statistics.
        resident_NC: logits [N, C] of the current view on the device, always at one address; None if they are mapped.
    """

    def __init__(self, reader: CacheReader, device: torch.device) -> None:
        self.reader = reader
        self.names = tuple(reader.statistics(0))
        self.resident_NC = room_for_logits(reader.spec, device)
        self._view = -1

    def begin(self, view: int, order_N: NDArray[np.int64]) -> None:
        """Make ``order_N`` of ``view`` current; on a GPU the view is loaded, and verified, when it changes."""
        if self.resident_NC is None:
            self._map = self.reader.row_map(view, order_N)
        elif view != self._view:
            self.resident_NC.copy_(torch.from_numpy(self.reader.logits(view)))
        self._view = view

    def statistics(self, order_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """[S, N] in this order, as ``names`` has them."""
        values = self.reader.statistics(self._view)
        return np.stack([values[name][order_N] for name in self.names])

    def gather(self, start: int, stop: int) -> Tensor:
        """Mapped logits [B, C] of positions ``start`` to ``stop`` of the order, on the host."""
        self._map.prefetch(start, stop + _BATCHES_AHEAD * (stop - start))
        return torch.from_numpy(self._map.gather(start, stop))


class TrainingFeed:
    """Shuffled, augmented batches of the training split, epoch by epoch.

    Args:
        dataset: the training split.
        plan: which views there are; epoch e (from 0) uses view ``plan.view(e)``, and ``plan.view(e, 1)`` as the second.
        reader: the teacher's cache over the same boxes, or None for plain cross-entropy.
        batch_size: rows of a batch.
        seed: of the order.
        device: where batches are wanted.
        views_per_step: 1 or 2.
        share: of each batch's pictures; labels and logits are always the whole batch's.
        threads: of the run; pictures that stay files are decoded by a worker process for each but the first.
        emit: takes a warning where there is no room for what these processes make.
        rows_N: int64, the rows of the split that are trained on; None are all of them.
        drop_last: see ``count_steps``.
        partners_P: int64, rows of the split that mixed views are mixed with; None are those that are trained on.

    Attributes:
        samples: how many pictures an epoch shows.
        preprocessing: from a picture to the student's input.
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
        share: BatchShare = ALL,
        threads: int = 1,
        emit: Callable[[Log], None] = ignore,
        rows_N: NDArray[np.int64] | None = None,
        drop_last: bool = False,
        partners_P: NDArray[np.int64] | None = None,
    ) -> None:
        self.device = device
        self._rows_N = rows_N
        self.samples = len(dataset.labels_N) if rows_N is None else len(rows_N)
        partners_P = rows_N if partners_P is None else partners_P
        self._partners_P = np.arange(len(dataset.labels_N)) if partners_P is None else partners_P
        self._size = height, width = output_size(plan.augmentation, dataset.height, dataset.width)
        self.preprocessing = student_preprocessing(dataset, self._size)
        row_bytes = views_per_step * height * width * dataset.channels
        own = share.of(min(batch_size, self.samples))
        batch_bytes = (own.stop - own.start) * row_bytes
        self._recipes = plan.recipes(views_per_step)
        # Pictures that the views of a sample are made of.
        self._pictures_each = 1 + (views_per_step if is_mixed(plan.augmentation) else 0)
        self._pictures = TrainingPictures(dataset, self._recipes, device, batch_bytes, threads=threads, emit=emit)
        self._plan = plan
        self._views_per_step = views_per_step
        self._teachers = [] if reader is None else [TeacherRows(reader, device) for _ in range(views_per_step)]
        self._mapped_teachers = [teacher for teacher in self._teachers if teacher.resident_NC is None]
        self._batch_size = batch_size
        self._seed = seed
        self._share = share
        self._some_unlabelled = dataset.has_unlabelled
        self._fetching: Generator[tuple[Tensor, ...], None, None] | None = None
        self.steps = count_steps(self.samples, batch_size, drop_last=drop_last)
        is_made_here = device.type == "cpu" and not self._pictures.are_views
        self.batches_at_once = batches_at_once(min(batch_size, self.samples) * row_bytes) if is_made_here else 1

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[TrainingBatch]:
        """Yield the batches of epoch ``epoch`` from step ``first_step`` on, both counted from 0; not normalised."""
        return map(self.make, self.inputs(epoch, first_step))

    def batches(
        self,
        epoch: int,
        first_step: int,
        load: Callable[[BatchInputs], LoadedBatch],
        waiting: Callable[[], None] = nothing,
    ) -> Iterator[tuple[int, LoadedBatch]]:
        """Yield the batches of an epoch as runs train on them, each with its step; ``batches_at_once`` made in a row.

        Args:
            load: ``self.load``, or what a CUDA graph has recorded of it.
            waiting: as of ``inputs``; ``NotWanted`` ends the epoch and is not raised here.
        """
        inputs = enumerate(self.inputs(epoch, first_step, waiting), start=first_step)
        with contextlib.suppress(NotWanted):
            while some := list(itertools.islice(inputs, self.batches_at_once)):
                made = deque((step, load(each)) for step, each in some)
                some.clear()
                while made:
                    # Not kept here while it is trained on.
                    yield made.popleft()

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
        self._tables = EpochTables.draw(
            dataset, plan, shown, self._order_N, partners_P=self._partners_P, size=self._size
        )
        for teacher, view in zip(self._teachers, shown, strict=False):
            teacher.begin(view, self._order_N)
        # One copy to the device for a whole epoch; a step takes a slice, which is no work at all.
        self._integers = torch.from_numpy(self._tables.integers).to(self.device)
        shares = self._tables.own_shares
        self._own_shares = None if shares is None else torch.from_numpy(shares).to(self.device)
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
        images = () if self._pictures.resident_NHWK is not None else self._pictures.fetch(*self._shown(step))
        fetched = (*images, *self._mapped_logits(step))
        return self._inputs(step, tuple(tensor.to(self.device) for tensor in fetched))

    def load(self, inputs: BatchInputs) -> LoadedBatch:
        """The batch of these inputs, normalised."""
        batch = self.make(inputs)
        return LoadedBatch(
            batch, tuple(to_input(seen.images, self.preprocessing, channels_last=True) for seen in batch.views)
        )

    def make(self, inputs: BatchInputs) -> TrainingBatch:
        """Gather and augment, on the device alone: no copy from the host, no synchronisation."""
        each, local_slice, images = self._pictures_each, inputs.local_slice, inputs.images
        samples, labels, tables = inputs.integers[:each], inputs.integers[each : 2 * each], inputs.integers[2 * each :]
        rows_B, labels_B = samples[0], labels[0]
        if not self._pictures.are_views:
            if self._pictures.resident_NHWK is not None:
                plain = self._pictures.resident_NHWK.index_select(0, samples[:, local_slice].reshape(-1))
            else:
                (plain,) = inputs.images
            images = apply_tables(plain, self._recipes, torch.split(tables[:, local_slice], self._tables.rows))
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
            mixed = None
            if inputs.own_shares is not None:
                mixed = MixedLabels(labels[1 + place], inputs.own_shares[place])
            seen.append(ViewBatch(of_view, logits_BC, statistics, mixed=mixed))
        rows, unlabelled = torch.from_numpy(inputs.rows), self._some_unlabelled
        return TrainingBatch(rows, rows_B, labels_B, tuple(seen), local_slice=local_slice, some_unlabelled=unlabelled)

    def close(self) -> None:
        """End the thread and the worker processes that fetch ahead, if there are any."""
        self._stop_fetching()
        self._pictures.close()

    def _part(self, step: int) -> tuple[slice, slice]:
        """A batch's place in the order, and this process's share of the batch."""
        start = step * self._batch_size
        stop = min(start + self._batch_size, self.samples)
        return slice(start, stop), self._share.of(stop - start)

    def _shown(self, step: int) -> Work:
        """Samples of a step whose pictures are wanted here, and their views."""
        whole, local_slice = self._part(step)
        return self._order_N[whole][local_slice], tuple(of_N[whole][local_slice] for of_N in self._tables.drawn)

    def _inputs(self, step: int, fetched: tuple[Tensor, ...]) -> BatchInputs:
        """``fetched``: what is not resident, pictures first."""
        whole, local_slice = self._part(step)
        statistics = None if self._statistics is None else self._statistics[:, whole]
        pictures = len(fetched) - len(self._mapped_teachers)
        return BatchInputs(
            self._order_N[whole],
            local_slice,
            integers=self._integers[:, whole],
            own_shares=None if self._own_shares is None else self._own_shares[:, whole],
            statistics=statistics,
            images=fetched[:pictures],
            logits=fetched[pictures:],
        )

    def _fetched(self, steps: range, waiting: Callable[[], None]) -> Generator[tuple[Tensor, ...], None, None]:
        """Yield what is not resident of each step, on the device: pictures, then logits."""
        is_resident = self._pictures.resident_NHWK is not None
        pictures = itertools.repeat(()) if is_resident else self._pictures.fetched(map(self._shown, steps), waiting)

        def gather(step: int) -> tuple[Tensor, ...]:
            return (*next(pictures), *self._mapped_logits(step))

        if self.device.type == "cpu" or (is_resident and not self._mapped_teachers):
            yield from map(gather, steps)
        else:
            yield from prefetch(gather, steps, self.device, self._pictures.leaving(waiting))

    def _stop_fetching(self) -> None:
        if self._fetching is not None:
            self._pictures.leave()
            self._fetching.close()

    def _mapped_logits(self, step: int) -> tuple[Tensor, ...]:
        whole, _ = self._part(step)
        return tuple(teacher.gather(whole.start, whole.stop) for teacher in self._mapped_teachers)
