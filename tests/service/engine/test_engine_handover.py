"""The engine for real where work changes hands: pause, resume, one run's cancel, retry, priorities, two engines."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.client.client import Client
from tests.support.digits import SMALL, Digits, weights
from tests.support.processes import (
    Processes,
    events_until,
    given_caches,
    job_of,
    keeper_of,
    logged,
    pid_of,
    processes_of,
    running_service,
    uploaded,
    weights_of,
)
from tests.support.service_helpers import PostgresServer, postgres_binaries
from workers.cluster.head_folder import machine_folder
from workers.events import ignore, never
from workers.training.loop import train_run

pytest_plugins = ["tests.support.service_fixtures"]
pytestmark = pytest.mark.timeout(900)

Document = dict[str, Any]


@pytest.fixture(scope="module")
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """A service on the PostgreSQL database ``pair``, of which two engines may have their turns; without one, SQLite."""
    settings = {}
    if postgres_binaries() is not None:
        server: PostgresServer = request.getfixturevalue("postgres")
        settings["DATABASE_URL"] = server.create("pair")
    with running_service(tmp_path_factory.mktemp("service") / "data", **settings) as processes:
        yield processes


@pytest.fixture(scope="module")
def teacher_id(service: Processes, digits: Digits) -> str:
    """The digits' teacher, with its caches: what changes hands here is training, or views that it has none of."""
    given_caches(service, digits)
    return uploaded(service, digits)


def soon(what: Callable[[], object], every_s: float = 0.05) -> None:
    """Wait until this is so, as long as a busy machine may take for what takes seconds.

    Args:
        every_s: asked the service more often, it would spend a core on its answers.
    """
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < 200, "it has not become so"
        signal.sigtimedwait([], every_s)


def in_state(client: Client, id: str, state: str) -> Callable[[], bool]:
    def ask() -> bool:
        found = client.run(id) if id.startswith("run_") else client.job(id)
        return bool(found["state"] == state)

    return ask


def epochs_of(client: Client, id: str) -> list[int]:
    """That were told of, in the order of telling."""
    return [event["data"]["epoch"] for event in client.events(id) if event["type"] == "epoch"]


def one_more_epoch(client: Client, run_id: str) -> None:
    """Wait until the run has told of an epoch that nobody had told of."""
    before = client.run(run_id)["epoch"] or 0
    soon(lambda: (client.run(run_id)["epoch"] or 0) > before)


def is_gone(pid: int) -> Callable[[], bool]:
    return lambda: not Path(f"/proc/{pid}").exists()


def where_it_stopped(service: Processes, run: Document, attempt: int) -> tuple[int, int]:
    """Epochs and steps that were done when the attempt was paused."""
    last = logged(service, run, attempt)[-1]
    assert last["event"] == "attempt paused"
    epoch, step = re.findall(r"in epoch (\d+) after (\d+) of", last["message"])[0]
    return int(epoch) - 1, int(step)


def where_it_resumed(service: Processes, run: Document, attempt: int) -> tuple[int, int]:
    """Epochs and steps that an attempt found done."""
    for line in logged(service, run, attempt):
        if found := re.match(r"resumed after epoch (\d+) of \d+(?: and (\d+) steps)?", line["event"]):
            return int(found[1]), int(found[2] or 0)
    pytest.fail(f"attempt {attempt} of {run['id']} began anew")


# ----------------------------------------------------------------------------------------------- pause and resume


@pytest.mark.usefixtures("without_onnx")
def test_a_paused_job_goes_on_from_the_very_step_to_the_same_weights(
    service: Processes, teacher_id: str, digits: Digits, tmp_path: Path
) -> None:
    """Resumed when it is paused, and once more in mid-pause; the other weights are of a run in this process."""
    client = service.client
    job = client.submit(job_of(teacher_id, "kd", epochs=18))
    events_until(client, job["id"], "epoch")
    [run] = client.runs(job["id"])
    assert client.pause(job["id"])["state"] == "pausing"
    soon(in_state(client, job["id"], "paused"))
    assert in_state(client, run["id"], "paused")()
    soon(is_gone(pid_of(service, run, 1)))
    stopped = where_it_stopped(service, run, 1)
    assert client.resume(job["id"])["state"] == "queued"
    one_more_epoch(client, run["id"])
    assert where_it_resumed(service, run, 2) == stopped

    client.pause(job["id"])
    soon(lambda: logged(service, run, 2)[-1]["event"] == "attempt paused", every_s=0.005)
    client.resume(job["id"])
    done = client.wait(job["id"])
    assert done["state"] == "succeeded", (done["error"], service.logs())
    assert client.run(run["id"])["attempt"] == 3
    assert where_it_resumed(service, run, 3) == where_it_stopped(service, run, 2)
    assert epochs_of(client, job["id"]) == list(range(1, 19))
    train_run(digits.order("kd", tmp_path, SMALL.model_copy(update={"epochs": 18})), ignore, never)
    quiet, resumed = weights(tmp_path), weights_of(service, client, job["id"])
    assert quiet.keys() == resumed.keys()
    assert all((quiet[name] == resumed[name]).all() for name in quiet)


