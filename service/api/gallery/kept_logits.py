"""Logits that a run has kept of a split (``logits.safetensors``), read in parts and without torch.

Shapes: N rows of the split, C classes, B rows of a part.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import Conflict

LOGITS = "logits.safetensors"
# Logits in memory at once, of each network: 4 MiB of float32, which stay near a core.
CELLS = 1 << 20

Logits = npt.NDArray[np.float32]


def parts(rows: int, classes: int) -> Iterator[slice]:
    """Yield slices of the rows of a split, of ``CELLS`` logits each."""
    step = max(1, CELLS // classes)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class LogitsFile:
    """Student's logits of one split, less each row's largest, in an open file.

    Args:
        logits: float16 or float32 [N, C], a slice of the file.
        labels_N: int64.
    """

    def __init__(self, logits: Any, labels_N: npt.NDArray[np.int64]) -> None:  # noqa: ANN401  # safetensors has no types
        self._logits = logits
        self.labels_N = labels_N

    def read(self, rows: slice) -> Logits:
        """Logits of some rows, [B, C]."""
        part: Logits = self._logits[rows].astype(np.float32)
        return part

    def gather(self, rows: npt.NDArray[np.integer]) -> Logits:
        """Logits of a few rows, in their order."""
        return np.concatenate([self.read(slice(row, row + 1)) for row in rows.tolist()])


def open_kept_logits(path: Path, split: str, shape: tuple[int, int], run_id: str) -> LogitsFile | None:
    """Open what a run has kept of a split; None if that is nothing.

    Args:
        shape: (N, C) of the cache of the same split.

    Raises:
        Conflict: the file is no such file, or is of other rows.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if split not in set(file.keys()):
                return None
            logits, labels_N = file.get_slice(split), file.get_tensor(f"{split}_labels")
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise Conflict(f"{LOGITS} of {run_id} cannot be read: {error}") from error
    found = tuple(logits.get_shape())
    if found != shape or labels_N.shape != shape[:1] or logits.get_dtype() not in ("F16", "F32"):
        raise Conflict(
            f"{LOGITS} of {run_id} holds {logits.get_dtype()} {list(found)} of {split}, and the teacher's cache has "
            f"{list(shape)}: they are of other rows"
        )
    return LogitsFile(logits, labels_N)
