"""Making of a single view with NumPy alone, for processes without torch: the bytes of ``apply`` and ``resize``.

Integer arithmetic as in ``apply``, which says why. A view at a time is all that somebody looks at; training makes
batches there.

Legend: H x W pixels in, h x w pixels out, C channels.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from store.counter_rng import Ints
from workers.augmentation.draw import BOX_ROWS, ViewParameters, draw
from workers.augmentation.draw_mixing import MixingParameters
from workers.augmentation.draw_operations import FRACTION, FRACTION_BITS, Kind, steps_of
from workers.augmentation.single_operations import apply_step, erase_single, is_within
from workers.config.views import Augmentation, CropFlip, NoAugmentation, ResizedCrop, output_size, recipe_of_view
from workers.spec import Size

Picture = NDArray[np.uint8]

# As in ``apply``.
_BITS = 11
_ONE = 1 << _BITS


def make_view(
    image_HWC: Picture,
    recipe: Augmentation,
    seed: int,
    view: int,
    *,
    sample: int,
    partners_P: Ints | None = None,
    take: Callable[[int], Picture] | None = None,
) -> Picture:
    """Draw and make one view of the picture of a sample: uint8 [H, W, C] -> uint8 [h, w, C].

    Args:
        seed: of the augmentation.
        view: its number, from 0.
        sample: the picture's place in its split.
        partners_P: as of ``draw.draw``.
        take: gives the picture of a place, for a view that is mixed with another.
    """
    recipe, (height, width) = recipe_of_view(recipe, view), image_HWC.shape[:2]
    drawn = draw(recipe, seed, view, np.array([sample]), height=height, width=width, partners_P=partners_P)
    return apply_single(image_HWC, recipe, drawn, other_of(drawn, take))


def other_of(parameters: ViewParameters, take: Callable[[int], Picture] | None) -> Picture | None:
    """Picture that the view of one sample is mixed with; None for a view that is not mixed."""
    if parameters.mixing is None or take is None:
        return None
    return take(int(parameters.mixing.sample[0]))


def apply_single(
    image_HWC: Picture, recipe: Augmentation, parameters: ViewParameters, other_HWC: Picture | None = None
) -> Picture:
    """Make the view that was drawn, uint8 [h, w, C], as ``apply.apply`` does.

    Args:
        parameters: of one sample.
        other_HWC: the picture that a mixed view is mixed with.
    """
    own = _apply_one(image_HWC, recipe, parameters)
    if parameters.mixing is None or parameters.other is None:
        return own
    if other_HWC is None:
        raise ValueError("the view is mixed with that of another picture: give it")
    return mix_single(own, _apply_one(other_HWC, recipe, parameters.other), parameters.mixing)


def mix_single(own_HWC: Picture, other_HWC: Picture, mixing: MixingParameters) -> Picture:
    """Mix two views, uint8 [H, W, C], as ``mixing.mix`` does; ``mixing`` is of one sample."""
    weight, top, left, height, width = mixing.table()[:, 0].tolist()
    total = own_HWC.astype(np.int64) * weight + other_HWC.astype(np.int64) * (FRACTION - weight) + FRACTION // 2
    mixed = (total >> FRACTION_BITS).astype(np.uint8)
    is_row, is_column = is_within(top, height, mixed.shape[0]), is_within(left, width, mixed.shape[1])
    return np.where((is_row[:, None] & is_column)[..., None], other_HWC, mixed)


def _apply_one(image_HWC: Picture, recipe: Augmentation, parameters: ViewParameters) -> Picture:
    match recipe:
        case NoAugmentation():
            return image_HWC
        case CropFlip(pad=pad):
            view_HWC = _crop_flip(image_HWC, pad, parameters)
        case ResizedCrop():
            view_HWC = _resized_crop(image_HWC, output_size(recipe, *image_HWC.shape[:2]), parameters)
    return finish_single(view_HWC, recipe, parameters)


def finish_single(view_HWC: Picture, recipe: Augmentation, parameters: ViewParameters) -> Picture:
    """Do a recipe's operations to a view that was cut out, uint8 [h, w, C], as ``apply.finish`` does."""
    if isinstance(recipe, NoAugmentation):
        return view_HWC
    rows_R, steps = parameters.operations[:, 0], steps_of(recipe)
    magnitude = 0 if recipe.rand_augment is None else recipe.rand_augment.magnitude
    for kind, amount in rows_R[: 2 * len(steps)].reshape(-1, 2).tolist():
        view_HWC = apply_step(view_HWC, Kind(kind), amount, magnitude)
    if recipe.random_erasing is None:
        return view_HWC
    return erase_single(view_HWC, rows_R[2 * len(steps) :], recipe.random_erasing.value)


def _crop_flip(image_HWC: Picture, pad: int, parameters: ViewParameters) -> Picture:
    top, left, _, _, flip = parameters.table()[:BOX_ROWS, 0].tolist()
    padded = np.pad(image_HWC, ((pad, pad), (pad, pad), (0, 0)))
    rows, columns = image_HWC.shape[:2]
    cropped = padded[top + pad : top + pad + rows, left + pad : left + pad + columns]
    return cropped[:, ::-1] if flip else cropped


def _resized_crop(image_HWC: Picture, size: Size, parameters: ViewParameters) -> Picture:
    top, left, height, width, flip = parameters.table()[:BOX_ROWS, 0].tolist()
    resampled = resize_single(image_HWC[top : top + height, left : left + width], *size)
    return resampled[:, ::-1] if flip else resampled


def resize_single(image_HWC: Picture, height: int, width: int) -> Picture:
    """Bilinear resize of a whole picture, uint8 [height, width, C], as ``apply.resize`` does."""
    if image_HWC.shape[:2] == (height, width):
        return image_HWC
    upper, lower, weight_h = _taps(image_HWC.shape[0], height)
    first, second, weight_w = _taps(image_HWC.shape[1], width)
    mixed = _lerp(image_HWC[upper], image_HWC[lower], weight_h[:, None, None])
    total = _lerp(mixed[:, first], mixed[:, second], weight_w[:, None])
    return ((total + (1 << (2 * _BITS - 1))) >> 2 * _BITS).astype(np.uint8)


def _taps(size: int, out_size: int) -> tuple[Ints, Ints, Ints]:
    """Two source positions and the weight of the second (in 1/2048) of each output pixel, int64 [out_size]."""
    doubled = (2 * np.arange(out_size) + 1) * size - out_size
    position = np.clip((doubled * _ONE + out_size) // (2 * out_size), 0, (size - 1) * _ONE)
    first = position >> _BITS
    return first, np.minimum(first + 1, size - 1), position & (_ONE - 1)


def _lerp(first: NDArray[np.integer], second: NDArray[np.integer], weight: Ints) -> Ints:
    """``first * (2048 - weight) + second * weight``, int64."""
    return first.astype(np.int64) * (_ONE - weight) + second.astype(np.int64) * weight
