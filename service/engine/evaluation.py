"""Evaluation of a model on a dataset: the result of a job that trains nothing, from what its caches were measured at.

The model is the job's teacher. Its logits on the validation and test splits are cached as for any job, so a second
evaluation of the same model on the same pictures runs it on none.
"""

from service.db.job_teachers import members_of, name_of
from service.db.models import JobRecord, Json

_FIGURES = ("top1", "top5", "nll", "ece")


def evaluation_result(job: JobRecord) -> Json:
    """Result of the run of an evaluation, in the form of result.json.

    Args:
        job: with complete caches.

    Returns:
        ``model_sha256`` of one teacher, ``models`` of several, which were measured as one. ``evaluation``: figures by
        split, as ``JobRecord.teacher_metrics`` has them. ``last``: the same as an epoch's metrics, i.e. those of the
        test split without and those of validation with a prefix.
    """
    measured: Json = job.teacher_metrics or {}
    last = {
        f"{'' if split == 'test' else f'{split}_'}{name}": found[name]
        for split, found in measured.items()
        for name in _FIGURES
        if name in found
    }
    members = members_of(job.teacher)
    model = {"model_sha256": job.teacher["sha256"]}
    if len(members) > 1:
        model = {"models": [{name: each[name] for name in ("name", "sha256", "weight")} for each in members]}
    return {
        "student": name_of([member["name"] for member in members]),
        "method": "evaluation",
        "evaluation": measured,
        "last": {"epoch": 1, **last},
        **model,
        "caches": job.caches,
    }
