"""Preparation of datasets: each split is decoded once, into a folder named by the fingerprint of its content.

``prepare`` decodes a split to ``<work_dir>/<fingerprint>/`` and notes which source it came from, so that later calls
map it without decoding:

    <fingerprint>/images.npy    uint8 [N, H, W, C]
    <fingerprint>/labels.npy    int64 [N]
    <fingerprint>/row_digests.npy    uint64 [N], see ``row_digests``
    <fingerprint>/sample_ids.bin     see ``sample_ids``
    <fingerprint>/meta.json     shape, class names, channel mean and std, size of each file
    sources/<source key>.<split>.json    {"fingerprint": ..., "spec": ...}

A folder of pictures that is to stay files is read as often, once, and leaves a list of them instead of
``images.npy`` (see ``image_files``) in ``<fingerprint>.files/``. Where both are there, the decoded copy
is used: the pictures are the same.

A prepared folder appears whole or not at all (written aside, fsync, rename); processes that prepare the same source
wait for the first of them. Nothing is downloaded.

Legend: N samples, b samples of a block, H x W pixels, C channels.
"""

import contextlib
import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from workers.data import decoded, kept_indexes, row_digests, sample_ids
from workers.data.bad_picture_reports import log_left_out, log_report, write_report
from workers.data.bad_pictures import BadPictures
from workers.data.blocks import Decoding
from workers.data.confinement import named_below
from workers.data.discovery import examine
from workers.data.image_files import ListedFiles
from workers.data.kinds.base import DatasetKind, Source
from workers.data.moments import Moments
from workers.data.prepared import FORMAT, Dataset, DecodedDataset, folder_of, open_folder, open_prepared, read_meta
from workers.errors import DiskLow, InvalidDataset
from workers.events import DatasetReady, Emit, Log, ShouldStop, Split, ignore, never
from workers.files import alone, disk_full_is_disk_low, replacing, sync, sync_folder

_LOG_EVERY_S = 10.0
_PREPARES = "prepares the same dataset"
# Left free on the disk besides the copy itself.
_MARGIN_BYTES = 64 << 20


def prepare(
    spec: DatasetKind,
    split: Split,
    data_root: Path,
    work_dir: Path,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
) -> Dataset:
    """Decode a split, or map what an earlier call decoded from the same files.

    Where pictures stay files, they are decoded all the same, to know what they are, and not kept.

    Emits ``DatasetReady`` at the end, and a ``Log`` now and then while decoding.

    Raises:
        InvalidDataset: missing, outside ``data_root``, unreadable or inconsistent.
        DiskLow: no room in ``work_dir``; nothing is left behind.
        Stopped: ``should_stop`` returned true; nothing is left behind.
    """
    with named_below(data_root), kept_indexes.kept_in(work_dir):
        return _prepare(spec, split, data_root, work_dir, emit=emit, should_stop=should_stop)


def _prepare(
    spec: DatasetKind, split: Split, data_root: Path, work_dir: Path, emit: Emit, should_stop: ShouldStop
) -> Dataset:
    source = examine(spec, data_root, work_dir)
    key = source.key()
    listed = ListedFiles(source, key) if spec.keeps_files else None
    pointer = work_dir / decoded.SOURCES / f"{key}.{split}.json"
    pointer.parent.mkdir(parents=True, exist_ok=True)
    lock = pointer.with_suffix(".lock")
    with alone(lock, should_stop, _PREPARES), disk_full_is_disk_low(work_dir, "a dataset"):
        with decoded.publish_lock(work_dir):
            dataset = _remembered(pointer, work_dir, listed)
        reused = dataset is not None
        if dataset is None:
            dataset = _decode(source, split, pointer, listed, emit=emit, should_stop=should_stop)
    if spec.leaves_out:
        log_left_out(work_dir, spec, split, emit)
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


def _decode(
    source: Source, split: Split, pointer: Path, listed: ListedFiles | None, *, emit: Emit, should_stop: ShouldStop
) -> Dataset:
    """Decode a split, and note at ``pointer`` what it became; bad pictures are reported beside it."""
    spec, work_dir = source.spec, pointer.parent.parent
    _warn_of_ignored(source, emit)
    partial = work_dir / f"{decoded.PARTIAL_PREFIX}{pointer.stem}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        decoding = spec.decode(source, split, should_stop)
        fingerprint = _write(decoding, split, partial, emit=emit, listed=listed)
        dataset = _publish(partial, fingerprint, decoding, keeps_files=listed is not None)
    except BadPictures as error:
        if report := write_report(pointer, spec, split, error.bad, pictures=error.pictures, left_out=False):
            log_report(report, emit)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    pictures = dataset.samples + len(decoding.left_out)
    write_report(pointer, spec, split, decoding.left_out, pictures=pictures, left_out=True)
    _write_durably(pointer, {"fingerprint": fingerprint, "spec": spec.content_description()})
    return dataset


def _remembered(pointer: Path, work_dir: Path, listed: ListedFiles | None) -> Dataset | None:
    """Copy or list that this source was decoded to, if it is still there and whole.

    A list will do where one is wanted, if it is of this source's files: others that hold the same pictures
    may change on their own.
    """
    try:
        dataset = open_prepared(work_dir, json.loads(pointer.read_text())["fingerprint"])
        if isinstance(dataset, DecodedDataset):
            return dataset
        if listed is not None and read_meta(dataset.path)["files"]["source"] == listed.key:
            return dataset
    except (OSError, ValueError, KeyError):  # InvalidDataset is a ValueError
        pass
    return None


