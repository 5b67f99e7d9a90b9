"""Export of a job to a tracker: everything, once, again without doubling; and how a sink is added."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli import main
from service.client.client import Client
from service.db.states import State
from service.trackers.address import BadTracker, parse_address, parse_addresses
from service.trackers.documents import finite, flat_result
from service.trackers.export import JobExport
from service.trackers.sinks import base, registry
from service.trackers.sinks.base import RunFile, TrackedRun
from service.trackers.sinks.registry import SINKS
from tests.support.service_helpers import Api, add_job
from tests.support.tracker_cases import RecordingSink, Work

pytest_plugins = ["tests.support.service_fixtures"]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The recipe of service/README.md: a class, and an entry in the registry."""
    monkeypatch.setitem(SINKS, "recording", RecordingSink)
    yield
    RecordingSink.reset()


def export(api: Api, work: Work, *options: str) -> int:
    return main(["--url", api.url, "--json", "export", "recording", work.job_id, "--to", "here", *options])


def test_export_tells_parameters_epochs_result_files_and_end(
    shared_api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Work(shared_api)
    work.finish()
    assert export(shared_api, work) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {
        "job_id": work.job_id,
        "tracker": "recording:here",
        "project": "retort",
        "runs": 2,
        "is_ended": True,
    }
    kept = RecordingSink.runs[work.run_ids[1]]
    assert kept.parameters["student"] == "cnn_s"
    assert kept.parameters["method"] == "kd"
    assert kept.parameters["training.epochs"] == "3"
    assert kept.parameters["dataset.kind"] == "digits"
    assert kept.metrics == {
        number: {"seconds": 2.0, "top1": number / 10, "train_loss": 1 / number} for number in (1, 2, 3)
    }
    with Client(shared_api.url) as client:
        told = [event for event in client.stored_events(work.job_id) if event["type"] == "epoch"]
    assert [at.isoformat() for at in kept.times.values()] == [
        event["at"].replace("Z", "+00:00") for event in told if event["run_id"] == work.run_ids[1]
    ]
    assert kept.result == {"best.epoch": 3.0, "best.top1": 0.3, "environment.device": "cpu"}
    assert kept.files == {"result.json": b"{}\n", "student.safetensors": work.run_ids[1].encode()}
    assert kept.state == "succeeded"


def test_export_again_updates_and_doubles_nothing(shared_api: Api) -> None:
    work = Work(shared_api)
    work.epoch(0, 1)
    assert export(shared_api, work) == 0
    assert RecordingSink.runs[work.run_ids[0]].state == "running"
    work.epoch(0, 2)
    work.epoch(0, 3)
    work.end_run(0)
    work.end_run(1, State.CANCELLED)
    work.end()
    for _ in range(2):
        assert export(shared_api, work) == 0
        assert RecordingSink.runs[work.run_ids[0]].calls == [1, 2, 3]
        assert [kept.state for kept in RecordingSink.runs.values()] == ["succeeded", "cancelled"]


def test_export_follows_a_job_to_its_end(shared_api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(shared_api)
    work.finish()
    assert export(shared_api, work, "--follow", "--without-files") == 0
    assert json.loads(capsys.readouterr().out)["is_ended"] is True
    assert RecordingSink.runs[work.run_ids[0]].files == {}


def test_export_of_epochs_without_events_takes_them_from_the_run(shared_api: Api) -> None:
    """Of a retry, its own events begin after the epochs that it took over."""
    work = Work(shared_api)
    work.epoch(0, 1)
    work.epoch(0, 2)
    work.epoch(0, 3)
    with Client(shared_api.url) as client:
        job, last = client.job(work.job_id), list(client.stored_events(work.job_id))[-1]
        sink = RecordingSink("here", "retort", Path("nowhere"))
        JobExport(client, job, sink, with_files=True).apply(last)
    kept = RecordingSink.runs[work.run_ids[0]]
    assert kept.calls == [1, 2, 3]
    assert (kept.times[2] - kept.times[1]).total_seconds() == 2.0


def test_export_gives_each_file_a_call_and_collects_anew_after_a_failure(
    shared_api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog times calls: all files in one would take longer the more there are."""
    work, calls = Work(shared_api), []

    class Counting(RecordingSink):
        def add_file(self, run: TrackedRun, file: RunFile) -> None:
            calls.append(f"{run.id} {file.path.name}")
            super().add_file(run, file)
            self._fail("added")

    monkeypatch.setitem(SINKS, "recording", Counting)
    work.finish()
    RecordingSink.fails.append("added")
    assert export(shared_api, work) == 1
    assert export(shared_api, work) == 0
    names = [f"{id} {name}" for id in work.run_ids for name in ("result.json", "student.safetensors")]
    assert calls == [names[0], *names]
    assert [sorted(RecordingSink.runs[id].files) for id in work.run_ids] == [["result.json", "student.safetensors"]] * 2


def test_export_leaves_a_refused_run_out_and_says_so(shared_api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(shared_api)
    work.finish()
    RecordingSink.refuses.add(work.run_ids[0])
    assert export(shared_api, work) == 1
    assert "is refused" in capsys.readouterr().err
    assert list(RecordingSink.runs) == [work.run_ids[1]]


def test_run_that_never_began_is_not_exported(shared_api: Api) -> None:
    job = add_job(shared_api.queries)
    shared_api.client.post(f"/v1/jobs/{job.id}/cancel")
    assert main(["--url", shared_api.url, "export", "recording", job.id, "--to", "here"]) == 0
    assert RecordingSink.runs == {}


# ---------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("mlflow", "no target of mlflow"),
        ("mlflow:5000", "no target of mlflow"),
        ("aim:http://host", "NAME:TARGET with a name out of mlflow, wandb, trackio, recording"),
        ("trackio:relative/folder", "absolute path"),
        ("mlflow:http://me:secret@host", "holds a user or password"),
        ("mlflow:http://host mlflow:http://host", "twice"),
    ],
)
def test_address_that_cannot_be_used_is_refused(text: str, match: str) -> None:
    with pytest.raises(BadTracker, match=match) as caught:
        parse_addresses(text)
    assert "secret" not in str(caught.value)


def test_address_of_a_tracker_that_is_not_installed_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RecordingSink, "package", "not_there")
    assert main(["export", "recording", "job_1", "--to", "here"]) == 1
    assert "pip install 'retort[recording]'" in capsys.readouterr().err
    assert parse_address("recording:here").slug != parse_address("recording:there").slug


def test_every_sink_is_a_file_an_entry_and_an_extra() -> None:
    files = {path.stem for path in Path(base.__file__).parent.glob("*.py")} - {"__init__", "base", "registry"}
    own = {name: sink for name, sink in SINKS.items() if name != "recording"}
    assert files == {sink.__module__.rpartition(".")[2] for sink in own.values()}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, sink in own.items():
        assert any(requirement.startswith(f"{sink.distribution}>") for requirement in extras[name]), name
    assert registry.__doc__


# ---------------------------------------------------------------------------------------------------------- documents


def test_metrics_that_are_no_numbers_are_left_out() -> None:
    assert finite({"epoch": 1, "top1": 0.5, "agreement": None, "nll": float("nan"), "note": "x"}) == {"top1": 0.5}


def test_result_is_flat_without_matrices() -> None:
    result = {
        "last": {"top1": 0.5},
        "selected": "last",
        "parameters": 7,
        "evaluation": {"test": {"top1": 0.5, "confusion": [[1, 2], [3, 4]], "per_class": [0.5, None]}},
    }
    assert flat_result(result) == {"selected": "last", "parameters": 7.0, "evaluation.test.top1": 0.5}
