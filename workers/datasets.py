"""Data sets as uint8 arrays on disk: decoded once, mapped by every process, known by their content.

``prepare`` decodes a split to ``<work_dir>/<fingerprint>/`` and remembers which source it came from, so
that later calls map it without decoding:

    <fingerprint>/images.npy    uint8 [N, H, W, C]
    <fingerprint>/labels.npy    int64 [N]
    <fingerprint>/meta.json     shape, class names, channel mean and std, size of each file
    sources/<source key>.<split>.json    {"fingerprint": ...}

The fingerprint is the SHA-256 of a canonical header (format, split, shape, class names), the pictures
and the labels, all in sample order. It does not depend on where the files lay or how they were
packed, so the same pictures as a folder and as an ``.npz`` are one data set if their order agrees.

A prepared folder appears whole or not at all (written aside, fsync, rename); processes that prepare
the same source wait for the first of them. Mapping checks sizes, not bytes.

This does not download, augment or normalise anything, and does not hold a data set in memory.

Legend: N samples, b samples of a block, H x W pixels, C channels.
"""

import contextlib
import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from workers import sources
from workers.config import DatasetSpec
from workers.decoding import Decoding, decode
from workers.durable import alone, disk_full_is_disk_low, replacing, sync, sync_folder
from workers.errors import DiskLow, InvalidDataset
from workers.events import DatasetReady, Emit, Log, ShouldStop, Split, ignore, never

_FORMAT = 1
_LOG_EVERY_S = 10.0
_PREPARES = "prepares the same data set"
# Left free on the disk besides the copy itself.
_MARGIN_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split, mapped.

    The arrays are mapped copy-on-write: torch accepts them without a warning, and writing to them
    would change this process's pages alone, never the files. Pickles as its path.

    Attributes:
        images_NHWC: uint8 [N, H, W, C]; C is 1 (grey) or 3 (RGB).
        labels_N: int64 [N], 0..classes-1.
        class_names: in label order.
        fingerprint: 64 hex digits, over content and split.
        split: ``train`` or ``test``.
        path: the prepared folder.
        channel_mean, channel_std: [C], over all pixels of this split, in units of 0..1. Training
            normalises both splits with the values of the training split.
    """

    images_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    class_names: tuple[str, ...]
    fingerprint: str
    split: Split
    path: Path
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def samples(self) -> int:
        return len(self.labels_N)

    @property
    def height(self) -> int:
        return int(self.images_NHWC.shape[1])

    @property
    def width(self) -> int:
        return int(self.images_NHWC.shape[2])

    @property
    def channels(self) -> int:
        return int(self.images_NHWC.shape[3])

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return open_prepared, (self.path.parent, self.fingerprint)


def open_prepared(work_dir: Path, fingerprint: str) -> Dataset:
    """Map a split that ``prepare`` has decoded.

    Raises:
        InvalidDataset: there is none, it is damaged, or another version of this program wrote it.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        raise InvalidDataset(f"{fingerprint!r} is not a fingerprint (64 hexadecimal digits)")
    folder = work_dir / fingerprint
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["format"] != _FORMAT or meta["fingerprint"] != fingerprint:
            raise ValueError(f"meta.json is of format {meta['format']} and data set {meta['fingerprint']}")
        for name, size_bytes in meta["size_bytes"].items():
            if (found := (folder / name).stat().st_size) != size_bytes:
                raise ValueError(f"{name} has {found} bytes, {size_bytes} were written")
        return Dataset(
            images_NHWC=np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False),
            labels_N=np.load(folder / "labels.npy", mmap_mode="c", allow_pickle=False),
            class_names=tuple(meta["class_names"]),
            fingerprint=fingerprint,
            split=meta["split"],
            path=folder,
            channel_mean=tuple(meta["channel_mean"]),
            channel_std=tuple(meta["channel_std"]),
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidDataset(f"the prepared data set {folder} cannot be used ({error}); prepare it again") from error


def prepare(
    spec: DatasetSpec,
    split: Split,
    data_root: Path,
    work_dir: Path,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
) -> Dataset:
    """Decode a split, or map what an earlier call decoded from the same files.

    Emits ``DatasetReady`` at the end, and a ``Log`` now and then while decoding.

    Raises:
        InvalidDataset: missing, outside ``data_root``, unreadable or inconsistent.
        DiskLow: no room in ``work_dir``; nothing is left behind.
        Stopped: ``should_stop`` returned true; nothing is left behind.
    """
    source = sources.examine(spec, data_root)
    name = f"{source.key()}.{split}"
    pointer = work_dir / "sources" / f"{name}.json"
    pointer.parent.mkdir(parents=True, exist_ok=True)
    lock = pointer.with_suffix(".lock")
    with alone(lock, should_stop, _PREPARES), disk_full_is_disk_low(work_dir, "a data set"):
        dataset = _remembered(pointer, work_dir)
        reused = dataset is not None
        if dataset is None:
            _warn_of_ignored(source, emit)
            partial = work_dir / f".partial-{name}"
            shutil.rmtree(partial, ignore_errors=True)
            try:
                fingerprint = _write(decode(source, split, should_stop), split, partial, emit)
                dataset = _publish(partial, fingerprint)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            _write_durably(pointer, {"fingerprint": fingerprint})
    emit(
        DatasetReady(
            split=split,
            fingerprint=dataset.fingerprint,
            samples=dataset.samples,
            classes=dataset.classes,
            reused=reused,
        )
    )
    return dataset


