"""Drawing of the mixing of views: with which sample's, by how much, and in which box.

The partner is a row of the same training split, drawn from (seed, view, sample) as all else is, and no row of the
batch: so the mixed picture of a view is fixed, and the teacher's cached logits are of it. The partner's view has the
same number, as that sample itself has it before it is mixed.

The share comes from a table of the distribution's function, because libraries draw Beta variates by logarithms and
powers of their own. The table is made of float64 additions, multiplications, divisions and square roots alone.

Legend: N samples, L levels of the lower half, 2**15.
"""

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from store.counter_rng import Floats, Ints, Words, below, hash_words, unit
from workers.augmentation.draw_boxes import exp
from workers.augmentation.draw_operations import FRACTION, GRID
from workers.config.views import Augmentation, NoAugmentation

_SLOT_WHETHER, _SLOT_PARTNER, _SLOT_SHARE, _SLOT_TOP, _SLOT_LEFT = 80, 81, 82, 83, 84
# Terms of the series of ``_beta_levels``: the ratio of two is 0.97 at first where alpha is 32, and tends to 1/2.
_TERMS = 400
_LN2 = 0.6931471805599453


@dataclass(frozen=True)
class MixingParameters:
    """Mixing of N views, each with one of another sample; int64 [N] each.

    Attributes:
        sample: the other's row in the split.
        weight: of the view's own pixels outside the box, in 2**-16; the others' is the rest.
        top, left, height, width: of the box in which all pixels are the other's, in cells of the grid.
    """

    sample: Ints
    weight: Ints
    top: Ints
    left: Ints
    height: Ints
    width: Ints

    def __getitem__(self, rows: slice | Ints) -> "MixingParameters":
        return MixingParameters(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def table(self) -> Ints:
        """Table int64 [5, N] for ``mixing.mix``: all but the samples."""
        return np.stack([self.weight, self.top, self.left, self.height, self.width])

    def own_share(self, height: int, width: int) -> NDArray[np.float32]:
        """Share of a view of h x w pixels that is its own picture, float32 [N]: the weight of its label."""
        in_box = _pixels(self.top, self.height, height) * _pixels(self.left, self.width, width)
        share = (self.weight / FRACTION) * (1.0 - in_box / (height * width))
        return share.astype(np.float32)


def draw_mixing(
    recipe: Augmentation, seed: int, view: int, index_N: Ints, *, partners_P: Ints | None
) -> MixingParameters:
    """Draw how view ``view`` of the samples ``index_N`` is mixed; other arguments as of ``draw.draw``.

    Args:
        recipe: of mixed views.

    Raises:
        ValueError: there are no rows to draw partners from.
    """
    assert not isinstance(recipe, NoAugmentation)
    if partners_P is None or not len(partners_P):
        raise ValueError("views are mixed with those of other samples: give the rows that these are drawn from")

    def words(slot: int) -> Words:
        return hash_words(seed, view, index_N, slot)

    place = below(words(_SLOT_WHETHER), FRACTION)
    of_mixup, of_cutmix = (
        0 if given is None else round(given.probability * FRACTION) for given in (recipe.mixup, recipe.cutmix)
    )
    is_mixup, is_cutmix = place < of_mixup, (place >= of_mixup) & (place < of_mixup + of_cutmix)
    uniform = unit(words(_SLOT_SHARE))
    weight, side = np.full(len(place), FRACTION, dtype=np.int64), np.zeros(len(place), dtype=np.int64)
    if recipe.mixup is not None:
        weight = np.where(is_mixup, _beta(recipe.mixup.alpha, uniform), weight)
    if recipe.cutmix is not None:
        others = 1.0 - _beta(recipe.cutmix.alpha, uniform) / FRACTION
        side = np.where(is_cutmix, np.floor(np.sqrt(others) * GRID).astype(np.int64), side)
    # As in the authors' code: the middle is drawn, and what reaches over the border is cut.
    ends = []
    for slot in (_SLOT_TOP, _SLOT_LEFT):
        middle = below(words(slot), GRID)
        ends.append((np.maximum(middle - side // 2, 0), np.minimum(middle + side // 2, GRID)))
    (top, bottom), (left, right) = ends
    return MixingParameters(
        sample=partners_P[below(words(_SLOT_PARTNER), len(partners_P))],
        weight=weight,
        top=top,
        left=left,
        height=bottom - top,
        width=right - left,
    )


def _pixels(start: Ints, cells: Ints, pixels: int) -> Ints:
    """Number of pixels whose middle lies within ``cells`` of the grid from ``start`` on, see ``is_within``."""

    def before(limit: Ints) -> Ints:
        return np.clip(-((GRID - 2 * limit * pixels) // (2 * GRID)), 0, pixels)

    return before(start + cells) - before(start)


def _beta(alpha: float, uniform: Floats) -> Ints:
    """Quantiles of Beta(alpha, alpha), to the nearest multiple of 2**-16, in those: int64, 0..65536."""
    lower = np.searchsorted(_beta_levels(alpha), np.minimum(uniform, 1.0 - uniform), side="right").astype(np.int64)
    return np.where(uniform < 0.5, lower, FRACTION - lower)


@lru_cache(maxsize=8)
def _beta_levels(alpha: float) -> Floats:
    """Distribution function of Beta(a, a) between two levels of the lower half, float64 [L], rising.

    I(x) = (4x(1-x))**a S(x) / (2 S(1/2)), S(x) = sum_n x**n prod_{m<n} (2a + m) / (a + 1 + m): all terms are positive.
    """
    x = (2 * np.arange(FRACTION // 2, dtype=np.float64) + 1) / (2 * FRACTION)
    x = np.append(x, 0.5)
    term, total = np.ones_like(x), np.ones_like(x)
    for m in range(_TERMS):
        term = term * x * ((2 * alpha + m) / (alpha + 1 + m))
        total = total + term
    value = exp(alpha * _log(4 * x * (1 - x))) * total
    levels: Floats = value[:-1] / (2 * value[-1])
    return levels


def _log(y: Floats) -> Floats:
    """Natural logarithm of 0 < y <= 1 from operations that IEEE 754 fixes: twice the series of the inverse tanh."""
    mantissa, exponent = np.frexp(y)
    is_small = mantissa < 0.7071067811865476
    mantissa, exponent = np.where(is_small, 2 * mantissa, mantissa), exponent - is_small
    s = (mantissa - 1) / (mantissa + 1)
    square, series = s * s, np.zeros_like(s)
    for k in range(23, 0, -2):
        series = series * square + 1.0 / k
    result: Floats = exponent * _LN2 + 2 * s * series
    return result