@pytest.mark.slow
def test_a_job_paused_in_inference_keeps_what_it_inferred(service: Processes, teacher_id: str) -> None:
    """Resumed when it is paused, and in mid-pause; what it tells from then on is not taken for what it told before."""
    client, plan = service.client, job_of(teacher_id, "kd", epochs=1)
    plan["views"]["count"] = 80
    job = client.submit(plan)

    def rows_done() -> int:
        return int((client.job(job["id"])["progress"]["inference"] or {"rows_done": 0})["rows_done"])

    def infers() -> bool:
        return bool(processes_of(service.data_dir, "ray::InferenceActor"))

    soon(rows_done)
    client.pause(job["id"])
    soon(in_state(client, job["id"], "paused"))
    kept = rows_done()
    soon(lambda: not infers())
    client.resume(job["id"])
    soon(lambda: rows_done() > kept)
    client.pause(job["id"])
    soon(lambda: not infers())
    client.resume(job["id"])
    done = client.wait(job["id"])
    assert done["state"] == "succeeded", (done["error"], service.logs())
    events = list(client.events(job["id"]))
    # Every process that was begun has told of it.
    begun = [event["attempt"] for event in events if event["type"] == "stage" and event["data"]["stage"] == "preparing"]
    assert begun == [1, 2, 3]
    rows = [e["data"] for e in events if e["type"] == "inference_progress" and e["data"]["split"] == "train"]
    told = [each["rows_done"] for each in rows]
    assert told == sorted(told)
    assert told[-1] == rows[-1]["rows_total"]
    # Nothing is inferred twice: of what was under way when it was stopped, at most two calls of four blocks each time.
    in_flight = 2 * 2 * 4 * 1442
    assert told[-1] - in_flight < done["teacher_forwards"]["run"] - 419 < told[-1] + in_flight


# ------------------------------------------------------------------------------------------------------- single runs


@pytest.mark.slow
def test_runs_of_one_job_are_paused_cancelled_resumed_and_retried_one_by_one(
    service: Processes, teacher_id: str
) -> None:
    """Two of three share a process: when one of them is paused, the other goes on there."""
    client = service.client
    job = client.submit(job_of(teacher_id, "kd", "dkd", "rld", epochs=80))
    first, second, third = (run for run in client.runs(job["id"]))
    for run in (first, second, third):
        soon(lambda run=run: client.run(run["id"])["epoch"])
    assert pid_of(service, first, 1) == pid_of(service, second, 1) != pid_of(service, third, 1)

    client.pause(first["id"])
    soon(in_state(client, first["id"], "paused"))
    one_more_epoch(client, second["id"])
    assert client.run(second["id"])["attempt"] == 1

    assert client.cancel(third["id"])["state"] == "cancelling"
    soon(in_state(client, third["id"], "cancelled"))
    soon(is_gone(pid_of(service, third, 1)))
    assert client.job(job["id"])["state"] == "running"
    assert client.artifacts(third["id"]) == []
    assert not (service.data_dir / "jobs" / job["id"] / third["id"] / "a1" / "artifacts").exists()
    log = httpx2.get(f"{client.base_url}/v1/runs/{third['id']}/log", trust_env=False)
    assert json.loads(log.text.splitlines()[-1])["event"] == "attempt stopped"

    client.cancel(second["id"])
    soon(in_state(client, job["id"], "paused"))
    assert in_state(client, second["id"], "cancelled")()
    soon(lambda: not processes_of(service.data_dir, "ray::TrainingActor"))

    # The epochs that the cancelled run had done are not trained again.
    retry = client.retry(third["id"])
    assert client.retry(third["id"])["id"] == retry["id"] != job["id"]
    [again] = client.runs(retry["id"])
    assert again["retry_of"] == third["id"]

    stopped = where_it_stopped(service, first, 1)
    assert client.resume(first["id"])["state"] == "queued"
    done = client.wait(job["id"])
    assert [run["state"] for run in client.runs(job["id"])] == ["succeeded", "cancelled", "cancelled"]
    assert done["state"] == "cancelled"
    assert where_it_resumed(service, first, 2) == stopped
    assert epochs_of(client, first["id"]) == list(range(1, 81))

    assert client.wait(retry["id"])["state"] == "succeeded"
    assert where_it_resumed(service, again, 1)[0] >= 1
    assert epochs_of(client, again["id"]) == list(range(1, 81))