def _warn_of_ignored(source: Source, emit: Emit) -> None:
    if source.ignored and source.path:
        first = source.ignored[0].relative_to(source.path)
        emit(
            Log(
                level="warning",
                message=f"{len(source.ignored)} files are not pictures, or lie beside class folders, and were left "
                f"out, e.g. {first}",
            )
        )


# ----------------------------------------------------------------------------------------- writing


def _write(decoding: Decoding, split: Split, folder: Path, emit: Emit, listed: ListedFiles | None) -> str:
    """Write a split into a new folder, durably: a decoded copy, or the list of its files; its fingerprint."""
    started_s = time.monotonic()
    digest = hashlib.sha256(_header(decoding, split))
    moments = Moments(decoding.shape[3])
    labels = decoding.labels_N.astype("<i8")
    arrays: dict[str, NDArray[np.generic]] = {"labels.npy": labels}
    if listed is not None:
        # Before they are read: a picture that changes in between does not pass for the one that was read.
        arrays |= listed.arrays(decoding)
    folder.mkdir()
    copy_bytes = 0 if listed is not None else math.prod(decoding.shape)
    _check_room(folder, copy_bytes + sum(array.nbytes for array in arrays.values()))
    if listed is not None:
        digests = _read(decoding, split, emit, digest=digest, moments=moments, copy=None)
    else:
        with (folder / "images.npy").open("wb") as copy:
            _write_npy_header(copy, np.dtype(np.uint8), decoding.shape)
            digests = _read(decoding, split, emit, digest=digest, moments=moments, copy=copy)
            sync(copy)
    arrays[row_digests.FILE] = digests
    digest.update(labels.data)
    for name, array in arrays.items():
        with (folder / name).open("wb") as file:
            _write_npy_header(file, array.dtype, array.shape)
            file.write(array.data)
            sync(file)
    mean, std = moments.mean_and_std()
    fingerprint = digest.hexdigest()
    meta = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "split": split,
        "shape": decoding.shape,
        "class_names": decoding.class_names,
        "channel_mean": mean,
        "channel_std": std,
        "size_bytes": {path.name: path.stat().st_size for path in folder.iterdir()},
    }
    if listed is not None:
        meta["files"] = listed.meta()
    # Later than the sizes: they are no part of the content, and may be replaced.
    sample_ids.write_ids(folder, decoding.sample_ids or map(str, range(decoding.shape[0])))
    _write_durably(folder / decoded.META, meta)
    seconds = f"{time.monotonic() - started_s:.1f} s" + ("" if listed is None else "; they stay files")
    emit(Log(message=f"decoded {decoding.shape[0]:,} pictures of {split} in {seconds}"))
    return fingerprint


def _read(
    decoding: Decoding,
    split: Split,
    emit: Emit,
    digest: "hashlib._Hash",
    moments: Moments,
    copy: BinaryIO | None,
) -> row_digests.Digests:
    """Decode every picture once, into the digest, the moments and the copy, if there is to be one; digest each."""
    logged_s, done = time.monotonic(), 0
    digests = []
    with contextlib.closing(decoding.blocks) as blocks:
        for block in blocks:
            digest.update(block.data)
            moments.add(block)
            digests.append(row_digests.digest_rows(block))
            if copy is not None:
                copy.write(block.data)
            done += len(block)
            if time.monotonic() - logged_s > _LOG_EVERY_S:
                logged_s = time.monotonic()
                emit(Log(message=f"decoded {done:,} of {decoding.shape[0]:,} pictures of {split}"))
    return np.concatenate(digests)


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


def _publish(partial: Path, fingerprint: str, decoding: Decoding, *, keeps_files: bool) -> Dataset:
    """Give a finished folder its name; another source with the same content may have been first."""
    work_dir = partial.parent
    folder = folder_of(work_dir, fingerprint, keeps_files=keeps_files)
    with decoded.publish_lock(work_dir):
        # The same pictures in other files, or with other times: the latest list is the one that holds.
        if not keeps_files:
            with contextlib.suppress(InvalidDataset):
                open_folder(folder, fingerprint)
                sample_ids.adopt(partial, folder, are_names=decoding.sample_ids is not None)
                return open_folder(folder, fingerprint)
        # None there, or one that does not hold: processes that have mapped it keep their mapping.
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        sync_folder(work_dir)
        return open_folder(folder, fingerprint)


def _write_durably(path: Path, content: Mapping[str, object]) -> None:
    with replacing(path, "a dataset") as file:
        file.write(json.dumps(content, indent=1).encode())


# -------------------------------------------------------------------------------------- disk space


def _check_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + _MARGIN_BYTES:
        raise DiskLow(
            f"RETORT_DATA_DIR has {free:,} bytes free, the decoded dataset needs {needed_bytes:,} and a "
            f"margin of {_MARGIN_BYTES:,}: free some space, set it to a larger disk, or give a folder "
            "of pictures storage 'files', which keeps no decoded copy"
        )
