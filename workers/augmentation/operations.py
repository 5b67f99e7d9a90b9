"""Operations on views: colour jitter, RandAugment and random erasing of uint8 pictures, in integer arithmetic.

Which are done, and how much, is drawn on the host (``draw_operations``). All samples of a batch are computed at once,
so the device is not asked for anything; the bytes are the same on every device, for every batch size and order.

They are Pillow's operations, as torchvision's ``RandAugment`` and ``ColorJitter`` call them. Posterize, solarize,
equalize and the smoothing of sharpness are Pillow's bits. Differences: factors are multiples of 2**-16, so blends may
be a level apart; so may autocontrast, whose exact values Pillow's floating point sometimes rounds down. Shears,
rotations and translations take the nearest pixel at positions of 16 bits, as Pillow, whose steps add up their rounding:
a pixel may be its neighbour. The hue is turned with 16 bits instead of 8; value and saturation are kept exactly.

Legend: B samples of a batch, H x W pixels, C channels, i a level of 0..255; ``amount_B`` and ``kind_B`` of a step.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from workers.augmentation.draw_operations import FRACTION, FRACTION_BITS, GRID, Kind, rotation

_AFFINE = frozenset({Kind.SHEAR_X, Kind.SHEAR_Y, Kind.TRANSLATE_X, Kind.TRANSLATE_Y, Kind.ROTATE})
_BY_LEVEL = frozenset({Kind.BRIGHTNESS, Kind.CONTRAST, Kind.POSTERIZE, Kind.SOLARIZE, Kind.AUTOCONTRAST, Kind.EQUALIZE})
_Operation = Callable[[Tensor, Tensor, Tensor], Tensor]


def apply_steps(
    views_BHWC: Tensor, steps: Sequence[tuple[Kind, ...]], table_RB: Tensor, *, magnitude: int = 0
) -> Tensor:
    """Do the steps to uint8 views, in place on a CPU.

    Args:
        steps: the kinds that each step chooses from, see ``draw_operations.steps_of``.
        table_RB: int64, a kind and an amount for each step.
        magnitude: of RandAugment: all its rotations are by one angle.
    """
    for number, kinds in enumerate(steps):
        kind_B, amount_B = table_RB[2 * number], table_RB[2 * number + 1]
        for members, operation in _operations(frozenset(kinds), magnitude):
            is_wanted_B = _lookup(members, views_BHWC.device)[kind_B]
            if views_BHWC.device.type == "cpu":
                _some(views_BHWC, operation, is_wanted_B, kind_B=kind_B, amount_B=amount_B)
            else:
                done = operation(views_BHWC, kind_B, amount_B)
                views_BHWC = torch.where(is_wanted_B[:, None, None, None], done, views_BHWC)
    return views_BHWC


def _operations(kinds: frozenset[Kind], magnitude: int) -> list[tuple[frozenset[Kind], _Operation]]:
    """Functions that a step needs, each with the kinds that it does."""
    cosine = round(rotation(magnitude)[1] * FRACTION)
    found: list[tuple[frozenset[Kind], _Operation]] = [
        (_AFFINE, lambda views, kind, amount: _affine(views, kind, amount, cosine)),
        (_BY_LEVEL, lambda views, kind, amount: _by_level(views, kind, amount, kinds)),
        (frozenset({Kind.COLOR}), _color),
        (frozenset({Kind.SHARPNESS}), _sharpness),
        (frozenset({Kind.HUE}), _hue),
    ]
    return [(members & kinds, operation) for members, operation in found if members & kinds]


def _some(views_BHWC: Tensor, operation: _Operation, is_wanted_B: Tensor, *, kind_B: Tensor, amount_B: Tensor) -> None:
    """Do an operation, in place, to the samples that want it; on a CPU, where it costs nothing to know how many."""
    rows = is_wanted_B.nonzero().squeeze(1)
    if len(rows):
        views_BHWC[rows] = operation(views_BHWC[rows], kind_B[rows], amount_B[rows])


# Made once for each device, as the constants of ``apply``.


@cache
def _lookup(kinds: frozenset[Kind], device: torch.device) -> Tensor:
    """Whether a kind is one of these, bool [kinds in all]."""
    return torch.tensor([kind in kinds for kind in Kind], device=device)


@cache
def _levels(device: torch.device) -> Tensor:
    return torch.arange(256, dtype=torch.int32, device=device)


@cache
def _luma_weights(device: torch.device) -> Tensor:
    return torch.tensor([19595, 38470, 7471], dtype=torch.int32, device=device)


def _clipped(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _luma(views_BHWC: Tensor) -> Tensor:
    """Pillow's conversion to grey, int32 [B, H, W, 1]."""
    if views_BHWC.shape[3] == 1:
        return views_BHWC.to(torch.int32)
    weighted = views_BHWC.to(torch.int32) * _luma_weights(views_BHWC.device)
    return (weighted.sum(dim=3, keepdim=True, dtype=torch.int32) + 0x8000) >> 16


