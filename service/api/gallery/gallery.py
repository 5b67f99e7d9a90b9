"""Gallery of a run: rows of a split by temperature, disagreement or the teacher's mistakes, with both logits.

Shapes: N rows of the split, V views, C classes, K rows to show.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.api.gallery.divergence import log_softmax
from service.api.gallery.kept_logits import LogitsFile
from service.api.gallery.row_temperatures import (
    MethodRowTemperatures,
    NetworkRowTemperatures,
    method_of,
    method_temperatures,
    student_statistics,
    term_of,
    training_statistics,
)
from service.api.gallery.rows import Chosen, by_disagreement, by_mistake, by_value, check_kept
from service.api.gallery.splits import picture_path, sample_id
from service.api.schemas.gallery import (
    GalleryOrder,
    GalleryRow,
    NetworkRow,
    RowTemperature,
    RowTemperatures,
)
from service.db.models import RunRecord
from service.errors import Conflict
from service.paths import API_PREFIX
from store import CacheReader, StoreError
from workers.data.preparation.prepared import Dataset
from workers.methods.cache_statistics import CacheStatistic
from workers.methods.cache_values import Values
from workers.methods.method import Term
from workers.teacher.cached_views import CachedViews

MEASURES: Mapping[GalleryOrder, str] = {
    "highest_temperature": "the teacher's temperature by the run's method",
    "lowest_temperature": "the teacher's temperature by the run's method",
    "disagreement": "Jensen-Shannon divergence of both softmaxes at T = 1, in nats (0..0.693)",
    "teacher_mistakes": "the teacher's softmax probability of the class that it takes, which is not the label",
}


@dataclass(frozen=True)
class Query:
    """Query for a gallery.

    Attributes:
        view: of the cache.
        term: of the method, from 0.
        epoch: that policies may read, at most the run's last; None is the last that it has trained.
    """

    by: GalleryOrder
    split: Literal["train", "validation", "test"]
    limit: int
    view: int = 0
    term: int = 0
    epoch: int | None = None


@dataclass(frozen=True)
class Sources:
    """Sources of a gallery.

    Attributes:
        reader: the teacher's cache of the split.
        kept: the student's logits; None where there are none.
        opened: the decoded split; None where it is gone.
        train_cache: (root, key) of the run's training cache, for policies that read statistics of it.
    """

    run: RunRecord
    reader: CacheReader
    kept: LogitsFile | None
    opened: Dataset | None
    train_cache: tuple[Path, str | None]

    @property
    def is_mixed(self) -> bool:
        """Whether the cache's views are mixed with those of other rows."""
        return not {"mixup", "cutmix"}.isdisjoint(self.reader.spec.augmentation)

    def labels(self, view: int) -> npt.NDArray[np.int64] | None:
        """Labels of a view of the split, the heavier ones of mixed views; None where nobody has them any more."""
        if self.opened is not None and not self.is_mixed:
            return np.asarray(self.opened.labels_N)
        if self.opened is not None:
            views = CachedViews.of(self.reader.spec, self.opened)
            return views.heavier_labels(self.opened, view, np.arange(self.opened.samples))
        return None if self.kept is None else self.kept.labels_N


def temperatures(sources: Sources, query: Query) -> MethodRowTemperatures:
    """Temperatures of every row by the run's method.

    Raises:
        Conflict: it has none, or they are not known.
    """
    run, spec = sources.run, sources.reader.spec
    method = method_of(run)
    term = term_of(method, query.term)
    teacher = {name: values_N[np.newaxis] for name, values_N in sources.reader.statistics(query.view).items()}
    return method_temperatures(
        method,
        term,
        teacher,
        spec.classes,
        student=_student(sources.kept, term, teacher, classes=spec.classes),
        epoch=min(query.epoch or run.epoch or run.epochs, run.epochs),
        epochs=run.epochs,
        of_cache=_of_cache(sources, query, term),
    )


def _student(
    kept: LogitsFile | None, term: Term, teacher: Mapping[str, npt.NDArray[np.float32]], classes: int
) -> dict[str, npt.NDArray[np.float32]] | None:
    rows = next(iter(teacher.values())).shape[1]
    return student_statistics(kept, term, rows, classes)


