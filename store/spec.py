"""Identity of a cache (``CacheSpec`` and its key), and the division of its rows into blocks.

``CacheSpec`` holds everything that changes a stored number, and nothing else: job, time, device and
batch size are provenance, not identity. The key is the SHA-256 of the spec's canonical JSON, so the
same spec always finds the same cache and any other spec another one.

Changing a field, its default or the canonical form changes every key: raise FORMAT_VERSION with it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, field_validator, model_validator

from store.encodings.arrays import REFERENCE_ROWS, Encoding, SparseEncoding, StoredArray, logit_arrays, statistic_arrays
from store.errors import InvalidArgument

FORMAT_VERSION = 1

MAX_BLOCK_ROWS = 4096
MAX_BLOCK_BYTES = 16 << 20  # 16 MiB of logits, as they are stored
MAX_DECODED_BYTES = 256 << 20  # of which a writer is given float32 rows; only sparse rows can shrink so much

StoredKind = Literal["logits", "log_probabilities", "percent", "sigmoid"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def canonical_json(value: JsonValue) -> bytes:
    """Canonical spelling of a JSON value: keys sorted, no spaces, UTF-8, no NaN, no infinities.

    Raises ValueError for a float that JSON cannot spell.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


class CacheSpec(BaseModel):
    """Identity of one cache: a teacher's outputs on ``views`` views of a split of a dataset.

    ``preprocessing`` and ``augmentation`` are opaque here: the layer above owns their meaning and their
    canonical form, the store only demands that they are JSON. ``output_kind`` is how the stored logits came
    from the graph's output: "logits" as they were, "log_probabilities" by the log of probabilities, "percent"
    by the log of a hundredth, "sigmoid" by log(p / (1 - p)). ``columns`` are those of the output that were
    taken, for each class of the dataset in order; None is all of them in their own order. ``teacher_inputs``
    are values of the graph's scalar inputs. ``dtype`` is that of the rows that a reader hands out, and of
    those that are stored if the encoding is "dense".
    Raises pydantic.ValidationError (a ValueError) naming each wrong field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    teacher_sha256: Sha256
    teacher_output: str = Field(min_length=1)
    output_kind: StoredKind
    dataset_fingerprint: Sha256
    split: str = Field(min_length=1)
    samples: int = Field(ge=1, strict=True)
    classes: int = Field(ge=2, strict=True)
    preprocessing: dict[str, JsonValue]
    augmentation: dict[str, JsonValue]
    augmentation_seed: int = Field(strict=True)
    views: int = Field(ge=1, strict=True)
    dtype: Literal["float16", "float32"]
    encoding: Encoding = "dense"
    # Joined later: left out of the canonical JSON where they say nothing, so that earlier keys stay.
    columns: tuple[Annotated[int, Field(ge=0, strict=True)], ...] | None = Field(
        None, exclude_if=lambda given: given is None
    )
    teacher_inputs: dict[str, JsonValue] = Field({}, exclude_if=lambda given: not given)

    @field_validator("preprocessing", "augmentation", "teacher_inputs")
    @classmethod
    def _is_canonical(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        canonical_json(value)
        return value

    @model_validator(mode="after")
    def _one_column_each(self) -> Self:
        if self.columns is not None and len(self.columns) != self.classes:
            raise ValueError(f"columns has {len(self.columns)} numbers, there are {self.classes} classes")
        return self

    @model_validator(mode="after")
    def _encodable(self) -> Self:
        if self.is_lossy and self.dtype != "float32":
            raise ValueError(f"encoding {self.encoding!r} is decoded to float32, but dtype is {self.dtype!r}")
        if isinstance(self.encoding, SparseEncoding) and (refusal := self.encoding.refusal(self.classes)):
            raise ValueError(f"a sparse encoding makes no sense here: {refusal}")
        return self

    @cached_property
    def key(self) -> str:
        """Key of the cache, 64 hex digits: SHA-256 of the canonical JSON of every field."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()

    @property
    def is_lossy(self) -> bool:
        """Whether rows are not stored as they are handed out."""
        return self.encoding != "dense"

    @property
    def numpy_dtype(self) -> np.dtype[np.floating]:
        """Little-endian numpy dtype of the rows that a reader hands out."""
        return np.dtype("<f2" if self.dtype == "float16" else "<f4")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of logits, as a reader hands it out."""
        return self.classes * self.numpy_dtype.itemsize

    @cached_property
    def logit_arrays(self) -> dict[str, StoredArray]:
        """Arrays that encode the logits of every row, ``logits`` first."""
        return logit_arrays(self.encoding, self.dtype, self.classes)

    @cached_property
    def arrays(self) -> dict[str, StoredArray]:
        """Arrays of the cache, by name, in the order in which a block's parts are written."""
        arrays = {**self.logit_arrays, **statistic_arrays()}
        if self.is_lossy:
            rows = min(REFERENCE_ROWS, self.block_rows, self.samples)
            arrays["reference"] = StoredArray("reference", "float32", self.classes, rows)
        return arrays

    def arrays_of(self, block: int) -> list[StoredArray]:
        """Arrays that a block has a part of: all, but the reference is block 0's alone."""
        return [array for array in self.arrays.values() if array.rows is None or block == 0]

    @property
    def stored_row_bytes(self) -> int:
        """Bytes of one row of logits, as it is stored."""
        return sum(array.row_bytes for array in self.logit_arrays.values())

    @cached_property
    def block_rows(self) -> int:
        """Rows of a whole block: 4096, halved while any array has more than 16 MiB (or 256 MiB decoded); at least 1."""
        rows = MAX_BLOCK_ROWS
        widest_bytes = max(array.row_bytes for array in self.logit_arrays.values())
        while rows > 1 and (rows * widest_bytes > MAX_BLOCK_BYTES or rows * self.row_bytes > MAX_DECODED_BYTES):
            rows //= 2
        return rows

    @property
    def blocks_per_view(self) -> int:
        """Blocks of one view; the last may be short."""
        return -(-self.samples // self.block_rows)

    @property
    def blocks(self) -> int:
        """Blocks of the whole cache, numbered view by view."""
        return self.views * self.blocks_per_view

    def rows_in(self, blocks: Iterable[int]) -> int:
        """Number of rows in these blocks together."""
        return sum(stop - start for _, start, stop in map(self.block_range, blocks))

    def block_range(self, block: int) -> tuple[int, int, int]:
        """Range of a block as (view, start, stop): its rows are samples start..stop (exclusive).

        Raises InvalidArgument for a number outside 0..blocks-1.
        """
        if not 0 <= block < self.blocks:
            raise InvalidArgument(f"block {block} does not exist: this cache has blocks 0 to {self.blocks - 1}")
        view, within = divmod(block, self.blocks_per_view)
        start = within * self.block_rows
        return view, start, min(start + self.block_rows, self.samples)

    def differences(self, found: "CacheSpec") -> list[str]:
        """Differences, one line per field in which ``found`` differs from this spec; empty when they are equal."""
        return list(_differences("", self.model_dump(mode="json"), found.model_dump(mode="json")))


def _differences(prefix: str, asked: Mapping[str, JsonValue], found: Mapping[str, JsonValue]) -> Iterator[str]:
    for name in sorted({*asked, *found}):
        mine, theirs = asked.get(name), found.get(name)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            yield from _differences(f"{prefix}{name}.", mine, theirs)
            continue
        # Compared as they are spelled: 1, 1.0 and true are equal in Python but give different keys.
        shown = [_spelling(values, name) for values in (asked, found)]
        if shown[0] != shown[1]:
            yield f"{prefix}{name}: asked for {shown[0]}, found {shown[1]}"


def _spelling(values: Mapping[str, JsonValue], name: str) -> str:
    return canonical_json(values[name]).decode() if name in values else "nothing"
