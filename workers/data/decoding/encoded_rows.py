"""Encoded pictures of a split (JPEG, PNG ..., as files or as bytes of another file), in sample order.

Legend: N samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.data.labelling.labels import Labels


@dataclass(frozen=True)
class EncodedRows:
    """Encoded pictures of a split, none of them read yet.

    Attributes:
        labels_N: int64.
        ids: sample ids, one for each picture: the file below the dataset's folder, or a key.
        place: name of a row in messages; a file's absolute path, which becomes one below the data root.
        read: content of a row, called by several threads at once. Raises InvalidDataset with a message that begins
            with the place if the content is too large, OSError if it cannot be had.
        files: of pictures that are files of their own, those files; of parts of files, the file of each.
        spans_N2: int64, of parts of files, the offset and size of each in its file, in bytes.
        mean_bytes: of a picture whose neighbours are read before it can be; 0 where each is read by itself.
    """

    labels_N: Labels
    ids: Sequence[str]
    place: Callable[[int], str]
    read: Callable[[int], bytes]
    files: Sequence[Path] | None = None
    spans_N2: NDArray[np.int64] | None = None
    mean_bytes: int = 0

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows: NDArray[np.int64]) -> "EncodedRows":
        """Some of them, in the order of ``rows``."""
        chosen = rows.tolist()
        return EncodedRows(
            labels_N=self.labels_N[rows],
            ids=[self.ids[row] for row in chosen],
            place=lambda row: self.place(chosen[row]),
            read=lambda row: self.read(chosen[row]),
            files=None if self.files is None else [self.files[row] for row in chosen],
            spans_N2=None if self.spans_N2 is None else self.spans_N2[rows],
            mean_bytes=self.mean_bytes,
        )


def rows_of_files(files: Sequence[Path], root: Path, labels_N: Labels) -> EncodedRows:
    """Pictures that are files; the id of each is its path below ``root``."""
    from workers.data.decoding.pictures import read_file

    return EncodedRows(
        labels_N=labels_N,
        ids=[path.relative_to(root).as_posix() for path in files],
        place=lambda row: str(files[row]),
        read=lambda row: read_file(files[row]),
        files=files,
    )
