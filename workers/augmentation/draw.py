"""Drawing of views: (recipe, seed, view, sample) decides a box and a mirror flag per sample.

The size of a view is no part of the draw: the teacher sees the same boxes, each resampled from the picture to its own
size (``config.views.teacher_augmentation``).

The generator is counter-based, see store/counter_rng.py: word ``slot`` of (seed, view, sample). Slots:

=====================  ==================================================================================
0                      mirror; with ``alternate`` that of view 0, whatever the view
1, 2                   top, left
3 + 2t, 4 + 2t         area and aspect ratio of try t of ``resized_crop``, t < 10
32, 33 + i             ``color_jitter``: order of the changes; amount of brightness, contrast, saturation, hue
40, 41, 42             ``random_erasing``: whether, top, left
43 + 2t, 44 + 2t       area and aspect ratio of try t of its box, t < 10
64 + 2k, 65 + 2k       ``rand_augment``: operation k, its sign, k < 8
80, 81, 82, 83, 84     mixing: whether, and by what; with which sample; share; top, left of the box
=====================  ==================================================================================

A mixed view is drawn together with the view of the sample that it is mixed with.

Floating point is used for the area and aspect ratio of boxes: float64 additions, multiplications, divisions and square
roots, which IEEE 754 defines to the last bit, and an exponential made of those, because the exponentials of C libraries
and of NumPy's vector code differ between machines. It runs on the host, whatever the device of the pictures.

Legend: N samples of an epoch, H x W pixels of a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from store.counter_rng import Ints, Words, below, hash_words
from workers.augmentation.draw_boxes import draw_boxes
from workers.augmentation.draw_mixing import MixingParameters, draw_mixing
from workers.augmentation.draw_operations import draw_operations
from workers.config.views import (
    Augmentation,
    CropFlip,
    NoAugmentation,
    ResizedCrop,
    has_second_view,
    is_mixed,
    without_mixing,
)

# Rows of ``ViewParameters.table`` before those of the operations.
BOX_ROWS = 5
# Rows of the table of mixed views after those of both pictures.
MIXING_ROWS = 5

_SLOT_FLIP, _SLOT_TOP, _SLOT_LEFT = 0, 1, 2


@dataclass(frozen=True)
class ViewParameters:
    """Boxes and mirror flags of N pictures, int64 [N] each; a slice is a batch's.

    Attributes:
        top, left: corner of the box in pixels of the picture; negative where ``crop_flip`` reaches
            into the padding.
        height, width: of the box, in pixels of the picture.
        flip: 1 where the result is mirrored left to right, else 0.
        operations: int64 [R, N], what follows, see ``draw_operations``; without any R is 0.
        mixing: how each is mixed with a view of another sample; None where views are not mixed.
        other: parameters of those other views; None likewise.
    """

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    flip: Ints
    operations: Ints
    mixing: MixingParameters | None = None
    other: "ViewParameters | None" = None

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, rows: slice | Ints) -> "ViewParameters":
        mixing, other = self.mixing, self.other
        return ViewParameters(
            **{name: getattr(self, name)[..., rows] for name in _OF_ONE_PICTURE},
            mixing=None if mixing is None else mixing[rows],
            other=None if other is None else other[rows],
        )

    def table(self) -> Ints:
        """Table int64 [P, N] for ``apply_table``: P = 5 + R rows in the order of the fields.

        Of mixed views 2P + 5: those of the view, of the other view, and of the mixing.
        """
        own = np.concatenate([np.atleast_2d(getattr(self, name)) for name in _OF_ONE_PICTURE])
        if self.mixing is None or self.other is None:
            return own
        return np.concatenate([own, self.other.table(), self.mixing.table()])


_OF_ONE_PICTURE = tuple(f.name for f in fields(ViewParameters) if f.name not in ("mixing", "other"))


def pictures_of(index_N: Ints, drawn: Sequence[ViewParameters]) -> Ints:
    """Samples whose pictures views are made of: those of N samples, then those that each view is mixed with.

    Args:
        drawn: the views of one sample each that are made together, N parameters each.
    """
    others = [each.mixing.sample for each in drawn if each.mixing is not None]
    return np.concatenate([index_N, *others]) if others else index_N


def draw(
    recipe: Augmentation,
    seed: int,
    view: int,
    index_N: NDArray[np.integer],
    height: int,
    width: int,
    *,
    partners_P: Ints | None = None,
) -> ViewParameters:
    """Draw the parameters of view ``view`` of the samples ``index_N`` of H x W pictures.

    Args:
        recipe: of that view, see ``config.views.recipe_of_view``.
        seed: of the augmentation, 0 <= seed < 2**32.
        view: 0 <= view.
        index_N: sample numbers, any order, any subset; each sample's parameters depend on its own
            number alone.
        partners_P: rows of the split that a view may be mixed with, int64; needed where views are mixed.

    Raises:
        ValueError: a recipe of two kinds of views, or of mixed ones without partners.
    """
    if has_second_view(recipe):
        raise ValueError("the recipe has a second_view: draw by recipe_of_view(recipe, view)")
    if is_mixed(recipe):
        return _draw_mixed(recipe, seed, view, index_N, height=height, width=width, partners_P=partners_P)
    index = np.asarray(index_N, dtype=np.int64)

    def words(slot: int) -> Words:
        return hash_words(seed, view, index, slot)

    n = len(index)
    flip = np.zeros(n, dtype=np.int64)
    if not isinstance(recipe, NoAugmentation) and recipe.flip:
        is_alternate = recipe.flip == "alternate"
        flip = below(hash_words(seed, 0, index, _SLOT_FLIP) if is_alternate else words(_SLOT_FLIP), 2)
        flip = (flip + view) % 2 if is_alternate else flip
    operations = draw_operations(recipe, words, n)
    heights, widths = np.full(n, height, dtype=np.int64), np.full(n, width, dtype=np.int64)
    match recipe:
        case NoAugmentation():
            zero = np.zeros(n, dtype=np.int64)
            return ViewParameters(zero, zero, heights, widths, flip, operations)
        case CropFlip():
            offsets = 2 * recipe.pad + 1
            top = below(words(_SLOT_TOP), offsets) - recipe.pad
            left = below(words(_SLOT_LEFT), offsets) - recipe.pad
            return ViewParameters(top, left, heights, widths, flip, operations)
        case ResizedCrop():
            boxes = draw_boxes(recipe, words, n, height=height, width=width)
            return ViewParameters(*boxes[:4], flip, operations)


def _draw_mixed(
    recipe: Augmentation,
    seed: int,
    view: int,
    index_N: NDArray[np.integer],
    *,
    height: int,
    width: int,
    partners_P: Ints | None,
) -> ViewParameters:
    index = np.asarray(index_N, dtype=np.int64)
    mixing = draw_mixing(recipe, seed, view, index, partners_P=partners_P)
    plain = without_mixing(recipe)
    own, other = (draw(plain, seed, view, rows, height, width) for rows in (index, mixing.sample))
    return replace(own, mixing=mixing, other=other)
