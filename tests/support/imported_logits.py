"""Logits to import, in the forms that people have, and a dataset that they are of."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from store import CacheReader
from workers.config.task import Folders
from workers.data.kinds.digits import DigitsDataset
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation.prepare import prepare
from workers.data.preparation.prepared import row_ids
from workers.errors import InvalidLogits
from workers.teacher.imports import reading_child
from workers.teacher.imports.import_cache import import_cache
from workers.teacher.imports.request import ImportedCache, ImportOptions, ImportTask
from workers.teacher.imports.uploaded_file import UploadedLogits

LIMIT = 64 << 20
# Of whatever numpy makes an array of.
Values: TypeAlias = Any


class Place:
    """A dataset with logits that are nearly always right, and a place to import them to."""

    def __init__(self, folder: Path, dataset: DigitsDataset | NpzDataset) -> None:
        self.folder, self.dataset = folder, dataset
        self.folders = Folders(data_dir=folder / "data", data_root=folder)
        self.folders.data_dir.mkdir()
        train = prepare(dataset, "train", folder, self.folders.datasets)
        self.ids = np.array(list(row_ids(train)))
        self.labels = np.asarray(train.labels_N)
        self.logits = np.random.default_rng(0).normal(size=(train.samples, train.classes)).astype(np.float32)
        self.logits[np.arange(train.samples), self.labels] += 4
        self._files = 0

    def read(self, content: bytes) -> UploadedLogits:
        """Rows of a file, read in this process: the sandbox around it takes a second."""
        self._files += 1
        path, target = (self.folder / f"{kind}-{self._files}" for kind in ("upload", "rows"))
        path.write_bytes(content)
        with target.open("w+b") as file:
            file.truncate(LIMIT)
            answer: Any = reading_child.answer(str(path), file.fileno(), LIMIT)
            if "error" in answer:
                raise InvalidLogits(answer["error"])
            rows = UploadedLogits(path=target, **answer)
            file.truncate(rows.size_bytes)
        return rows

    def task(self, read: UploadedLogits, **options: object) -> ImportTask:
        stated = ImportOptions.model_validate({"dataset": self.dataset, **options})
        return ImportTask(options=stated, rows=read, sha256="0" * 64, folders=self.folders)

    def take(self, content: bytes, **options: object) -> ImportedCache:
        return import_cache(self.task(self.read(content), **options))

    def stored(self, key: str) -> CacheReader:
        return CacheReader.from_key(self.folders.caches, key)


def npy(array: Values) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(save: Callable[..., None] = np.savez, **arrays: Values) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def parquet(**columns: Values) -> bytes:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({name: list(column) for name, column in columns.items()}), file)
    return file.getvalue()


def softmax(z: Values) -> Values:
    p = np.exp(z.astype(np.float64))
    return p / p.sum(axis=-1, keepdims=True)
