"""Mixing of views with those of other samples: mixup and CutMix, in integer arithmetic.

A pixel is (own * weight + other * (2**16 - weight) + 2**15) >> 16, and the other's where the box is.

Legend: B views, H x W pixels, C channels.
"""

import math

import torch
from torch import Tensor

from workers.augmentation.draw import MIXING_ROWS
from workers.augmentation.draw_operations import FRACTION, FRACTION_BITS
from workers.augmentation.operations import is_within
from workers.augmentation.parts import parts
from workers.config.views import Augmentation, NoAugmentation


def split_mixed(parameters_PB: Tensor) -> tuple[Tensor, Tensor]:
    """Split a table of B mixed views: the parameters of 2B views, and those of the mixing, int64 [5, B]."""
    rows = (len(parameters_PB) - MIXING_ROWS) // 2
    own_RB, other_RB = parameters_PB[:rows], parameters_PB[rows : 2 * rows]
    return torch.cat([own_RB, other_RB], dim=1), parameters_PB[2 * rows :]


def mix_halves(views_BHWC: Tensor, recipe: Augmentation, mixing_5B: Tensor) -> Tensor:
    """Mix views, uint8 [2B, h, w, C], the first half with the second: uint8 [B, h, w, C]."""
    batch = mixing_5B.shape[1]
    own, other = views_BHWC[:batch], views_BHWC[batch:]
    places = parts(own, math.prod(own.shape[1:]))
    if len(places) == 1:
        return mix(own, other, recipe, mixing_5B)
    result = torch.empty_like(own)
    for part in places:
        result[part] = mix(own[part], other[part], recipe, mixing_5B[:, part])
    return result


def mix(own_BHWC: Tensor, other_BHWC: Tensor, recipe: Augmentation, mixing_5B: Tensor) -> Tensor:
    """Mix views, uint8 [B, H, W, C] each, by a ``MixingParameters.table``."""
    assert not isinstance(recipe, NoAugmentation)
    mixed = own_BHWC
    weight_B, box_4B = mixing_5B[0], mixing_5B[1:]
    if recipe.mixup is not None:
        weight_B111 = weight_B.to(torch.int32)[:, None, None, None]
        # 255 * 2**16 fits in int32, and so does the difference of two such.
        total = (mixed.to(torch.int32) - other_BHWC).mul_(weight_B111).add_(other_BHWC, alpha=FRACTION)
        mixed = total.add_(FRACTION // 2).bitwise_right_shift_(FRACTION_BITS).to(torch.uint8)
    if recipe.cutmix is not None:
        top_B1, left_B1, high_B1, wide_B1 = box_4B[:, :, None].unbind()
        is_row_BH = is_within(top_B1, high_B1, mixed.shape[1])
        is_column_BW = is_within(left_B1, wide_B1, mixed.shape[2])
        mixed = torch.where(is_row_BH[:, :, None, None] & is_column_BW[:, None, :, None], other_BHWC, mixed)
    return mixed
