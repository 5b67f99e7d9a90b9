"""Specification of a combined cache: its rows are combinations of the rows of other caches. Light: the API asks for it.

Each teacher has its own caches, under the keys that they have in a job of its own, so they are shared with such jobs. A
combined cache is a cache like any other to all who read it. Its ``preprocessing`` says what it is made of:
``{"combined": {"combine": ..., "weights": [...], "members": [keys]}}``, and ``teacher_sha256`` is the digest of that.
"""

import hashlib
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from store import CacheSpec
from store.spec import StoredKind, canonical_json
from workers.config.cache import CacheOptions
from workers.config.combination import Combination
from workers.config.job import Plan
from workers.config.teacher import Preprocessing
from workers.data.preparation.decoded import KnownSplit
from workers.errors import ContractViolation
from workers.events import Split
from workers.teacher.cache_plan import KnownTeacher, cache_specs

COMBINED = "combined"
_UNKNOWN = "0" * 64


def member_job(job: Plan) -> Plan:
    """The job with dense caches, as members have them: no row is combined of what an encoding has left of others."""
    return job.model_copy(update={"cache": CacheOptions(dtype=job.cache.dtype)})


def stored_kind(combination: Combination) -> StoredKind:
    """Kind of output of combined rows."""
    return "logits" if combination.space == "logits" else "log_probabilities"


def combined_specs(
    job: Plan,
    members: Sequence[Mapping[Split, CacheSpec]],
    weights: Sequence[float],
    splits: Mapping[Split, KnownSplit],
) -> dict[Split, CacheSpec]:
    """Specification of the combined cache of each of these splits.

    Args:
        members: the caches of each teacher, in the job's order.
        weights: of the teachers; divided by their sum, so 1 and 1 are as good as 2 and 2.

    Raises:
        ContractViolation: the teachers have different numbers of classes, on a dataset that tells none.
    """
    combination = job.combine or Combination()
    counts = [each["train"].classes for each in members]
    if len(set(counts)) > 1:
        raise ContractViolation(
            f"the job's teachers have {', '.join(map(str, counts))} classes, and the dataset does not tell which are "
            "its own: name its classes by `class_names`, and give each teacher its own `class_names`"
        )
    teacher = KnownTeacher(
        sha256=_UNKNOWN,
        output=COMBINED,
        output_kind=stored_kind(combination),
        classes=counts[0],
        preprocessing=Preprocessing(),
    )
    made = {}
    for split, spec in cache_specs(job, teacher, splits).items():
        description: dict[str, JsonValue] = {
            "combine": combination.model_dump(mode="json"),
            "weights": [weight / sum(weights) for weight in weights],
            "members": [each[split].key for each in members],
        }
        of_members = {
            "teacher_sha256": hashlib.sha256(canonical_json(description)).hexdigest(),
            "preprocessing": {COMBINED: description},
        }
        made[split] = CacheSpec.model_validate({**spec.model_dump(), **of_members})
    return made


def members_of(spec: CacheSpec) -> tuple[str, ...]:
    """Keys of the caches that a cache is combined of; none of a cache of one teacher."""
    description = spec.preprocessing.get(COMBINED)
    members = description.get("members") if isinstance(description, dict) else None
    return tuple(map(str, members)) if isinstance(members, list) else ()


def name_members(spec: CacheSpec) -> str:
    """Keys of the members for a person, each shortened as elsewhere."""
    return ", ".join(key[:12] for key in members_of(spec))
