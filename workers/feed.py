"""Batches for the training loop: the view that the teacher saw, its labels, the teacher's logits.

Everything is resident: the decoded pictures (uint8) and the cached logits are moved to the device
once when they fit there, and otherwise stay memory-mapped on the host, shared by all runs of the
machine. Nothing here is random: the order of an epoch is a pure function of (seed, epoch), the
pictures of (recipe, seed, view, sample), so a resumed run sees what it would have seen.

Shapes: N samples, B batch, H x W pixels, K channels, C classes. ``images`` are uint8 BHWK until the
last moment, then float32 BKHW.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store import CacheReader
from workers import views
from workers.config import Augmentation, NoAugmentation, Preprocessing, Views
from workers.datasets import Dataset

# Left free on a GPU for weights, activations and the other runs that share it.
_RESIDENT_SHARE = 0.25


@dataclass(frozen=True)
class Seen:
    """What both networks see of one view of a batch, on the training device.

    Attributes:
        images: uint8 [B, H, W, K], augmented.
        teacher_logits: [B, C] in the cache's dtype, or None when the method needs no teacher.
        teacher_statistics: float32 [B] each, by name, or None likewise.
    """

    images: Tensor
    teacher_logits: Tensor | None
    teacher_statistics: Mapping[str, Tensor] | None


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        rows: which samples of the split these are, int64 [B], on the host.
        labels: int64 [B], on the training device.
        views: one view of them, or two for a method that compares two.
    """

    rows: Tensor
    labels: Tensor
    views: tuple[Seen, ...]


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
    """uint8 pictures and labels of one split, on the device when they fit, else mapped."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.device = device
        self.dataset = dataset
        host = torch.from_numpy(np.asarray(dataset.images_NHWC))
        self._resident = _fits(host.nbytes, device)
        self._images_NHWK = host.to(device) if self._resident else host
        self._labels_N = torch.from_numpy(np.asarray(dataset.labels_N)).to(device)

    def take(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """(uint8 [B, H, W, K], int64 [B]) on the device, for host rows int64 [B]."""
        rows_device = rows_B.to(self.device)
        if self._resident:
            return self._images_NHWK.index_select(0, rows_device), self._labels_N[rows_device]
        images = self._images_NHWK.index_select(0, rows_B).to(self.device)
        return images, self._labels_N[rows_device]


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
    ) -> None:
        self._pictures = _Pictures(dataset, device)
        self._plan = plan
        self._teachers = [None if reader is None else _TeacherRows(reader, device) for _ in range(views_per_step)]
        self._batch_size = batch_size
        self._seed = seed
        self.samples = len(dataset.labels_N)
        full, rest = divmod(self.samples, batch_size)
        self.steps = full + (rest > 1 or full == 0)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of epoch ``epoch`` (from 0)."""
        dataset, plan = self._pictures.dataset, self._plan
        recipe: Augmentation = plan.augmentation
        order_N = epoch_order(self.samples, self._seed, epoch)
        parameters = []
        for place, teacher in enumerate(self._teachers):
            view = (epoch + place) % plan.count
            parameters.append(views.draw(recipe, plan.seed, view, order_N, dataset.height, dataset.width))
            if teacher is not None:
                teacher.begin(view, order_N)
        rows_N = torch.from_numpy(order_N)
        for start in range(0, self.steps * self._batch_size, self._batch_size):
            part = slice(start, min(start + self._batch_size, self.samples))
            plain, labels = self._pictures.take(rows_N[part])
            seen = []
            for drawn, teacher in zip(parameters, self._teachers, strict=True):
                images = plain if isinstance(recipe, NoAugmentation) else views.apply(plain, recipe, drawn[part])
                seen.append(Seen(images, *_take(teacher, part.start, part.stop)))
            yield Batch(rows_N[part], labels, tuple(seen))


def _take(teacher: _TeacherRows | None, start: int, stop: int) -> tuple[Tensor | None, dict[str, Tensor] | None]:
    return (None, None) if teacher is None else teacher.take(start, stop)


class EvaluationFeed:
    """The test split in its own order, plain pictures at the student's input size."""

    def __init__(
        self,
        dataset: Dataset,
        size: tuple[int, int],
        reader: CacheReader | None,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._pictures = _Pictures(dataset, device)
        self._size = size
        self._teacher = None if reader is None else _TeacherRows(reader, device)
        self._batch_size = batch_size
        self.samples = len(dataset.labels_N)
        self.has_teacher = reader is not None

    def batches(self) -> Iterator[Batch]:
        if self._teacher is not None:
            self._teacher.begin(0, np.arange(self.samples))
        for start in range(0, self.samples, self._batch_size):
            rows = torch.arange(start, min(start + self._batch_size, self.samples))
            images, labels = self._pictures.take(rows)
            if (images.shape[1], images.shape[2]) != self._size:
                images = views.resize(images, *self._size)
            yield Batch(rows, labels, (Seen(images, *_take(self._teacher, start, start + len(rows))),))


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