def _remembered(pointer: Path, work_dir: Path) -> Dataset | None:
    """What this source was decoded to, if that is still there and whole."""
    try:
        return open_prepared(work_dir, json.loads(pointer.read_text())["fingerprint"])
    except (OSError, ValueError, KeyError):  # InvalidDataset is a ValueError
        return None


def _warn_of_ignored(source: sources.Source, emit: Emit) -> None:
    if source.ignored:
        emit(
            Log(
                level="warning",
                message=f"{len(source.ignored)} files are not pictures and were left out, e.g. {source.ignored[0]}",
            )
        )


# ----------------------------------------------------------------------------------------- writing


class _Moments:
    """Exact sums of pixel values and their squares per channel, whatever the blocks."""

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._count = 0
        self._sum = [0] * channels
        self._squares = [0] * channels

    def add(self, block: NDArray[np.uint8]) -> None:
        flat = block.reshape(len(block), -1)
        squares = flat.astype(np.uint16) ** 2  # 255**2 fits
        for totals, values in ((self._sum, flat), (self._squares, squares)):
            # Samples first: the innermost loop then runs over whole rows of memory.
            per_pixel = values.sum(axis=0, dtype=np.uint64).reshape(-1, self._channels)
            for channel, total in enumerate(per_pixel.sum(axis=0)):
                totals[channel] += int(total)
        self._count += flat.size // self._channels

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        n = self._count
        mean = [total / (n * 255) for total in self._sum]
        variance = [(n * q - s * s) / (n * n) for s, q in zip(self._sum, self._squares, strict=True)]
        return mean, [math.sqrt(v) / 255 for v in variance]


def _write(decoding: Decoding, split: Split, folder: Path, emit: Emit) -> str:
    """Write a split into a new folder, durably; its fingerprint."""
    started_s = logged_s = time.monotonic()
    samples = decoding.shape[0]
    moments = _Moments(decoding.shape[3])
    digest = hashlib.sha256(_header(decoding, split))
    folder.mkdir()
    _check_room(folder, math.prod(decoding.shape) + decoding.labels_N.nbytes)
    with (folder / "images.npy").open("wb") as file, contextlib.closing(decoding.blocks) as blocks:
        _write_npy_header(file, np.dtype(np.uint8), decoding.shape)
        done = 0
        for block in blocks:
            digest.update(block.data)
            moments.add(block)
            file.write(block.data)
            done += len(block)
            if time.monotonic() - logged_s > _LOG_EVERY_S:
                logged_s = time.monotonic()
                emit(Log(message=f"decoded {done:,} of {samples:,} pictures of {split}"))
        sync(file)
    labels = decoding.labels_N.astype("<i8")
    digest.update(labels.data)
    with (folder / "labels.npy").open("wb") as file:
        _write_npy_header(file, labels.dtype, labels.shape)
        file.write(labels.data)
        sync(file)
    mean, std = moments.mean_and_std()
    fingerprint = digest.hexdigest()
    meta = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "split": split,
        "shape": decoding.shape,
        "class_names": decoding.class_names,
        "channel_mean": mean,
        "channel_std": std,
        "size_bytes": {name: (folder / name).stat().st_size for name in ("images.npy", "labels.npy")},
    }
    _write_durably(folder / "meta.json", meta)
    emit(Log(message=f"decoded {samples:,} pictures of {split} in {time.monotonic() - started_s:.1f} s"))
    return fingerprint


def _header(decoding: Decoding, split: Split) -> bytes:
    header = {
        "format": "retort-dataset-1",
        "split": split,
        "shape": decoding.shape,
        "class_names": decoding.class_names,
    }
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _write_npy_header(file: BinaryIO, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _publish(partial: Path, fingerprint: str) -> Dataset:
    """Give a finished folder its name; another source with the same content may have been first."""
    work_dir = partial.parent
    with alone(work_dir / "sources" / "publish.lock", never, _PREPARES):
        try:
            return open_prepared(work_dir, fingerprint)
        except InvalidDataset:
            # None there, or a damaged one: processes that have mapped that keep their mapping.
            shutil.rmtree(work_dir / fingerprint, ignore_errors=True)
        partial.rename(work_dir / fingerprint)
        sync_folder(work_dir)
        return open_prepared(work_dir, fingerprint)


def _write_durably(path: Path, content: Mapping[str, object]) -> None:
    with replacing(path, "a data set") as file:
        file.write(json.dumps(content, indent=1).encode())


# -------------------------------------------------------------------------------------- disk space


def _check_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + _MARGIN_BYTES:
        raise DiskLow(
            f"{folder.parent} has {free:,} bytes free, the decoded data set needs {needed_bytes:,} and a "
            f"margin of {_MARGIN_BYTES:,}: free some space, or set RETORT_DATA_DIR to a larger disk"
        )
