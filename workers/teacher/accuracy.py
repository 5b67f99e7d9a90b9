"""Top-1 accuracy of a teacher, from the logits of its complete caches and the labels; no teacher is run."""

import numpy as np

from store import CacheReader, CacheSpec
from workers.config.task import Folders, TeacherAccuracy
from workers.data import prepared
from workers.teacher.cache_plan import CachePlan

# Logits that are looked at together when they are counted: 4 MiB of float32.
_ACCURACY_CELLS = 1 << 20


def teacher_accuracy(plan: CachePlan, folders: Folders) -> TeacherAccuracy:
    """Top-1 accuracy of the cached logits of the validation and test splits and of all training views."""

    def accuracy(spec: CacheSpec | None) -> float | None:
        return None if spec is None else _cached_accuracy(spec, folders)

    return TeacherAccuracy(
        test=accuracy(plan.test_cache),
        views=None if plan.evaluates else _cached_accuracy(plan.train_cache, folders),
        validation=accuracy(plan.validation_cache),
    )


def _cached_accuracy(spec: CacheSpec, folders: Folders) -> float:
    """Accuracy over all views of a cache, as its readers get the logits; ``build_caches`` has verified the bytes."""
    labels_N = np.asarray(prepared.open_prepared(folders.datasets, spec.dataset_fingerprint).labels_N)
    step, hits = max(1, _ACCURACY_CELLS // spec.classes), 0
    with CacheReader(folders.caches, spec) as reader:
        for view in range(spec.views):
            rows = reader.row_map(view, np.arange(spec.samples))
            for start in range(0, spec.samples, step):
                stop = min(start + step, spec.samples)
                # NumPy's argmax of float16 takes three times as long.
                predicted = rows.gather(start, stop).astype(np.float32, copy=False).argmax(axis=1)
                hits += int((predicted == labels_N[start:stop]).sum())
    return hits / (spec.views * spec.samples)