@pytest.mark.slow
def test_a_job_that_failed_is_retried_from_its_checkpoint_and_stays_failed(service: Processes, teacher_id: str) -> None:
    """What fails is the very end: a file lies where the artifacts' folder is to be."""
    client = service.client
    job = client.submit(job_of(teacher_id, "kd", epochs=60))
    events_until(client, job["id"], "epoch")
    [run] = client.runs(job["id"])
    (service.data_dir / "jobs" / job["id"] / run["id"] / "a1" / "artifacts").write_text("in the way")
    failed = client.wait(job["id"])
    assert (failed["state"], client.run(run["id"])["state"]) == ("failed", "failed")
    retry = client.retry(job["id"])
    assert client.retry(job["id"])["id"] == retry["id"]
    done = client.wait(retry["id"])
    assert done["state"] == "succeeded", (done["error"], service.logs())
    [again] = client.runs(retry["id"])
    assert where_it_resumed(service, again, 1) == (60, 0)
    assert client.job(job["id"]) == failed
    assert client.retry(job["id"])["id"] == retry["id"]


# ---------------------------------------------------------------------------------------------------- whose turn it is


def both_slots_taken(client: Client, teacher_id: str) -> Document:
    """A job whose two runs train until it is cancelled."""
    busy = client.submit(job_of(teacher_id, "kd", "dkd", epochs=10_000))
    for run in client.runs(busy["id"]):
        one_more_epoch(client, run["id"])
    return busy


def both_wait_for_slots(client: Client, *jobs: Document) -> None:
    for job in jobs:
        soon(lambda job=job: client.job(job["id"])["stage"] == "training")


@pytest.mark.slow
def test_the_more_urgent_job_starts_first(service: Processes, teacher_id: str) -> None:
    """Though it came last; both slots are busy until both wait."""
    client = service.client
    busy = both_slots_taken(client, teacher_id)
    later = client.submit(job_of(teacher_id, "ce", epochs=1))
    urgent = client.submit({**job_of(teacher_id, "ce", epochs=1), "priority": 5})
    both_wait_for_slots(client, later, urgent)
    one, _ = client.runs(busy["id"])
    client.cancel(one["id"])
    started = {}
    for job in (urgent, later):
        assert client.wait(job["id"])["state"] == "succeeded"
        [run] = client.runs(job["id"])
        started[job["id"]] = run["started_at"]
    assert started[urgent["id"]] < started[later["id"]]
    client.cancel(busy["id"])
    assert client.wait(busy["id"])["state"] == "cancelled"


@pytest.mark.slow
def test_two_jobs_with_many_runs_take_turns_and_one_keeps_to_its_limit(service: Processes, teacher_id: str) -> None:
    client = service.client
    busy = both_slots_taken(client, teacher_id)
    many = client.submit({**job_of(teacher_id, "kd", "dkd", "rld", "dtkd", "ce", epochs=1), "group_size": 1})
    limited = client.submit({**job_of(teacher_id, "kd", "ce", epochs=1), "parallel_runs": 1})
    both_wait_for_slots(client, many, limited)
    client.cancel(busy["id"])
    for job in (many, limited):
        assert client.wait(job["id"])["state"] == "succeeded"
    assert at_once(client, many["id"]) <= 2
    assert at_once(client, limited["id"]) == 1
    of_many, of_limited = ([run["started_at"] for run in client.runs(job["id"])] for job in (many, limited))
    # Each had a slot at first, whatever was free the sooner.
    assert min(of_limited) < sorted(of_many)[2]


def at_once(client: Client, job_id: str) -> int:
    """How many runs of a job were ever at work at the same time, by the order of its events."""
    working: set[str] = set()
    most = 0
    for event in client.events(job_id):
        if event["type"] == "state" and event["run_id"]:
            if event["data"]["state"] in ("running", "pausing", "cancelling"):
                working.add(event["run_id"])
            else:
                working.discard(event["run_id"])
            most = max(most, len(working))
    return most


# --------------------------------------------------------------------------------------------------- the engine's end


@pytest.mark.slow
def test_an_engine_that_is_told_to_end_puts_down_training_and_inference_at_once(
    service: Processes, teacher_id: str
) -> None:
    client = service.client
    trained = client.submit(job_of(teacher_id, "kd", epochs=10_000))
    [run] = client.runs(trained["id"])
    soon(lambda: client.run(run["id"])["epoch"])
    plan = job_of(teacher_id, "kd")
    plan["views"]["count"] = 400
    inferred = client.submit(plan)
    soon(lambda: client.job(inferred["id"])["progress"]["inference"])
    assert service.terminate("engine") == 0
    # Of some ten thousand batches nobody waited for more than those that were under way.
    inference = client.job(inferred["id"])["progress"]["inference"]
    assert inference["rows_done"] < inference["rows_total"]
    assert in_state(client, run["id"], "queued")()
    assert (service.data_dir / "jobs" / trained["id"] / run["id"] / "a1" / "checkpoint.pt").exists()
    assert logged(service, run, 1)[-1]["event"] == "attempt paused"
    assert not processes_of(service.data_dir, "")
    assert not machine_folder(service.data_dir).exists()


