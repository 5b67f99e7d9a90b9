"""Trackers beside a service: whatever one does, API, engine and jobs go on."""

import os
import signal
import time
from pathlib import Path

import pytest

from service.cli import main
from service.cli.processes.background_service import BackgroundService
from service.cli.processes.trackers import track_arguments
from service.client.client import Client
from service.settings import Settings
from service.trackers.address import parse_address
from tests.service.cli.test_supervisor import Toy
from tests.support.digits import Digits
from tests.support.process_table import processes_with
from tests.support.processes import job_of

ROOT = Path(__file__).resolve().parents[3]


def test_optional_child_that_fails_is_started_again_and_ends_nothing(tmp_path: Path) -> None:
    """Also before all are ready, where that of another one would end all."""
    with Toy(tmp_path, "first,failing", optional=["failing"]) as toy:
        assert toy.process.stdout is not None
        for _ in range(2):
            line = toy.process.stdout.readline()
            assert line == "failing child ended by itself (exit status 3), starting it again\n"
        (tmp_path / "failing.up").touch()
        while line != "ready\n":
            line = toy.process.stdout.readline()
        toy.process.terminate()
        assert toy.rest().endswith("stopping\n")
        assert toy.process.returncode == 0


def test_optional_child_that_is_deaf_delays_no_end(tmp_path: Path) -> None:
    with Toy(tmp_path, "first,deaf", optional=["deaf"]) as toy:
        toy.wait_ready()
        began = time.monotonic()
        toy.process.terminate()
        assert toy.rest() == "stopping\n"
        assert time.monotonic() - began < 30.0


def test_serve_refuses_a_tracker_that_it_cannot_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything starts: nobody finds out after a week that nothing was told."""
    monkeypatch.setenv("RETORT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RETORT_TRACKERS", "mlflow:nowhere")
    assert main(["serve", "--port", "0"]) == 1
    assert "no target of mlflow" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_track_arguments_pass_settings_of_the_service_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow upload is no hanging one: whoever runs `retort serve` can say so, too."""
    monkeypatch.setenv("RETORT_TRACKERS_STALL_S", "1800")
    arguments = track_arguments(Settings(data_dir=tmp_path), parse_address("mlflow:http://127.0.0.1:5000"))
    assert arguments[:2] == ["track", "mlflow:http://127.0.0.1:5000"]
    given = dict(zip(arguments[2::2], arguments[3::2], strict=True))
    assert given == {"--cursor-dir": str(tmp_path / "trackers"), "--project": "retort", "--stall-s": "1800.0"}


@pytest.mark.slow
def test_job_ends_beside_a_tracker_that_hangs_and_is_killed(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A package whose import never ends, where its process finds it first.
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/trackio.py").write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "packages"), str(ROOT))))
    monkeypatch.setenv("RETORT_TRACKERS", f"trackio:{tmp_path / 'out'}")
    target = f"trackio:{tmp_path / 'out'}"

    def tracker() -> int:
        while True:
            found = [pid for pid, line in processes_with(target).items() if f" track {target}" in line]
            if found:
                return found[0]
            time.sleep(0.1)

    with BackgroundService(tmp_path / "data", tmp_path) as service:
        service.wait_ready()
        hanging = tracker()
        with Client(service.url) as client:
            preprocessing = digits.preprocessing.model_dump(mode="json")
            teacher = client.upload_teacher(digits.teacher_spec.path, preprocessing=preprocessing)["id"]
            for number in (1, 2):
                job = client.submit(job_of(teacher, "kd"))
                assert client.wait(job["id"], timeout_s=120)["state"] == "succeeded"
                if number == 1:
                    assert tracker() == hanging
                    os.kill(hanging, signal.SIGKILL)
        assert tracker() != hanging
        began = time.monotonic()
        service.stop()
        assert time.monotonic() - began < 50.0
    assert f"tracker {target} ended by itself (signal SIGKILL), starting it again" in service.log_path.read_text()
