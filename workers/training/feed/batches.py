"""Batch of the training loop: pictures and labels, the teacher's logits of each view, and the network's input.

A step's data comes in two parts. ``BatchInputs`` is what differs from step to step, as tensors of one shape: slices of
tables that were copied to the device at the start of the epoch. ``TrainingFeed.make`` computes the batch from it, on
the device alone, so that a CUDA graph can replay it on other inputs.

Shapes: N samples, B batch, b of it in this process, H x W pixels, K channels, C classes, V views, S statistics.
``images`` are uint8 BHWK until the last moment, then float32 BKHW: see ``to_input`` in ``augmentation.apply``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.config.full_batch import check_full_batch
from workers.config.teacher import Preprocessing
from workers.data.preparation.prepared import Dataset
from workers.objective.mixed_labels import MixedLabels
from workers.objective.statistics import SharedTeacherTerms

# On a CPU a batch takes a third of the time if another was made just before: the network's arithmetic has driven the
# code that makes it out of the processor's caches. So many are made in a row, in so much memory as float32 inputs.
_MOST_AT_ONCE, _AT_ONCE_BYTES, _BYTES_OF_A_PIXEL = 8, 8 << 20, 4


@dataclass(frozen=True)
class ViewBatch:
    """View of a batch: the student's pictures, the teacher's logits and statistics of the same boxes; on the device.

    Attributes:
        images: uint8 [b, H, W, K], augmented, of the batch's rows ``local_slice``.
        teacher_logits: [B, C] in the cache's dtype, or None when the method needs no teacher.
        teacher_statistics: float32 [B] each, by name, or None likewise.
        known: what several students derive from these logits, computed by the first of them.
        mixed: second labels of the pictures; None where they are not mixed.
    """

    images: Tensor
    teacher_logits: Tensor | None
    teacher_statistics: Mapping[str, Tensor] | None
    known: SharedTeacherTerms = field(default_factory=SharedTeacherTerms)
    mixed: MixedLabels | None = None


@dataclass(frozen=True)
class TrainingBatch:
    """One batch.

    Attributes:
        rows: which samples of the split these are, int64 [B], on the host.
        device_rows: the same on the training device.
        labels: int64 [B], on the training device.
        views: one view of them, or two for a method that compares two.
        local_slice: which of the B rows have pictures here: all, unless several processes share the batch.
        some_unlabelled: rows of the split may have no label, which is -1.
    """

    rows: Tensor
    device_rows: Tensor
    labels: Tensor
    views: tuple[ViewBatch, ...]
    local_slice: slice
    some_unlabelled: bool = False


@dataclass(frozen=True)
class BatchInputs:
    """Inputs that differ between two steps, on the training device.

    Attributes:
        rows: which samples of the split these are, int64 [B], on the host.
        local_slice: which of the B rows have pictures here: all, unless several processes share the batch.
        integers: int64, as of ``EpochTables``: row numbers, labels, and for each view its ``ViewParameters.table``.
        own_shares: float32 [V, B], as of ``EpochTables``; None where views are not mixed.
        statistics: float32 [V * S, B] of the teacher's logits, or None where no run needs a teacher.
        images: uint8 [b, H, W, K] of each view if they were augmented elsewhere, or the plain pictures of
            ``draw.pictures_of``; empty where the pictures are resident.
        logits: [B, C] of each view whose logits are not resident; empty where no run needs them.
    """

    rows: NDArray[np.int64]
    local_slice: slice
    integers: Tensor
    own_shares: Tensor | None
    statistics: Tensor | None
    images: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tensors that lie on the device, in a fixed order."""
        floats = (each for each in (self.own_shares, self.statistics) if each is not None)
        return (self.integers, *floats, *self.images, *self.logits)

    def clone(self) -> "BatchInputs":
        """Copy the values to addresses of their own, for ``copy_from``."""
        return BatchInputs(
            self.rows,
            self.local_slice,
            self.integers.clone(),
            None if self.own_shares is None else self.own_shares.clone(),
            None if self.statistics is None else self.statistics.clone(),
            tuple(images.clone() for images in self.images),
            tuple(logits.clone() for logits in self.logits),
        )

    def copy_from(self, other: "BatchInputs") -> None:
        """Take another step's values on the device; its shapes must be these."""
        for local_slice, theirs in zip(self.tensors, other.tensors, strict=True):
            local_slice.copy_(theirs)

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of ``tensors``."""
        return tuple(tensor.shape for tensor in self.tensors)


@dataclass(frozen=True)
class LoadedBatch:
    """A batch as runs train on it.

    Attributes:
        inputs: normalised float32 [b, K, H, W] of each view.
        recordable: it lies where the next batch will, so that a run's step on it can be recorded.
        failure: why making a batch could not be recorded; None if it was, or was not tried.
    """

    batch: TrainingBatch
    inputs: tuple[Tensor, ...]
    recordable: bool = False
    failure: str | None = None

    def fresh(self, rows: Tensor | None = None) -> "LoadedBatch":
        """The same without what other runs have derived from it; of these rows of the split, where they are others."""
        views = tuple(replace(seen, known=SharedTeacherTerms()) for seen in self.batch.views)
        batch = replace(self.batch, rows=self.batch.rows if rows is None else rows, views=views)
        return replace(self, batch=batch)


class NotWanted(Exception):
    """End of an epoch's batches: nobody wants the next one."""


@dataclass(frozen=True)
class BatchShare:
    """Part of every batch that this process computes: part ``rank`` of ``ranks`` nearly equal ones."""

    rank: int = 0
    ranks: int = 1

    def of(self, rows: int) -> slice:
        """Return its part of a batch of so many rows; empty if there are fewer rows than parts."""
        return slice(rows * self.rank // self.ranks, rows * (self.rank + 1) // self.ranks)


ALL = BatchShare()


def epoch_order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the samples in one epoch, int64 [samples]; the same on every machine."""
    # Philox is counter-based: (seed, epoch) is its key, no state is carried from epoch to epoch.
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(samples)


def count_steps(samples: int, batch_size: int, *, drop_last: bool = False) -> int:
    """Count the steps of an epoch.

    A last batch of one row is left out, because batch normalisation cannot train on it (students with it are refused
    where there would be no other).

    Args:
        drop_last: leave out every last batch that is smaller than the others.

    Raises:
        InvalidJob: that leaves none.
    """
    if drop_last:
        check_full_batch(samples, batch_size)
    full, rest = divmod(samples, batch_size)
    return full + (not drop_last and (rest > 1 or full == 0))


def batches_at_once(pixels: int) -> int:
    """Count the batches that a CPU best makes in a row, before the first is trained on.

    Args:
        pixels: of a batch, all views and channels; as many bytes as uint8.
    """
    return min(max(_AT_ONCE_BYTES // (_BYTES_OF_A_PIXEL * pixels), 1), _MOST_AT_ONCE)


def student_preprocessing(dataset: Dataset, size: tuple[int, int]) -> Preprocessing:
    """Return the preprocessing from a picture to the student's input, with the training split's own mean and std.

    An exported student with this beside it can be uploaded as a teacher.
    """
    # A channel that never changes (a blank border, say) would divide by zero.
    std = tuple(max(float(value), 1e-3) for value in dataset.channel_std)
    mean = tuple(float(value) for value in dataset.channel_mean)
    return Preprocessing(size=size, mean=mean, std=std, channels="gray" if len(mean) == 1 else "rgb")