def _blend(first: Tensor, second: Tensor, factor: Tensor) -> Tensor:
    """Pillow's ``Image.blend``, int32: ``first * (1 - factor) + second * factor``, rounded down, and clipped."""
    return ((first * (FRACTION - factor) + second * factor) >> FRACTION_BITS).clamp_(0, 255)


def _affine(views_BHWC: Tensor, kind_B: Tensor, amount_B: Tensor, cosine: int) -> Tensor:
    """Move each pixel to its nearest place: shears about the corner, rotations about the centre; black beyond."""
    batch, height, width, channels = views_BHWC.shape
    device = views_BHWC.device

    def of(kind: Kind, otherwise: Tensor | int = 0, amount: Tensor = amount_B) -> Tensor:
        return torch.where(kind_B == kind, amount, otherwise)

    scale_B = torch.where(kind_B == Kind.ROTATE, cosine, FRACTION)
    across_B = of(Kind.SHEAR_X, of(Kind.ROTATE, amount=-amount_B))
    down_B = of(Kind.SHEAR_Y, of(Kind.ROTATE))
    is_rotated_B = (kind_B == Kind.ROTATE).long()
    # Towards 0, as ``int`` rounds.
    right_B = torch.div(of(Kind.TRANSLATE_X) * width, FRACTION, rounding_mode="trunc")
    below_B = torch.div(of(Kind.TRANSLATE_Y) * height, FRACTION, rounding_mode="trunc")
    # Doubled, so that the middle of a pixel is a whole number.
    y_BH = 2 * torch.arange(height, device=device) + 1 - (is_rotated_B * height)[:, None]
    x_BW = 2 * torch.arange(width, device=device) + 1 - (is_rotated_B * width)[:, None]
    x_from = (scale_B[:, None] * x_BW)[:, None, :] + (across_B[:, None] * y_BH)[:, :, None]
    y_from = (down_B[:, None] * x_BW)[:, None, :] + (scale_B[:, None] * y_BH)[:, :, None]
    x_from = (x_from + ((is_rotated_B * width - 2 * right_B) << FRACTION_BITS)[:, None, None]) >> (FRACTION_BITS + 1)
    y_from = (y_from + ((is_rotated_B * height - 2 * below_B) << FRACTION_BITS)[:, None, None]) >> (FRACTION_BITS + 1)
    is_inside = (x_from >= 0) & (x_from < width) & (y_from >= 0) & (y_from < height)
    start_B = torch.arange(batch, device=device) * (height * width)
    pixel = torch.where(is_inside, y_from * width + x_from, 0) + start_B[:, None, None]
    moved = views_BHWC.reshape(-1, channels).index_select(0, pixel.view(-1)).view(views_BHWC.shape)
    return moved * is_inside[..., None]


def _by_level(views_BHWC: Tensor, kind_B: Tensor, amount_B: Tensor, kinds: frozenset[Kind]) -> Tensor:
    """Operations that give a pixel's channel a level that depends on its old one, by a table [B, C, 256]."""
    batch, _, _, channels = views_BHWC.shape
    i, factor_B11 = _levels(views_BHWC.device), amount_B.to(torch.int32)[:, None, None]
    tables: dict[Kind, Callable[[], Tensor]] = {
        Kind.BRIGHTNESS: lambda: _blend(torch.zeros_like(i), i, factor_B11),
        Kind.CONTRAST: lambda: _blend(_mean_luma(views_BHWC)[:, None, None], i, factor_B11),
        Kind.POSTERIZE: lambda: i & factor_B11,
        Kind.SOLARIZE: lambda: torch.where(i < factor_B11, i, 255 - i),
        Kind.AUTOCONTRAST: lambda: _autocontrast(views_BHWC),
        Kind.EQUALIZE: lambda: _equalize(views_BHWC),
    }
    table_BCi = i.expand(batch, channels, 256)
    for kind, table in tables.items():
        if kind in kinds:
            table_BCi = torch.where((kind_B == kind)[:, None, None], table(), table_BCi)
    return table_BCi.to(torch.uint8).view(-1).index_select(0, _cells(views_BHWC).view(-1)).view(views_BHWC.shape)


def _cells(views_BHWC: Tensor) -> Tensor:
    """Place of each pixel's level in tables [B, C, 256] laid out flat, int64 [B, H, W, C]."""
    batch, _, _, channels = views_BHWC.shape
    first_BC = torch.arange(0, batch * channels * 256, 256, device=views_BHWC.device).view(batch, 1, 1, channels)
    return first_BC + views_BHWC


def _mean_luma(views_BHWC: Tensor) -> Tensor:
    """Mean grey level, rounded, int32 [B]."""
    pixels = views_BHWC.shape[1] * views_BHWC.shape[2]
    total_B = _luma(views_BHWC).sum(dim=(1, 2, 3), dtype=torch.int64)
    return torch.div(2 * total_B + pixels, 2 * pixels, rounding_mode="floor").to(torch.int32)


