"""Batches for the training loop: the view that the teacher saw, its labels, the teacher's logits.

Decoded pictures (uint8) and cached logits are moved to the device once when they fit there, and
otherwise stay memory-mapped on the host, shared by all runs of the machine; pictures that stay files are
decoded ahead by worker processes (see ``streaming``). Nothing here is random: the order of an epoch is a
pure function of (seed, epoch), the pictures of (recipe, seed, view, sample), so a resumed run sees what
it would have seen.

Shapes: N samples, B batch, H x W pixels, K channels, C classes. ``images`` are uint8 BHWK until the
last moment, then float32 BKHW.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store import CacheReader
from workers import views
from workers.config import Preprocessing, Views
from workers.datasets import Dataset, DecodedDataset, FilesDataset
from workers.live import Known
from workers.streaming import PictureStream, worker_processes

# Left free on a GPU for weights, activations and the other runs that share it.
_RESIDENT_SHARE = 0.25
# Where logits come from the disk, it is told so early what will be wanted.
_BATCHES_AHEAD = 4


@dataclass(frozen=True)
class Seen:
    """What both networks see of one view of a batch, on the training device.

    Attributes:
        images: uint8 [b, H, W, K], augmented, of the batch's rows ``mine``.
        teacher_logits: [B, C] in the cache's dtype, or None when the method needs no teacher.
        teacher_statistics: float32 [B] each, by name, or None likewise.
        known: what several students derive from these logits, computed by the first of them.
    """

    images: Tensor
    teacher_logits: Tensor | None
    teacher_statistics: Mapping[str, Tensor] | None
    known: Known = field(default_factory=Known)


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        rows: which samples of the split these are, int64 [B], on the host.
        labels: int64 [B], on the training device.
        views: one view of them, or two for a method that compares two.
        mine: which of the B rows have pictures here: all, unless several processes share the batch.
    """

    rows: Tensor
    labels: Tensor
    views: tuple[Seen, ...]
    mine: slice


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process computes: part ``rank`` of ``ranks`` nearly equal ones."""

    rank: int = 0
    ranks: int = 1

    def of(self, rows: int) -> slice:
        """Its part of a batch of so many rows; empty if there are fewer rows than parts."""
        return slice(rows * self.rank // self.ranks, rows * (self.rank + 1) // self.ranks)


ALL = Share()


def epoch_order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the samples in one epoch, int64 [samples]; the same on every machine."""
    # Philox is counter-based: (seed, epoch) is its key, no state is carried from epoch to epoch.
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(samples)


def _fits(tensor_bytes: int, device: torch.device) -> bool:
    """Whether a tensor may stay on a GPU: in a quarter of what is free there and within the process's own limit."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total - torch.cuda.memory_reserved(device)
    return tensor_bytes < _RESIDENT_SHARE * min(free, allowed)


class _Pictures:
    """uint8 pictures and labels of one split, on the device when they fit, else mapped, or decoded when asked for."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.device = device
        self.dataset = dataset
        self._images_NHWK: Tensor | None = None
        self._resident = False
        if isinstance(dataset, DecodedDataset):
            host = torch.from_numpy(np.asarray(dataset.images_NHWC))
            self._resident = _fits(host.nbytes, device)
            self._images_NHWK = host.to(device) if self._resident else host
        self._labels_N = torch.from_numpy(np.asarray(dataset.labels_N)).to(device)

    def take(self, rows_B: Tensor) -> Tensor:
        """uint8 [B, H, W, K] on the device, for host rows int64 [B]."""
        if self._images_NHWK is None:
            return torch.from_numpy(self.dataset.take(rows_B.numpy())).to(self.device)
        if self._resident:
            return self._images_NHWK.index_select(0, rows_B.to(self.device))
        return self._images_NHWK.index_select(0, rows_B).to(self.device)

    def labels(self, rows_B: Tensor) -> Tensor:
        """int64 [B] on the device, for host rows int64 [B]."""
        return self._labels_N[rows_B.to(self.device)]


