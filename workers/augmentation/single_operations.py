"""Operations on a single view with NumPy alone: the bytes of ``operations``, which says what they are.

Written picture by picture and operation by operation, so it is also what the other is compared with.

Legend: H x W pixels, C channels.
"""

import numpy as np
from numpy.typing import NDArray

from store.counter_rng import Ints
from workers.augmentation.draw_operations import FRACTION, FRACTION_BITS, GRID, Kind, rotation

Picture = NDArray[np.uint8]
Wide = NDArray[np.int64]

_LUMA = np.array([19595, 38470, 7471])


def apply_step(view_HWC: Picture, kind: Kind, amount: int, magnitude: int) -> Picture:
    """Do one operation to a view; ``magnitude`` is RandAugment's."""
    x = view_HWC.astype(np.int64)
    match kind:
        case Kind.IDENTITY:
            made = x
        case Kind.SHEAR_X | Kind.SHEAR_Y | Kind.TRANSLATE_X | Kind.TRANSLATE_Y | Kind.ROTATE:
            return _moved(view_HWC, kind, amount, round(rotation(magnitude)[1] * FRACTION))
        case Kind.BRIGHTNESS:
            made = _blend(np.zeros_like(x), x, amount)
        case Kind.CONTRAST:
            luma = _luma(x)
            made = _blend(np.full_like(x, (2 * luma.sum() + luma.size) // (2 * luma.size)), x, amount)
        case Kind.COLOR:
            made = _blend(_luma(x), x, amount)
        case Kind.SHARPNESS:
            made = _blend(_smooth(x), x, amount)
        case Kind.POSTERIZE:
            made = x & amount
        case Kind.SOLARIZE:
            made = np.where(x < amount, x, 255 - x)
        case Kind.AUTOCONTRAST | Kind.EQUALIZE:
            change = _stretched if kind is Kind.AUTOCONTRAST else _equalized
            made = np.stack([change(x[..., channel]) for channel in range(x.shape[2])], axis=2)
        case Kind.HUE:
            made = _turned(x, amount)
    return made.astype(np.uint8)


def _luma(x: Wide) -> Wide:
    return x if x.shape[2] == 1 else (x @ _LUMA + 0x8000 >> 16)[..., None]


def _blend(first: Wide, second: Wide, factor: int) -> Wide:
    mixed: Wide = (first * (FRACTION - factor) + second * factor) >> FRACTION_BITS
    return mixed.clip(0, 255)


def _moved(view_HWC: Picture, kind: Kind, amount: int, cosine: int) -> Picture:
    height, width = view_HWC.shape[:2]
    matrix = {
        Kind.SHEAR_X: (FRACTION, amount, 0, FRACTION),
        Kind.SHEAR_Y: (FRACTION, 0, amount, FRACTION),
        Kind.ROTATE: (cosine, -amount, amount, cosine),
    }.get(kind, (FRACTION, 0, 0, FRACTION))
    moved_x = int(amount * width / FRACTION) if kind is Kind.TRANSLATE_X else 0
    moved_y = int(amount * height / FRACTION) if kind is Kind.TRANSLATE_Y else 0
    middle_x, middle_y = (width, height) if kind is Kind.ROTATE else (0, 0)
    x = 2 * np.arange(width)[None, :] + 1 - middle_x
    y = 2 * np.arange(height)[:, None] + 1 - middle_y
    from_x = (matrix[0] * x + matrix[1] * y + (middle_x - 2 * moved_x) * FRACTION) >> (FRACTION_BITS + 1)
    from_y = (matrix[2] * x + matrix[3] * y + (middle_y - 2 * moved_y) * FRACTION) >> (FRACTION_BITS + 1)
    is_inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    moved = np.zeros_like(view_HWC)
    moved[is_inside] = view_HWC[from_y[is_inside], from_x[is_inside]]
    return moved


def _smooth(x: Wide) -> Wide:
    if min(x.shape[:2]) < 3:
        return x
    smooth = x.copy()
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))
    smooth[1:-1, 1:-1] = (2 * (windows.sum(axis=(3, 4)) + 4 * x[1:-1, 1:-1]) + 13) // 26
    return smooth


def _stretched(x: Wide) -> Wide:
    low, high = int(x.min()), int(x.max())
    return x if low == high else (x - low) * 255 // (high - low)


def _equalized(x: Wide) -> Wide:
    counts = np.bincount(x.ravel(), minlength=256)
    step = (x.size - counts[x.max()]) // 255
    if not step:
        return x
    levels: Wide = np.minimum((step // 2 + np.cumsum(counts) - counts) // step, 255)
    return levels[x]


def _turned(x: Wide, amount: int) -> Wide:
    if x.shape[2] == 1:
        return x
    r, g, b = np.moveaxis(x, 2, 0)
    high, low = x.max(axis=2), x.min(axis=2)
    spread = np.maximum(high - low, 1)
    place = np.select(
        [high == r, high == g],
        [(g - b) * FRACTION // spread, 2 * FRACTION + (b - r) * FRACTION // spread],
        4 * FRACTION + (r - g) * FRACTION // spread,
    )
    turned = (place + 6 * amount) % (6 * FRACTION)
    step = ((high - low) * (turned % FRACTION) + FRACTION // 2) >> FRACTION_BITS
    up, down = low + step, high - step
    by_sector = [(high, up, low), (down, high, low), (low, high, up), (low, down, high), (up, low, high)]
    sectors = [np.equal(turned // FRACTION, sector)[..., None] for sector in range(5)]
    made: Wide = np.select(sectors, [np.stack(levels, axis=2) for levels in by_sector], np.stack((high, low, down), 2))
    return made


def erase_single(view_HWC: Picture, box_4: Ints, value: int) -> Picture:
    """Fill a box, in cells of the grid, with a level."""
    top, left, height, width = box_4.tolist()
    rows, columns = view_HWC.shape[:2]
    is_row = is_within(top, height, rows)
    is_column = is_within(left, width, columns)
    return np.where((is_row[:, None] & is_column)[..., None], np.uint8(value), view_HWC)


def is_within(start: int, cells: int, pixels: int) -> NDArray[np.bool_]:
    middle = (2 * np.arange(pixels) + 1) * (GRID // 2)
    return (middle >= start * pixels) & (middle < (start + cells) * pixels)
