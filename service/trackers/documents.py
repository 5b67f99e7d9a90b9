"""Documents of the API as trackers take them: flat parameters, flat results, finite metrics."""

import math
from collections.abc import Iterator, Mapping
from datetime import datetime

from service.client.transport import Document
from service.trackers.sinks.base import TrackedRun

# Of a job's plan, what a run has one of; the rest is shared by all.
_OF_RUNS = frozenset({"students", "methods", "seeds"})
# The first has the last epoch's metrics, which were told as such; the others are matrices for a plot.
_NOT_FLAT = frozenset({"last", "evaluation"})


def tracked_run(job: Document, run: Document) -> TrackedRun:
    """Identity and parameters of a run, which a tracker is told when it starts."""
    asked = {name: value for name, value in job["plan"].items() if name not in _OF_RUNS}
    values = {
        "student": run["student"],
        "method": run["method"],
        "seed": run["seed"],
        "teacher": job["teacher"],
        "teacher_sha256": job["teacher_sha256"],
        **asked,
        "method_spec": run["method_spec"],
    }
    return TrackedRun(
        id=run["id"],
        job_id=job["id"],
        name=run["name"],
        job_name=job["name"] or "",
        parameters={name: _text(value) for name, value in flat(values)},
        started_at=moment(run["started_at"]),
    )


def flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Pairs of path and value of nested JSON: ``{"a": {"b": [1]}}`` gives ``a.b.0`` and 1. Nulls are left out."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from flat(part, f"{name}.{number}")
    elif value is not None:
        yield name, value


def finite(metrics: Mapping[str, object]) -> dict[str, float]:
    """The metrics of an epoch that are numbers: without the epoch itself, nulls and what is not finite."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if name != "epoch" and isinstance(value, int | float) and math.isfinite(value)
    }


def flat_result(result: Document) -> dict[str, str | float]:
    """result.json as numbers and texts by path; figures of classes and matrices stay in the file."""
    kept = {name: value for name, value in result.items() if name not in _NOT_FLAT}
    found: dict[str, str | float] = {}
    for name, value in flat({**kept, "evaluation": _scalars(result.get("evaluation"))}):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        found[name] = float(value) if is_number else _text(value)  # type: ignore[arg-type]  # it is a number
    return {name: value for name, value in found.items() if isinstance(value, str) or math.isfinite(value)}


def moment(text: str | None) -> datetime | None:
    """A time of the API."""
    return None if text is None else datetime.fromisoformat(text)


def _scalars(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _scalars(part) for name, part in value.items() if not isinstance(part, list)}
    return value


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
