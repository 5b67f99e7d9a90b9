"""Caches that a job would have: rows, bytes, and what of them is there already, without decoding a picture.

A cache is known by its key, which contains the fingerprint of the decoded pictures. That is known where the very files
of the dataset were decoded before; else no cache of them can be looked up.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from store import CacheNotFound, CacheSpec, Catalog, chunks_bytes, full_bytes
from store.spec import StoredKind
from workers.config.job import Plan
from workers.data.dataset_kind import Source
from workers.data.preparation.decoded import META, KnownSplit, folder_of_copy, known_split
from workers.data.preparation.holdout_rows import holdout_fingerprint, holdout_rows
from workers.data.preparation.holdout_spec import Holdout
from workers.errors import InvalidDataset
from workers.events import Split
from workers.teacher.cache_plan import KnownTeacher, cache_specs
from workers.teacher.combined_cache import combined_specs, member_job

# What the caches of a job are of: a teacher, or imported logits, whose caches are there.
CachesOf = KnownTeacher | Mapping[Split, CacheSpec]
# In the place of a fingerprint that is not known; a cache's size does not depend on it.
_UNKNOWN = "0" * 64
_STORED_KINDS: tuple[StoredKind, ...] = get_args(StoredKind)
KNOWN = "looked up by key: these very files were decoded before"
NOT_DECODED = "these files were not decoded before, or the copy is gone: no cache of them can be looked up"


@dataclass(frozen=True)
class ExpectedCache:
    """Cache that a job would have.

    Attributes:
        key: None where it is not known.
        is_exact: whether the number of its samples, and so everything else, is exact.
        samples, rows: pictures, and rows of all views.
        chunks_bytes: of its arrays when complete.
        full_bytes: the same with its descriptions, at most.
        rows_cached: that are committed.
    """

    split: Split
    key: str | None
    is_exact: bool
    samples: int
    views: int
    chunks_bytes: int
    full_bytes: int
    rows_cached: int

    @property
    def rows(self) -> int:
        """Rows of all views."""
        return self.samples * self.views


@dataclass(frozen=True)
class ExpectedCaches:
    """Caches that a job would have, and how it is known what of them is there.

    Attributes:
        samples: pictures of each split that the job uses; a validation split that is held out is part of train, too.
    """

    caches: tuple[ExpectedCache, ...]
    samples: Mapping[Split, int]
    is_exact: bool
    known_by: str


def expected_caches(plan: Plan, teacher: CachesOf, source: Source, datasets: Path, catalog: Catalog) -> ExpectedCaches:
    """Look up the caches of a job.

    Args:
        teacher: or the caches of imported logits, by split.
        source: the dataset, as it was examined.
        datasets: folder of the decoded datasets.
        catalog: of the caches.
    """
    looked = _look_at_splits(plan, source, datasets)
    return _as_expected(plan, _look_up(plan, teacher, looked, catalog=catalog), looked, catalog=catalog)


def expected_combination(
    plan: Plan,
    teachers: Sequence[tuple[CachesOf, float]],
    source: Source,
    datasets: Path,
    catalog: Catalog,
) -> tuple[list[ExpectedCaches], ExpectedCaches]:
    """Look up the caches of a job of several teachers: those of each, and those that are combined of them.

    Args:
        teachers: or caches of imported logits, with their weights.
    """
    looked, alone = _look_at_splits(plan, source, datasets), member_job(plan)
    members = [_look_up(alone, teacher, looked, catalog=catalog) for teacher, _ in teachers]
    combined = combined_specs(plan, members, [weight for _, weight in teachers], looked.splits)
    return (
        [_as_expected(alone, specs, looked, catalog=catalog) for specs in members],
        _as_expected(plan, combined, looked, catalog=catalog),
    )


class _Splits(NamedTuple):
    """Splits that a job uses, in its order; those whose fingerprints are known, and whose samples are exact."""

    splits: dict[Split, KnownSplit]
    known: Mapping[Split, KnownSplit]
    exact: set[Split]


def _look_at_splits(plan: Plan, source: Source, datasets: Path) -> _Splits:
    wanted = plan.splits(source.splits)
    known = known_splits(plan, source, datasets)
    size = plan.dataset.picture_size or (0, 0)
    train = known.get("train")
    height, width = (train.height, train.width) if train is not None else size
    splits, exact = dict[Split, KnownSplit](), set[Split]()
    for split in wanted:
        count, is_exact = _samples(plan.validation, source, split)
        splits[split] = known.get(split) or KnownSplit(_UNKNOWN, count, height, width)
        if (is_exact and not plan.dataset.leaves_out) or split in known:
            exact.add(split)
    return _Splits(splits, known, exact)


def _as_expected(plan: Plan, specs: Mapping[Split, CacheSpec], looked: _Splits, *, catalog: Catalog) -> ExpectedCaches:
    splits, known, exact = looked
    # Of imported logits some splits may have none.
    shown = [split for split in splits if split in specs and (split != "train" or not plan.evaluate)]
    caches = tuple(_expected(split, specs[split], known, exact, catalog=catalog) for split in shown)
    is_known = all(split in known for split in shown)
    samples = {split: splits[split].samples for split in splits}
    return ExpectedCaches(caches, samples, len(exact) == len(splits), KNOWN if is_known else NOT_DECODED)


def _look_up(plan: Plan, teacher: CachesOf, looked: _Splits, *, catalog: Catalog) -> dict[Split, CacheSpec]:
    """Specifications, of the kind of output with which caches are there: only running the teacher tells the kind."""
    if not isinstance(teacher, KnownTeacher):
        return dict(teacher)
    of_kind = [cache_specs(plan, teacher._replace(output_kind=kind), looked.splits) for kind in _STORED_KINDS]
    there = [sum(_is_there(specs[split], catalog) for split in specs if split in looked.known) for specs in of_kind]
    return of_kind[there.index(max(there))]


def _is_there(spec: CacheSpec, catalog: Catalog) -> bool:
    return (catalog.root / spec.key).is_dir()


def _expected(
    split: Split, spec: CacheSpec, known: Collection[str], exact: Collection[str], *, catalog: Catalog
) -> ExpectedCache:
    return ExpectedCache(
        split=split,
        key=spec.key if split in known else None,
        is_exact=split in exact,
        samples=spec.samples,
        views=spec.views,
        chunks_bytes=chunks_bytes(spec),
        full_bytes=full_bytes(spec),
        rows_cached=_rows_cached(spec.key, catalog) if split in known else 0,
    )


def _rows_cached(key: str, catalog: Catalog) -> int:
    try:
        return catalog.get(key).rows_committed
    except CacheNotFound:
        return 0


def samples_of(plan: Plan, source: Source) -> dict[str, int]:
    """Pictures of each split of a dataset; ``validation`` is that of the job where it holds pictures out."""
    splits: list[Split] = [*source.samples, *(() if plan.validation is None else ("validation",))]
    return {split: _samples(plan.validation, source, split)[0] for split in splits}


def _samples(holdout: Holdout | None, source: Source, split: Split) -> tuple[int, bool]:
    """Pictures of a split, and whether that is exact: labels tell how many are held out of each class."""
    if split != "validation" or holdout is None:
        return source.samples[split], True
    labelled = source.labelled_samples["train"]
    if not holdout.stratified or not labelled:
        return _held_out(holdout, labelled or source.samples["train"]), True
    counts = source.class_counts.get("train")
    if counts is None:
        return max(1, round(holdout.holdout * labelled)), False
    return sum(_held_out(holdout, count) for count in counts), True


def _held_out(holdout: Holdout, count: int) -> int:
    return max(0, min(round(holdout.holdout * count), count - 1))


def known_splits(plan: Plan, source: Source, datasets: Path) -> dict[Split, KnownSplit]:
    """Splits that a job uses whose fingerprints are known."""
    key = source.key()
    own = [split for split in plan.splits(source.splits) if split in source.samples]
    found = {split: known for split in own if (known := known_split(datasets, key, split)) is not None}
    if plan.validation is not None and "train" in found:
        held_out = _known_holdout(plan.validation, found["train"], datasets)
        if held_out is not None:
            found["validation"] = held_out
    return found


def _known_holdout(holdout: Holdout, train: KnownSplit, datasets: Path) -> KnownSplit | None:
    """The validation split that is held out, by the labels of the training split."""
    folder = folder_of_copy(datasets, train.fingerprint)
    try:
        labels_N = np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False)
        names = _class_names(folder)
        rows_V = holdout_rows(labels_N, holdout, names)
    except (OSError, ValueError, KeyError, InvalidDataset):
        return None
    return train._replace(fingerprint=holdout_fingerprint(rows_V, train.fingerprint), samples=len(rows_V))


def known_class_names(source: Source, datasets: Path) -> tuple[str, ...] | None:
    """Class names of a dataset in label order; None where only decoding tells them, and these files were not yet."""
    if source.class_names is not None:
        return source.class_names
    known = known_split(datasets, source.key(), "train")
    try:
        return None if known is None else _class_names(folder_of_copy(datasets, known.fingerprint))
    except (OSError, ValueError, KeyError):
        return None


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(json.loads((folder / META).read_text())["class_names"])
