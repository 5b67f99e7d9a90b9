"""Drawing of views: (recipe, seed, view, sample) decides a box and a mirror flag per sample.

The size of a view is no part of the draw: the teacher sees the same boxes, each resampled from the picture to its own
size (``config.views.teacher_augmentation``).

The generator is counter-based, see store/counter_rng.py: word ``slot`` of (seed, view, sample). Slots: 0 mirror,
1 top, 2 left, 3 + 2t and 4 + 2t the area and aspect ratio of try t of ``resized_crop``.

Floating point is used in one place, the area and aspect ratio of ``resized_crop``: float64
additions, multiplications, divisions and square roots, which IEEE 754 defines to the last bit, and
an exponential made of those, because the exponentials of C libraries and of NumPy's vector code
differ between machines. It runs on the host, whatever the device of the pictures.

Legend: N samples of an epoch, H x W pixels of a picture.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from decimal import Context, Decimal

import numpy as np
from numpy.typing import NDArray

from store.counter_rng import Floats, Ints, Words, below, hash_words, unit
from workers.config.views import Augmentation, CropFlip, NoAugmentation, ResizedCrop

_SLOT_FLIP, _SLOT_TOP, _SLOT_LEFT, _SLOT_TRIES = 0, 1, 2, 3
_TRIES = 10


@dataclass(frozen=True)
class ViewParameters:
    """Boxes and mirror flags of N pictures, int64 [N] each; a slice is a batch's.

    Attributes:
        top, left: corner of the box in pixels of the picture; negative where ``crop_flip`` reaches
            into the padding.
        height, width: of the box, in pixels of the picture.
        flip: 1 where the result is mirrored left to right, else 0.
    """

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    flip: Ints

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, rows: slice | Ints) -> "ViewParameters":
        return ViewParameters(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def table(self) -> Ints:
        """Table int64 [5, N] in the order of the fields, for ``apply_table``."""
        return np.stack([getattr(self, f.name) for f in fields(self)])


def _log(value: float) -> float:
    # Decimal's logarithm is rounded correctly, the C library's need not be.
    return float(Context(prec=40).ln(Decimal(value)))


def _exp(x: Floats) -> Floats:
    """e**x from operations that IEEE 754 fixes: Taylor's series of x / 1024, squared ten times."""
    reduced = x * 2.0**-10
    result = np.ones_like(reduced)
    for k in range(9, 0, -1):
        result = 1.0 + reduced * result / k
    for _ in range(10):
        result = result * result
    return result


def draw(
    recipe: Augmentation,
    seed: int,
    view: int,
    index_N: NDArray[np.integer],
    height: int,
    width: int,
) -> ViewParameters:
    """Draw the parameters of view ``view`` of the samples ``index_N`` of H x W pictures.

    Args:
        seed: of the augmentation, 0 <= seed < 2**32.
        view: 0 <= view.
        index_N: sample numbers, any order, any subset; each sample's parameters depend on its own
            number alone.
    """
    index = np.asarray(index_N, dtype=np.int64)

    def words(slot: int) -> Words:
        return hash_words(seed, view, index, slot)

    n = len(index)
    flip = np.zeros(n, dtype=np.int64)
    if not isinstance(recipe, NoAugmentation) and recipe.flip:
        flip = below(words(_SLOT_FLIP), 2)
    heights, widths = np.full(n, height, dtype=np.int64), np.full(n, width, dtype=np.int64)
    match recipe:
        case NoAugmentation():
            zero = np.zeros(n, dtype=np.int64)
            return ViewParameters(zero, zero, heights, widths, flip)
        case CropFlip():
            offsets = 2 * recipe.pad + 1
            top = below(words(_SLOT_TOP), offsets) - recipe.pad
            left = below(words(_SLOT_LEFT), offsets) - recipe.pad
            return ViewParameters(top, left, heights, widths, flip)
        case ResizedCrop():
            return _draw_resized_crop(recipe, words, n, height, width, flip)


def _draw_resized_crop(
    recipe: ResizedCrop, words: Callable[[int], Words], n: int, height: int, width: int, flip: Ints
) -> ViewParameters:
    """torchvision's ``RandomResizedCrop``: ten tries, then the largest central box allowed."""
    (least, most), log_ratio = recipe.scale, [_log(value) for value in recipe.ratio]
    box_h, box_w = _central_box(recipe, height, width)
    heights, widths = np.full(n, box_h, dtype=np.int64), np.full(n, box_w, dtype=np.int64)
    top, left = (height - heights) // 2, (width - widths) // 2
    pending = np.arange(n)
    for attempt in range(_TRIES):
        slot = _SLOT_TRIES + 2 * attempt
        area = height * width * (least + unit(words(slot)[pending]) * (most - least))
        ratio = _exp(log_ratio[0] + unit(words(slot + 1)[pending]) * (log_ratio[1] - log_ratio[0]))
        tried_w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        tried_h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (tried_w > 0) & (tried_w <= width) & (tried_h > 0) & (tried_h <= height)
        rows = pending[fits]
        heights[rows], widths[rows] = tried_h[fits], tried_w[fits]
        top[rows] = below(words(_SLOT_TOP)[rows], height - heights[rows] + 1)
        left[rows] = below(words(_SLOT_LEFT)[rows], width - widths[rows] + 1)
        pending = pending[~fits]
        if not len(pending):
            break
    return ViewParameters(top, left, heights, widths, flip)


def _central_box(recipe: ResizedCrop, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the largest box whose aspect ratio is allowed."""
    narrowest, widest = recipe.ratio
    if width / height < narrowest:
        return max(1, round(width / narrowest)), width
    if width / height > widest:
        return height, max(1, round(height * widest))
    return height, width
