"""Prepared datasets: uint8 arrays on disk, mapped by every process and known by their content.

``workers.data.preparation.prepare`` makes them. The fingerprint of a split is the SHA-256 of a canonical header
(format, split, shape, class names), the pictures and the labels, all in sample order. It does not depend on where the
files lay or how they were packed, so the same pictures as a folder and as an ``.npz`` are one dataset if their order
agrees.

Mapping checks sizes, not bytes. Nothing is augmented or normalised here, and no dataset is held in memory.

Legend: N samples, B of a batch, H x W pixels, C channels.
"""

import functools
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from workers.data.decoding.blocks import Pictures
from workers.data.decoding.picture_decoder import PictureDecoder
from workers.data.preparation import decoded
from workers.data.preparation.image_files import PictureFiles, Rows
from workers.data.preparation.row_digests import Digests, open_digests
from workers.data.preparation.sample_ids import SampleIds, open_ids
from workers.errors import InvalidDataset
from workers.events import Split
from workers.unlabelled import has_unlabelled, numbered

# Of the prepared folders.
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Dataset(ABC):
    """One split of a prepared dataset: labels are mapped, ``take`` gives pictures. Pickles as its path.

    Attributes:
        labels_N: int64 [N], 0..classes-1, or -1 for none, mapped copy-on-write (see ``DecodedDataset``).
        class_names: in label order; empty where nothing names the classes.
        fingerprint: 64 hex digits, over content and split.
        split: ``train``, ``validation`` or ``test``.
        path: the prepared folder.
        channel_mean, channel_std: [C], over all pixels of this split, in units of 0..1. Training
            normalises every split with the values of the training split.
    """

    labels_N: NDArray[np.int64]
    class_names: tuple[str, ...]
    fingerprint: str
    split: Split
    path: Path
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]

    @property
    @abstractmethod
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, C); C is 1 (grey) or 3 (RGB)."""

    @abstractmethod
    def take(self, rows: Rows) -> Pictures:
        """Pictures of ``rows``, a slice or integers [B]: uint8 [B, H, W, C].

        Raises:
            InvalidDataset, OSError: a picture that stayed a file cannot be had; see ``PictureFiles.take``.
        """

    @property
    def classes(self) -> int:
        return len(self.class_names)

    def numbered(self, classes: int) -> Self:
        """The same with its classes numbered, if nothing has named them; ``classes`` are the teacher's outputs."""
        return self if self.class_names else replace(self, class_names=numbered(classes))

    @property
    def known(self) -> decoded.KnownSplit:
        """Facts about the split that caches are known by."""
        return decoded.KnownSplit(self.fingerprint, self.samples, self.height, self.width)

    @property
    def has_unlabelled(self) -> bool:
        """Whether some picture has no label."""
        return has_unlabelled(self.labels_N)

    @property
    def samples(self) -> int:
        return len(self.labels_N)

    @property
    def height(self) -> int:
        return self.picture_shape[0]

    @property
    def width(self) -> int:
        return self.picture_shape[1]

    @property
    def channels(self) -> int:
        return self.picture_shape[2]

    @functools.cached_property
    def sample_ids(self) -> SampleIds | None:
        """Id of each row; None where an earlier version has prepared it."""
        return open_ids(self.path, self.samples)

    @functools.cached_property
    def row_digests(self) -> Digests | None:
        """Digest of each picture, uint64 [N]; None where an earlier version has prepared it."""
        return open_digests(self.path)

    def rows_of(self, other: "Dataset") -> NDArray[np.int64] | None:
        """Rows of another split that this one is, int64 [N]; None if it has pictures of its own."""
        return None

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return open_prepared, (self.path.parent, self.fingerprint)


@dataclass(frozen=True, eq=False)
class DecodedDataset(Dataset):
    """Split with a decoded copy, mapped.

    The arrays are mapped copy-on-write: torch accepts them without a warning, and writing to them
    would change this process's pages alone, never the files.

    Attributes:
        images_NHWC: uint8 [N, H, W, C].
    """

    images_NHWC: Pictures

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        _, height, width, channels = self.images_NHWC.shape
        return height, width, channels

    def take(self, rows: Rows) -> Pictures:
        """A view of the mapped pictures where ``rows`` is a slice."""
        return self.images_NHWC[rows]


@dataclass(frozen=True, eq=False)
class FilesDataset(Dataset):
    """Split whose pictures stay files.

    Attributes:
        files: the list of them.
    """

    files: PictureFiles

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        return self.files.shape

    def take(self, rows: Rows) -> Pictures:
        """Decode now, on all cores that this process may use."""
        return self.files.take(rows, threads=len(os.sched_getaffinity(0)))


