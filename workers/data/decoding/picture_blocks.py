"""Blocks of pictures decoded by threads (PIL releases the interpreter lock), a bounded number of blocks ahead.

Messages count every bad picture, not the first alone.

Legend: b samples of a block, H x W pixels.
"""

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from workers.data.decoding.bad_pictures import BadPicture, BadPictures
from workers.data.decoding.blocks import Blocks, Pictures, block_rows, check_stop
from workers.data.decoding.encoded_rows import EncodedRows
from workers.data.decoding.picture_decoder import PictureDecoder
from workers.errors import InvalidDataset
from workers.events import ShouldStop
from workers.spec import Size

# Of blocks that are being decoded or wait, all together; one or two larger ones are.
_AHEAD_BYTES = 512 << 20
# Pictures of a block, and of those that are decoded at a time to find the bad ones, at most.
_STEP_MAX, _FIND_STEP = 256, 32

ResultT = TypeVar("ResultT")


def first_size(rows: EncodedRows, decoder: PictureDecoder, should_stop: ShouldStop) -> tuple[int, int]:
    """Size (height, width) of the first training picture that can be decoded; every split must have it.

    Raises:
        BadPictures: no picture can be decoded.
        Stopped: ``should_stop`` returned true.
    """
    bad = []
    for row in range(len(rows)):
        check_stop(should_stop)
        picture = _picture(rows, row, decoder)
        if not isinstance(picture, BadPicture):
            return picture.shape[0], picture.shape[1]
        bad.append(picture)
    raise BadPictures(bad, len(rows))


def find_bad(rows: EncodedRows, decoder: PictureDecoder, should_stop: ShouldStop) -> list[BadPicture]:
    """Decode every picture, keep none, and list those that are damaged.

    Raises:
        BadPictures: pictures cannot be read from the disk: they may be whole.
        Stopped: ``should_stop`` returned true.
    """

    step = _step(rows, _FIND_STEP)

    def bad_of(start: int) -> list[BadPicture]:
        found = (_picture(rows, row, decoder) for row in range(start, min(start + step, len(rows))))
        return [each for each in found if isinstance(each, BadPicture)]

    bad = [each for group in _in_threads(bad_of, len(rows), step, should_stop=should_stop) for each in group]
    unread = [each for each in bad if not each.is_damaged]
    if unread:
        raise BadPictures(unread, len(rows))
    return bad


def read_blocks(rows: EncodedRows, decoder: PictureDecoder, size: Size, should_stop: ShouldStop) -> Blocks:
    """Yield blocks up to the first bad picture; then decode the others, to name all bad ones.

    Args:
        size: (height, width) of every picture.

    Raises:
        BadPictures: pictures are damaged or of another size.
        Stopped: ``should_stop`` returned true.
    """
    row_bytes = math.prod(size) * 3
    step = _step(rows, min(_STEP_MAX, block_rows(row_bytes)))
    bad: list[BadPicture] = []

    def block_of(start: int) -> tuple[Pictures, list[BadPicture]]:
        return _block(rows, range(start, min(start + step, len(rows))), decoder, size)

    decoded = _in_threads(block_of, len(rows), step, should_stop=should_stop, result_bytes=step * row_bytes)
    with contextlib.closing(decoded):
        for block, found in decoded:
            bad += found
            if not bad:
                yield block
    if bad:
        raise BadPictures(bad, len(rows))


def _step(rows: EncodedRows, most: int) -> int:
    """Rows of a block; fewer where threads would wait for the many megabytes between the blocks that they decode."""
    return most if not rows.mean_bytes else min(most, block_rows(rows.mean_bytes))


def _in_threads(
    work: Callable[[int], ResultT], count: int, step: int, *, should_stop: ShouldStop, result_bytes: int = 1
) -> Generator[ResultT, None, None]:
    """Results of ``work`` for 0, step, 2 step ... below ``count``, in order, a bounded number ahead."""
    ahead_max = max(1, _AHEAD_BYTES // result_bytes)
    threads = min(len(os.sched_getaffinity(0)), ahead_max)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pending: deque[Future[ResultT]] = deque()
    try:
        for start in range(0, count, step):
            check_stop(should_stop)
            pending.append(pool.submit(work, start))
            if len(pending) > min(2 * threads, ahead_max):
                yield pending.popleft().result()
        while pending:
            check_stop(should_stop)
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _block(rows: EncodedRows, numbers: range, decoder: PictureDecoder, size: Size) -> tuple[Pictures, list[BadPicture]]:
    """Decode a block, uint8 [b, H, W, 3], and list the pictures that cannot be used."""
    block = np.empty((len(numbers), *size, 3), dtype=np.uint8)
    bad = []
    for place, row in zip(block, numbers, strict=True):
        picture = _picture(rows, row, decoder)
        if isinstance(picture, BadPicture):
            bad.append(picture)
        elif picture.shape == place.shape:
            place[:] = picture
        else:
            reason = (
                f"is {picture.shape[0]} x {picture.shape[1]} pixels (height x width), the first "
                f"training picture {size[0]} x {size[1]}: give image_size to resize all"
            )
            bad.append(BadPicture(row, rows.ids[row], reason, rows.place(row), is_damaged=False))
    return block, bad


def _picture(rows: EncodedRows, row: int, decoder: PictureDecoder) -> Pictures | BadPicture:
    place = rows.place(row)
    try:
        return decoder.decode(rows.read(row), place)
    except InvalidDataset as error:
        return BadPicture(row, rows.ids[row], str(error).removeprefix(f"{place} "), place)
    except OSError as error:
        reason = f"cannot be read as a picture: {error.strerror or error}"
        return BadPicture(row, rows.ids[row], reason, place, is_damaged=False)
