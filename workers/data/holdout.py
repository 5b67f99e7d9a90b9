"""Holdout of a training split: which rows become the validation split, and the folder that lists them.

The rows are a pure function of (labels, holdout): the same on every machine. The split is known by the fingerprint of
the training split and the rows; its folder holds their list and no picture.

Legend: N samples of the training split, V of them held out.
"""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.data import decoded
from workers.data.holdout_spec import Holdout
from workers.data.prepared import FORMAT, Dataset, open_prepared
from workers.errors import InvalidDataset
from workers.events import DatasetReady, Emit, ignore, never
from workers.files import alone, disk_full_is_disk_low, sync, sync_folder

Rows = NDArray[np.int64]


def holdout_rows(labels_N: NDArray[np.int64], holdout: Holdout, class_names: tuple[str, ...]) -> Rows:
    """Draw the rows of the validation split: int64 [V], ascending.

    Raises:
        InvalidDataset: nothing would be held out, or a class would keep no picture to train on.
    """
    labels_N = np.asarray(labels_N)
    groups = [np.arange(len(labels_N))]
    if holdout.stratified:
        counts = np.bincount(labels_N, minlength=len(class_names))
        groups = np.split(np.argsort(labels_N, kind="stable"), np.cumsum(counts)[:-1])
    chosen = []
    for number, rows in enumerate(groups):
        # Philox is counter-based: (seed, group) is its key, the same on every machine.
        order = np.random.Generator(np.random.Philox(key=np.array([holdout.seed, number], dtype=np.uint64)))
        count = min(round(holdout.holdout * len(rows)), len(rows) - 1)
        chosen.append(order.permutation(rows)[:count])
    rows_V = np.sort(np.concatenate(chosen)).astype(np.int64)
    if not len(rows_V):
        raise InvalidDataset(
            f"validation.holdout of {holdout.holdout} holds none of {len(labels_N)} training pictures out "
            f'({len(class_names)} classes): raise it, or say `"stratified": false`'
        )
    kept = np.bincount(np.delete(labels_N, rows_V), minlength=len(class_names))
    if (empty := np.flatnonzero(kept == 0)).size:
        raise InvalidDataset(
            f"validation.holdout of {holdout.holdout} leaves class {int(empty[0])} ({class_names[empty[0]]!r}) without "
            f'a training picture ({empty.size} of {len(class_names)} classes): lower it, or say `"stratified": true`'
        )
    return rows_V


def hold_out(train: Dataset, holdout: Holdout, work_dir: Path, emit: Emit = ignore) -> Dataset:
    """Make the validation split of a prepared training split, or map that which was made before.

    Emits ``DatasetReady`` at the end.

    Raises:
        InvalidDataset: as ``holdout_rows``.
        DiskLow: no room for the list of rows.
    """
    rows_V = holdout_rows(train.labels_N, holdout, train.class_names)
    header = json.dumps({"format": "retort-rows-1", "split": "validation", "of": train.fingerprint}, sort_keys=True)
    fingerprint = hashlib.sha256(header.encode() + b"\n" + rows_V.astype("<i8").tobytes()).hexdigest()
    held = _opened_or_made(train, rows_V, work_dir, fingerprint)
    emit(
        DatasetReady(
            split=held.split, fingerprint=held.fingerprint, samples=held.samples, classes=held.classes, reused=True
        )
    )
    return held


def _opened_or_made(train: Dataset, rows_V: Rows, work_dir: Path, fingerprint: str) -> Dataset:
    folder = work_dir / f"{fingerprint}{decoded.ROWS_SUFFIX}"
    partial = work_dir / f"{decoded.PARTIAL_PREFIX}{folder.name}"
    lock = work_dir / decoded.SOURCES / f"{folder.name}.lock"
    # The lock that ``decoded.sweep`` asks before it removes what a killed process has left.
    with alone(lock, never, "cuts the same validation split"), decoded.publish_lock(work_dir):
        # One that is damaged is made again.
        with contextlib.suppress(InvalidDataset):
            if folder.is_dir():
                return open_prepared(work_dir, fingerprint)
        for old in (partial, folder):
            shutil.rmtree(old, ignore_errors=True)
        with disk_full_is_disk_low(work_dir, "a validation split"):
            try:
                _write(partial, fingerprint, train, rows_V)
                partial.rename(folder)
                sync_folder(work_dir)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return open_prepared(work_dir, fingerprint)


def _write(folder: Path, fingerprint: str, train: Dataset, rows_V: Rows) -> None:
    folder.mkdir(parents=True)
    np.save(folder / "rows.npy", rows_V)
    meta = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "split": "validation",
        "shape": [len(rows_V), *train.picture_shape],
        "rows_of": train.fingerprint,
        "size_bytes": {"rows.npy": (folder / "rows.npy").stat().st_size},
    }
    (folder / decoded.META).write_text(json.dumps(meta, indent=1))
    for path in folder.iterdir():
        with path.open("rb+") as file:
            sync(file)
    sync_folder(folder)
