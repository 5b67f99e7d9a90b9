"""Pictures that stay image files: a list of them, and decoding on demand.

``workers.data.preparation.prepare`` reads every picture once and keeps this list instead of a decoded copy. A picture
is known by its place in the list, its size in bytes and its time of modification. One that has another size or time
when it is read again is refused; one that was changed in place without either is not noticed, as with make and rsync.

The list is two arrays that every process maps, since a dataset may have millions of pictures:

    names.npy    uint8 [bytes]: paths relative to the folder, one after the other, as the file system spells them
    files.npy    int64 [N, 3]: where a name ends in names.npy, size in bytes, time of modification in ns

Pictures that are parts of files, the members of tar files, have a third:

    spans.npy    int64 [N, 2]: offset in the file and size of a picture, in bytes

Legend: N pictures of the list, B of a batch, H x W pixels, C channels.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.data.dataset_kind import Source
from workers.data.decoding.blocks import Decoding, Pictures
from workers.data.decoding.picture_decoder import PictureDecoder
from workers.errors import InvalidDataset

NAMES, FILES, SPANS = "names.npy", "files.npy", "spans.npy"
Rows = slice | NDArray[np.integer]

# Pictures that a thread decodes in one go: as few as keep the threads equally busy to the end of a batch.
_PIECE = 8


def listing(
    root: Path, paths: Sequence[Path], spans_N2: NDArray[np.int64] | None = None
) -> dict[str, NDArray[np.generic]]:
    """Arrays that list ``paths``, which lie below ``root``, by the name of their file.

    Args:
        paths: the file of each picture.
        spans_N2: offset and size of each picture in its file, in bytes; None where a picture is a file.
    """
    names = [os.fsencode(path.relative_to(root)) for path in paths]
    files_N3 = np.empty((len(paths), 3), dtype="<i8")
    files_N3[:, 0] = np.cumsum([len(name) for name in names])
    before, status = None, None
    for row, path in zip(files_N3, paths, strict=True):
        # The members of a tar file follow each other.
        if status is None or path is not before:
            before, status = path, path.stat()
        row[1:] = status.st_size, status.st_mtime_ns
    arrays: dict[str, NDArray[np.generic]] = {NAMES: np.frombuffer(b"".join(names), dtype=np.uint8), FILES: files_N3}
    return arrays if spans_N2 is None else arrays | {SPANS: spans_N2.astype("<i8")}


class ListedFiles(NamedTuple):
    """Image files that are listed, not copied, and their source's key."""

    source: Source
    key: str

    def arrays(self, decoding: Decoding) -> dict[str, NDArray[np.generic]]:
        """Arrays of the list, by the name of their file."""
        assert self.source.path is not None
        assert decoding.files is not None
        return listing(self.source.path, decoding.files, decoding.spans_N2)

    def meta(self) -> dict[str, object]:
        """Description of the list for ``meta.json``."""
        spec = self.source.spec
        described = {"source": self.key, "root": str(self.source.path), "image_size": spec.resized_to}
        return described | ({"exif_orientation": True} if spec.turns_upright else {})


class PictureFiles:
    """List of image files, decoded on demand. Pickles as its path.

    Args:
        folder: holds the list's arrays.
        root: the folder that the names are relative to.
        shape: (H, W, C) of every picture.
        decoder: of the dataset's pictures.
    """

    def __init__(self, folder: Path, root: Path, shape: tuple[int, int, int], decoder: PictureDecoder) -> None:
        self._names = np.load(folder / NAMES, mmap_mode="r", allow_pickle=False)
        self._files_N3 = np.load(folder / FILES, mmap_mode="r", allow_pickle=False)
        has_spans = (folder / SPANS).exists()
        self._spans_N2 = np.load(folder / SPANS, mmap_mode="r", allow_pickle=False) if has_spans else None
        self._folder = folder
        self._root = root
        self._decoder = decoder
        self.shape = shape

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return PictureFiles, (self._folder, self._root, self.shape, self._decoder)

    def __len__(self) -> int:
        return len(self._files_N3)

    def path(self, number: int) -> Path:
        """Path of picture ``number``."""
        start = self._files_N3[number - 1, 0] if number else 0
        return self._root / os.fsdecode(self._names[start : self._files_N3[number, 0]].tobytes())

    def take(self, rows: Rows, threads: int = 1) -> Pictures:
        """Decode pictures: uint8 [B, H, W, C] in the order of ``rows``.

        Args:
            threads: that decode at the same time; the pixels do not depend on it.

        Raises:
            InvalidDataset: a picture is gone, has changed or cannot be decoded; names it.
            OSError: the disk or the network in front of it fails; trying again may help.
        """
        numbers = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows.tolist()
        pictures = np.empty((len(numbers), *self.shape), dtype=np.uint8)

        def decode(start: int) -> None:
            for place in range(start, min(start + _PIECE, len(numbers))):
                pictures[place] = self._picture(numbers[place])

        starts = range(0, len(numbers), _PIECE)
        if threads == 1:
            for start in starts:
                decode(start)
        else:
            with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
                # Reading the results raises what a thread raised.
                list(pool.map(decode, starts))
        return pictures

    def _picture(self, number: int) -> Pictures:
        path = self.path(number)
        # Messages become answers of the API, which must not show the server's folders.
        name = str(path.relative_to(self._root))
        offset, size = (0, -1) if self._spans_N2 is None else self._spans_N2[number].tolist()
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                file.seek(offset)
                data = file.read(size)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise InvalidDataset(
                f"{name} cannot be read any more ({error.strerror}): put it back, or submit the job again"
            ) from error
        expected_bytes, expected_ns = self._files_N3[number, 1:].tolist()
        if (status.st_size, status.st_mtime_ns) != (expected_bytes, expected_ns):
            raise InvalidDataset(
                f"{name} has changed since the dataset was prepared: it has {status.st_size:,} bytes and was modified "
                f"at {status.st_mtime_ns} ns, then {expected_bytes:,} bytes at {expected_ns} ns. Submit the job again"
            )
        if self._spans_N2 is not None:
            name = f"{name}, byte {offset},"
        picture = self._decoder.decode(data, name)
        if picture.shape != self.shape:
            raise InvalidDataset(f"{name} is {picture.shape}, not {self.shape} as when the dataset was prepared")
        return picture
