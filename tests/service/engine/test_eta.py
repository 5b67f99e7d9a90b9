"""Expected ends that an engine keeps in the rows of live jobs and runs, and how the API shows them."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from service.db.models import EventRecord, JobRecord, Json, RunRecord, utc_now
from service.db.queries.eta_queries import EtaQueries
from service.db.states import State
from service.engine import eta
from service.engine.eta import EtaKeeper
from service.engine.job_facts import JobFacts
from service.estimates import history
from service.estimates.history import read_measured
from service.estimates.measured import MeasuredCaches, MeasuredTimes
from service.estimates.workload import Slots, Workload, workload_of
from tests.support.service_helpers import Api
from workers.config.job import Plan

pytest_plugins = ["tests.support.service_fixtures"]
SLOTS = Slots(cpu=1)


class Clock:
    """Keeper that looks whenever it is asked."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.keeper = EtaKeeper(EtaQueries(api.context.database), api.context.catalog)

    def look(self, now: datetime | None = None) -> None:
        """Look; at a given time, however long the test has taken to come here."""
        self.keeper._next_s = 0.0
        with pytest.MonkeyPatch.context() as patch:
            if now is not None:
                patch.setattr(eta, "utc_now", lambda: now)
            self.keeper.look(SLOTS)

    def document(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self._api.client.get(f"/v1/{path}").json()
        return found


@pytest.fixture
def clock(api: Api) -> Clock:
    return Clock(api)


def begin(api: Api, **changes: object) -> tuple[str, list[str]]:
    """A job whose caches are complete, and its runs, which wait."""
    job = api.post_job(**changes)
    assert api.records.claim_job() is not None
    api.records.update_job(job["id"], attempt=1, stage="training")
    return job["id"], job["run_ids"]


def train(api: Api, job_id: str, run_id: str, epochs: int, epoch_s: float) -> datetime:
    """Epochs of a run that began before, the last one now; each takes so many seconds. Gives that time."""
    for number in range(1, epochs + 1):
        event: Json = {"type": "epoch", "epoch": number, "epochs": 3, "metrics": {"epoch": number, "seconds": epoch_s}}
        progress = {"epoch": number, "metrics": event["metrics"]}
        api.records.record_events(job_id, run_id, 1, [(number, event)], progress=progress)
    return pace(api, run_id, epochs, epoch_s)


def pace(api: Api, run_id: str, epochs: int, epoch_s: float) -> datetime:
    """Let the epochs of a run have ended as if each took so many seconds, the last one now. Gives that time."""
    now = utc_now()
    with api.context.database.write() as session:
        for row in session.query(EventRecord).filter_by(run_id=run_id, type="epoch"):
            row.at = now - timedelta(seconds=(epochs - row.data["epoch"]) * epoch_s)
    return now


def left_s(eta: dict[str, str]) -> float:
    return (datetime.fromisoformat(eta["expected_at"]) - datetime.fromisoformat(eta["as_of"])).total_seconds()


def test_eta_of_a_job_of_which_nothing_is_known_is_null(api: Api, clock: Clock) -> None:
    job_id, _ = begin(api)
    clock.look()
    assert clock.document(f"jobs/{job_id}")["eta"] is None


def test_eta_of_job_and_runs_follows_from_epochs_and_counts_those_that_wait(api: Api, clock: Clock) -> None:
    job_id, (first, second) = begin(api, training={"epochs": 11}, methods=["ce", "kd"])
    api.records.start_attempts([first])
    clock.look()
    clock.look(train(api, job_id, first, epochs=5, epoch_s=10.0))
    run, job = clock.document(f"runs/{first}"), clock.document(f"jobs/{job_id}")
    assert left_s(run["eta"]) == pytest.approx(60.0, abs=0.001)
    assert run["eta"]["based_on"] == "its own epochs so far"
    # The second waits for the only slot, and takes all of its epochs.
    assert left_s(job["eta"]) == pytest.approx(60.0 + 110.0, abs=0.001)
    assert clock.document(f"runs/{second}")["eta"]["expected_at"] == job["eta"]["expected_at"]
    assert clock.document("jobs")["data"][0]["eta"] == job["eta"]


def test_eta_that_has_hardly_moved_is_not_written_again(api: Api, clock: Clock) -> None:
    job_id, (first, _) = begin(api, training={"epochs": 100})
    api.records.start_attempts([first])
    train(api, job_id, first, epochs=5, epoch_s=10.0)
    clock.look()
    before = clock.document(f"jobs/{job_id}")["eta"]
    assert before is not None
    pace(api, first, epochs=5, epoch_s=10.1)
    Clock(api).look()
    assert clock.document(f"jobs/{job_id}")["eta"] == before
    pace(api, first, epochs=5, epoch_s=11.0)
    Clock(api).look()
    assert left_s(clock.document(f"jobs/{job_id}")["eta"]) == pytest.approx(1.1 * left_s(before), rel=0.01)


def test_eta_of_what_does_not_go_on_is_null(api: Api, clock: Clock) -> None:
    job_id, (first, _) = begin(api, training={"epochs": 100})
    api.records.start_attempts([first])
    train(api, job_id, first, epochs=5, epoch_s=10.0)
    clock.look()
    api.client.post(f"/v1/runs/{first}/pause")
    assert clock.document(f"runs/{first}")["eta"] is None
    api.client.post(f"/v1/jobs/{job_id}/cancel")
    assert clock.document(f"jobs/{job_id}")["eta"] is None


def test_eta_of_a_job_that_was_paused_counts_from_its_present_attempt(api: Api, clock: Clock) -> None:
    measured_job(api)
    job = api.post_job(group_size=1)
    assert api.records.claim_job() is not None
    began_at = utc_now()
    with api.context.database.write() as session:
        session.get_one(JobRecord, job["id"]).started_at = began_at - timedelta(hours=1)
        for row in session.query(EventRecord).filter_by(job_id=job["id"], type="state", attempt=1):
            row.at = began_at
    clock.look(began_at + timedelta(seconds=2))
    assert left_s(clock.document(f"jobs/{job['id']}")["eta"]) == pytest.approx(36.0, abs=0.001)


def test_eta_of_other_jobs_and_the_cost_survive_damaged_plans(api: Api, clock: Clock) -> None:
    measured_job(api)
    api.records.record_capacity(SLOTS.model_dump())
    job, *damaged = (api.post_job(group_size=1) for _ in range(4))
    caches = json.dumps({"train": "a" * 64})
    plans = ("{", "{}", json.dumps({"dataset": {}, "training": {}}))
    with api.context.database.write() as session:
        for each, plan in zip(damaged, plans, strict=True):
            values = {"plan": plan, "caches": caches, "id": each["id"]}
            session.execute(text("UPDATE jobs SET plan = :plan, caches = :caches WHERE id = :id"), values)
    clock.look()
    assert clock.document(f"jobs/{job['id']}")["eta"] is not None
    cost = api.client.post("/v1/jobs?dry_run=true", json=api.job_body(group_size=1)).json()["cost"]
    assert cost["seconds"]["missing"] == []


def test_eta_counts_the_inference_of_a_combination_whose_first_member_alone_is_imported(api: Api) -> None:
    """The first one's copy is at the top of a combination's."""
    job = api.context.queries.get(JobRecord, api.post_job()["id"])
    assert job.teacher is not None
    imported = {**job.teacher, "id": "", "caches": {"train": "a" * 64}}
    for first, second, is_imported in (
        (imported, imported, [True, True]),
        (imported, job.teacher, [True, False]),
        (job.teacher, imported, [False, True]),
    ):
        members = [{**first, "weight": 1.0}, {**second, "weight": 1.0}]
        facts = JobFacts(Plan.model_validate(job.plan), job.plan, {**first, "members": members})
        assert facts.is_imported == is_imported
    assert JobFacts(Plan.model_validate(job.plan), job.plan, imported).is_imported == [True]
    assert JobFacts(Plan.model_validate(job.plan), job.plan, job.teacher).is_imported == [False]


def test_eta_of_several_teachers_takes_each_ones_rate_and_what_the_one_at_work_leaves_to_others(api: Api) -> None:
    """The first infers 100 rows a second, the second 10; of the first all but the training split is there."""
    job = api.context.queries.get(JobRecord, api.post_job()["id"])
    assert job.teacher is not None
    second = {**job.teacher, "sha256": "b" * 64}
    members = [{**job.teacher, "weight": 1.0}, {**second, "weight": 1.0}]
    facts = JobFacts(Plan.model_validate(job.plan), job.plan, {**job.teacher, "members": members})
    of = {each.sha256: each for each in facts.teachers}
    caches = [
        MeasuredCaches(
            "job",
            sha256,
            None,
            each.input_size,
            pictures=each.pictures,
            recipe=each.recipe,
            rows=1000,
            seconds=1000 / rate,
            beside_s=5.0,
        )
        for (sha256, each), rate in zip(of.items(), (100.0, 10.0), strict=True)
    ]
    measured = MeasuredTimes(caches=caches)
    facts.count_missing(1000, [], stage="inference", measured=measured, catalog=api.context.catalog)
    [live], now = EtaQueries(api.context.database).live_jobs(9), utc_now()
    before = facts.inference_left(live, measured, now, is_coming=False)
    assert before.rate is not None
    assert (before.rows, before.rows / (before.rate.rows_per_s or 0)) == pytest.approx((2000, 110.0))
    at_work = live._replace(stage="inference", inference={"rows_done": 400, "rows_total": 1000, "eta_s": 6.0})
    left = facts.inference_left(at_work, measured, now, is_coming=False)
    assert left.later_s == pytest.approx(100.0)
    # The first one is complete, for 30 s, and the second has told nothing yet.
    facts.ready_at = now - timedelta(seconds=30)
    between = at_work._replace(inference={"rows_done": 1000, "rows_total": 1000, "eta_s": 0.0})
    assert facts.inference_left(between, measured, now, is_coming=False).later_s == pytest.approx(100.0)
    unknown = facts.inference_left(at_work, MeasuredTimes(caches=caches[:1]), now, is_coming=False)
    assert unknown.later_s is None
    assert facts.inference_left(at_work, measured, now, is_coming=True).rows == 0


def test_measured_times_of_a_combination_are_those_of_each_teacher() -> None:
    def ready(split: str, rows: int, seconds: float) -> Json:
        return {"split": split, "rows_inferred": rows, "seconds": seconds}

    alone = [ready("test", 10, 3.0), ready("train", 100, 1.0)]
    assert history._by_teacher(alone, 1) == [alone]
    first, second = ready("train", 100, 1.0), ready("train", 100, 10.0)
    found = history._by_teacher([ready("test", 0, 0.1), first, second, ready("train", 0, 0.5)], 2)
    assert found == [[first], [second]]


def test_eta_of_jobs_beyond_the_limits_is_cleared(api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eta, "_WORKLOADS_S", 60.0)  # of all jobs in one look, also on a busy machine
    measured_job(api)
    jobs = [api.post_job(group_size=1)["id"] for _ in range(3)]
    clock.look()
    assert all(clock.document(f"jobs/{id}")["eta"] for id in jobs)
    # All runs of the first, and one of the second.
    monkeypatch.setattr(eta, "RUNS_MAX", 3)
    clock.look()
    assert [clock.document(f"jobs/{id}")["eta"] is not None for id in jobs] == [True, False, False]
    runs = [run for id in jobs for run in clock.document(f"jobs/{id}")["run_ids"]]
    assert [clock.document(f"runs/{id}")["eta"] is not None for id in runs] == [True, True] + 4 * [False]


def test_eta_that_fails_is_logged_once_and_leaves_the_engine(api: Api, clock: Clock) -> None:
    api.post_job()
    with api.context.database.write() as session:
        session.execute(text("UPDATE jobs SET samples = '{'"))
    with capture_logs() as logs:
        clock.look()
        clock.look()
    assert [entry["event"] for entry in logs] == ["expected ends cannot be computed"]


def test_measured_times_leave_out_a_process_of_which_a_run_has_not_ended(api: Api) -> None:
    job_id, (first, second) = begin(api)
    caches = {"caches": {"train": "a" * 64}}
    api.records.record_events(job_id, None, 1, [(0, {"type": "stage", "stage": "training"})], progress=caches)
    api.records.start_attempts([first, second])
    result = {"seconds": 15.0, "images_per_s": 360.0, "epochs": 3, "splits": {"train": 1442, "test": 355}}
    with api.context.database.write() as session:
        assert session.get_one(RunRecord, first).actor == session.get_one(RunRecord, second).actor
    for run_id, measured in ((first, 0), (second, 2)):
        assert api.records.record_result(run_id, 1, [], result)
        found = read_measured(api.context.database)
        assert (len(found.runs), [process.runs for process in found.processes]) == (measured, [2] if measured else [])


def test_eta_and_cost_are_known_by_earlier_runs_and_inference(api: Api, clock: Clock) -> None:
    """A job was measured: 6 s of caches, 1,442 rows in 2 s; then two runs of 15 s, and 1 s to start and end."""
    measured_job(api)
    api.records.record_capacity(SLOTS.model_dump())
    cost = api.client.post("/v1/jobs?dry_run=true", json=api.job_body(group_size=1)).json()["cost"]
    assert cost["seconds"]["missing"] == []
    parts = [cost["seconds"][name] for name in ("preparing", "inference", "training", "total")]
    assert parts == pytest.approx([6 - 1797 / 721, 1797 / 721, 32.0, 38.0], abs=0.1)
    assert cost["forwards"]["to_run"] == 1797
    assert cost["break_even"]["saved_seconds"] == pytest.approx((4681 - 1797) / 721, abs=0.1)
    job = api.post_job(group_size=1)
    clock.look()
    eta = clock.document(f"jobs/{job['id']}")["eta"]
    assert left_s(eta) == pytest.approx(38.0, abs=0.2)
    assert "1 run of cnn_s by ce, batch 64" in eta["based_on"]


def measured_job(api: Api) -> None:
    """A job that has ended, whose events and runs say what it has taken."""
    job_id, run_ids = begin(api, group_size=1)
    result = {
        "seconds": 15.0,
        "images_per_s": 1442 / 4,
        "epochs": 3,
        "splits": {"train": 1442, "test": 355},
        "environment": {"device": "cpu"},
    }
    ready = {"type": "cache_ready", "cache": "c", "views": 1, "seconds": 2.0}
    events: list[Json] = [
        {**ready, "split": "test", "rows_total": 355, "rows_inferred": 355},
        {**ready, "split": "train", "rows_total": 1442, "rows_inferred": 1442},
        {"type": "stage", "stage": "training"},
    ]
    caches = {"caches": {"train": "a" * 64, "test": "b" * 64}}
    api.records.record_events(job_id, None, 1, [*enumerate(events)], progress=caches)
    for run_id in run_ids:
        api.records.start_attempts([run_id])
        assert api.records.record_result(run_id, 1, [], result)
    assert api.records.move_job(job_id, State.SUCCEEDED, attempt=1)
    at = utc_now() - timedelta(seconds=100)
    with api.context.database.write() as session:
        session.get_one(JobRecord, job_id).started_at = at
        for row in session.query(EventRecord).filter_by(job_id=job_id, type="stage"):
            row.at = at + timedelta(seconds=6)
        for number, run_id in enumerate(run_ids):
            run = session.get_one(RunRecord, run_id)
            run.started_at = at + timedelta(seconds=6 + 16 * number)
            run.finished_at = run.started_at + timedelta(seconds=16)


def test_workloads_that_an_ended_run_makes_stale_are_computed_a_few_in_a_look(
    api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine waits for a look, and each run that ends makes the workloads of all jobs stale."""
    for _ in range(3):
        begin(api)
    clock.look()
    computed: list[Plan] = []

    def compute(plan: Plan, *rest: Any, **options: Any) -> Workload:  # noqa: ANN401  # as the function has them
        computed.append(plan)
        return workload_of(plan, *rest, **options)

    monkeypatch.setattr(eta, "workload_of", compute)
    monkeypatch.setattr(eta, "_WORKLOADS_S", 0.0)
    clock.look()
    assert computed == []
    measured_job(api)
    for expected in (1, 2, 3, 3):
        clock.look()
        assert len(computed) == expected
