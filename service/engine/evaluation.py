"""Evaluation of a model on a dataset: the result of a job that trains nothing, from what its caches were measured at.

The model is the job's teacher. Its logits on the validation and test splits are cached as for any job, so a second
evaluation of the same model on the same pictures runs it on none.
"""

from service.db.models import JobRecord, Json

_FIGURES = ("top1", "top5", "nll", "ece")


def evaluation_result(job: JobRecord) -> Json:
    """Result of the run of an evaluation, in the form of result.json.

    Args:
        job: with complete caches.

    Returns:
        ``evaluation``: figures by split, as ``JobRecord.teacher_metrics`` has them. ``last``: the same as an epoch's
        metrics, i.e. those of the test split without and those of validation with a prefix.
    """
    measured: Json = job.teacher_metrics or {}
    last = {
        f"{'' if split == 'test' else f'{split}_'}{name}": found[name]
        for split, found in measured.items()
        for name in _FIGURES
        if name in found
    }
    return {
        "student": job.teacher["name"],
        "method": "evaluation",
        "evaluation": measured,
        "last": {"epoch": 1, **last},
        "model_sha256": job.teacher["sha256"],
        "caches": job.caches,
    }
