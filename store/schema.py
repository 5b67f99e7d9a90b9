"""What identifies a cache, and how its rows are cut into blocks.

`CacheSpec` holds everything that changes a stored number, and nothing else: who asked, when, on
which device and at which batch size are provenance, not identity. The key is the SHA-256 of the
spec's canonical JSON, so the same question always finds the same cache and any other question
another one.

Changing a field, its default or the canonical form changes every key: raise FORMAT_VERSION with it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, field_validator

from .errors import InvalidArgument

FORMAT_VERSION = 1

MAX_BLOCK_ROWS = 4096
MAX_BLOCK_BYTES = 16 << 20  # 16 MiB of logits

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def canonical_json(value: JsonValue) -> bytes:
    """The one spelling of a JSON value: keys sorted, no spaces, UTF-8, no NaN, no infinities.

    Raises ValueError for a float that JSON cannot spell.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


class CacheSpec(BaseModel):
    """The identity of one cache: a teacher's outputs on `views` views of a split of a dataset.

    `preprocessing` and `augmentation` are opaque here: the layer above owns their meaning and their
    canonical form, the store only demands that they are JSON. `output_kind` is "log_probabilities"
    when the graph ended in a softmax and the log of its output was stored.
    Raises pydantic.ValidationError (a ValueError) naming each wrong field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    teacher_sha256: Sha256
    teacher_output: str = Field(min_length=1)
    output_kind: Literal["logits", "log_probabilities"]
    dataset_fingerprint: Sha256
    split: str = Field(min_length=1)
    samples: int = Field(ge=1, strict=True)
    classes: int = Field(ge=2, strict=True)
    preprocessing: dict[str, JsonValue]
    augmentation: dict[str, JsonValue]
    augmentation_seed: int = Field(strict=True)
    views: int = Field(ge=1, strict=True)
    dtype: Literal["float16", "float32"]
    encoding: Literal["dense"] = "dense"

    @field_validator("preprocessing", "augmentation")
    @classmethod
    def _is_canonical(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        canonical_json(value)
        return value

    @cached_property
    def key(self) -> str:
        """64 hex digits: SHA-256 of the canonical JSON of every field."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()

    @property
    def numpy_dtype(self) -> np.dtype[np.floating]:
        """Little-endian numpy dtype of the stored logits."""
        return np.dtype("<f2" if self.dtype == "float16" else "<f4")

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row of logits."""
        return self.classes * self.numpy_dtype.itemsize

    @property
    def block_rows(self) -> int:
        """Rows of a whole block: 4096, halved while that exceeds 16 MiB of logits; at least 1."""
        rows = MAX_BLOCK_ROWS
        while rows > 1 and rows * self.row_bytes > MAX_BLOCK_BYTES:
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
        """How many rows these blocks hold together."""
        return sum(stop - start for _, start, stop in map(self.block_range, blocks))

    def block_range(self, block: int) -> tuple[int, int, int]:
        """(view, start, stop) of a block: its rows are samples start..stop (exclusive).

        Raises InvalidArgument for a number outside 0..blocks-1.
        """
        if not 0 <= block < self.blocks:
            raise InvalidArgument(f"block {block} does not exist: this cache has blocks 0 to {self.blocks - 1}")
        view, within = divmod(block, self.blocks_per_view)
        start = within * self.block_rows
        return view, start, min(start + self.block_rows, self.samples)

    def differences(self, found: "CacheSpec") -> list[str]:
        """One line per field in which `found` differs from this spec; empty when they are equal."""
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
