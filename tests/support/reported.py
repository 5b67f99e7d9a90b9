"""Jobs with results for reports, put into the database of a running API; logits as runs keep them."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from service.db.models import Json
from service.db.states import State
from tests.support.service_helpers import Api, start_run

# Method and seed.
Key = tuple[str, int]
Arrays = Mapping[str, npt.NDArray[Any]]


def result(test: float | None, validation: float | None = None, **of_test: Any) -> Json:  # noqa: ANN401
    """Result of a run with these accuracies; ``of_test`` are further figures of the test split."""
    evaluation: Json = {}
    last: Json = {"epoch": 2}
    if test is not None:
        evaluation["test"] = {"top1": test, "top5": min(1.0, test + 0.1), "nll": 1 - test, "ece": 0.25, **of_test}
        last |= {"top1": test, "nll": 1 - test, "ece": 0.25}
    if validation is not None:
        evaluation["validation"] = {
            "top1": validation,
            "nll": 1 - validation,
            "ece": 0.5,
            "per_class": [validation, 1.0],
        }
        last["validation_top1"] = validation
    best = {**last, "epoch": 1} if validation is not None else None
    return {"last": last, "best": best, "evaluation": evaluation, "seconds": 12.5}


def post_results(
    api: Api, outcomes: Mapping[Key, Json | State], logits: Mapping[Key, Arrays] | None = None, **changes: object
) -> str:
    """Post a job of one student whose methods and seeds are those of ``outcomes``, and take its runs there.

    Args:
        outcomes: of each run its result, or the state in which it is left.
        logits: what runs have kept, by tensor.
        changes: of the job's body.

    Returns:
        The id of the job, which has succeeded if all runs have, else is still running.
    """
    methods, seeds = (list(dict.fromkeys(key[place] for key in outcomes)) for place in (0, 1))
    job = api.post_job(**{"methods": methods, "seeds": seeds, **changes})
    claimed = api.records.claim_job()
    assert claimed is not None
    assert claimed.id == job["id"], "another job waits"
    for run in api.records.runs(job["id"]):
        outcome = outcomes.get((run.method, run.seed), State.QUEUED)
        if outcome is State.QUEUED:
            continue
        assert start_run(api.records, run.id) == 1
        if isinstance(outcome, State):
            # What it has reached is in no mean.
            progress = {"epoch": 1, "metrics": {"epoch": 1, "top1": 0.999}}
            api.records.record_events(job["id"], run.id, 1, [], progress=progress)
            assert outcome is State.RUNNING or api.records.move_run(run.id, 1, outcome)
            continue
        kept = (logits or {}).get((run.method, run.seed))
        files = [] if kept is None else [keep_logits(api, f"jobs/{job['id']}/{run.id}/a1", save(dict(kept)))]
        assert api.records.record_result(run.id, 1, files, outcome)
    if all(isinstance(outcome, dict) for outcome in outcomes.values()):
        assert api.records.move_job(job["id"], State.SUCCEEDED, attempt=1)
    return str(job["id"])


def keep_logits(api: Api, folder: str, content: bytes) -> Json:
    """Write a run's logits into the data directory; returns the columns of the artifact."""
    path = api.settings.data_dir / folder / "logits.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return {
        "name": path.name,
        "path": str(path.relative_to(api.settings.data_dir)),
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "media_type": "application/octet-stream",
    }


def logits_of(labels: npt.NDArray[np.int64], right: npt.NDArray[np.bool_], split: str = "test") -> Arrays:
    """Float16 logits of two classes that are right on these rows alone, with their labels."""
    chosen = np.where(right, labels, 1 - labels)
    return {split: np.eye(2, dtype=np.float16)[chosen], f"{split}_labels": labels}