# --------------------------------------------------------------------------------------------------- two engines


@pytest.fixture
def pair(service: Processes, teacher_id: str, postgres: PostgresServer) -> tuple[Processes, str]:
    """The service, with one engine at least, which leads, and a teacher of it."""
    if not any(service.is_running(name) for name in ("engine", "engine-2")):
        (service.data_dir / "engine.log").write_text("")
        service.start("engine")
        soon(lambda: leads(service, "engine"))
    return service, teacher_id


def leads(service: Processes, name: str) -> bool:
    """Whether this engine has found or started Ray, and works."""
    return '"engine works"' in (service.data_dir / f"{name}.log").read_text()


def leader_and_waiter(service: Processes) -> tuple[str, str]:
    """Names of the two engines; the one that is missing is started."""
    names = ("engine", "engine-2")
    [missing] = [name for name in names if not service.is_running(name)]
    (service.data_dir / f"{missing}.log").write_text("")
    service.start(missing)
    [leader] = {*names} - {missing}
    return leader, missing


def training_job(service: Processes, teacher: str, epochs: int) -> tuple[Document, Document]:
    """A job with one run, which has told of an epoch."""
    job = service.client.submit(job_of(teacher, "kd", epochs=epochs))
    [run] = service.client.runs(job["id"])
    one_more_epoch(service.client, run["id"])
    return job, run


def ends_well(service: Processes, job: Document, run: Document) -> None:
    """The run is still in its first attempt and tells every epoch once; then the job is cancelled."""
    client = service.client
    one_more_epoch(client, run["id"])
    found = client.run(run["id"])
    assert (found["state"], found["attempt"]) == ("running", 1)
    client.cancel(job["id"])
    assert client.wait(job["id"])["state"] == "cancelled"
    told = epochs_of(client, job["id"])
    assert told == list(range(1, len(told) + 1))


def test_the_waiting_engine_takes_over_from_one_that_was_killed_in_training(pair: tuple[Processes, str]) -> None:
    service, teacher = pair
    job, run = training_job(service, teacher, epochs=40)
    leader, waiter = leader_and_waiter(service)
    one_more_epoch(service.client, run["id"])
    service.kill(leader)
    soon(lambda: leads(service, waiter))
    done = service.client.wait(job["id"])
    assert done["state"] == "succeeded", (done["error"], service.logs())
    assert service.client.run(run["id"])["attempt"] == 1
    assert epochs_of(service.client, job["id"]) == list(range(1, 41))


@pytest.mark.slow
@pytest.mark.parametrize("begins", ["before", "after"])
def test_an_engine_that_has_lost_its_lease_ends_and_leaves_ray_to_the_other(
    pair: tuple[Processes, str], postgres: PostgresServer, begins: str
) -> None:
    """Whether the job begins before it was lost, so that both know of it, or after it."""
    service, teacher = pair
    leader, waiter = leader_and_waiter(service)
    if begins == "before":
        job, run = training_job(service, teacher, epochs=2000)
    keeper = keeper_of(service.data_dir)
    # No process has this number, so the other engine need not wait until its lease runs out.
    gone = f"regexp_replace(holder, ':[0-9]+:[^:]*$', ':{2**22 + 1}:gone')"
    postgres.execute("pair", f"UPDATE engine SET holder = {gone}")
    soon(lambda: leads(service, waiter))
    if begins == "after":
        job, run = training_job(service, teacher, epochs=2000)
    assert service.wait(leader) == 0
    assert keeper_of(service.data_dir) == keeper
    ends_well(service, job, run)


@pytest.mark.slow
def test_an_engine_that_was_stopped_goes_on_only_to_find_that_another_leads(pair: tuple[Processes, str]) -> None:
    """Nothing of what it writes lands, and Ray is not taken from the other."""
    service, teacher = pair
    job, run = training_job(service, teacher, epochs=2000)
    leader, waiter = leader_and_waiter(service)
    os.kill(service.pid(leader), signal.SIGSTOP)
    try:
        soon(lambda: leads(service, waiter))
        one_more_epoch(service.client, run["id"])
    finally:
        os.kill(service.pid(leader), signal.SIGCONT)
    assert service.wait(leader) == 0
    ends_well(service, job, run)
