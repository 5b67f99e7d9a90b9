"""Measures of a teacher, from the logits of its complete caches and the labels; no teacher is run."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from store import CacheReader, CacheSpec
from workers.config.task import Folders, TeacherAccuracy
from workers.data.preparation import prepared
from workers.events import Split
from workers.measures import Measured, Measures, class_document, confusion_cells
from workers.teacher.cache_plan import CachePlan
from workers.teacher.cached_views import CachedViews
from workers.unlabelled import count_labelled, has_unlabelled

# Logits that are looked at together when they are counted: 4 MiB of float32.
_ACCURACY_CELLS = 1 << 20


@dataclass(frozen=True)
class MeasuredTeacher:
    """Accuracy and metrics of a teacher's cached logits.

    Attributes:
        accuracy: top-1 of each split that is measured and of the training views, over the rows with a label; of a
            mixed picture each label counts with its share.
        metrics: of each split that is measured, ``validation`` and ``test``, as a document: ``rows``, ``top1``,
            ``top5``, ``nll``, ``ece`` and ``class_document``.
    """

    accuracy: TeacherAccuracy
    metrics: dict[Split, dict[str, object]]


def measure_teacher(plan: CachePlan, folders: Folders) -> MeasuredTeacher:
    """Measure the cached logits of the validation and test splits, and the accuracy of those of all training views."""
    caches: dict[Split, CacheSpec | None] = {"validation": plan.validation_cache, "test": plan.test_cache}
    metrics: dict[Split, dict[str, object]] = {}
    top1: dict[Split, float] = {}
    for split, spec in caches.items():
        if spec is not None:
            measured, predicted_N, labels_N = _measured(spec, folders)
            if measured.top1 is not None:
                top1[split] = measured.top1
            metrics[split] = {
                "rows": measured.rows,
                "top1": measured.top1,
                "top5": measured.top5,
                "nll": _finite(measured.nll),
                "ece": _finite(measured.ece),
                **class_document(confusion_cells(labels_N, predicted_N), spec.classes),
            }
    accuracy = TeacherAccuracy(
        test=top1.get("test"),
        views=None if plan.evaluates else _cached_accuracy(plan.train_cache, folders),
        validation=top1.get("validation"),
    )
    return MeasuredTeacher(accuracy, metrics)


def _finite(value: float | None) -> float | None:
    """Replace by None what JSON cannot hold: the NLL of a label that a softmax in the graph rules out."""
    return value if value is not None and math.isfinite(value) else None


def _measured(spec: CacheSpec, folders: Folders) -> tuple[Measured, NDArray[np.int64], NDArray[np.int64]]:
    """(measures, predicted classes [N], labels [N]) of a cache of one view."""
    labels_N = _labels(spec, folders)
    sums = Measures(torch.device("cpu"), some_unlabelled=has_unlabelled(labels_N))
    predicted = []
    for _, start, logits_BC in _blocks(spec, folders):
        labels_B = torch.from_numpy(labels_N[start : start + len(logits_BC)])
        predicted.append(sums.add(torch.from_numpy(logits_BC), labels_B).numpy())
    return Measured.of(sums.totals, spec.samples), np.concatenate(predicted), labels_N


def _cached_accuracy(spec: CacheSpec, folders: Folders) -> float | None:
    """Accuracy over all views of a cache, of the rows that have a label; None where none has."""
    dataset = prepared.open_prepared(folders.datasets, spec.dataset_fingerprint)
    if not count_labelled(np.asarray(dataset.labels_N)):
        return None
    views, hits, labelled = CachedViews.of(spec, dataset), 0.0, 0.0
    for view, start, logits_BC in _blocks(spec, folders):
        predicted_B, index_B = logits_BC.argmax(axis=1), np.arange(start, start + len(logits_BC))
        for labels_B, share_B in views.label_shares(dataset, view, index_B):
            hits += float(share_B[predicted_B == labels_B].sum(dtype=np.float64))
            labelled += float(share_B[labels_B >= 0].sum(dtype=np.float64))
    return hits / labelled


def _labels(spec: CacheSpec, folders: Folders) -> NDArray[np.int64]:
    return np.array(prepared.open_prepared(folders.datasets, spec.dataset_fingerprint).labels_N)


def _blocks(spec: CacheSpec, folders: Folders) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """(view, first row, logits [B, C]) of all views, as readers get them; ``build_caches`` has verified them."""
    step = max(1, _ACCURACY_CELLS // spec.classes)
    with CacheReader(folders.caches, spec) as reader:
        for view in range(spec.views):
            rows = reader.row_map(view, np.arange(spec.samples))
            for start in range(0, spec.samples, step):
                # NumPy's argmax of float16 takes three times as long.
                logits_BC = rows.gather(start, min(start + step, spec.samples))
                yield view, start, logits_BC.astype(np.float32, copy=False)
