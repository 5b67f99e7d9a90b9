"""Splits of decoded datasets, found by a registered dataset or by the fingerprint of their content.

Legend: N samples of a split.
"""

import re
from pathlib import Path

import numpy as np

from service.api.schemas.pictures import PictureRow, Split, SplitClass
from service.db.models import DatasetRecord
from service.db.queries.api_queries import DATASET, ApiQueries
from service.errors import Conflict, NotFound
from service.paths import API_PREFIX
from workers.data.dataset_kind import SPLITS
from workers.data.preparation.decoded import splits_of
from workers.data.preparation.prepared import Dataset, open_prepared
from workers.errors import InvalidDataset
from workers.texts import storable
from workers.unlabelled import class_name, count_classes

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def is_fingerprint(dataset: str) -> bool:
    """Whether a dataset is named by the content of one of its splits, and not by its id."""
    return _FINGERPRINT.fullmatch(dataset) is not None


def open_fingerprint(datasets_dir: Path, fingerprint: str) -> Dataset:
    """Open a split by its content.

    Raises:
        NotFound: it is not decoded here, or damaged.
    """
    try:
        return open_prepared(datasets_dir, fingerprint)
    except InvalidDataset:
        raise NotFound("decoded dataset", fingerprint) from None


def open_splits(queries: ApiQueries, datasets_dir: Path, dataset: str) -> list[Dataset]:
    """Open every decoded split of a dataset: ``train`` first; for a fingerprint the one that it names.

    Raises:
        NotFound: there is no such dataset, or nothing decoded with this fingerprint.
        Conflict: it has not been decoded yet.
    """
    if is_fingerprint(dataset):
        return [open_fingerprint(datasets_dir, dataset)]
    spec = DATASET.validate_python(queries.get(DatasetRecord, dataset).spec)
    fingerprints = splits_of(datasets_dir, spec)
    if not fingerprints:
        raise Conflict(
            f"dataset {dataset} has not been decoded yet, or its copy was removed: the next job that uses it decodes it"
        )
    return [open_fingerprint(datasets_dir, fingerprints[split]) for split in SPLITS if split in fingerprints]


def open_split(queries: ApiQueries, datasets_dir: Path, dataset: str, split: str | None) -> Dataset:
    """Open one split of a dataset; ``split`` may be None where there is only one.

    Raises:
        NotFound, Conflict: as ``open_splits``, or it has no such split, or several.
    """
    found = {opened.split: opened for opened in open_splits(queries, datasets_dir, dataset)}
    if split is None:
        if len(found) > 1:
            raise Conflict(f"dataset {dataset} has the splits {', '.join(found)}: say which, as in ?split=test")
        return next(iter(found.values()))
    for opened in found.values():
        if opened.split == split:
            return opened
    raise NotFound("decoded split", f"{dataset}/{split}")


def picture_path(fingerprint: str, split: str, row: int) -> str:
    """Address of a picture by its content, which never shows anything else."""
    return f"{API_PREFIX}/datasets/{fingerprint}/pictures/{split}/{row}.png"


def sample_id(opened: Dataset, row: int) -> str | None:
    """Sample id of a row, fit for JSON; None for a split that an earlier version has decoded."""
    return None if opened.sample_ids is None else str(storable(opened.sample_ids[row]))


def show_split(opened: Dataset) -> Split:
    """Document of a split, with the pictures of each class counted."""
    counts = count_classes(opened.labels_N, opened.classes).tolist()
    return Split(
        split=opened.split,
        fingerprint=opened.fingerprint,
        samples=opened.samples,
        height=opened.height,
        width=opened.width,
        channels=opened.channels,
        unlabelled=opened.samples - sum(counts),
        classes=[
            SplitClass(label=label, name=name, samples=count)
            for label, (name, count) in enumerate(zip(opened.class_names, counts, strict=True))
        ],
    )


def list_pictures(opened: Dataset, label: int | None, after: int, limit: int) -> tuple[list[PictureRow], bool]:
    """Pictures of a split after row ``after`` (-1 for all), of one class or of all; and whether there are more.

    Args:
        label: of the class, or ``NO_LABEL`` for the pictures without one.
    """
    labels_N = np.asarray(opened.labels_N)
    rows = np.arange(opened.samples) if label is None else np.flatnonzero(labels_N == label)
    first = int(np.searchsorted(rows, after, side="right"))
    chosen = rows[first : first + limit].tolist()
    shown = [
        PictureRow(
            row=row,
            label=None if labels_N[row] < 0 else int(labels_N[row]),
            class_name=class_name(opened.class_names, int(labels_N[row])),
            sample_id=sample_id(opened, row),
            picture=picture_path(opened.fingerprint, opened.split, row),
        )
        for row in chosen
    ]
    return shown, first + limit < len(rows)
