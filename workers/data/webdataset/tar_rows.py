"""Pictures of a split in WebDataset shards, read by their offsets.

Legend: N samples of all shards.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from workers.data.decoding.pictures import FILE_MAX_BYTES
from workers.data.webdataset.shard import Shard
from workers.errors import InvalidDataset


class TarRows:
    """Samples of several shards, one after the other; several threads may read.

    Args:
        shards: in their order.
        root: the folder that shards are named below in sample ids.

    Attributes:
        ids: sample id of each row, ``SHARD/KEY``.
        files: shard of each row.
        spans_N2: int64, offset and size in bytes of each row's picture in its shard.
    """

    def __init__(self, shards: Sequence[Shard], root: Path) -> None:
        self._root = root
        self.files = [shard.path for shard in shards for _ in range(len(shard))]
        self.spans_N2 = np.concatenate([np.stack((shard.offsets_N, shard.sizes_N), axis=1) for shard in shards])
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
        offset, size = self.spans_N2[row].tolist()
        if size > FILE_MAX_BYTES:
            raise InvalidDataset(
                f"{self.place(row)} has {size} bytes, and a picture may have at most {FILE_MAX_BYTES}: make it smaller"
            )
        with self.files[row].open("rb") as file:
            file.seek(offset)
            return file.read(size)