class _TeacherRows:
    """The teacher's logits and statistics of one view, in the order of one epoch."""

    def __init__(self, reader: CacheReader, device: torch.device) -> None:
        self._reader = reader
        self._device = device
        spec = reader.spec
        self._resident = _fits(spec.samples * spec.row_bytes, device)
        self._view = -1
        self._logits_NC: Tensor | None = None
        self._statistics: dict[str, Tensor] = {}

    def begin(self, view: int, order_N: NDArray[np.int64]) -> None:
        """Make ``order_N`` of ``view`` current; on a GPU the view is loaded, and verified, once per epoch."""
        # Put in order once per epoch, a batch's statistics are slices.
        self._statistics = {
            name: torch.from_numpy(values_N[order_N]).to(self._device)
            for name, values_N in self._reader.statistics(view).items()
        }
        if not self._resident:
            self._map = self._reader.row_map(view, order_N)
            return
        self._rows_N = torch.from_numpy(order_N).to(self._device)
        if view != self._view:
            self._view = view
            self._logits_NC = torch.from_numpy(self._reader.logits(view)).to(self._device)

    def take(self, start: int, stop: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(logits [B, C], statistics [B]) of positions ``start`` to ``stop`` of the order."""
        statistics = {name: values_N[start:stop] for name, values_N in self._statistics.items()}
        if self._logits_NC is not None:
            return self._logits_NC.index_select(0, self._rows_N[start:stop]), statistics
        if self._reader.exceeds_memory:
            self._map.prefetch(start, stop + _BATCHES_AHEAD * (stop - start))
        gathered = torch.from_numpy(self._map.gather(start, stop))
        return gathered.to(self._device), statistics


class TrainingFeed:
    """Shuffled, augmented batches of the training split, epoch by epoch.

    Args:
        dataset: the training split.
        plan: which views there are; epoch e (from 0) uses view ``e mod plan.count``, and the next one as the second.
        reader: the teacher's cache over the same views, or None for plain cross-entropy.
        batch_size: rows of a batch; a last batch of one row is left out, because batch
            normalisation cannot train on it.
        seed: of the order.
        device: where batches are wanted.
        views_per_step: 1 or 2.
        share: of each batch's pictures; labels and logits are always the whole batch's.
        threads: of the run; pictures that stay files are decoded by a worker process for each but the first.

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
    ) -> None:
        self._pictures = _Pictures(dataset, device)
        self._stream: PictureStream | None = None
        if isinstance(dataset, FilesDataset):
            self._stream = PictureStream(dataset.files, plan.augmentation, worker_processes(threads), device)
        self._plan = plan
        self._teachers = [None if reader is None else _TeacherRows(reader, device) for _ in range(views_per_step)]
        self._batch_size = batch_size
        self._seed = seed
        self._share = share
        self.samples = len(dataset.labels_N)
        full, rest = divmod(self.samples, batch_size)
        self.steps = full + (rest > 1 or full == 0)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``epoch`` from step ``first_step`` on, both counted from 0."""
        dataset, plan = self._pictures.dataset, self._plan
        order_N = epoch_order(self.samples, self._seed, epoch)
        parameters = []
        for place, teacher in enumerate(self._teachers):
            view = (epoch + place) % plan.count
            parameters.append(views.draw(plan.augmentation, plan.seed, view, order_N, dataset.height, dataset.width))
            if teacher is not None:
                teacher.begin(view, order_N)
        parts = [self._part(step) for step in range(first_step, self.steps)]
        made = self._views(order_N, parameters, [here for _, _, here in parts])
        for (whole, mine, _), pictures in zip(parts, made, strict=True):
            seen = [
                Seen(images, *_take(teacher, whole.start, whole.stop))
                for images, teacher in zip(pictures, self._teachers, strict=True)
            ]
            rows_B = torch.from_numpy(order_N[whole])
            yield Batch(rows_B, self._pictures.labels(rows_B), tuple(seen), mine)

    def close(self) -> None:
        """End the worker processes, if there are any."""
        if self._stream is not None:
            self._stream.close()

    def _part(self, step: int) -> tuple[slice, slice, slice]:
        """A batch's place in the order, this process's share of the batch, and the place of that in the order."""
        start = step * self._batch_size
        stop = min(start + self._batch_size, self.samples)
        mine = self._share.of(stop - start)
        return slice(start, stop), mine, slice(start + mine.start, start + mine.stop)

    def _views(
        self, order_N: NDArray[np.int64], drawn: Sequence[views.ViewParameters], parts: Iterable[slice]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Each part of the order as uint8 [b, h, w, K] on the device, a tensor for each of ``drawn``."""
        if self._stream is None:
            for part in parts:
                plain = self._pictures.take(torch.from_numpy(order_N[part]))
                yield tuple(views.apply(plain, self._plan.augmentation, of_N[part]) for of_N in drawn)
        else:
            work = ((order_N[part], tuple(of_N[part] for of_N in drawn)) for part in parts)
            for made in self._stream.batches(work):
                yield tuple(images.to(self._pictures.device, non_blocking=True) for images in made)


