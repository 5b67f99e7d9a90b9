"""The whole service for real: API and engine processes, jobs over HTTP, kills and cancels in between."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx2
import numpy as np
import pytest
from sqlalchemy.exc import OperationalError

from service.cli import main
from service.db.connection.connections import LogGone
from service.db.database import Database, upgrade_to_head
from service.db.engine_queries import EngineQueries
from service.db.models import JobRecord
from service.engine.allocation import Need
from service.engine.capacity import choose_capacity
from service.engine.process import Heartbeat, run_engine
from service.errors import InvalidSettings
from service.operations.backup import backup
from service.operations.readiness import EngineParts
from service.operations.restore import restore
from service.settings import Settings
from tests.repository.test_architecture import ROOT
from tests.support import notebook
from tests.support.digits import Digits
from tests.support.processes import (
    TRAINING,
    Processes,
    events_until,
    job_of,
    keeper_of,
    pid_of,
    processes_of,
)
from tests.support.service_helpers import check_whole
from workers.cluster.head_folder import machine_folder
from workers.config.training import Training
from workers.run_files import MEDIA_TYPES
from workers.teacher.teacher import Teacher

pytest_plugins = ["tests.support.service_fixtures"]
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def distilled(service: Processes, teacher_id: str) -> dict[str, Any]:
    """A job of two runs that has ended, the first with this teacher."""
    job = service.client.submit(job_of(teacher_id, "ce", "kd"))
    return service.client.wait(job["id"])


class BackedUp(NamedTuple):
    """A job with backups of its service: some were made while it was trained, the last one at its end.

    Attributes:
        job: its document at the end.
        restored: services from the backups.
        counts: how many runs of each had succeeded, as ``check_whole`` says.
    """

    job: dict[str, Any]
    restored: list[Settings]
    counts: list[int]


@pytest.fixture(scope="module")
def backed_up(
    service: Processes, teacher_id: str, distilled: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> BackedUp:
    """A job of one run on the caches of ``distilled``."""
    client, folder = service.client, tmp_path_factory.mktemp("backups")
    job = client.submit(job_of(teacher_id, "rld", student="cnn_m", epochs=8))
    restored: list[Settings] = []
    counts: list[int] = []

    def go_there_and_back() -> None:
        target = folder / f"b{len(counts)}"
        settings = Settings(data_dir=folder / f"new{len(counts)}")
        backup(Settings(data_dir=service.data_dir), target)
        restore(settings, target)
        restored.append(settings)
        counts.append(check_whole(settings))

    for event in client.events(job["id"]):
        if event["type"] == "epoch" and event["data"]["epoch"] in (1, 2):
            go_there_and_back()
    go_there_and_back()
    return BackedUp(client.job(job["id"]), restored, counts)


def test_a_posted_job_is_distilled_and_a_second_one_runs_no_teacher(
    service: Processes, distilled: dict[str, Any], backed_up: BackedUp, digits: Digits, tmp_path: Path
) -> None:
    client, done = service.client, distilled
    assert done["state"] == "succeeded", done["error"]
    assert done["teacher_forwards"]["run"] > 2 * len(digits.train.labels_N)

    report = client.report(done["id"], paired="samples")
    rows = report["rows"]
    [test] = report["groups"][1]["test"]["samples"]
    gained = (rows[1]["accuracy"] - rows[0]["accuracy"]) * test["rows"]
    # The logits that runs keep are rounded to float16, which may make ties.
    assert abs(test["only_method"] - test["only_baseline"] - gained) < 2
    assert report["teacher"]["test"]["per_class"]
    assert [(group["method"], group["test"]["top1"]["mean"]) for group in report["groups"]] == [
        (row["method"], row["accuracy"]) for row in rows
    ]
    assert [row["method"] for row in rows] == ["ce", "kd"]
    assert all(row["accuracy_last"] > 0.5 and row["state"] == "succeeded" for row in rows)
    runs = list(client.runs(done["id"]))
    names = {artifact["name"] for artifact in client.artifacts(runs[1]["id"])}
    assert names == MEDIA_TYPES.keys() - {"student.int8.onnx"}
    for name in ("student.onnx", "config.json", "log.jsonl"):
        client.download(runs[1]["id"], name, tmp_path / name)
    said = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in said if line["event"] in ("attempt begins", "epoch", "attempt succeeded")] == [
        "attempt begins",
        *["epoch"] * TRAINING["epochs"],
        "attempt succeeded",
    ]
    ids = {"job_id": done["id"], "run_id": runs[1]["id"], "attempt": 1}
    assert all(line.items() >= ids.items() for line in said)
    config = json.loads((tmp_path / "config.json").read_text())
    preprocessing = digits.preprocessing.model_validate(config["preprocessing"])
    student = Teacher(tmp_path / "student.onnx", preprocessing, None, threads=1, device="cpu")
    predicted = student.logits(digits.test.images_NHWC).argmax(axis=1)
    assert (predicted == digits.test.labels_N).mean() == pytest.approx(rows[1]["accuracy_last"], abs=0.004)

    second = backed_up.job
    assert second["state"] == "succeeded", second["error"]
    assert second["teacher_forwards"]["run"] == 0
    assert second["teacher_forwards"]["avoided"] > 0
    assert second["caches"] == done["caches"]
    for path in service.data_dir.glob("*.log"):
        # Ray's native code has a form of its own, and says in it when an actor is ended before it has begun.
        ours = [line for line in path.read_text().splitlines() if not re.match(r"\[\d{4}-\d\d-\d\d .*\.cc:\d+: ", line)]
        assert all(json.loads(line)["event"] for line in ours), path.name
    # What the engine's actors have done: torch and onnxruntime are half a GiB.
    mapped = Path(f"/proc/{service.pid('engine')}/maps").read_text()
    assert "/ray/" in mapped
    assert not re.search("/(torch|onnxruntime)/", mapped)


@pytest.fixture(scope="module")
def trained(service: Processes, teacher_id: str) -> dict[str, Any]:
    """A run that has ended, of a job with a validation split and an int8 student."""
    split = {"validation": {"holdout": 0.2}, "export": {"int8": {"max_drop": 1.0}}}
    job = service.client.submit(job_of(teacher_id, "kd", epochs=1) | split)
    assert service.client.wait(job["id"])["state"] == "succeeded"
    [run] = service.client.runs(job["id"])
    return run


def test_add_runs_trains_more_students_on_the_caches_of_a_job_that_has_ended(
    service: Processes, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before an older run of the job is reproduced."""
    client, before = service.client, service.client.job(trained["job_id"])
    options = ["--student", "cnn_m", "--method", '{"preset": "kd", "temperature": 2}', "--seed", "7"]
    assert main(["--url", client.base_url, "--json", "add-runs", before["id"], *options, "--watch"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    labels = ["kd", "kd(temperature=2)"]
    assert [(row["method"], row["state"]) for row in rows] == [(label, "succeeded") for label in labels]
    after = client.job(before["id"])
    assert (after["state"], after["caches"]) == ("succeeded", before["caches"])
    assert after["teacher_forwards"]["run"] == before["teacher_forwards"]["run"]
    old, new = client.runs(before["id"])
    assert old == trained
    assert (new["student"], new["seed"], new["epoch"]) == ("cnn_m", 7, 1)
    assert [curve["run_id"] for curve in client.curves(before["id"])["runs"]] == [old["id"], new["id"]]


@pytest.mark.slow
def test_extend_ends_with_the_weights_of_a_run_of_all_epochs(
    service: Processes, teacher_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client, constant = service.client, {"kind": "step", "milestones": []}
    body = job_of(teacher_id, "kd", epochs=1, schedule=constant, keep_checkpoint=True)
    whole = client.submit(job_of(teacher_id, "kd", epochs=3, schedule=constant))
    first = client.wait(client.submit(body)["id"])
    [run] = client.runs(first["id"])
    assert main(["--url", client.base_url, "--json", "extend", run["id"], "--epochs", "3", "--watch"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in report["rows"]] == ["succeeded"]
    assert any(f"goes on from {run['id']}" in note for note in report["notes"])
    assert client.wait(whole["id"])["state"] == "succeeded"
    [again], [expected] = client.runs(report["job_id"]), client.runs(whole["id"])
    files = [{file["name"]: file["sha256"] for file in client.artifacts(each["id"])} for each in (again, expected)]
    assert files[0]["student.safetensors"] == files[1]["student.safetensors"]
    assert len(client.metrics(again["id"])) == 3
    assert client.job(again["job_id"])["teacher_forwards"]["run"] == 0
    # Once more, by a warm restart, which its bundle tells.
    restart = ["--epochs", "5", "--learning-rate", "0.02", "--schedule", '{"kind": "cosine"}']
    assert main(["--url", client.base_url, "--json", "extend", again["id"], *restart, "--watch"]) == 0
    [restarted] = client.runs(json.loads(capsys.readouterr().out)["job_id"])
    assert [line["lr"] for line in client.metrics(restarted["id"])][2:4] == pytest.approx([0.003, 0.0107], rel=0.01)
    assert main(["--url", client.base_url, "--json", "reproduce", restarted["id"]]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["same_weights"], told["differences"]) == (True, [])


def test_reproduce_trains_the_same_bits_from_the_bundle_of_a_run(
    service: Processes, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    client = service.client
    files = {file["name"]: file["sha256"] for file in client.artifacts(trained["id"])}
    assert files.keys() == MEDIA_TYPES.keys()
    int8 = trained["result"]["int8"]
    assert int8["kept"]
    assert int8["validation"]["rows"] == trained["result"]["splits"]["validation"]

    assert main(["--url", client.base_url, "--json", "reproduce", trained["id"]]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["same_weights"]
    assert told["differences"] == []
    assert told["weights_sha256"] == files["student.safetensors"]
    again = {file["name"]: file["sha256"] for file in client.artifacts(told["again"])}
    for name in ("student.safetensors", "student.onnx", "student.int8.onnx"):
        assert again[name] == files[name], name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_run_begins_with_an_earlier_runs_weights_and_is_reproduced_with_all_options(
    service: Processes, trained: dict[str, Any], teacher_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By HTTP and command line: averages, RMSprop, parts of a batch, and the weights of a run."""
    client = service.client
    options = {"optimizer": {"kind": "rmsprop", "lr": 0.001}, "ema": {"decay": 0.9}, "accumulate": 2, "drop_last": True}
    body = job_of(teacher_id, "kd", epochs=1, **options, no_decay="norm_and_bias", schedule={"kind": "one_cycle"})
    job = client.submit(body | {"students": [{"name": "cnn_s", "init": {"run": trained["id"]}}]})
    assert client.wait(job["id"])["state"] == "succeeded"
    [run] = client.runs(job["id"])
    [file] = [file for file in client.artifacts(trained["id"]) if file["name"] == "student.safetensors"]
    assert run["result"]["init"]["sha256"] == file["sha256"]
    assert run["result"]["weights"] == "ema"
    assert run["result"]["evaluation"]["test"]["top1"] == pytest.approx(run["result"]["last"]["ema_top1"])
    said = [event["data"]["message"] for event in client.events(job["id"]) if event["type"] == "log"]
    assert any(f"begins with the weights of run {trained['id']}" in message for message in said)

    assert main(["--url", client.base_url, "--json", "reproduce", run["id"]]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["same_weights"], told["differences"]) == (True, [])


def test_evaluate_measures_a_run_and_a_file_and_trains_nothing(
    service: Processes, trained: dict[str, Any], digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, dataset = service.client, '{"kind": "digits"}'

    def evaluate(*arguments: str) -> dict[str, Any]:
        assert main(["--url", client.base_url, "--json", "evaluate", *arguments, "--dataset", dataset]) == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    told = evaluate(trained["id"])
    assert told["splits"].keys() == {"test"}
    # ONNX Runtime and torch may differ on a picture whose two best classes are equally likely.
    assert told["splits"]["test"]["top1"] == pytest.approx(trained["result"]["last"]["top1"], abs=0.004)
    job = client.job(told["job"])
    assert job["caches"].keys() == {"test"}
    [run] = client.runs(job["id"])
    assert (run["state"], run["method"], run["epoch"]) == ("succeeded", "evaluation", 1)
    [row] = client.report(job["id"])["rows"]
    assert row["accuracy"] == told["splits"]["test"]["top1"]
    assert client.artifacts(run["id"]) == []

    preprocessing = tmp_path / "preprocessing.json"
    preprocessing.write_text(digits.preprocessing.model_dump_json())
    path = str(digits.teacher_spec.path)
    told = evaluate(path, "--preprocessing", str(preprocessing), "--holdout", "0.2")
    predicted = digits.teacher().logits(digits.test.images_NHWC).argmax(axis=1)
    assert told["splits"]["test"]["top1"] == pytest.approx((predicted == digits.test.labels_N).mean())
    assert told["splits"].keys() == {"validation", "test"}
    again = evaluate(path, "--preprocessing", str(preprocessing), "--holdout", "0.2")
    assert again["splits"] == told["splits"]
    assert client.job(again["job"])["teacher_forwards"]["run"] == 0


def run_quick_start(python: Path | str, service: Processes, digits: Digits, folder: Path, **environment: str) -> None:
    """Run the document of the client with this Python, and look at what it prints."""
    (folder / "teacher.onnx").symlink_to(digits.teacher_spec.path)
    line = [python, "-P", notebook.__file__, ROOT / "service/client/README.md"]
    line += ["http://127.0.0.1:8765", service.client.base_url]
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "10 classes" in done.stdout
    assert "succeeded {'run': " in done.stdout
    assert "| cnn\\_s | ce |" in done.stdout
    assert re.search("^422 Unknown name: .*'kdd'", done.stdout, re.MULTILINE)
    assert (folder / "student.onnx").stat().st_size > 1000


@pytest.mark.slow
def test_quick_start_of_the_client_runs_as_it_is_written(service: Processes, digits: Digits, tmp_path: Path) -> None:
    run_quick_start(sys.executable, service, digits, tmp_path, PYTHONPATH=str(ROOT))


@pytest.mark.slow
def test_base_that_is_installed_alone_runs_the_quick_start(service: Processes, digits: Digits, tmp_path: Path) -> None:
    """In an environment of its own: what ``pip install`` of this folder brings, then pandas as the document says."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT)
    for name in filter(None, listed.stdout.split("\0")):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    python = tmp_path / "venv/bin/python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([*pip, tmp_path / "source"], check=True)
    heavy = ("torch", "ray", "zarr", "numpy", "fastapi", "sqlalchemy", "pandas")
    code = f"import importlib.util as u; print(*(n for n in {heavy} if u.find_spec(n)), u.find_spec('service').origin)"
    found = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [Path(each) for each in found.stdout.split()] == [*python.parents[1].glob("lib/*/*/service/__init__.py")]
    subprocess.run([*pip, "pandas"], check=True)
    run_quick_start(python, service, digits, tmp_path)


@pytest.mark.slow
def test_more_runs_than_slots_share_processes_and_a_student_may_have_two(service: Processes, teacher_id: str) -> None:
    client = service.client
    methods = ("kd", "dtkd", "ce", "rld", "normkd")
    five = client.submit(job_of(teacher_id, *methods, epochs=1))
    # Both slots are its own as long as it is alone.
    events_until(client, five["id"], "epoch")
    two = client.submit(job_of(teacher_id, "kd", epochs=1, actors=2))
    many = client.submit(job_of(teacher_id, "kd", epochs=1, actors=3))
    done = client.wait(five["id"])
    assert done["state"] == "succeeded", done["error"]
    messages = [event["data"]["message"] for event in client.events(five["id"]) if event["type"] == "log"]
    groups = Counter(message.split(" runs ")[0] for message in messages if message.startswith("one of"))
    assert groups == {"one of 3": 3, "one of 2": 2}
    assert client.wait(two["id"])["state"] == "succeeded"
    refused = client.wait(many["id"])
    assert refused["state"] == "failed"
    assert "training.actors is 3, but the engine has room for 2" in refused["error"]["message"]


def test_backups_of_a_service_at_work_hold_what_has_succeeded_and_another_goes_on_with_the_rest(
    service: Processes, backed_up: BackedUp, tmp_path: Path
) -> None:
    """Those while a job is trained, which a successor adopts from the first one; and the one at the end."""
    job, restored, counts = backed_up
    client = service.client
    assert len(counts) == 3
    assert counts == sorted(counts)
    # Of ``distilled``, and then of this job.
    assert (counts[0], counts[-1]) == (2, 3)
    # In the first one it was being trained.
    with contextlib.closing(Database(restored[0].database)) as database:
        queries = EngineQueries(database, "successor")
        assert queries.acquire_lease(ttl_s=0.0)
        assert [record.id for record in queries.unfinished_jobs()] == [job["id"]]
        assert queries.adopt_job(job["id"]) is not None
    last = restored[-1]
    for run in client.runs(job["id"]):
        mine = last.jobs_dir / job["id"] / run["id"] / f"a{run['attempt']}" / "artifacts" / "student.safetensors"
        client.download(run["id"], "student.safetensors", tmp_path / "theirs")
        assert mine.read_bytes() == (tmp_path / "theirs").read_bytes()


def test_whatever_is_killed_a_run_goes_on_and_tells_every_epoch_once(service: Processes, teacher_id: str) -> None:
    """The run's own process, the engine's Ray, the engine: last, for the run goes on while there is none.

    The storm compares the weights, too, with those of a quiet run.
    """
    client, epochs = service.client, 200
    stormy = client.submit(job_of(teacher_id, "kd", epochs=epochs))
    [run] = client.runs(stormy["id"])

    def trained_on(attempt: int) -> None:
        """Wait until this attempt tells of an epoch that nobody had told of."""
        before = client.run(run["id"])["epoch"]
        for event in client.events(stormy["id"]):
            if event["type"] == "epoch" and event["attempt"] == attempt and event["data"]["epoch"] > before:
                return
        pytest.fail("the run ended too early")

    trained_on(1)
    os.kill(pid_of(service, run, 1), signal.SIGKILL)
    trained_on(2)
    os.kill(keeper_of(service.data_dir), signal.SIGKILL)
    trained_on(3)
    service.kill("engine")
    told = client.run(run["id"])["epoch"]
    # It may end before the next engine is there, which then tells the epochs that are left.
    service.start("engine")
    assert told < epochs

    done = client.wait(stormy["id"])
    assert done["state"] == "succeeded", (done["error"], service.logs())
    events = list(client.events(stormy["id"]))
    assert [event["data"]["epoch"] for event in events if event["type"] == "epoch"] == list(range(1, epochs + 1))
    resumed = [e["data"]["message"] for e in events if e["type"] == "log" and "resumed after" in e["data"]["message"]]
    assert len(resumed) == 2


def test_ray_listens_on_the_loopback_alone(service: Processes) -> None:
    pids = processes_of(service.data_dir, "")
    inodes = set()
    for pid in pids:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(path))
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                addresses.add(fields[1].partition(":")[0])
    # 127.0.0.1, as it is and as an IPv6 address.
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_a_cancelled_job_stops_within_its_epoch_and_leaves_no_artifacts(service: Processes, teacher_id: str) -> None:
    client = service.client
    job = client.submit(job_of(teacher_id, "kd", "dkd", "rld", epochs=500))
    events_until(client, job["id"], "epoch")
    client.cancel(job["id"])
    assert client.cancel(job["id"])["id"] == job["id"]
    done = client.wait(job["id"])
    assert done["state"] == "cancelled"
    for run in client.runs(job["id"]):
        assert run["state"] == "cancelled"
        assert list(client.artifacts(run["id"])) == []
        # Its log is there all the same.
        log = httpx2.get(f"{client.base_url}/v1/runs/{run['id']}/log", trust_env=False)
        assert json.loads(log.text.splitlines()[-1])["event"] == "attempt stopped"
    assert not list(service.data_dir.glob(f"jobs/{job['id']}/*/*/artifacts"))


@pytest.fixture(scope="module")
def doomed(service: Processes, teacher_id: str, digits: Digits) -> dict[str, str]:
    """Jobs that cannot go well, side by side: one diverges, one has labels in another order than its teacher."""
    optimizer = {"kind": "sgd", "lr": 1e30, "momentum": 0.0}
    arrays: dict[str, Any] = {}
    for name, split in (("train", digits.train), ("test", digits.test)):
        arrays[f"{name}_images"] = np.asarray(split.images_NHWC)
        arrays[f"{name}_labels"] = (np.asarray(split.labels_N) + 1) % 10
    np.savez(service.data_dir / "shifted.npz", **arrays)
    plans = {
        "diverges": job_of(teacher_id, "kd", optimizer=optimizer),
        "shifted": job_of(teacher_id, "kd") | {"dataset": {"kind": "npz", "path": "shifted.npz"}},
    }
    return {name: service.client.submit(plan)["id"] for name, plan in plans.items()}


def test_a_run_that_diverges_fails_alone_and_says_why(service: Processes, doomed: dict[str, str]) -> None:
    job = service.client.wait(doomed["diverges"])
    assert job["state"] == "failed"
    [run] = service.client.runs(job["id"])
    assert run["error"]["type"] == "NotFinite"
    assert "before the update" in run["error"]["message"]


def test_a_data_set_that_does_not_fit_the_teacher_fails_before_training(
    service: Processes, doomed: dict[str, str]
) -> None:
    job = service.client.wait(doomed["shifted"])
    assert job["state"] == "failed"
    assert job["error"]["type"] == "ContractViolation"
    assert "label" in job["error"]["message"]
    [run] = service.client.runs(job["id"])
    assert run["state"] == "cancelled"


def test_a_terminated_engine_ends_quietly_and_another_takes_over_what_it_finds(
    service: Processes, teacher_id: str
) -> None:
    client = service.client
    job = client.submit(job_of(teacher_id, "kd", epochs=12))
    [run] = client.runs(job["id"])
    events_until(client, job["id"], "epoch")
    assert service.terminate("engine") == 0
    assert client.run(run["id"])["state"] == "queued"
    assert not processes_of(service.data_dir, "")
    assert not machine_folder(service.data_dir).exists()

    # Nobody is there to ask, so a job that waits is cancelled at once.
    waiting = client.submit(job_of(teacher_id, "kd"))
    assert client.cancel(waiting["id"])["state"] == "cancelled"

    # What the next engine cannot read is of a later version.
    unreadable = client.submit(job_of(teacher_id, "kd"))
    database = Database(f"sqlite:///{service.data_dir / 'retort.sqlite3'}")
    with database.write() as session:
        record = session.get_one(JobRecord, unreadable["id"])
        record.plan = {**record.plan, "methods": ["of-tomorrow"]}
    database.close()

    service.start("engine")
    failed = client.wait(unreadable["id"])
    assert failed["state"] == "failed"
    assert "of-tomorrow" in failed["error"]["message"]
    done = client.wait(job["id"])
    assert done["state"] == "succeeded", (done["error"], service.logs())
    assert client.run(run["id"])["attempt"] == 2
    assert client.job(waiting["id"])["state"] == "cancelled"


def test_a_job_in_inference_is_cancelled_soon_and_keeps_what_it_inferred(service: Processes, teacher_id: str) -> None:
    client = service.client
    plan = job_of(teacher_id, "kd")
    plan["views"]["count"] = 400
    busy = client.submit(plan)
    for event in client.events(busy["id"]):
        if event["type"] == "inference_progress" and event["data"]["split"] == "train":
            break
    client.cancel(busy["id"])
    assert client.wait(busy["id"])["state"] == "cancelled"
    assert client.job(busy["id"])["teacher_forwards"]["run"] > 0


# ------------------------------------------------------------------------------------ without processes


def test_capacity_is_whole_shares_of_what_the_settings_say() -> None:
    assert choose_capacity(Settings(run_cpus=1.0), cpus=2, gpus=0).slots == 2
    assert choose_capacity(Settings(run_cpus=2.0), cpus=3, gpus=0).slots == 1
    assert choose_capacity(Settings(gpu_share=0.4), cpus=64, gpus=2).slots == 4
    assert choose_capacity(Settings(run_cpus=8.0, gpu_share=0.25), cpus=16, gpus=2).slots == 2
    with pytest.raises(InvalidSettings, match="RETORT_RUN_CPUS is 4, but the engine has 2 cores"):
        choose_capacity(Settings(run_cpus=4.0), cpus=2, gpus=0)


@pytest.mark.parametrize(
    ("cpus", "gpus", "gibibytes", "per_gpu", "run_cpus"),
    [
        (16, 1, 139, 2, 8.0),
        (64, 8, 80, 2, 4.0),
        (16, 1, 15, 1, 16.0),
        (8, 4, 48, 1, 2.0),
        (2, 1, 139, 1, 2.0),
        (4, 8, 80, 1, 0.5),
        (16, 2, None, 1, 8.0),
        (2, 0, None, 0, 1.0),
    ],
)
def test_capacity_is_chosen_from_cores_and_memory_where_the_settings_say_nothing(
    cpus: int, gpus: int, gibibytes: int | None, per_gpu: int, run_cpus: float
) -> None:
    chosen = choose_capacity(Settings(), cpus, gpus, None if gibibytes is None else gibibytes << 30)
    assert (chosen.gpu_slots, chosen.run_cpus) == (gpus * per_gpu, run_cpus)
    assert chosen.slots == (gpus * per_gpu or cpus)
    # As Ray counts: no more than there is, rounded to ten-thousandths.
    assert round(chosen.gpu_share, 4) * per_gpu <= 1.0
    training = Training(epochs=1, actors=2)
    assert chosen.need_of(training) == Need(2, run_cpus, 1.0 if gpus else 0.0)
    assert chosen.inference_share_of(training) == (chosen.gpu_share if gpus else 0.0)
    assert chosen.inference_share_of(training, whole=True) == (1.0 if gpus else 0.0)
    assert chosen.inference_share_of(Training(device="cpu")) == chosen.gpu_share_of(Training(device="cpu")) == 0.0
    assert ("are the most" in chosen.reason) == (gibibytes is not None)
    alone = Training(epochs=1)
    apart = chosen.stage_of(alone, chosen.gpu_share_of(alone)) == "train"
    assert apart == (gpus > 0 and run_cpus >= 2)
    assert chosen.stage_of(training, 1.0) == chosen.stage_of(alone, 0.0) == "all"


def test_capacity_refuses_what_could_never_start() -> None:
    gpus = choose_capacity(Settings(gpu_share=0.25, run_cpus=1.0), cpus=16, gpus=2)
    assert gpus.refusal(Training(epochs=1, actors=2)) is None
    _, why = gpus.refusal(Training(epochs=1, actors=3)) or ("", "")
    assert "each takes a whole GPU (NCCL takes no two processes on one), but the engine has 2" in why
    assert gpus.refusal(Training(epochs=1, actors=3, device="cpu")) is None
    assert gpus.refusal(Training(epochs=1, actors=64), evaluates=True) is None
    _, why = gpus.refusal(Training(epochs=1, actors=17, device="cpu")) or ("", "")
    assert "the engine has room for 16 at once" in why


def test_an_engine_that_is_promised_more_gpus_than_cuda_may_see_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,-1,5")
    why = "RETORT_GPUS is 2, but CUDA_VISIBLE_DEVICES='3,-1,5' leaves 1: set"
    with pytest.raises(InvalidSettings, match=why):
        run_engine(Settings(data_dir=tmp_path / "data", gpus=2))
    assert not (tmp_path / "data").exists()


def test_settings_take_an_empty_variable_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Compose passes on what nobody has set."""
    for name in ("RETORT_GPUS", "RETORT_CPUS", "RETORT_GPU_SHARE", "RETORT_RUN_CPUS", "RETORT_API_KEY_FILE"):
        monkeypatch.setenv(name, "")
    settings = Settings()
    assert (settings.gpus, settings.cpus, settings.gpu_share, settings.run_cpus) == (None, None, None, None)
    assert settings.api_key_file is None


class _DatabaseThatFails:
    """EngineQueries whose lease cannot be renewed, as when another process holds the database."""

    holder = "engine"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def acquire_lease(self, ttl_s: float, **_: object) -> bool:
        raise self._error


@pytest.mark.parametrize(
    "error", [OperationalError("select", {}, Exception("database is locked")), LogGone("retort.sqlite3-wal is gone")]
)
def test_a_heartbeat_survives_a_locked_database_and_ends_the_engine_before_its_lease_does(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("service.engine.process.RENEW_S", 0.01)
    monkeypatch.setattr("service.engine.process.LEASE_TTL_S", 0.2)
    ending, queries = threading.Event(), cast("EngineQueries", _DatabaseThatFails(error))
    started = time.monotonic()
    with Heartbeat(queries, ending, EngineParts(queries)):
        assert ending.wait(10)
    assert time.monotonic() - started > 0.1


def test_a_heartbeat_empties_the_log_of_the_database_now_and_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What an idle service has committed does not stay in a file that somebody may take for waste."""
    url = f"sqlite:///{tmp_path / 'db'}"
    upgrade_to_head(url)
    emptied, checkpoint = threading.Event(), Database.checkpoint

    def watched(database: Database) -> None:
        checkpoint(database)
        if Path(f"{tmp_path / 'db'}-wal").stat().st_size == 0:
            emptied.set()

    monkeypatch.setattr("service.engine.process.RENEW_S", 0.01)
    monkeypatch.setattr("service.engine.process.CHECKPOINT_S", 0.0)
    monkeypatch.setattr(Database, "checkpoint", watched)
    with contextlib.closing(Database(url)) as database:
        queries = EngineQueries(database, "engine")
        assert queries.acquire_lease()
        with Heartbeat(queries, threading.Event(), EngineParts(queries)):
            assert emptied.wait(30)