@dataclass(frozen=True, eq=False)
class SubsetDataset(Dataset):
    """Rows of another split; no picture is copied.

    Attributes:
        base: the split that they are rows of, whose mean and std it has.
        rows_N: int64 [N], ascending.
    """

    base: Dataset
    rows_N: NDArray[np.int64]

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        return self.base.picture_shape

    def take(self, rows: Rows) -> Pictures:
        """Those of the split that it is cut from."""
        return self.base.take(self.rows_N[rows])

    @functools.cached_property
    def sample_ids(self) -> SampleIds | None:
        """Those of the split that it is cut from."""
        return None if self.base.sample_ids is None else self.base.sample_ids.take(self.rows_N)

    @functools.cached_property
    def row_digests(self) -> Digests | None:
        """Those of the split that it is cut from."""
        return None if self.base.row_digests is None else self.base.row_digests[self.rows_N]

    def rows_of(self, other: Dataset) -> NDArray[np.int64] | None:
        """Its rows, if it is cut from the other split."""
        return self.rows_N if other.fingerprint == self.base.fingerprint else None


def open_prepared(work_dir: Path, fingerprint: str) -> Dataset:
    """Map a split that ``prepare`` has decoded, the list of its files, or the rows that ``hold_out`` has cut.

    Raises:
        InvalidDataset: there is none, it is damaged, or another version of this program wrote it.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        raise InvalidDataset(f"{fingerprint!r} is not a fingerprint (64 hexadecimal digits)")
    listed = folder_of(work_dir, fingerprint, keeps_files=True)
    rows = work_dir / f"{fingerprint}{decoded.ROWS_SUFFIX}"
    if rows.is_dir():
        return open_folder(rows, fingerprint)
    try:
        return open_folder(folder_of(work_dir, fingerprint, keeps_files=False), fingerprint)
    except InvalidDataset:
        if not listed.is_dir():
            raise
    return open_folder(listed, fingerprint)


def row_ids(dataset: Dataset) -> Sequence[str]:
    """Id of each row: its own, or the number that it has in the split that it is cut from."""
    if dataset.sample_ids is not None:
        return dataset.sample_ids
    rows = dataset.rows_N.tolist() if isinstance(dataset, SubsetDataset) else range(dataset.samples)
    return list(map(str, rows))


def folder_of(work_dir: Path, fingerprint: str, *, keeps_files: bool) -> Path:
    return work_dir / (f"{fingerprint}{decoded.FILES_SUFFIX}" if keeps_files else fingerprint)


def open_folder(folder: Path, fingerprint: str) -> Dataset:
    try:
        decoded.touch(folder)
        meta = read_meta(folder)
        if meta["format"] != FORMAT or meta["fingerprint"] != fingerprint:
            raise ValueError(f"meta.json is of format {meta['format']} and dataset {meta['fingerprint']}")
        for name, size_bytes in meta["size_bytes"].items():
            if (found := (folder / name).stat().st_size) != size_bytes:
                raise ValueError(f"{name} has {found} bytes, {size_bytes} were written")
        if "rows_of" in meta:
            return _open_rows(folder, meta)
        common = {
            "labels_N": np.load(folder / "labels.npy", mmap_mode="c", allow_pickle=False),
            "class_names": tuple(meta["class_names"]),
            "fingerprint": fingerprint,
            "split": meta["split"],
            "path": folder,
            "channel_mean": tuple(meta["channel_mean"]),
            "channel_std": tuple(meta["channel_std"]),
        }
        if "files" not in meta:
            images_NHWC = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
            return DecodedDataset(**common, images_NHWC=images_NHWC)
        _, height, width, channels = meta["shape"]
        size = meta["files"]["image_size"]
        root = Path(meta["files"]["root"])
        decoder = PictureDecoder(size and (size[0], size[1]), meta["files"].get("exif_orientation", False))
        files = PictureFiles(folder, root, (height, width, channels), decoder)
        return FilesDataset(**common, files=files)
    except (OSError, ValueError, KeyError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InvalidDataset(f"the prepared dataset {folder.name} cannot be used ({why}); prepare it again") from error


def _open_rows(folder: Path, meta: dict[str, Any]) -> SubsetDataset:
    base = open_prepared(folder.parent, meta["rows_of"])
    rows_N = np.load(folder / "rows.npy", allow_pickle=False)
    if rows_N.dtype != np.int64 or rows_N.ndim != 1 or not ((rows_N >= 0) & (rows_N < base.samples)).all():
        raise ValueError(f"rows.npy is {rows_N.dtype} {list(rows_N.shape)}, not rows of {base.samples} pictures")
    return SubsetDataset(
        labels_N=np.asarray(base.labels_N)[rows_N],
        class_names=base.class_names,
        fingerprint=meta["fingerprint"],
        split=meta["split"],
        path=folder,
        channel_mean=base.channel_mean,
        channel_std=base.channel_std,
        base=base,
        rows_N=rows_N,
    )


def read_meta(folder: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((folder / decoded.META).read_text())
    return meta
