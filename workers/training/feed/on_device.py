"""Pictures of a split: on the device if they fit there, else mapped on the host, or decoded when asked for.

Legend: N samples, B of a step, H x W pixels, K channels, C classes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store import CacheSpec
from workers.augmentation.apply import apply_all
from workers.augmentation.draw import ViewParameters, pictures_of
from workers.config.views import Augmentation
from workers.data.preparation.prepared import Dataset, DecodedDataset, FilesDataset, SubsetDataset
from workers.events import Log
from workers.training.feed.image_loader import PictureStream, Work, nothing, worker_processes

# Left free on a GPU for weights, activations and the other runs that share it.
_RESIDENT_SHARE = 0.25


def fits(tensor_bytes: int, device: torch.device) -> bool:
    """Whether a tensor may stay on a GPU: in a quarter of what is free there and within the process's own limit."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total - torch.cuda.memory_reserved(device)
    return tensor_bytes < _RESIDENT_SHARE * min(free, allowed)


def room_for_logits(spec: CacheSpec, device: torch.device) -> Tensor | None:
    """Memory on a GPU for one view's logits [N, C], in the cache's dtype, not initialised; None if they do not fit."""
    if not fits(spec.samples * spec.row_bytes, device):
        return None
    dtype = torch.from_numpy(np.empty(0, spec.numpy_dtype)).dtype
    return torch.empty((spec.samples, spec.classes), dtype=dtype, device=device)


class SplitPictures:
    """uint8 pictures and labels of one split, on the device when they fit, else mapped, or decoded when asked for.

    Attributes:
        resident_NHWK: uint8 [N, H, W, K] on the device; None if they are somewhere else.
    """

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.dataset = dataset
        self.resident_NHWK: Tensor | None = None
        if isinstance(dataset, SubsetDataset) and isinstance(dataset.base, DecodedDataset):
            row_bytes = int(np.prod(dataset.picture_shape))
            if device.type != "cpu" and fits(dataset.samples * row_bytes, device):
                self.resident_NHWK = torch.from_numpy(dataset.take(slice(None))).to(device)
        elif isinstance(dataset, DecodedDataset):
            mapped_NHWK = torch.from_numpy(np.asarray(dataset.images_NHWC))
            if device.type == "cpu":
                self.resident_NHWK = mapped_NHWK
            elif fits(mapped_NHWK.nbytes, device):
                self.resident_NHWK = mapped_NHWK.to(device)


class TrainingPictures(SplitPictures):
    """Pictures of the training split; those that are not resident are fetched for a step, ahead of the loop.

    Args:
        recipes: of each view of a step.
        batch_bytes: of a batch's pictures, all views.
        threads: of the run; pictures that stay files are decoded by a worker process for each but the first.
        emit: takes a warning where there is no room for what these processes make.

    Attributes:
        are_views: what is fetched is augmented already.

    Close it when no more are wanted.
    """

    def __init__(
        self,
        dataset: Dataset,
        recipes: tuple[Augmentation, ...],
        device: torch.device,
        batch_bytes: int,
        *,
        threads: int,
        emit: Callable[[Log], None],
    ) -> None:
        super().__init__(dataset, device)
        self._recipes = recipes
        self._device = device
        self._stream: PictureStream | None = None
        if isinstance(dataset, FilesDataset):
            processes = worker_processes(threads)
            self._stream = PictureStream(dataset.files, recipes, processes, device, batch_bytes, emit)
        self.are_views = self._stream is not None

    def fetched(self, steps: Iterable[Work], waiting: Callable[[], None]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the pictures of each step in turn, on the host: uint8 of each view, or one plain tensor.

        Args:
            waiting: called about every second on a CPU while worker processes are waited for; for a GPU it is another
                thread that waits here.
        """
        if self._stream is not None:
            return self._stream.batches(steps, waiting if self._device.type == "cpu" else nothing)
        return itertools.starmap(self.fetch, steps)

    def fetch(self, rows_B: NDArray[np.int64], drawn: tuple[ViewParameters, ...]) -> tuple[Tensor, ...]:
        """Make the pictures of a step here and now, as ``fetched`` gives them."""
        plain = torch.from_numpy(self.dataset.take(pictures_of(rows_B, drawn)))
        return apply_all(plain, self._recipes, drawn) if self.are_views else (plain,)

    def leave(self) -> None:
        """End the wait of a thread for pictures that are not needed any more."""
        if self._stream is not None:
            self._stream.leave()

    def leaving(self, waiting: Callable[[], None]) -> Callable[[], None]:
        """``waiting``, and ``leave`` where it raises."""

        def ask() -> None:
            try:
                waiting()
            except BaseException:
                self.leave()
                raise

        return ask

    def close(self) -> None:
        """End the worker processes, if there are any."""
        if self._stream is not None:
            self._stream.close()
