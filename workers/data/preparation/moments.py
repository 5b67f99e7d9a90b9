"""Mean and standard deviation of pixels, exact. Legend: n pixels of a channel."""

import math

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Exact sums of pixel values and their squares per channel, whatever the blocks."""

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._count = 0
        self._sum = [0] * channels
        self._squares = [0] * channels

    def add(self, block: NDArray[np.uint8]) -> None:
        flat = block.reshape(len(block), -1)
        squares = flat.astype(np.uint16) ** 2  # 255**2 fits
        for totals, values in ((self._sum, flat), (self._squares, squares)):
            # Samples first: the innermost loop then runs over whole rows of memory.
            per_pixel = values.sum(axis=0, dtype=np.uint64).reshape(-1, self._channels)
            for channel, total in enumerate(per_pixel.sum(axis=0)):
                totals[channel] += int(total)
        self._count += flat.size // self._channels

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        n = self._count
        mean = [total / (n * 255) for total in self._sum]
        variance = [(n * q - s * s) / (n * n) for s, q in zip(self._sum, self._squares, strict=True)]
        return mean, [math.sqrt(v) / 255 for v in variance]
