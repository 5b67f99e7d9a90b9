"""Making of views, and of a network's input from them.

The drawn boxes are cut out of uint8 pictures with integer arithmetic only. So every student, every machine, every
batch size and order, and CPU and CUDA see the same bytes, and nothing about the augmentation has to be stored.

Operations on the colours and the like follow (``operations``), and mixing with a view of another sample (``mixing``).
Not done here: smoothing before shrinking: a picture made smaller than half skips pixels, so prepare datasets near the
size at which they are used.

Legend: B samples of a batch, H x W pixels in, h x w pixels out, C channels, r = w * C values of an output row.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from workers.augmentation.draw import BOX_ROWS, ViewParameters, draw
from workers.augmentation.draw_operations import steps_of
from workers.augmentation.mixing import mix_halves, split_mixed
from workers.augmentation.operations import apply_steps, erase
from workers.augmentation.parts import parts
from workers.config.teacher import Preprocessing
from workers.config.views import (
    Augmentation,
    CropFlip,
    NoAugmentation,
    ResizedCrop,
    is_mixed,
    output_size,
    without_mixing,
)
from workers.errors import InvalidDataset

# Positions and weights of the bilinear kernel have 11 fractional bits (as OpenCV's have), so that
# 255 * 2**22 fits in int32.
_BITS = 11
_ONE = 1 << _BITS


def apply(images_BHWC: Tensor, recipe: Augmentation, parameters: ViewParameters) -> Tensor:
    """Make the views: uint8 [B, H, W, C] on any device -> uint8 [B, h, w, C] on the same.

    Integers only, so the bytes are the same on every device and for every split into batches, an empty one
    included. The recipe ``none`` returns the given tensor itself. Of mixed views the pictures are [2B, H, W, C]: those
    of ``draw.pictures_of``.

    Raises:
        InvalidDataset: the pictures are not uint8 [B, H, W, C].
        ValueError: parameters of another number of samples.
    """
    return apply_table(images_BHWC, recipe, torch.from_numpy(parameters.table()).to(images_BHWC.device))


def apply_table(images_BHWC: Tensor, recipe: Augmentation, parameters_PB: Tensor) -> Tensor:
    """Make the views from a ``ViewParameters.table`` on the pictures' device: nothing is copied from the host.

    Raises:
        InvalidDataset, ValueError: as ``apply``.
    """
    _check_images(images_BHWC)
    if is_mixed(recipe):
        return _apply_mixed(images_BHWC, recipe, parameters_PB)
    if parameters_PB.shape[1] != len(images_BHWC):
        raise ValueError(f"{len(images_BHWC)} pictures with parameters of {parameters_PB.shape[1]}")
    if not len(images_BHWC):
        return images_BHWC.new_empty((0, *output_size(recipe, *images_BHWC.shape[1:3]), images_BHWC.shape[3]))
    match recipe:
        case NoAugmentation():
            return images_BHWC
        case CropFlip():
            views = _crop_flip(images_BHWC, recipe.pad, parameters_PB[:BOX_ROWS])
        case ResizedCrop():
            size = output_size(recipe, images_BHWC.shape[1], images_BHWC.shape[2])
            views = _resample(images_BHWC, size, parameters_PB[:BOX_ROWS])
    return finish(views, recipe, parameters_PB)


def _apply_mixed(images_BHWC: Tensor, recipe: Augmentation, parameters_PB: Tensor) -> Tensor:
    """Make views and those that they are mixed with, all at once, and mix them."""
    both, mixing_5B = split_mixed(parameters_PB)
    views = apply_table(images_BHWC, without_mixing(recipe), both)
    return mix_halves(views, recipe, mixing_5B)


def apply_tables(images_BHWC: Tensor, recipes: Sequence[Augmentation], tables: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Make several views of the same B samples.

    Args:
        images_BHWC: of ``draw.pictures_of`` all these views.
        recipes, tables: of each view, as of ``apply_table``.
    """
    batch = tables[0].shape[1]
    own = images_BHWC[:batch]
    others = [images_BHWC[start : start + batch] for start in range(batch, len(images_BHWC), max(batch, 1))]
    if len(others) < 2:
        return tuple(apply_table(images_BHWC, recipe, table) for recipe, table in zip(recipes, tables, strict=True))
    return tuple(
        apply_table(torch.cat([own, other]), recipe, table)
        for other, recipe, table in zip(others, recipes, tables, strict=True)
    )


def apply_all(
    images_BHWC: Tensor, recipes: Sequence[Augmentation], drawn: Sequence[ViewParameters]
) -> tuple[Tensor, ...]:
    """``apply_tables`` of what was drawn for each view."""
    tables = [torch.from_numpy(each.table()).to(images_BHWC.device) for each in drawn]
    return apply_tables(images_BHWC, recipes, tables)


