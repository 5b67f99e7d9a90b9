"""Feed of a split for evaluation: pictures in their order, labels, the teacher's logits of the one unaugmented view.

Shapes as in ``batches``.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from store import CacheReader
from workers.augmentation.apply import resize
from workers.data.preparation.prepared import Dataset
from workers.training.feed.batches import ALL, BatchShare, TrainingBatch, ViewBatch
from workers.training.feed.on_device import SplitPictures
from workers.training.feed.prefetch import prefetch
from workers.training.training_feed import TeacherRows


class EvaluationFeed:
    """A split in its own order, plain pictures at the student's input size; this process's share of it."""

    def __init__(
        self,
        dataset: Dataset,
        size: tuple[int, int],
        reader: CacheReader | None,
        batch_size: int,
        device: torch.device,
        share: BatchShare = ALL,
    ) -> None:
        self.dataset = dataset
        self._pictures = SplitPictures(dataset, device)
        self._size = size
        self.device = device
        self.labels_N = torch.from_numpy(np.asarray(dataset.labels_N)).to(device)
        self.classes = dataset.classes
        self._teacher = None if reader is None else TeacherRows(reader, device)
        self._batch_size = batch_size
        self._share = share
        self.samples = len(dataset.labels_N)
        self.some_unlabelled = dataset.has_unlabelled
        self.has_teacher = reader is not None

    def batches(self) -> Iterator[TrainingBatch]:
        """Batches in the split's order; the teacher's statistics are left out, for nothing measured reads them."""
        parts = []
        for start in range(0, self.samples, self._batch_size):
            local_slice = self._share.of(min(self._batch_size, self.samples - start))
            parts.append(slice(start + local_slice.start, start + local_slice.stop))
        if self._teacher is not None:
            self._teacher.begin(0, np.arange(self.samples))
        for part, (images, logits) in zip(parts, self._fetched(parts), strict=True):
            if (images.shape[1], images.shape[2]) != self._size:
                images = resize(images, *self._size)
            rows = torch.arange(part.start, part.stop)
            seen = ViewBatch(images, logits, None)
            # Nothing that is measured is kept by row on the device.
            yield TrainingBatch(rows, rows, self.labels_N[part], (seen,), local_slice=slice(0, len(rows)))

    def _fetched(self, parts: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """(plain pictures, the teacher's logits) of each part of the split, on the device."""
        pictures, teacher = self._pictures, self._teacher
        resident_NC = None if teacher is None else teacher.resident_NC

        def on_host(part: slice) -> tuple[Tensor, ...]:
            found = []
            if pictures.resident_NHWK is None:
                found.append(torch.from_numpy(pictures.dataset.take(np.arange(part.start, part.stop))))
            if teacher is not None and resident_NC is None:
                found.append(teacher.gather(part.start, part.stop))
            return tuple(found)

        is_resident = pictures.resident_NHWK is not None and (teacher is None or resident_NC is not None)
        is_near = self.device.type == "cpu" or is_resident
        fetched = map(on_host, parts) if is_near else prefetch(on_host, parts, self.device)
        for part, tensors in zip(parts, fetched, strict=True):
            left = list(tensors)
            images = left.pop(0) if pictures.resident_NHWK is None else pictures.resident_NHWK[part]
            logits = left.pop(0) if left else (None if resident_NC is None else resident_NC[part])
            yield images, logits
