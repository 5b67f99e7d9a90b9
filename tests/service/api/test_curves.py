"""Curves of a job: every epoch of every run as columns, and what came since."""

import pytest
from sqlalchemy import insert, update

from service.db.models import EventRecord, JobRecord, Json, RunRecord, utc_now
from service.db.queries import curve_queries
from service.db.queries.packed_events import compact
from service.db.states import State
from tests.support.service_helpers import Api, start_run

pytest_plugins = ["tests.support.service_fixtures"]


def train(api: Api, run: RunRecord, attempt: int, numbers: dict[int, float]) -> None:
    """Epochs of a run as its worker reports them, by number, each with its loss."""
    for epoch, loss in numbers.items():
        event: Json = {"type": "epoch", "epoch": epoch, "epochs": 3, "metrics": {"epoch": epoch, "loss": loss}}
        event["metrics"] |= {"top1": 0.123456789, "lr": None} if epoch > 1 else {}
        n = api.records.next_event(run.job_id, run.id, attempt)
        progress = {"epoch": epoch, "metrics": event["metrics"]}
        assert api.records.record_events(run.job_id, run.id, attempt, [(n, event)], progress=progress) == 1


def test_curves_are_columns_of_every_run_and_a_poll_brings_the_new_epochs(api: Api) -> None:
    job = api.post_job(methods=["ce", "kd"])
    path = f"/v1/jobs/{job['id']}/curves"
    api.records.claim_job()
    first, second = api.queries.runs(job["id"])[0]
    attempts = {run.id: start_run(api.records, run.id) for run in (first, second)}
    train(api, first, attempts[first.id] or 0, {1: 2.0, 2: 1.5})
    train(api, second, attempts[second.id] or 0, {1: 3.0})
    whole = api.client.get(path).json()
    assert [(run["run_id"], run["method"], run["state"], run["epoch"]) for run in whole["runs"]] == [
        (first.id, "ce", "running", [1, 2]),
        (second.id, second.method, "running", [1]),
    ]
    assert whole["runs"][0]["metrics"] == {"loss": [2.0, 1.5], "top1": [None, 0.123457], "lr": [None, None]}
    poll = {"after": whole["last_id"], "metric": "loss"}
    nothing = api.client.get(path, params=poll)
    assert (nothing.json()["last_id"], [run["epoch"] for run in nothing.json()["runs"]]) == (whole["last_id"], [[], []])
    assert api.client.get(path, params=poll, headers={"If-None-Match": nothing.headers["etag"]}).status_code == 304
    # After a kill the second epoch is trained again.
    train(api, first, attempts[first.id] or 0, {2: 1.4, 3: 1.0})
    later = api.client.get(path, params=poll).json()
    assert [(run["epoch"], run["metrics"]) for run in later["runs"]] == [([2, 3], {"loss": [1.4, 1.0]}), ([], {})]
    assert api.client.get(path, params={"metric": "loss"}).json()["runs"][0]["metrics"] == {"loss": [2.0, 1.4, 1.0]}


def test_curves_of_packed_damaged_and_retried_runs_are_whole(api: Api) -> None:
    """As ``/v1/runs/{id}/metrics`` has them."""
    job = api.post_job(methods=["ce"])
    api.records.claim_job()
    [run] = api.queries.runs(job["id"])[0]
    attempt = start_run(api.records, run.id) or 0
    train(api, run, attempt, {1: 2.0, 2: 1.5})
    assert api.records.move_run(run.id, attempt, State.FAILED)
    assert api.records.move_job(job["id"], State.FAILED)
    path = f"/v1/jobs/{job['id']}/curves"
    before = api.client.get(path).json()
    assert compact(api.context.database, job["id"]) > 0
    with api.context.database.write() as session:
        session.execute(update(JobRecord).values(priority=1))
    assert api.client.get(path).json() == before
    assert api.client.get(path, params={"after": before["last_id"]}).json()["runs"][0]["epoch"] == []

    again = api.client.post(f"/v1/jobs/{job['id']}/retry").json()
    api.records.claim_job()
    [retry] = api.queries.runs(again["id"])[0]
    train(api, retry, start_run(api.records, retry.id) or 0, {2: 1.4, 3: 1.0})
    shown = api.client.get(f"/v1/jobs/{again['id']}/curves").json()
    assert shown["runs"][0]["metrics"]["loss"] == [2.0, 1.4, 1.0]
    with api.context.database.write() as session:
        broken = {"job_id": again["id"], "run_id": retry.id, "attempt": 1, "n": 99, "type": "epoch", "at": utc_now()}
        session.execute(insert(EventRecord), [{**broken, "data": {}}])
        session.connection().exec_driver_sql("UPDATE events SET data = '{' WHERE n = 99")
        session.execute(update(JobRecord).values(priority=2))
    assert api.client.get(f"/v1/jobs/{again['id']}/curves").json()["runs"] == shown["runs"]


def test_curves_of_very_many_epochs_are_thinned_evenly_with_the_first_and_the_last(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two runs with 7 and 5 epochs of two metrics: 24 numbers, where 10 are allowed."""
    job = api.post_job(methods=["ce", "kd"])
    api.records.claim_job()
    for run, epochs in zip(api.queries.runs(job["id"])[0], (7, 5), strict=True):
        train(api, run, start_run(api.records, run.id) or 0, dict.fromkeys(range(1, epochs + 1), 1.0))
    path = f"/v1/jobs/{job['id']}/curves"
    whole = api.client.get(path).json()
    assert (whole["every"], [run["epoch"] for run in whole["runs"]]) == (1, [[*range(1, 8)], [*range(1, 6)]])
    monkeypatch.setattr(curve_queries, "NUMBERS_MAX", 10)
    found = api.client.get(path, params={"metric": ["loss", "top1"]}).json()
    assert (found["every"], found["last_id"]) == (4, whole["last_id"])
    assert [run["epoch"] for run in found["runs"]] == [[1, 4, 7], [1, 4, 5]]
    assert [len(run["metrics"]["top1"]) for run in found["runs"]] == [3, 3]
    # One metric of the same epochs is half as much.
    assert api.client.get(path, params={"metric": "loss"}).json()["every"] == 2
    # A poll counts what is new alone.
    later = api.client.get(path, params={"after": whole["last_id"] - 2, "metric": "loss"}).json()
    assert (later["every"], [run["epoch"] for run in later["runs"]]) == (1, [[], [4, 5]])
    # Packed events are counted, too.
    for run in api.queries.runs(job["id"])[0]:
        assert api.records.move_run(run.id, 1, State.FAILED)
    assert api.records.move_job(job["id"], State.FAILED)
    assert compact(api.context.database, job["id"]) > 0
    packed = api.client.get(path, params={"after": 1, "metric": "loss"}).json()
    assert (packed["every"], [run["epoch"] for run in packed["runs"]]) == (2, [[1, 2, 4, 6, 7], [1, 2, 4, 5]])
