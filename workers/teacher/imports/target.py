"""Target of an upload's rows: a mapped file of float32 values, int32 indices of top-k, and ids. Written by the child.

Legend: V views, N samples, K columns (classes, or the k of top-k), R = V x N rows.
"""

import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from workers.errors import InvalidLogits
from workers.texts import shortened

VIEWS_MAX = 10_000


class Target:
    """Mapped file that receives the values, then the indices of top-k, then the ids.

    Args:
        descriptor: of the file, ``bytes_max`` long.
    """

    def __init__(self, descriptor: int, bytes_max: int) -> None:
        self._descriptor, self._bytes_max = descriptor, bytes_max
        self.values_RK: NDArray[np.float32]
        self.indices_RK: NDArray[np.int32] | None = None
        self._ids: Sequence[str] | None = None
        self._shape: tuple[int, int, int]

    def allocate(self, shape: tuple[int, int, int], ids: Sequence[str] | None, *, is_top_k: bool) -> None:
        """Map room for values [V, N, K] as float32, for as many int32 indices if they are top-k, and for the ids.

        Raises:
            InvalidLogits: they are empty, or do not fit.
        """
        views, samples, columns = shape
        if not (1 <= views <= VIEWS_MAX and samples >= 1 and columns >= 1):
            raise InvalidLogits(
                f"the logits have the shape {list(shape)}, [views, samples, classes]: none may be empty"
            )
        blob = b"" if ids is None else b"".join(_encoded(each) + b"\0" for each in ids)
        cells = math.prod(shape)
        size = cells * (8 if is_top_k else 4) + len(blob)
        if size > self._bytes_max:
            raise InvalidLogits(
                f"the logits {list(shape)} take {size} bytes as float32, at most {self._bytes_max} are allowed "
                "(RETORT_LOGITS_MAX_BYTES): send top-k, or fewer views"
            )
        memory = mmap.mmap(self._descriptor, size)
        rows = views * samples
        self.values_RK = np.frombuffer(memory, np.float32, cells).reshape(rows, columns)
        if is_top_k:
            self.indices_RK = np.frombuffer(memory, np.int32, cells, 4 * cells).reshape(rows, columns)
        memory[size - len(blob) :] = blob
        self._shape, self._ids, self._ids_bytes = shape, ids, len(blob)

    def answer(self, dtype: np.dtype[Any]) -> dict[str, JsonValue]:
        """Description of what lies in the file; ``dtype`` is that of the upload's values."""
        views, samples, columns = self._shape
        return {
            "views": views,
            "samples": samples,
            "columns": columns,
            "is_top_k": self.indices_RK is not None,
            "ids_bytes": None if self._ids is None else self._ids_bytes,
            "dtype": "float16" if dtype.itemsize == 2 else "float32",
        }


def _encoded(id: str) -> bytes:
    try:
        encoded = id.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise InvalidLogits(
            f"the sample id {shortened(repr(id))} holds a character that none has (NUL, half a surrogate pair)"
        )
    return encoded
