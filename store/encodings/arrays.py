"""Encodings of a cache's rows, and the arrays that each stores.

- "dense": the logits themselves, in the cache's dtype. Everything else is lossy, and decodes to dense float32 rows.
- "uint8": a byte for each class and two float32 for each row; see ``store.encodings.uint8``.
- sparse: a few classes of many, chosen so that soft targets stay unbiased; see ``store.encodings.sparse``.

A lossy cache also keeps the exact logits of its first rows, ``reference``, from which the loss is measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from store.statistics import STATISTICS

REFERENCE_ROWS = 256

StoredRows = Mapping[str, NDArray[Any]]
"""Some rows of the arrays that encode logits, by name; see ``logit_arrays``."""


class SparseEncoding(BaseModel):
    """Sparse encoding: the ``top`` largest logits of a row, its label's, and ``tail`` classes drawn from the others.

    Soft targets at ``temperature`` are exactly unbiased over the draws; at any other they are not. ``seed`` is that of
    the draws.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sparse"]
    top: int = Field(ge=1, le=65_536, strict=True)
    tail: int = Field(ge=1, le=65_536, strict=True)
    # The largest is far below what would give an absent class (see sparse.ABSENT) a probability.
    temperature: float = Field(ge=1e-3, le=1e3, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**32, strict=True)

    def refusal(self, classes: int) -> str | None:
        """Reason why rows of so many classes are better kept dense; None if they are not."""
        if self.top + self.tail + 1 >= classes:
            return (
                f"top {self.top}, the label and tail {self.tail} are {self.top + self.tail + 1} classes, and there are "
                f"{classes}: lower them, or use the encoding dense or uint8"
            )
        sparse, dense = (sum(a.row_bytes for a in _logit_arrays(e, "float16", classes)) for e in (self, "dense"))
        if sparse >= dense:
            return (
                f"top {self.top} and tail {self.tail} take {sparse} bytes a row, a dense float16 row of {classes} "
                f"classes {dense}: lower them, or use the encoding dense or uint8"
            )
        return None


def _kind(value: object) -> str | None:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", value)
    allowed = ("sparse",) if isinstance(value, Mapping) else ("dense", "uint8", "sparse")
    return kind if isinstance(kind, str) and kind in allowed else None


Encoding = Annotated[
    Annotated[Literal["dense"], Tag("dense")]
    | Annotated[Literal["uint8"], Tag("uint8")]
    | Annotated[SparseEncoding, Tag("sparse")],
    Discriminator(
        _kind,
        custom_error_type="encoding",
        custom_error_message='an encoding is "dense", "uint8" or '
        '{"kind": "sparse", "top": 50, "tail": 50, "temperature": 4}',
    ),
]


@dataclass(frozen=True)
class StoredArray:
    """One array of a cache: ``dtype`` as Zarr names it, ``columns`` values a row, or one value if None.

    Its shape is [views, samples] or [views, samples, columns]; with ``rows``, it is [rows, columns] and one chunk.
    """

    name: str
    dtype: str
    columns: int | None = None
    rows: int | None = None

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        """Little-endian numpy dtype."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return (self.columns or 1) * self.numpy_dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether it is padded with NaN; integers are padded with 0."""
        return self.numpy_dtype.kind == "f"


def _logit_arrays(encoding: Encoding, dtype: str, classes: int) -> list[StoredArray]:
    """Arrays that hold a row's logits; ``logits`` is the first, and the first one written of a block."""
    if isinstance(encoding, SparseEncoding):
        return [
            StoredArray("logits", "float16", encoding.top + 1 + encoding.tail),
            StoredArray("classes", "uint16" if classes <= 65_536 else "uint32", encoding.top + 2),
            StoredArray("tail_logsumexp", "float32"),
        ]
    if encoding == "uint8":
        return [
            StoredArray("logits", "uint8", classes),
            StoredArray("scale", "float32"),
            StoredArray("offset", "float32"),
        ]
    return [StoredArray("logits", dtype, classes)]


def logit_arrays(encoding: Encoding, dtype: str, classes: int) -> dict[str, StoredArray]:
    """Arrays that encode the logits of every row, by name."""
    return {array.name: array for array in _logit_arrays(encoding, dtype, classes)}


def statistic_arrays() -> dict[str, StoredArray]:
    """Arrays of the statistics of every row, by name."""
    return {name: StoredArray(name, "float32") for name in STATISTICS}
