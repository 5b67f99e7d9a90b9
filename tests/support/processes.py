"""The service's processes as tests start, kill and watch them, and the jobs that they are given."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from service.cli.processes.background_service import answers_ready
from service.cli.processes.supervisor import command, free_port
from service.client.client import Client
from tests.support.digits import Digits
from tests.support.process_table import processes_with
from workers.cluster.head_folder import machine_folder

TRAINING: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 64,
    "optimizer": {"kind": "adamw", "lr": 0.003},
    "schedule": {"kind": "cosine"},
}


class Processes:
    """An API and an engine over one data directory, each of which can be killed and started again.

    Args:
        data_dir: made here, unless it is a copy of another one.
        environment: of the processes, beside the settings; None takes this process's own.
        log_dir: where what they say is kept; None is the data directory.
        settings: more of them, as environment variables without ``RETORT_``.
    """

    def __init__(
        self,
        data_dir: Path,
        environment: Mapping[str, str] | None = None,
        log_dir: Path | None = None,
        **settings: str,
    ) -> None:
        port = free_port()
        self.client = Client(f"http://127.0.0.1:{port}")
        self.data_dir, self._log_dir = data_dir, log_dir or data_dir
        data_dir.mkdir(exist_ok=True)
        self._environment = {
            **(os.environ if environment is None else environment),
            "RETORT_DATA_DIR": str(data_dir),
            "RETORT_DATA_ROOT": str(data_dir),
            "RETORT_PORT": str(port),
            "RETORT_CPUS": "2",
            "RETORT_GPUS": "0",
            **{f"RETORT_{name}": value for name, value in settings.items()},
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("api", "engine"):
            self.start(name)

    def start(self, name: str) -> None:
        """``api``, ``engine``, or one more engine: ``engine-2``."""
        program = name.partition("-")[0]
        with (self._log_dir / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command(program), env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def is_running(self, name: str) -> bool:
        return name in self._running and self._running[name].poll() is None

    def kill(self, name: str) -> None:
        self._running[name].kill()
        self._running[name].wait()

    def terminate(self, name: str) -> int:
        self._running[name].terminate()
        return self.wait(name)

    def wait(self, name: str) -> int:
        """Its exit status, once it has ended."""
        return self._running[name].wait(timeout=60)

    def wait_ready(self) -> None:
        while not answers_ready(self.client):
            assert all(process.poll() is None for process in self._running.values()), self.logs()
            signal.sigtimedwait([], 0.1)

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self._log_dir.glob("*.log"))

    def close(self) -> None:
        self.client.close()
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()
        for process in self._running.values():
            process.wait(timeout=60)


@contextlib.contextmanager
def running_service(
    data_dir: Path, environment: Mapping[str, str] | None = None, log_dir: Path | None = None, **settings: str
) -> Iterator[Processes]:
    """Ready to work."""
    processes = Processes(data_dir, environment, log_dir, **settings)
    try:
        processes.wait_ready()
        yield processes
    finally:
        processes.close()


def uploaded(service: Processes, digits: Digits) -> str:
    """The id of the digits' teacher."""
    preprocessing = digits.preprocessing.model_dump(mode="json")
    teacher = service.client.upload_teacher(digits.teacher_spec.path, preprocessing=preprocessing)
    return str(teacher["id"])


def given_caches(service: Processes, digits: Digits) -> None:
    """Hand the service what the digits' teacher was found to be and to say, so that its jobs train at once."""
    for kind in ("caches", "contracts", "datasets", "smoke"):
        shutil.copytree(digits.folders.data_dir / kind, service.data_dir / kind, dirs_exist_ok=True)


def job_of(teacher: str, *methods: object, student: str = "cnn_s", **training: object) -> dict[str, Any]:
    return {
        "teacher": teacher,
        "dataset": {"kind": "digits"},
        "views": {"augmentation": {"recipe": "crop_flip", "pad": 1, "flip": False}, "count": 2},
        "students": [student],
        "methods": list(methods),
        "training": {**TRAINING, **training},
    }


def events_until(client: Client, job_id: str, kind: str) -> dict[str, Any]:
    """Follow a job's stream until an event of this type; returns it."""
    for event in client.events(job_id):
        if event["type"] == kind:
            return event
    pytest.fail(f"the stream of {job_id} ended without {kind!r}")


def keeper_of(data_dir: Path) -> int:
    return int((machine_folder(data_dir) / "keeper.lock").read_text())


def processes_of(data_dir: Path, title: str) -> list[int]:
    """Processes of the Ray that works for this data directory, by the beginning of what they are called."""
    mark = f"RETORT_RAY_FOLDER={machine_folder(data_dir)}"
    return [pid for pid, line in processes_with(mark).items() if title in line]


def logged(service: Processes, run: dict[str, Any], attempt: int) -> list[dict[str, Any]]:
    """What an attempt has written down so far."""
    path = service.data_dir / "jobs" / run["job_id"] / run["id"] / f"a{attempt}" / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def pid_of(service: Processes, run: dict[str, Any], attempt: int) -> int:
    """Of the process that trains this attempt."""
    return int(logged(service, run, attempt)[0]["pid"])


def weights_of(service: Processes, client: Client, job_id: str) -> dict[str, Any]:
    [run] = client.runs(job_id)
    path = service.data_dir / f"{job_id}.safetensors"
    client.download(run["id"], "student.safetensors", path)
    return load_file(path)