def _autocontrast(views_BHWC: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a channel of one level stays."""
    low, high = (found.to(torch.int32)[..., None] for found in (views_BHWC.amin((1, 2)), views_BHWC.amax((1, 2))))
    i, spread = _levels(views_BHWC.device), high - low
    stretched = torch.div((i - low) * 255, spread.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    return torch.where(spread > 0, stretched, i)


def _equalize(views_BHWC: Tensor) -> Tensor:
    """Make each channel's levels about equally frequent: ``ImageOps.equalize``."""
    batch, height, width, channels = views_BHWC.shape
    cells = _cells(views_BHWC).view(-1)
    counts = torch.zeros(batch * channels * 256, dtype=torch.int32, device=cells.device)
    counts_BCi = counts.scatter_add_(0, cells, torch.ones_like(cells, dtype=torch.int32)).view(batch, channels, 256)
    of_highest = counts_BCi.gather(2, views_BHWC.amax((1, 2)).long()[..., None])
    step = torch.div(height * width - of_highest, 255, rounding_mode="floor")
    below_BCi = counts_BCi.cumsum(2, dtype=torch.int32) - counts_BCi
    spread = torch.div(step // 2 + below_BCi, step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    return torch.where(step > 0, spread, _levels(cells.device))


def _color(views_BHWC: Tensor, kind_B: Tensor, amount_B: Tensor) -> Tensor:
    """Blend with the grey picture."""
    factor = amount_B.to(torch.int32)[:, None, None, None]
    return _blend(_luma(views_BHWC), views_BHWC.to(torch.int32), factor).to(torch.uint8)


def _sharpness(views_BHWC: Tensor, kind_B: Tensor, amount_B: Tensor) -> Tensor:
    """Blend with the picture as Pillow's filter SMOOTH leaves it: borders, and pictures below 3 x 3, as they are."""
    height, width = views_BHWC.shape[1:3]
    if height < 3 or width < 3:
        return views_BHWC
    x = views_BHWC.to(torch.int32)
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    weighted = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * x[:, 1:-1, 1:-1]
    smooth = x.clone()
    # A thirteenth, rounded.
    smooth[:, 1:-1, 1:-1] = torch.div(2 * weighted + 13, 26, rounding_mode="floor")
    return _blend(smooth, x, amount_B.to(torch.int32)[:, None, None, None]).to(torch.uint8)


def _hue(views_BHWC: Tensor, kind_B: Tensor, amount_B: Tensor) -> Tensor:
    """Turn the colour circle: value and saturation stay. Grey pictures stay as they are."""
    if views_BHWC.shape[3] == 1:
        return views_BHWC
    r, g, b = views_BHWC.to(torch.int32).unbind(3)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = high - low

    def place(first: Tensor, second: Tensor, sixths: int) -> Tensor:
        """Place on the circle, in sixths of it, in 2**-16."""
        return sixths * FRACTION + torch.div((first - second) * FRACTION, spread.clamp(min=1), rounding_mode="floor")

    at = torch.where(high == r, place(g, b, 0), torch.where(high == g, place(b, r, 2), place(r, g, 4)))
    turned = torch.remainder(at + (6 * amount_B.to(torch.int32))[:, None, None], 6 * FRACTION)
    sector, part = turned >> FRACTION_BITS, turned & (FRACTION - 1)
    step = (spread * part + FRACTION // 2) >> FRACTION_BITS
    rising, falling = low + step, high - step
    orders = (
        (high, falling, low, low, rising, high),
        (rising, high, high, falling, low, low),
        (low, low, rising, high, high, falling),
    )
    made = []
    for levels in orders:
        chosen = levels[5]
        for number, level in enumerate(levels[:5]):
            chosen = torch.where(sector == number, level, chosen)
        made.append(chosen)
    return torch.stack(made, dim=3).to(torch.uint8)


def erase(views_BHWC: Tensor, boxes_4B: Tensor, value: int) -> Tensor:
    """Fill the box of each view with a level; ``boxes_4B`` is int64, in cells of the grid."""
    _, height, width, _ = views_BHWC.shape
    top_B1, left_B1, high_B1, wide_B1 = boxes_4B[:, :, None].unbind()
    is_row_BH = is_within(top_B1, high_B1, height)
    is_column_BW = is_within(left_B1, wide_B1, width)
    is_erased = is_row_BH[:, :, None, None] & is_column_BW[:, None, :, None]
    return views_BHWC.masked_fill(is_erased, value)


def is_within(start_B1: Tensor, cells_B1: Tensor, pixels: int) -> Tensor:
    """Whether the middle of each pixel lies within ``cells`` of the grid from ``start`` on, bool [B, pixels]."""
    middle = (2 * torch.arange(pixels, device=start_B1.device) + 1) * (GRID // 2)
    return (middle >= start_B1 * pixels) & (middle < (start_B1 + cells_B1) * pixels)
