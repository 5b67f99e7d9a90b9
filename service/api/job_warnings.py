"""Warnings of a dry run that need what is known of a teacher from an earlier cache."""

from pathlib import Path

from store import Catalog, StoreError, read_view_statistics
from workers.config.job import Plan
from workers.methods.gradient_estimate import gradient_warnings
from workers.teacher.cache_statistics import some_rows


def gradient_warnings_of_plan(plan: Plan, teacher_sha256: str, caches: Path) -> list[str]:
    """Sentences about methods that begin with a gradient of tens of times that of cross-entropy.

    Training says it of the job's own cache. Here any complete training cache of the teacher does, the one that was used
    last; nothing is said where there is none, or it cannot be read.
    """
    entries = [
        entry
        for entry in Catalog(caches).list()
        if entry.state == "complete"
        and entry.spec is not None
        and (entry.spec.teacher_sha256, entry.spec.split) == (teacher_sha256, "train")
    ]
    if not entries:
        return []
    key = max((entry.last_used_at.timestamp() if entry.last_used_at else 0.0, entry.key) for entry in entries)[1]
    try:
        spec, of_view = read_view_statistics(caches, key, 0)
    except (StoreError, OSError):
        return []
    statistics = some_rows(of_view)
    return [
        f"{warning} (estimated from cache {key[:12]} of this teacher)"
        for method in plan.all_methods
        for warning in gradient_warnings(method.expand(), statistics, spec.classes, epochs=plan.training.epochs)
    ]
