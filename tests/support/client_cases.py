"""What an engine would have left: events, ends and files, for the tests of the client and the command line."""

import hashlib
import random
from pathlib import Path

from service.db.states import State
from tests.support.service_helpers import Api, add_job, start_run

ARTIFACT = "student.safetensors"


def tell_and_end(api: Api, job_id: str, sentences: int, state: State = State.SUCCEEDED) -> None:
    """Claims a queued job, says ``line 0``, ``line 1`` ... about it, and ends it and its runs in ``state``."""
    error = {"type": "NotFinite", "message": "loss is nan at step 7"} if state is State.FAILED else None
    job = api.records.claim_job()
    assert job is not None
    assert job.id == job_id
    events = [(n, {"type": "log", "level": "info", "message": f"line {n}"}) for n in range(sentences)]
    assert api.records.record_events(job_id, None, job.attempt, events) == sentences
    for run in api.records.runs(job_id):
        attempt = start_run(api.records, run.id)
        assert attempt is not None
        assert api.records.move_run(run.id, attempt, state, error=error)
    assert api.records.move_job(job_id, state, error=error)


def run_with_artifact(api: Api, size_bytes: int) -> str:
    """The id of a succeeded run that has left one file of random bytes."""
    job_id = add_job(api.queries).id
    assert api.records.claim_job() is not None
    run = api.records.runs(job_id)[0]
    attempt = start_run(api.records, run.id)
    assert attempt is not None
    path = artifact_path(api, run.id)
    path.parent.mkdir(parents=True)
    content = random.Random(0).randbytes(size_bytes)
    path.write_bytes(content)
    artifact = {
        "name": ARTIFACT,
        "path": path.relative_to(api.settings.data_dir.resolve()).as_posix(),
        "size_bytes": size_bytes,
        "sha256": hashlib.sha256(content).hexdigest(),
        "media_type": "application/octet-stream",
    }
    assert api.records.record_result(run.id, attempt, [artifact], {})
    return run.id


def artifact_path(api: Api, run_id: str) -> Path:
    """Where the service keeps that file."""
    return api.settings.jobs_dir / api.records.run(run_id).job_id / run_id / "a1" / ARTIFACT
