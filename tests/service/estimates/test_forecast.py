"""Forecasts: expected ends of jobs and runs, from how far they are and what was measured."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from service.db.states import State
from service.estimates.forecast import JobNow, RunNow, forecast
from service.estimates.rates import InferenceRate, ProcessRate, Rate
from service.estimates.workload import Slots, Workload, batch_numbers
from tests.support.service_helpers import make_plan

NOW = datetime(2026, 11, 30, tzinfo=UTC)
PLAN = make_plan(training={"epochs": 10}, group_size=1)
KNOWN = Workload(10, {0: Rate(2.0, "earlier runs"), 1: Rate(2.0, "earlier runs")}, ProcessRate(4.0, 3.0, 3.0, "b"), ())
UNKNOWN = Workload(10, {}, None, ("never",))
CACHES = InferenceRate(100.0, 5.0, "earlier rows")
WAITING = [RunNow("run_0", 0, State.QUEUED), RunNow("run_1", 1, State.QUEUED)]


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def job(**changes: object) -> JobNow:
    waiting = JobNow(
        id="job",
        plan=PLAN,
        priority=0,
        key_id=None,
        parallel_runs=None,
        runs=WAITING,
        stage=None,
        inference=None,
        workload=KNOWN,
        inference_rate=CACHES,
        batches=batch_numbers(PLAN),
        rows_to_infer=1000,
    )
    return replace(waiting, **changes)  # type: ignore[arg-type]  # whatever a test changes


def seconds(*jobs: JobNow, slots: int = 2) -> dict[str, float]:
    found = forecast(jobs, Slots(cpu=slots), NOW)
    return {id: (eta.expected_at - NOW).total_seconds() for id, eta in found.items()}


def running(epoch: int, *ends: float, began: float = 100.0, index: int = 0) -> RunNow:
    """A run whose last epochs ended so many seconds ago."""
    numbered = [(epoch - len(ends) + number, ago(each)) for number, each in enumerate(ends, 1)]
    process = f"p{index}"
    return RunNow(f"run_{index}", index, State.RUNNING, process, epoch, ago(began), numbered, last_epoch_s=3.0)


def test_forecast_of_a_queued_job_is_caches_and_then_its_runs_by_what_was_measured() -> None:
    # 5 + 10 s of caches, then 4 + 20 + 3 s of each run.
    assert seconds(job()) == {"run_0": 42.0, "run_1": 42.0, "job": 42.0}
    assert seconds(job(), slots=1)["job"] == 69.0


def test_forecast_takes_the_caches_that_are_there_and_the_time_that_has_passed_into_account() -> None:
    assert seconds(job(rows_to_infer=0))["job"] == 32.0
    assert seconds(job(began_at=ago(7.0), stage="preparing"))["job"] == 35.0
    inference = {"rows_done": 500, "rows_total": 1000, "rows_per_s": 50.0, "eta_s": 10.0}
    assert seconds(job(began_at=ago(7.0), stage="inference", inference=inference))["job"] == 37.0


def test_forecast_of_a_run_goes_on_at_the_pace_of_its_latest_epochs() -> None:
    # 1 s an epoch at first, 3 s in the second half: 5 epochs are left, and 2 s of the next have passed. An epoch of 2 s
    # was measured with an end of 3 s, so that takes 4.5 s now.
    slowed = running(5, 12.0, 11.0, 8.0, 5.0, 2.0)
    assert seconds(job(runs=[slowed], stage="training"))["run_0"] == 5 * 3.0 - 2.0 + 4.5


def test_forecast_of_a_run_without_two_epochs_takes_what_is_known_of_one_or_of_earlier_runs() -> None:
    assert seconds(job(runs=[running(1, 1.0)], stage="training"))["run_0"] == 9 * 3.0 - 1.0 + 3.0
    assert seconds(job(runs=[running(0, began=6.0)], stage="training"))["run_0"] == 4.0 + 20.0 - 6.0 + 3.0


def test_forecast_of_a_trained_run_is_what_is_left_of_its_end() -> None:
    assert seconds(job(runs=[running(10, 3.0, 1.0)], stage="training"))["run_0"] == pytest.approx(2.0)


def test_forecast_of_a_group_ends_one_run_after_the_other() -> None:
    group = [replace(running(9, 9.0, 5.0, 1.0, index=index), process="p") for index in (0, 1)]
    assert seconds(job(runs=group, stage="training")) == {"run_0": 6.0, "run_1": 9.0, "job": 9.0}


def test_forecast_of_waiting_runs_takes_the_pace_of_their_student_in_this_job() -> None:
    runs = [running(5, 6.0, 3.0, 0.0), WAITING[1]]
    # 5 epochs of 3 s and the end of the first, then 4 + 10 * 3 + 3 s.
    expected = forecast([job(runs=runs, stage="training", workload=replace(KNOWN, epoch={}))], Slots(cpu=1), NOW)
    assert (expected["job"].expected_at - NOW).total_seconds() == 18.0 + 37.0
    assert expected["run_1"].based_on == "the epochs so far of runs of its student in this job"
    assert expected["job"].based_on == "its own epochs so far; the epochs so far of runs of its student in this job"


def test_forecast_of_what_was_never_measured_is_none_until_it_has_epochs_of_its_own() -> None:
    assert seconds(job(workload=UNKNOWN)) == {}
    assert seconds(job(inference_rate=None)) == {}
    begun = job(workload=UNKNOWN, runs=[running(5, 6.0, 3.0, 0.0)], stage="training")
    assert seconds(begun)["job"] == 15.0
    assert "of which none has ended here" in forecast([begun], Slots(cpu=1), NOW)["job"].based_on


def test_forecast_of_a_second_job_waits_for_the_slots_of_the_first() -> None:
    first = job(runs=[running(5, 4.0, 2.0, 0.0)], stage="training")
    second = job(id="job_2", rows_to_infer=0, runs=[RunNow("run_2", 0, State.QUEUED)])
    assert seconds(first, second, slots=1)["job_2"] == 13.0 + 27.0


def test_forecast_gives_what_waits_behind_an_unknown_job_no_end() -> None:
    unknown = job(id="unknown", workload=UNKNOWN, runs=[replace(running(0, began=5.0), id="x")], stage="training")
    behind = job(id="behind", rows_to_infer=0, runs=[RunNow("run_2", 0, State.QUEUED)])
    trains = job(id="trains", runs=[replace(running(5, 4.0, 2.0, 0.0), id="run_3", process="q")], stage="training")
    assert set(seconds(unknown, trains, behind)) == {"trains", "run_3"}
    # Those before it have the slots that it leaves.
    assert seconds(job(), unknown, slots=2)["job"] == 69.0
    assert seconds(job(), unknown, slots=1) == {}


def test_forecast_goes_on_without_a_job_that_cannot_be_computed() -> None:
    told = dict[str, Exception]()
    broken = job(id="broken", inference={"eta_s": "soon", "rows_done": 0, "rows_total": 1}, stage="inference")
    found = forecast([job(), broken], Slots(cpu=2), NOW, failed=told.__setitem__)
    assert "job" in found
    assert list(told) == ["broken"]


def test_forecast_of_an_evaluation_is_that_of_its_caches() -> None:
    plan = make_plan(evaluate=True, students=(), methods=())
    evaluation = job(plan=plan, workload=Workload(1, {}, None, ()), runs=[RunNow("run_0", 0, State.QUEUED)])
    assert seconds(evaluation) == {"run_0": 15.0, "job": 15.0}
