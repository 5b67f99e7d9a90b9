"""Queries of reports, on both databases."""

import pytest

from service.db.database import Database
from service.db.engine_queries import EngineQueries
from service.db.models import Json
from service.db.queries.api_queries import ApiQueries
from service.db.queries.report_queries import files_of_runs, jobs_and_runs
from service.db.states import State
from service.errors import NotFound, TooLarge
from tests.support.service_helpers import add_job, start_run

pytest_plugins = ["tests.support.service_fixtures"]


def test_jobs_and_runs_have_results_in_the_order_of_jobs_and_plans(
    database: Database, queries: EngineQueries, api_queries: ApiQueries
) -> None:
    """With what a report shows of them, texts that JSON has to escape included."""
    jobs = [add_job(api_queries).id for _ in range(2)]
    result: Json = {
        "last": {"top1": 0.5, "note": 'ü "\\ \u2028'},
        "evaluation": {"test": {"top1": 0.5, "per_class": [None, 1.0], "confusion": [[1, 2], [3, 4]]}},
    }
    queries.claim_job()
    first = queries.runs(jobs[0])[0].id
    assert start_run(queries, first) == 1
    assert queries.record_result(first, 1, [], result)
    rows, runs = jobs_and_runs(database, jobs[::-1])
    assert [row.id for row in rows] == jobs[::-1]
    assert [(run.job_id, run.method) for run in runs] == [(job, name) for job in jobs[::-1] for name in ("ce", "kd")]
    found = runs[2]
    assert (found.id, found.state, runs[3].state, runs[3].result) == (first, State.SUCCEEDED, State.QUEUED, None)
    assert found.result is not None
    assert found.result["last"] == result["last"]
    assert found.result["evaluation"]["test"] | {"confusion": None} == result["evaluation"]["test"] | {
        "confusion": None
    }
    with pytest.raises(TooLarge, match="the 2 jobs have 4 runs, at most 3"):
        jobs_and_runs(database, jobs, 3)
    with pytest.raises(NotFound):
        jobs_and_runs(database, [jobs[0], "job_none"])


def test_files_of_runs_are_those_of_the_newest_attempt_alone(
    database: Database, queries: EngineQueries, api_queries: ApiQueries
) -> None:
    job = add_job(api_queries)
    queries.claim_job()
    run = queries.runs(job.id)[0].id
    assert start_run(queries, run) == 1
    assert queries.move_run(run, 1, State.LOST)
    assert start_run(queries, run) == 2
    names = ("logits.safetensors", "student.onnx")
    files = [{"name": name, "path": name, "size_bytes": 1, "sha256": "a" * 64, "media_type": "x/y"} for name in names]
    assert queries.record_result(run, 2, files, {})
    found = files_of_runs(database, [run, *(f"run_{n}" for n in range(1500))], "logits.safetensors")
    assert [(file.run_id, file.attempt, file.name) for file in found] == [(run, 2, "logits.safetensors")]
    assert files_of_runs(database, [], "logits.safetensors") == []
