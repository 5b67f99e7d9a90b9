"""Digests of the pictures of a split, by which the same picture is found in another split.

Legend: N samples, b samples of a block.
"""

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workers.data.decoding.blocks import Pictures
from workers.events import Split

if TYPE_CHECKING:
    from workers.data.preparation.prepared import Dataset

FILE = "row_digests.npy"
# Of 64 bits: of ten million pictures in each of two splits, all different, two have one digest in 1 of 180,000 cases.
_BYTES = 8

Digests = NDArray[np.uint64]


def digest_rows(block: Pictures) -> Digests:
    """Digest each picture of a block: uint64 [b], the first 64 bits of a BLAKE2b of its pixels."""
    digests = b"".join(hashlib.blake2b(row.data, digest_size=_BYTES).digest() for row in block)
    return np.frombuffer(digests, dtype="<u8")


def open_digests(folder: Path) -> Digests | None:
    """Digests of a split in its folder; None in that of an earlier version."""
    try:
        digests: Digests = np.load(folder / FILE, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    return digests


def overlap_warnings(splits: "Mapping[Split, Dataset]") -> tuple[str, ...]:
    """Warn of pictures that two splits have in common, pixel by pixel: a sentence for each such pair.

    Splits that an earlier version has decoded are left out. Of rows that are held out of the training split, those
    that stay in it count as that split.
    """
    warnings = []
    for (one, first), (other, second) in itertools.combinations(splits.items(), 2):
        if first.row_digests is None or second.row_digests is None:
            continue
        first_N = _without_rows_of(first, first.row_digests, second)
        rows = np.flatnonzero(np.isin(second.row_digests, first_N))
        if len(rows):
            warnings.append(
                f"{len(rows):,} of {len(second.row_digests):,} pictures of {other} are in {one}, too, pixel by pixel"
                f"{_example(second, int(rows[0]))}: what is measured on {other} is not of unseen pictures"
            )
    return tuple(warnings)


def _without_rows_of(first: "Dataset", digests_N: Digests, held_out: "Dataset") -> Digests:
    rows_V = held_out.rows_of(first)
    return digests_N if rows_V is None else np.delete(digests_N, rows_V)


def _example(dataset: "Dataset", row: int) -> str:
    ids = dataset.sample_ids
    return "" if ids is None else f", {ids[row]} among them"
