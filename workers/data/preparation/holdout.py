"""Holdout of a training split: the folder that lists the rows of the validation split, and no picture.

Legend: V rows are held out.
"""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np

from workers.data.preparation import decoded
from workers.data.preparation.holdout_rows import Rows, holdout_fingerprint, holdout_rows
from workers.data.preparation.holdout_spec import Holdout
from workers.data.preparation.prepared import FORMAT, Dataset, open_prepared
from workers.errors import InvalidDataset
from workers.events import DatasetReady, Emit, ignore, never
from workers.files import alone, disk_full_is_disk_low, sync, sync_folder


def hold_out(train: Dataset, holdout: Holdout, work_dir: Path, emit: Emit = ignore) -> Dataset:
    """Make the validation split of a prepared training split, or map that which was made before.

    Emits ``DatasetReady`` at the end.

    Raises:
        InvalidDataset: as ``holdout_rows``.
        DiskLow: no room for the list of rows.
    """
    rows_V = holdout_rows(train.labels_N, holdout, train.class_names)
    held = _opened_or_made(train, rows_V, work_dir, holdout_fingerprint(rows_V, train.fingerprint))
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