def _take(teacher: _TeacherRows | None, start: int, stop: int) -> tuple[Tensor | None, dict[str, Tensor] | None]:
    return (None, None) if teacher is None else teacher.take(start, stop)


class EvaluationFeed:
    """The test split in its own order, plain pictures at the student's input size; this process's share of it."""

    def __init__(
        self,
        dataset: Dataset,
        size: tuple[int, int],
        reader: CacheReader | None,
        batch_size: int,
        device: torch.device,
        share: Share = ALL,
    ) -> None:
        self._pictures = _Pictures(dataset, device)
        self._size = size
        self.device = device
        self._teacher = None if reader is None else _TeacherRows(reader, device)
        self._batch_size = batch_size
        self._share = share
        self.samples = len(dataset.labels_N)
        self.has_teacher = reader is not None

    def batches(self) -> Iterator[Batch]:
        if self._teacher is not None:
            self._teacher.begin(0, np.arange(self.samples))
        for start in range(0, self.samples, self._batch_size):
            whole = min(self._batch_size, self.samples - start)
            mine = self._share.of(whole)
            rows = torch.arange(start + mine.start, start + mine.stop)
            images = self._pictures.take(rows)
            if (images.shape[1], images.shape[2]) != self._size:
                images = views.resize(images, *self._size)
            seen = Seen(images, *_take(self._teacher, start + mine.start, start + mine.stop))
            yield Batch(rows, self._pictures.labels(rows), (seen,), slice(0, len(rows)))


def student_preprocessing(dataset: Dataset, size: tuple[int, int]) -> Preprocessing:
    """What turns a picture into the student's input: the training split's own mean and std.

    An exported student with this beside it can be uploaded as a teacher.
    """
    # A channel that never changes (a blank border, say) would divide by zero.
    std = tuple(max(float(value), 1e-3) for value in dataset.channel_std)
    mean = tuple(float(value) for value in dataset.channel_mean)
    return Preprocessing(size=size, mean=mean, std=std, channels="gray" if len(mean) == 1 else "rgb")


def to_input(images_BHWK: Tensor, preprocessing: Preprocessing, channels_last: bool) -> Tensor:
    """uint8 [B, H, W, K] -> normalised float32 [B, K, H, W]; the student's own preprocessing."""
    batch, height, width, channels = images_BHWK.shape
    mean_r, std_r = (
        _along_row(values, width, images_BHWK.device) for values in (preprocessing.mean, preprocessing.std)
    )
    x_BHr = images_BHWK.reshape(batch, height, width * channels).to(torch.float32)
    x_BHr.mul_(preprocessing.scale).sub_(mean_r).div_(std_r)
    x_BKHW = x_BHr.view(batch, height, width, channels).permute(0, 3, 1, 2)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x_BKHW.contiguous(memory_format=layout)


@lru_cache(maxsize=8)
def _along_row(values_K: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    """A value per channel, repeated for the pixels of a row: [W * K].

    As contiguous as a picture: three times as fast on a CPU as broadcasting over an innermost axis of three.
    """
    return torch.tensor(values_K, device=device).repeat(width)