def _of_cache(sources: Sources, query: Query, term: Term) -> dict[CacheStatistic, Values]:
    """Statistics of the run's training cache that a policy reads, as in training."""
    wanted = term.policy.cache_statistics
    if not wanted:
        return {}
    if query.split != "train" and any(each.is_per_sample for each in wanted):
        raise Conflict(
            f"policy {term.policy.kind!r} reads statistics of each training picture, and {query.split} has other "
            "pictures: ask for split=train"
        )
    root, key = sources.train_cache
    if key is None:
        raise Conflict(f"policy {term.policy.kind!r} reads statistics of the training cache, which is not there yet")
    try:
        return training_statistics(root, key, term)
    except StoreError as error:
        raise Conflict(
            f"policy {term.policy.kind!r} reads statistics of the training cache, which cannot be read ({error}): a "
            "job like this one makes it anew"
        ) from None


def choose(sources: Sources, query: Query, given: MethodRowTemperatures | None) -> Chosen:
    """Choose the rows to show.

    Args:
        given: needed by orders of temperature alone.

    Raises:
        Conflict: what the order needs is not known, or the same for all rows.
    """
    if given is not None and query.by.endswith("temperature"):
        return by_value(given.varying()[1], query.limit, highest=query.by == "highest_temperature")
    if query.by == "disagreement":
        kept = check_kept(sources.kept, query.split, sources.run.id)
        return by_disagreement(sources.reader, query.view, kept, query.limit)
    labels_N = sources.labels(query.view)
    if labels_N is None:
        raise Conflict(
            f"the labels of {query.split} are not known: its decoded copy was removed, and {sources.run.id} has kept "
            "none; a job that uses the dataset makes the copy anew"
        )
    return by_mistake(sources.reader, query.view, labels_N, query.limit)


def show_rows(sources: Sources, query: Query, chosen: Chosen, given: MethodRowTemperatures | None) -> list[GalleryRow]:
    """Documents of the rows that were chosen."""
    rows_K, labels_N = chosen.rows_K, sources.labels(query.view)
    teacher = _networks(sources.reader.gather(query.view, rows_K))
    student = (
        [None] * len(rows_K) if sources.kept is None or not len(rows_K) else _networks(sources.kept.gather(rows_K))
    )
    return [
        GalleryRow(
            row=row,
            value=float(chosen.values_K[place]),
            label=None if labels_N is None or labels_N[row] < 0 else int(labels_N[row]),
            sample_id=None if sources.opened is None else sample_id(sources.opened, row),
            picture=None if sources.opened is None else _picture(sources, query, row),
            teacher=teacher[place],
            student=student[place],
            temperature=None if given is None else _temperatures(given, row),
        )
        for place, row in enumerate(rows_K.tolist())
    ]


def _picture(sources: Sources, query: Query, row: int) -> str:
    spec = sources.reader.spec
    if spec.augmentation.get("recipe") == "none":
        return picture_path(spec.dataset_fingerprint, query.split, row)
    return f"{API_PREFIX}/caches/{spec.key}/views/{row}.png?view={query.view}"


def _networks(logits_KC: npt.NDArray[np.floating]) -> list[NetworkRow]:
    exact_KC = logits_KC.astype(np.float64)
    confidence_K = np.exp(log_softmax(exact_KC).max(axis=1))
    shown_KC = np.round(exact_KC, 4).tolist()
    return [
        NetworkRow(predicted=label, confidence=confidence, logits=logits)
        for label, confidence, logits in zip(
            exact_KC.argmax(axis=1).tolist(), confidence_K.tolist(), shown_KC, strict=True
        )
    ]


def _temperatures(given: MethodRowTemperatures, row: int) -> RowTemperatures:
    def show(network: NetworkRowTemperatures) -> RowTemperature:
        return RowTemperature(paper=float(network.paper[row]), divisor=float(network.divisor[row]))

    return RowTemperatures(teacher=show(given.teacher), student=show(given.student))


def open_cache(root: Path, caches: Mapping[str, str] | None, split: str, job_id: str) -> CacheReader:
    """Open the teacher's cache of a split of a job.

    Raises:
        Conflict: the job has none, or none that is complete.
    """
    key = (caches or {}).get(split)
    if key is None:
        raise Conflict(
            f"job {job_id} has no cache of {split}: it is not made yet, or the job does not use that split "
            f"(it has {', '.join(caches or ()) or 'none'})"
        )
    try:
        return CacheReader.from_key(root, key)
    except StoreError as error:
        raise Conflict(
            f"the teacher's logits of {split} cannot be read ({error}): a job like {job_id} makes them"
        ) from None
