"""Drawing of the operations on views: which are done to a sample's view, how much, and what is erased.

A view's operations are steps, one after the other; a step does one of some kinds, and no more than one, to each sample.
Two rows of integers tell a step: the kind and its amount, a multiple of 2**-16 where it is a fraction.

Legend: N samples, S steps, R rows: 2S, and 4 more where boxes are erased.
"""

import itertools
import math
from collections.abc import Callable
from enum import IntEnum

import numpy as np

from store.counter_rng import Ints, Words, below
from workers.augmentation.draw_boxes import draw_boxes
from workers.config.operations import ColorJitter, RandAugment, RandomErasing
from workers.config.views import Augmentation, NoAugmentation

# Fractions have 16 bits, as Pillow's affine transforms have.
FRACTION_BITS = 16
FRACTION = 1 << FRACTION_BITS
# An erased box is drawn on a grid of so many cells a side, so that views of all sizes have the same one.
GRID = 4096

_SLOT_ORDER, _SLOT_AMOUNTS, _SLOT_ERASES, _SLOT_ERASED, _SLOT_RAND_AUGMENT = 32, 33, 40, 41, 64


class Kind(IntEnum):
    """Kind of a step and the unit of its amount; the first 14 are RandAugment's, in torchvision's order."""

    IDENTITY = 0
    SHEAR_X = 1  # pixels to the side for each pixel down, in 2**-16
    SHEAR_Y = 2
    TRANSLATE_X = 3  # of the view's width, in 2**-16
    TRANSLATE_Y = 4
    ROTATE = 5  # sine of the angle against the clock, in 2**-16
    BRIGHTNESS = 6  # factor, in 2**-16
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10  # mask of the bits that stay
    SOLARIZE = 11  # least level that is inverted
    AUTOCONTRAST = 12
    EQUALIZE = 13
    HUE = 14  # of a whole turn, in 2**-16


_RAND_AUGMENT = tuple(Kind)[:14]
_FACTORS = (Kind.BRIGHTNESS, Kind.COLOR, Kind.CONTRAST, Kind.SHARPNESS)


def steps_of(recipe: Augmentation) -> list[tuple[Kind, ...]]:
    """Kinds that each step of a recipe chooses from, in their order."""
    if isinstance(recipe, NoAugmentation):
        return []
    changes = () if recipe.color_jitter is None else tuple(kind for kind, _, _ in _changes(recipe.color_jitter))
    rounds = 0 if recipe.rand_augment is None else recipe.rand_augment.num_ops
    return [changes] * len(changes) + [_RAND_AUGMENT] * rounds


def draw_operations(recipe: Augmentation, words: Callable[[int], Words], n: int) -> Ints:
    """Draw the operations of N samples, int64 [R, N]: of each step a kind and an amount, then the erased box.

    Args:
        words: the words [N] of a slot.
    """
    rows: list[Ints] = []
    if not isinstance(recipe, NoAugmentation):
        if recipe.color_jitter is not None:
            rows += _draw_jitter(recipe.color_jitter, words)
        if recipe.rand_augment is not None:
            rows += _draw_rand_augment(recipe.rand_augment, words)
        if recipe.random_erasing is not None:
            rows += _draw_erased(recipe.random_erasing, words, n)
    return np.stack(rows) if rows else np.empty((0, n), dtype=np.int64)


def _fraction(value: float) -> int:
    return round(value * FRACTION)


def _changes(jitter: ColorJitter) -> list[tuple[Kind, int, int]]:
    """(kind, slot, most) of each change that a jitter makes; ``most`` in 2**-16."""
    given = (
        (Kind.BRIGHTNESS, jitter.brightness),
        (Kind.CONTRAST, jitter.contrast),
        (Kind.COLOR, jitter.saturation),
        (Kind.HUE, jitter.hue),
    )
    return [(kind, _SLOT_AMOUNTS + i, _fraction(value)) for i, (kind, value) in enumerate(given) if value]


def _draw_jitter(jitter: ColorJitter, words: Callable[[int], Words]) -> list[Ints]:
    changes = _changes(jitter)
    orders = np.array(list(itertools.permutations(range(len(changes)))), dtype=np.int64)
    drawn = [
        below(words(slot), 2 * most + 1) - most + (0 if kind is Kind.HUE else FRACTION) for kind, slot, most in changes
    ]
    kinds, amounts = np.array([kind for kind, _, _ in changes], dtype=np.int64), np.stack(drawn)
    order_NK = orders[below(words(_SLOT_ORDER), len(orders))]
    rows = []
    for place_N in order_NK.T:
        rows += [kinds[place_N], np.take_along_axis(amounts, place_N[None], axis=0)[0]]
    return rows


def _draw_rand_augment(recipe: RandAugment, words: Callable[[int], Words]) -> list[Ints]:
    least = np.array([_amount(kind, recipe.magnitude, -1) for kind in _RAND_AUGMENT], dtype=np.int64)
    most = np.array([_amount(kind, recipe.magnitude, 1) for kind in _RAND_AUGMENT], dtype=np.int64)
    rows = []
    for k in range(recipe.num_ops):
        kind = below(words(_SLOT_RAND_AUGMENT + 2 * k), len(_RAND_AUGMENT))
        is_negative = below(words(_SLOT_RAND_AUGMENT + 2 * k + 1), 2)
        rows += [kind, np.where(is_negative, least[kind], most[kind])]
    return rows


def _amount(kind: Kind, magnitude: int, sign: int) -> int:
    """Amount of a kind at a magnitude of 0..30: torchvision's ``_augmentation_space``."""
    share = magnitude / 30
    signed = {
        Kind.SHEAR_X: 0.3 * share,
        Kind.SHEAR_Y: 0.3 * share,
        Kind.TRANSLATE_X: 150 / 331 * share,
        Kind.TRANSLATE_Y: 150 / 331 * share,
        Kind.ROTATE: rotation(magnitude)[0],
    }
    if kind in _FACTORS:
        return FRACTION + sign * _fraction(0.9 * share)
    if kind is Kind.POSTERIZE:
        bits = 8 - round(magnitude / 7.5)
        return 256 - (1 << (8 - bits))
    if kind is Kind.SOLARIZE:
        return math.ceil(255 - 8.5 * magnitude)
    return sign * _fraction(signed[kind]) if kind in signed else 0


def rotation(magnitude: int) -> tuple[float, float]:
    """Sine and cosine of RandAugment's angle, a degree for each step, from operations that IEEE 754 fixes."""
    x = magnitude * (math.pi / 180)
    sine = cosine = 0.0
    for k in range(10, -1, -1):
        sine = 1.0 - x * x * sine / ((2 * k + 2) * (2 * k + 3))
        cosine = 1.0 - x * x * cosine / ((2 * k + 1) * (2 * k + 2))
    return x * sine, cosine


def _draw_erased(recipe: RandomErasing, words: Callable[[int], Words], n: int) -> list[Ints]:
    """Top, left, height and width of the erased box in cells of the grid; nothing is erased where its height is 0."""
    boxes = draw_boxes(recipe, words, n, height=GRID, width=GRID, first_slot=_SLOT_ERASED)
    is_erased = below(words(_SLOT_ERASES), FRACTION) < _fraction(recipe.probability)
    # Where no try has fitted, nothing is erased, as in torchvision.
    height = np.where(is_erased & np.equal(boxes.is_central, 0), boxes.height, 0)
    return [boxes.top, boxes.left, height, boxes.width]
