"""Blocks of pictures decoded from image files by threads, a bounded number of blocks ahead.

Messages count every damaged picture, not the first alone.

Legend: b samples of a block, H x W pixels.
"""

import contextlib
import math
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from workers.data.blocks import Blocks, Pictures, block_rows, check_stop
from workers.data.pictures import read_picture
from workers.errors import InvalidDataset
from workers.events import ShouldStop
from workers.spec import Size

# Of blocks that are being decoded or wait, all together; one or two larger ones are.
_AHEAD_BYTES = 512 << 20

# Damaged pictures that a message names.
_NAMED_MAX = 10


def first_size(files: Sequence[Path], should_stop: ShouldStop) -> tuple[int, int]:
    """Size (height, width) of the first training picture that can be decoded; both splits must have it.

    Raises:
        InvalidDataset: no picture can be decoded.
        Stopped: ``should_stop`` returned true.
    """
    damages = _Damages(len(files))
    for path in files:
        check_stop(should_stop)
        try:
            height, width, _ = read_picture(path, None).shape
        except InvalidDataset as error:
            damages.add([str(error)])
        else:
            return height, width
    raise damages.error()


class _Damages:
    """Pictures that cannot be used: the first are named, all counted."""

    def __init__(self, pictures: int) -> None:
        self.count = 0
        self._pictures = pictures
        self._named: list[str] = []

    def add(self, sentences: Sequence[str]) -> None:
        self.count += len(sentences)
        self._named += sentences[: _NAMED_MAX - len(self._named)]

    def error(self) -> InvalidDataset:
        if self.count == 1:
            return InvalidDataset(self._named[0])
        more = f"; and {self.count - _NAMED_MAX} more" if self.count > _NAMED_MAX else ""
        return InvalidDataset(
            f"{self.count} of {self._pictures} pictures cannot be used: {'; '.join(self._named)}{more}"
        )


def read_blocks(files: Sequence[Path], resize_to: Size | None, size: Size, should_stop: ShouldStop) -> Blocks:
    """Yield blocks up to the first damaged picture; then decode the others, to name all damaged ones.

    Args:
        resize_to: (height, width) in pixels that pictures are resized to; None leaves them.
        size: (height, width) of every picture.

    Raises:
        InvalidDataset: pictures are damaged or of another size; names ten at most.
        Stopped: ``should_stop`` returned true.
    """
    damages = _Damages(len(files))
    with contextlib.closing(_decoded(files, resize_to, size, should_stop)) as decoded:
        for block, found in decoded:
            damages.add(found)
            if not damages.count:
                yield block
    if damages.count:
        raise damages.error()


def _decoded(
    files: Sequence[Path], resize_to: Size | None, size: Size, should_stop: ShouldStop
) -> Generator[tuple[Pictures, list[str]], None, None]:
    """Results of ``_pictures``, from threads (PIL releases the interpreter lock), a bounded number of blocks ahead."""
    row_bytes = math.prod(size) * 3
    step = min(256, block_rows(row_bytes))
    blocks_max = max(1, _AHEAD_BYTES // (step * row_bytes))
    threads = min(len(os.sched_getaffinity(0)), blocks_max)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pending: deque[Future[tuple[Pictures, list[str]]]] = deque()
    try:
        for start in range(0, len(files), step):
            check_stop(should_stop)
            pending.append(pool.submit(_pictures, files[start : start + step], resize_to, size))
            if len(pending) > min(2 * threads, blocks_max):
                yield pending.popleft().result()
        while pending:
            check_stop(should_stop)
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _pictures(files: Sequence[Path], resize_to: Size | None, size: Size) -> tuple[Pictures, list[str]]:
    """Decode a block, uint8 [b, H, W, 3], with a sentence for each picture that cannot be used."""
    block = np.empty((len(files), *size, 3), dtype=np.uint8)
    damages = []
    for row, path in zip(block, files, strict=True):
        try:
            picture = read_picture(path, resize_to)
        except InvalidDataset as error:
            damages.append(str(error))
            continue
        if picture.shape == row.shape:
            row[:] = picture
        else:
            damages.append(
                f"{path} is {picture.shape[0]} x {picture.shape[1]} pixels (height x width), the first "
                f"training picture {size[0]} x {size[1]}: give image_size to resize all"
            )
    return block, damages