def finish(views_BHWC: Tensor, recipe: Augmentation, parameters_PB: Tensor) -> Tensor:
    """Do a recipe's operations to views that were cut out: uint8 [B, h, w, C] -> the same shape; perhaps in place."""
    rows_RB = parameters_PB[BOX_ROWS:]
    if isinstance(recipe, NoAugmentation) or not len(rows_RB):
        return views_BHWC
    steps, erasing = steps_of(recipe), recipe.random_erasing
    magnitude = 0 if recipe.rand_augment is None else recipe.rand_augment.magnitude
    for part in parts(views_BHWC, math.prod(views_BHWC.shape[1:])):
        made = apply_steps(views_BHWC[part], steps, rows_RB[:, part], magnitude=magnitude)
        if erasing is not None:
            made = erase(made, rows_RB[2 * len(steps) :, part], erasing.value)
        views_BHWC[part] = made
    return views_BHWC


def resize(images_BHWC: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize of whole pictures, uint8 [B, H, W, C] -> uint8 [B, height, width, C].

    Integers only, half-pixel centres, no smoothing before shrinking, i.e. ``interpolate(mode="bilinear",
    align_corners=False, antialias=False)`` up to rounding. Pictures that have the size already are
    returned as they are, the given tensor itself.

    Raises:
        InvalidDataset: the pictures are not uint8 [B, H, W, C].
    """
    _check_images(images_BHWC)
    batch, have_h, have_w, _ = images_BHWC.shape
    if (have_h, have_w) == (height, width):
        return images_BHWC
    whole_5B = _whole_picture(have_h, have_w, images_BHWC.device).expand(-1, batch)
    return _resample(images_BHWC, (height, width), whole_5B)


def make_views(images_BHWC: Tensor, recipe: Augmentation, seed: int, view: int, index_B: NDArray[np.integer]) -> Tensor:
    """Draw and make the views of the given pictures of the samples ``index_B``, which are not mixed."""
    _check_images(images_BHWC)
    return apply(images_BHWC, recipe, draw(recipe, seed, view, index_B, *images_BHWC.shape[1:3]))


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise InvalidDataset(
            f"pictures are {images.dtype} {list(images.shape)}; views are made of uint8 "
            "[batch, height, width, channels]"
        )


# Constants on a device are made once: what is copied from the host, or launched, in every step costs more than these
# bytes, and a CUDA graph holds their addresses.


@cache
def _whole_picture(height: int, width: int, device: torch.device) -> Tensor:
    """The parameters of a picture as it is, int64 [5, 1]."""
    return torch.tensor([[0], [0], [height], [width], [0]], device=device)


@cache
def _row_starts(batch: int, height: int, pad: int, padded_w: int, device: torch.device) -> Tensor:
    """The pixel at which row h of an unmoved crop begins in a padded batch, int64 [B, h]."""
    picture_B1 = torch.arange(batch, device=device)[:, None] * ((height + 2 * pad) * padded_w)
    return picture_B1 + (torch.arange(height, device=device) + pad) * padded_w + pad


def _crop_flip(images_BHWC: Tensor, pad: int, parameters_5B: Tensor) -> Tensor:
    """Cut each row out of the zero-padded picture, and mirror it."""
    batch, height, width, channels = images_BHWC.shape
    top_B, left_B, _, _, flip_B = parameters_5B.unbind()
    padded = F.pad(images_BHWC, (0, 0, pad, pad, pad, pad))
    padded_w = width + 2 * pad
    moved_B = torch.add(left_B, top_B, alpha=padded_w)
    first_Bh = _row_starts(batch, height, pad, padded_w, images_BHWC.device) + moved_B[:, None]
    # All runs of ``width`` pixels, overlapping: whole rows are copied, which a CPU does faster than pixels.
    runs = padded.view(-1).unfold(0, width * channels, channels)
    cropped = runs.index_select(0, first_Bh.view(-1)).view(images_BHWC.shape)
    mirror = _mirror_some if images_BHWC.device.type == "cpu" else _mirror_all
    return mirror(cropped, flip_B)


def _mirror_some(pictures_BHWC: Tensor, flip_B: Tensor) -> Tensor:
    """Mirror, in place, those pictures whose ``flip`` is 1; on a CPU, where it costs nothing to know how many."""
    mirrored_m = flip_B.nonzero().squeeze(1)
    # NumPy puts whole pictures where torch puts bytes, which takes 60 us for 33 of 64.
    pictures_BHWC.numpy()[mirrored_m.numpy()] = pictures_BHWC.index_select(0, mirrored_m).flip(2).numpy()
    return pictures_BHWC


def _mirror_all(pictures_BHWC: Tensor, flip_B: Tensor) -> Tensor:
    """``_mirror_some`` without a shape that depends on values; three times as slow on a CPU."""
    return torch.where(flip_B.bool()[:, None, None, None], pictures_BHWC.flip(2), pictures_BHWC)


def _mirrored(x_w: Tensor, flip_B1: Tensor, width: int) -> Tensor:
    """Output columns [B, w], running backwards where ``flip`` is 1."""
    return x_w + flip_B1 * (width - 1 - 2 * x_w)


def _resample(images_BHWC: Tensor, size: tuple[int, int], parameters_5B: Tensor) -> Tensor:
    """Cut out each box, resize it to ``size`` and mirror it, part by part to bound the memory."""
    batch, _, width, channels = images_BHWC.shape
    result = images_BHWC.new_empty((batch, *size, channels))
    for part in parts(images_BHWC, size[0] * max(size[1], width) * channels):
        result[part] = _bilinear(images_BHWC[part], size, parameters_5B[:, part])
    return result


def _taps(start_B1: Tensor, size_B1: Tensor, out_Bo: Tensor, out_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two source positions and the weight of the second (in 1/2048), each [B, o].

    The centre of output pixel o lies at (o + 1/2) * size / out_size - 1/2 in the box; what lies
    outside the box is clamped to it.
    """
    doubled = (2 * out_Bo + 1) * size_B1 - out_size
    position = torch.div(doubled * _ONE + out_size, 2 * out_size, rounding_mode="floor")
    position = torch.minimum(position.clamp_(min=0), (size_B1 - 1) * _ONE)
    first = position >> _BITS
    second = torch.minimum(first + 1, size_B1 - 1)
    return first + start_B1, second + start_B1, (position & (_ONE - 1)).to(torch.int32)


def _bilinear(images_BHWC: Tensor, size: tuple[int, int], parameters_5B: Tensor) -> Tensor:
    """Rows first, then columns; exact in int32: 8 bits of picture, 11 of each weight."""
    batch, height, width, channels = images_BHWC.shape
    out_h, out_w = size
    top_B1, left_B1, height_B1, width_B1, flip_B1 = parameters_5B[:, :, None].unbind()
    device = images_BHWC.device
    y_h, x_w = torch.arange(out_h, device=device), torch.arange(out_w, device=device)
    upper_Bh, lower_Bh, weight_Bh = _taps(top_B1, height_B1, y_h.expand(batch, -1), out_h)
    first_Bw, second_Bw, weight_Bw = _taps(left_B1, width_B1, _mirrored(x_w, flip_B1, out_w), out_w)

    rows = images_BHWC.reshape(batch * height, width * channels)
    row_B1 = torch.arange(batch, device=device)[:, None] * height
    upper = rows.index_select(0, (upper_Bh + row_B1).view(-1)).to(torch.int32)
    lower = rows.index_select(0, (lower_Bh + row_B1).view(-1)).to(torch.int32)
    mixed = _lerp(upper, lower, weight_Bh.view(-1, 1)).view(-1, channels)

    row_Bh1 = (torch.arange(batch * out_h, device=device) * width).view(batch, out_h, 1)
    left = mixed.index_select(0, (row_Bh1 + first_Bw[:, None, :]).view(-1))
    right = mixed.index_select(0, (row_Bh1 + second_Bw[:, None, :]).view(-1))
    # Repeated per channel, the weights are contiguous along whole rows: ten times as fast on a CPU
    # as broadcasting them over an innermost axis of three.
    weight_B1r = weight_Bw.repeat_interleave(channels, dim=1)[:, None, :]
    shape = (batch, out_h, out_w * channels)
    total = _lerp(left.view(shape), right.view(shape), weight_B1r).add_(1 << (2 * _BITS - 1))
    return total.bitwise_right_shift_(2 * _BITS).to(torch.uint8).view(batch, out_h, out_w, channels)


def _lerp(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """``first * (2048 - weight) + second * weight``, in place of ``second``."""
    return second.sub_(first).mul_(weight).add_(first, alpha=_ONE)


def to_input(images_BHWC: Tensor, preprocessing: Preprocessing, channels_last: bool) -> Tensor:
    """uint8 [B, H, W, C] -> normalised float32 [B, C, H, W]; the student's own preprocessing."""
    batch, height, width, channels = images_BHWC.shape
    mean_r, std_r = (
        _along_row(values, width, images_BHWC.device) for values in (preprocessing.mean, preprocessing.std)
    )
    x_BHr = images_BHWC.reshape(batch, height, width * channels).to(torch.float32)
    x_BHr.mul_(preprocessing.scale).sub_(mean_r).div_(std_r)
    x_BCHW = x_BHr.view(batch, height, width, channels).permute(0, 3, 1, 2)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x_BCHW.contiguous(memory_format=layout)


@cache
def _along_row(values_C: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    """A value per channel, repeated for the pixels of a row: [W * C].

    As contiguous as a picture: three times as fast on a CPU as broadcasting over an innermost axis of three. Made once
    for each device: one that is made while a CUDA graph is recorded has no value yet.
    """
    return torch.tensor(values_C, device=device).repeat(width)
