"""Comparison of jobs: whether they are about the same pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.db.models import JobRecord
from service.db.queries.api_queries import DATASET
from service.errors import InvalidRequest
from workers.texts import listed, shortened

# Of a plan: what decides which rows a split has beside the dataset, and what is meant where it is left out.
_OF_SPLITS = {"validation": None, "test": "dataset"}
_SPLITS = ("train", "validation", "test")
Fingerprints = Mapping[str, Mapping[str, str]]
"""Fingerprints of pictures and labels by job and split, as ``report_queries.fingerprints_of_jobs`` finds them."""


@dataclass(frozen=True)
class Comparability:
    """Differences between the data of jobs, in sentences, and which of them could not be compared.

    Attributes:
        differences: none unless somebody has insisted.
        unknown: about splits whose fingerprints some jobs do not know.
    """

    differences: list[str]
    unknown: list[str]


def check_comparable(jobs: Sequence[JobRecord], fingerprints: Fingerprints, *, insists: bool) -> Comparability:
    """Compare datasets and splits of jobs with those of the first one, each split with the first that knows it.

    Args:
        fingerprints: of what was found under the path of each job's dataset.
        insists: jobs with different data are compared all the same.

    Raises:
        InvalidRequest: naming what differs, and how to insist.
    """
    first, *others = jobs
    wanted = _data_of(first)
    differences = []
    for job in others:
        found = _data_of(job)
        differences += [
            f"{job.id} has another {name} than {first.id}: {shortened(found.get(name))} instead of "
            f"{shortened(wanted.get(name))}"
            for name in (*wanted, *(found.keys() - wanted.keys()))
            if found.get(name) != wanted.get(name)
        ]
    differences += _of_contents(jobs, fingerprints)
    if differences and not insists:
        raise InvalidRequest(
            f"{differences[0]}: rows of different pictures do not compare; name jobs on the same dataset and splits, "
            "or insist with accept_different_data",
            "#/jobs",
        )
    return Comparability(differences, list(_of_unknown(jobs, fingerprints)))


def _data_of(job: JobRecord) -> dict[str, Any]:
    """Collect what decides a job's pictures and splits, by name; what was left out is null."""
    dataset = DATASET.validate_python(job.plan["dataset"]).content_description()
    splits = {name: job.plan.get(name, default) for name, default in _OF_SPLITS.items()}
    return {f"dataset.{name}": value for name, value in dataset.items()} | splits


def _of_contents(jobs: Sequence[JobRecord], fingerprints: Fingerprints) -> Iterator[str]:
    for split in _SPLITS:
        first: JobRecord | None = None
        for job in jobs:
            if (found := fingerprints[job.id].get(split)) is None:
                continue
            first = first or job
            if found != (wanted := fingerprints[first.id][split]):
                yield (
                    f"{job.id} has another content of the {split} split than {first.id}: fingerprint "
                    f"{shortened(found)} instead of {shortened(wanted)}"
                )


def _of_unknown(jobs: Sequence[JobRecord], fingerprints: Fingerprints) -> Iterator[str]:
    """Name jobs that do not know a split that another knows, or none at all."""
    if len(jobs) == 1:
        return
    none = [job.id for job in jobs if not fingerprints[job.id]]
    if none:
        yield f"whether {listed(none)} has the same pictures is unknown: no fingerprint of its data is stored"
    for split in _SPLITS:
        lacking = [job.id for job in jobs if fingerprints[job.id] and split not in fingerprints[job.id]]
        if lacking and any(split in fingerprints[job.id] for job in jobs):
            yield f"whether {listed(lacking)} has the same {split} split is unknown: its fingerprint is not stored"
