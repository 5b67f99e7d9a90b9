"""Sample ids of a prepared split, beside its rows: a picture's file below the dataset's folder, a key, or a number.

``sample_ids.bin`` holds them in the order of the rows, each as the file system spells it, followed by a NUL. They are
no part of a dataset's content: another source of the same pictures may give them other names, and the last that had
names is kept. A copy of an earlier version has none.

Legend: N samples.
"""

import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from workers.errors import InvalidDataset
from workers.files import sync

FILE = "sample_ids.bin"


class SampleIds(Sequence[str]):
    """Sample ids of a split, mapped.

    Args:
        content: of the file.
        ends_N: where the id of each row ends.
        starts_N: where it begins.
    """

    def __init__(self, content: bytes | mmap.mmap, starts_N: NDArray[np.int64], ends_N: NDArray[np.int64]) -> None:
        self._content, self._starts_N, self._ends_N = content, starts_N, ends_N

    def __len__(self) -> int:
        return len(self._ends_N)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        """Id of a row, or those of some."""
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        return os.fsdecode(self._content[self._starts_N[row] : self._ends_N[row]])

    def take(self, rows: NDArray[np.int64]) -> "SampleIds":
        """Ids of some rows, in their order."""
        return SampleIds(self._content, self._starts_N[rows], self._ends_N[rows])


def write_ids(folder: Path, ids: Iterable[str]) -> None:
    """Write the ids of a split into its folder.

    Raises:
        InvalidDataset: one holds a NUL character.
    """
    with (folder / FILE).open("wb") as file:
        for each in ids:
            encoded = os.fsencode(each)
            if b"\0" in encoded:
                raise InvalidDataset(f"the sample id {each!r:.200} holds a NUL character: rename it")
            file.write(encoded + b"\0")
        sync(file)


def adopt(partial: Path, folder: Path, *, are_names: bool) -> None:
    """Move the ids of a split that was decoded again to the copy that is there; numbers of rows replace no names."""
    if are_names or not (folder / FILE).exists():
        (partial / FILE).replace(folder / FILE)


def open_ids(folder: Path, samples: int) -> SampleIds | None:
    """Map the ids of a split; None if its folder has none, or others than those of so many samples."""
    try:
        with (folder / FILE).open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError):
        return None
    ends_N = np.flatnonzero(np.frombuffer(content, dtype=np.uint8) == 0).astype(np.int64)
    if len(ends_N) != samples:
        return None
    return SampleIds(content, np.concatenate([[0], ends_N[:-1] + 1]).astype(np.int64), ends_N)
