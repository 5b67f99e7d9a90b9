"""Index of one WebDataset shard. Light.

Legend: N samples of a shard.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Shard:
    """Samples of a tar file, in its order.

    Attributes:
        path: of the file.
        offsets_N, sizes_N: int64, of the pictures in the file, in bytes.
        labels: different ones, as text.
        labels_N: int32, which of ``labels`` each sample has; -1 without one.
        keys: of the samples, one after the other, with a line break after each.
        ignored: members that belong to no sample.
        unlabelled: what a sample without a label has, in words; empty if all have one.
        has_more: whether that, or another without a label, has more than its picture.
    """

    path: Path
    offsets_N: NDArray[np.int64]
    sizes_N: NDArray[np.int64]
    labels: tuple[str, ...]
    labels_N: NDArray[np.int32]
    keys: bytes
    ignored: int
    unlabelled: str
    has_more: bool

    def __len__(self) -> int:
        return len(self.offsets_N)

    @property
    def unlabelled_count(self) -> int:
        """Number of samples without a label."""
        return int(np.count_nonzero(self.labels_N < 0))

    def key_list(self) -> list[str]:
        """Key of each sample."""
        return self.keys.decode(errors="surrogateescape").split("\n")[:-1]
