"""Drawing of boxes of random area and aspect ratio, as torchvision's ``RandomResizedCrop`` does.

Legend: N samples, H x W pixels of what the boxes lie in.
"""

from collections.abc import Callable
from decimal import Context, Decimal
from typing import NamedTuple, Protocol

import numpy as np

from store.counter_rng import Floats, Ints, Words, below, unit

_TRIES = 10
_SLOT_TOP = 1


class BoxRecipe(Protocol):
    """Least and most area, as a fraction, and least and most width / height."""

    @property
    def scale(self) -> tuple[float, float]:
        """Of the area."""

    @property
    def ratio(self) -> tuple[float, float]:
        """Of width / height."""


class Boxes(NamedTuple):
    """Boxes of N samples, int64 [N] each; ``is_central`` where no try has fitted."""

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    is_central: Ints


def draw_boxes(
    recipe: BoxRecipe, words: Callable[[int], Words], n: int, *, height: int, width: int, first_slot: int = _SLOT_TOP
) -> Boxes:
    """Draw a box for each sample: ten tries, then the largest central box allowed.

    Args:
        words: the words [N] of a slot.
        first_slot: of ``top``; those of ``left`` and of the tries follow.
    """
    (least, most), log_ratio = recipe.scale, [_log(value) for value in recipe.ratio]
    box_h, box_w = _central_box(recipe, height, width)
    heights, widths = np.full(n, box_h, dtype=np.int64), np.full(n, box_w, dtype=np.int64)
    top, left = (height - heights) // 2, (width - widths) // 2
    pending = np.arange(n)
    for attempt in range(_TRIES):
        slot = first_slot + 2 + 2 * attempt
        area = height * width * (least + unit(words(slot)[pending]) * (most - least))
        ratio = exp(log_ratio[0] + unit(words(slot + 1)[pending]) * (log_ratio[1] - log_ratio[0]))
        tried_w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        tried_h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (tried_w > 0) & (tried_w <= width) & (tried_h > 0) & (tried_h <= height)
        rows = pending[fits]
        heights[rows], widths[rows] = tried_h[fits], tried_w[fits]
        top[rows] = below(words(first_slot)[rows], height - heights[rows] + 1)
        left[rows] = below(words(first_slot + 1)[rows], width - widths[rows] + 1)
        pending = pending[~fits]
        if not len(pending):
            break
    is_central = np.zeros(n, dtype=np.int64)
    is_central[pending] = 1
    return Boxes(top=top, left=left, height=heights, width=widths, is_central=is_central)


def _log(value: float) -> float:
    # Decimal's logarithm is rounded correctly, the C library's need not be.
    return float(Context(prec=40).ln(Decimal(value)))


def exp(x: Floats) -> Floats:
    """e**x from operations that IEEE 754 fixes: Taylor's series of x / 1024, squared ten times."""
    reduced = x * 2.0**-10
    result = np.ones_like(reduced)
    for k in range(9, 0, -1):
        result = 1.0 + reduced * result / k
    for _ in range(10):
        result = result * result
    return result


def _central_box(recipe: BoxRecipe, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the largest box whose aspect ratio is allowed."""
    narrowest, widest = recipe.ratio
    if width / height < narrowest:
        return max(1, round(width / narrowest)), width
    if width / height > widest:
        return height, max(1, round(height * widest))
    return height, width
