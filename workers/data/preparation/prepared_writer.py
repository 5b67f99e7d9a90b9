"""Writing of a prepared split, as ``prepare`` has it: decoded to a folder aside, which then gets its final name."""

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

from workers.data.decoding.blocks import Decoding
from workers.data.preparation import decoded, row_digests, sample_ids
from workers.data.preparation.image_files import ListedFiles
from workers.data.preparation.moments import Moments
from workers.data.preparation.prepared import FORMAT, Dataset, folder_of, open_folder
from workers.errors import DiskLow, InvalidDataset
from workers.events import Emit, Log, Split
from workers.files import MARGIN_BYTES, replacing, sync, sync_folder

_LOG_EVERY_S = 10.0


def write_split(decoding: Decoding, split: Split, folder: Path, emit: Emit, listed: ListedFiles | None) -> str:
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
    write_durably(folder / decoded.META, meta)
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


def publish(partial: Path, fingerprint: str, decoding: Decoding, *, keeps_files: bool) -> Dataset:
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


def write_durably(path: Path, content: Mapping[str, object]) -> None:
    with replacing(path, "a dataset") as file:
        file.write(json.dumps(content, indent=1).encode())


def _check_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + MARGIN_BYTES:
        raise DiskLow(
            f"RETORT_DATA_DIR has {free:,} bytes free, the decoded dataset needs {needed_bytes:,} and a "
            f"margin of {MARGIN_BYTES:,}: free some space, set it to a larger disk, or give a folder "
            "of pictures storage 'files', which keeps no decoded copy"
        )
