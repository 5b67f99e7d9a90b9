"""Pictures of a split in WebDataset shards, read by their offsets.

Legend: N samples of all shards.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from workers.data.pictures import FILE_MAX_BYTES
from workers.data.tar_index import Shard
from workers.errors import InvalidDataset


class TarRows:
    """Samples of several shards, one after the other; several threads may read.

    Args:
        shards: in their order.
        root: the folder that shards are named below in sample ids.

    Attributes:
        ids: sample id of each row, ``SHARD/KEY``.
    """

    def __init__(self, shards: Sequence[Shard], root: Path) -> None:
        self._shards = shards
        self._starts = [0, *accumulate(map(len, shards))]
        self._root = root
        named = ((shard.path.relative_to(root).as_posix(), shard) for shard in shards)
        self.ids = [f"{name}/{key}" for name, shard in named for key in shard.key_list()]

    def place(self, row: int) -> str:
        """Name of a row in messages."""
        return f"{self._root}/{self.ids[row]}"

    def read(self, row: int) -> bytes:
        """Encoded picture of a row.

        Raises:
            InvalidDataset: it is too large.
            OSError: the shard cannot be read.
        """
        shard, number = self._find(row)
        size = int(shard.sizes_N[number])
        if size > FILE_MAX_BYTES:
            raise InvalidDataset(
                f"{self.place(row)} has {size} bytes, and a picture may have at most {FILE_MAX_BYTES}: make it smaller"
            )
        with shard.path.open("rb", buffering=0) as file:
            file.seek(int(shard.offsets_N[number]))
            return file.read(size)

    def _find(self, row: int) -> tuple[Shard, int]:
        """Shard of a row, and its number in that."""
        place = bisect_right(self._starts, row) - 1
        return self._shards[place], row - self._starts[place]
