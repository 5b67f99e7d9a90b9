"""Blocks of decoded pictures, in sample order and bounded memory.

Legend: N samples, b samples of a block, H x W pixels, C channels.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.data.decoding.bad_pictures import BadPicture
from workers.data.labelling.labels import Labels
from workers.errors import Stopped
from workers.events import ShouldStop

# Bytes of one block: small enough that stopping is prompt and a pool holds several.
BLOCK_BYTES = 8 << 20

Pictures = NDArray[np.uint8]
Blocks = Generator[Pictures, None, None]


@dataclass(frozen=True)
class Decoding:
    """A split of which everything is known but the pixels, which ``blocks`` reads.

    Attributes:
        shape: (N, H, W, C).
        labels_N: int64, 0..classes-1, or -1 for a picture without a label.
        class_names: in label order.
        blocks: uint8 [b, H, W, C], in sample order, N in all; can be iterated once. Raises
            InvalidDataset if pictures cannot be read, naming ten at most, Stopped when asked to stop.
        sample_ids: of each sample, in its order: a file's name below the dataset's folder, or a key; None stands for
            the numbers of the rows.
        left_out: bad pictures that are none of the N samples.
        files: of pictures that are files of their own, or parts of files, those of the N samples.
        spans_N2: int64, of parts of files, the offset and size of each in its file, in bytes.
    """

    shape: tuple[int, int, int, int]
    labels_N: Labels
    class_names: tuple[str, ...]
    blocks: Blocks
    sample_ids: Sequence[str] | None = None
    left_out: Sequence[BadPicture] = ()
    files: Sequence[Path] | None = None
    spans_N2: NDArray[np.int64] | None = None


def from_array(images_NHWC: Pictures, labels_N: Labels, names: Sequence[str], should_stop: ShouldStop) -> Decoding:
    """Split pictures that are in memory into blocks."""
    count, height, width, channels = images_NHWC.shape
    step = block_rows(height * width * channels)

    def blocks() -> Blocks:
        for start in range(0, count, step):
            check_stop(should_stop)
            yield np.ascontiguousarray(images_NHWC[start : start + step])

    return Decoding((count, height, width, channels), labels_N, tuple(names), blocks())


def stoppable(blocks: Iterable[Pictures], should_stop: ShouldStop) -> Blocks:
    """Pass blocks on until ``should_stop`` returns true: then Stopped is raised."""
    for block in blocks:
        check_stop(should_stop)
        yield block


def block_rows(row_bytes: int) -> int:
    """Number of pictures of a block, if one takes ``row_bytes``."""
    return max(1, BLOCK_BYTES // row_bytes)


def check_stop(should_stop: ShouldStop) -> None:
    """Raise Stopped if ``should_stop`` returns true."""
    if should_stop():
        raise Stopped("stopped while decoding a dataset; the half-made copy is removed")
