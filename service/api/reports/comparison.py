"""Comparison of jobs: whether they are about the same pictures."""

from collections.abc import Sequence
from typing import Any

from service.db.api_queries import DATASET
from service.db.models import JobRecord
from service.errors import InvalidRequest
from store import Catalog, StoreError
from workers.texts import shortened

# Of a plan: what decides which rows a split has beside the dataset, and what is meant where it is left out.
_OF_SPLITS = {"validation": None, "test": "dataset"}
_FINGERPRINT = "fingerprint of the training pictures"


def check_comparable(jobs: Sequence[JobRecord], catalog: Catalog, *, insists: bool) -> list[str]:
    """Compare datasets and splits of jobs with those of the first one.

    Args:
        catalog: of the caches, which know the fingerprint of what was found under a dataset's path.
        insists: jobs with different data are compared all the same.

    Returns:
        Sentences about what differs, of which there are none without ``insists``.

    Raises:
        InvalidRequest: naming what differs, and how to insist.
    """
    first, *others = jobs
    wanted = _data_of(first, catalog)
    told = []
    for job in others:
        found = _data_of(job, catalog)
        told += [
            f"{job.id} has another {name} than {first.id}: {shortened(found.get(name))} instead of "
            f"{shortened(wanted.get(name))}"
            for name in (*wanted, *(found.keys() - wanted.keys()))
            if found.get(name) != wanted.get(name) and (name != _FINGERPRINT or (found[name] and wanted[name]))
        ]
    if told and not insists:
        raise InvalidRequest(
            f"{told[0]}: rows of different pictures do not compare; name jobs on the same dataset and splits, or "
            "insist with accept_different_data",
            "#/jobs",
        )
    return told


def _data_of(job: JobRecord, catalog: Catalog) -> dict[str, Any]:
    """Collect what decides a job's pictures and splits, by name; what was left out is null."""
    dataset = DATASET.validate_python(job.plan["dataset"]).content_description()
    splits = {name: job.plan.get(name, default) for name, default in _OF_SPLITS.items()}
    return (
        {f"dataset.{name}": value for name, value in dataset.items()}
        | splits
        | {_FINGERPRINT: _fingerprint(job, catalog)}
    )


def _fingerprint(job: JobRecord, catalog: Catalog) -> str | None:
    """Fingerprint of the training pictures, while the job's cache is there; None of a job that has none (any more)."""
    key = (job.caches or {}).get("train")
    try:
        spec = None if key is None else catalog.get(key).spec
    except StoreError:
        return None
    return None if spec is None else spec.dataset_fingerprint
