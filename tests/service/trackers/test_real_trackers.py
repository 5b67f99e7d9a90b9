"""Export to real trackers: an MLflow server on the loopback address, W&B offline, Trackio in a folder.

They bring a GB, so they are no part of ``make test``: ``.ci/run`` puts them into ``.venv/trackers``, from where
``retort`` runs them; ``RETORT_TRACKERS_PYTHON`` names another Python that has them.
"""

import http.server
import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest

from service.cli.processes.supervisor import free_port
from tests.support.service_helpers import Api
from tests.support.tracker_cases import Work

pytest_plugins = ["tests.support.service_fixtures"]
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path(os.environ.get("RETORT_TRACKERS_PYTHON", ROOT / ".venv/trackers/bin/python"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"}


@pytest.fixture(autouse=True)
def _installed() -> None:
    if not PYTHON.exists():
        pytest.skip(f"no trackers are installed: {PYTHON} does not exist; `.ci/run` makes it")


def retort(api: Api, *arguments: str) -> dict[str, Any]:
    """A command of ``retort`` where the trackers are installed; the document that it prints."""
    line = [PYTHON, "-m", "service.cli", "--url", api.url, "--json", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


class Mlflow:
    """A server of MLflow with its database below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.port, self._folder = free_port(), folder
        self.url = f"http://127.0.0.1:{self.port}"
        folder.mkdir()
        self._http = httpx2.Client(base_url=f"{self.url}/api/2.0/mlflow", timeout=30, trust_env=False)

    def start(self) -> None:
        line = [PYTHON, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*line, "--backend-store-uri", f"sqlite:///{self._folder}/db", "--artifacts-destination", "files"],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                # Ten processes for jobs of its own, which nobody gives it here.
                env={**ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        while True:
            try:
                if self._http.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        self.stop()
        self._http.close()

    def runs(self) -> dict[str, Any]:
        """Its runs by the id of the Retort run."""
        found = self._http.get("/experiments/get-by-name", params={"experiment_name": "retort"}).json()
        ids = [found["experiment"]["experiment_id"]]
        runs = self._http.post("/runs/search", json={"experiment_ids": ids}).json()["runs"]
        by_run = {tag["value"]: run for run in runs for tag in run["data"]["tags"] if tag["key"] == "retort.run_id"}
        assert len(by_run) == len(runs)
        return by_run

    def history(self, run: dict[str, Any], key: str) -> list[tuple[int, float]]:
        """(step, value) of a metric."""
        query = {"run_id": run["info"]["run_id"], "metric_key": key}
        answer = self._http.get("/metrics/get-history", params=query).json()
        return [(metric["step"], metric["value"]) for metric in answer.get("metrics", [])]

    def files(self, run: dict[str, Any]) -> list[str]:
        answer = self._http.get("/artifacts/list", params={"run_id": run["info"]["run_id"]}).json()
        return sorted(file["path"] for file in answer["files"])


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[Mlflow]:
    server = Mlflow(tmp_path / "mlflow")
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


def test_export_to_an_mlflow_server_updates(api: Api, mlflow: Mlflow) -> None:
    work = Work(api)
    work.epoch(0, 1)
    retort(api, "export", "mlflow", work.job_id, "--to", mlflow.url)
    work.epoch(0, 2)
    work.epoch(0, 3)
    work.end_run(0)
    work.end_run(1)
    work.end()
    for _ in range(2):
        printed = retort(api, "export", "mlflow", work.job_id, "--to", mlflow.url)
        assert printed["runs"] == 2
    runs = mlflow.runs()
    assert set(runs) == set(work.run_ids)
    run = runs[work.run_ids[0]]
    assert run["info"]["status"] == "FINISHED"
    assert mlflow.history(run, "top1") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    parameters = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert (parameters["method"], parameters["training.epochs"]) == ("ce", "3")
    assert mlflow.history(run, "result/best.top1") == [(0, 0.3)]
    assert mlflow.files(run) == ["result.json", "student.safetensors"]


# Asks for a run of a server whose answers to ``runs/create`` are given, uploads a file; prints what the sink raises.
START = """
import sys
from pathlib import Path
from service.trackers.sinks.base import RunFile, TrackedRun
from service.trackers.sinks.mlflow import MlflowSink

run = TrackedRun("run_1", "job_1", "s/kd/0", "", {}, None)

for url in sys.argv[1:]:
    sink = MlflowSink(url, "retort", Path("unused"))
    try:
        sink.start(run)
        sink.add_file(run, RunFile(Path("pyproject.toml"), "0" * 64))
    except Exception as error:
        print(type(error).__name__)
"""
REFUSED = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "no such value"})
INFO = {"run_id": "1", "experiment_id": "1", "status": "RUNNING", "artifact_uri": "mlflow-artifacts:/1/1/artifacts"}
RUN = json.dumps({"run": {"info": INFO, "data": {}}})
# By the first part of the path: status and text of the answer to ``runs/create``, and stages of the experiment.
ANSWERS = {
    "proxy404": (404, "<html>not found</html>", ["active"]),
    "proxy400": (400, "<html>bad request</html>", ["active"]),
    "refused": (400, REFUSED, ["active", "active"]),
    "file413": (200, RUN, ["active", "active"]),
    "deleted": (200, "{}", ["deleted"]),
    "deleted-meanwhile": (400, REFUSED, ["active", "deleted"]),
}


class Answering(http.server.BaseHTTPRequestHandler):
    """What MLflow, or a proxy before it, answers."""

    stages: ClassVar[dict[str, Iterator[str]]] = {}

    def do_GET(self) -> None:
        case = self.path.split("/")[1]
        if "/runs/get" in self.path:
            self._answer(200, RUN)
            return
        stage = next(self.stages.setdefault(case, iter(ANSWERS[case][2])))
        self._answer(200, json.dumps({"experiment": {"experiment_id": "1", "lifecycle_stage": stage}}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, text, _ = ANSWERS[self.path.split("/")[1]]
        self._answer(*((200, "{}") if self.path.endswith("/search") else (status, text)))

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(413, "<html>too large</html>")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def test_mlflow_sink_leaves_a_run_out_for_an_answer_of_mlflows_own_alone() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{server.server_port}/{case}" for case in ANSWERS]
        done = subprocess.run(
            [PYTHON, "-c", START, *urls], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, timeout=120
        )
        server.shutdown()
    raised = dict(zip(ANSWERS, done.stdout.split(), strict=True))
    assert raised == {
        "proxy404": "MlflowException",
        "proxy400": "MlflowException",
        "refused": "SinkRefused",
        "file413": "SinkRefused",
        "deleted": "SinkNotReady",
        "deleted-meanwhile": "SinkNotReady",
    }, done.stderr


def test_track_follows_through_an_outage_of_the_mlflow_server(api: Api, mlflow: Mlflow, tmp_path: Path) -> None:
    work = Work(api)
    line = [PYTHON, "-m", "service.cli", "--url", api.url, "track", f"mlflow:{mlflow.url}"]
    log = tmp_path / "track.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*line, "--cursor-dir", str(tmp_path / "cursor")], stdout=sink, stderr=sink, env=ENVIRONMENT, cwd=ROOT
        )

    def wait_for(text: str) -> None:
        while text not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)

    try:
        work.epoch(0, 1)
        while not (mlflow_has_run(mlflow) and mlflow.history(mlflow.runs()[work.run_ids[0]], "top1")):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        mlflow.stop()
        work.epoch(0, 2)
        wait_for("the tracker is behind with a job")
        work.epoch(0, 3)
        work.end_run(0)
        work.end_run(1)
        work.end()
        mlflow.start()
        mlflow.wait_ready()
        wait_for("the tracker has a whole job")
    finally:
        process.kill()
        process.wait()
    assert mlflow.history(mlflow.runs()[work.run_ids[0]], "top1") == [(1, 0.1), (2, 0.2), (3, 0.3)]


def mlflow_has_run(mlflow: Mlflow) -> bool:
    try:
        return bool(mlflow.runs())
    except KeyError:
        return False


def test_export_to_wandb_offline_is_written_once_for_each_run(api: Api, tmp_path: Path) -> None:
    work = Work(api)
    work.finish()
    for _ in range(2):
        retort(api, "export", "wandb", work.job_id, "--to", str(tmp_path / "wandb"))
    folders = sorted((tmp_path / "wandb/wandb").glob("offline-run-*"))
    assert sorted(folder.name.rpartition("-")[2] for folder in folders) == sorted(work.run_ids)
    for run_id, folder in ((folder.name.rpartition("-")[2], folder) for folder in folders):
        content = (folder / f"run-{run_id}.wandb").read_bytes()
        for expected in (b"top1", b"train_loss", b"training.epochs", b"result/best.top1", b"student.safetensors"):
            assert expected in content


def test_export_to_trackio_updates(api: Api, tmp_path: Path) -> None:
    work = Work(api)
    work.epoch(0, 1)
    target = str(tmp_path / "trackio")
    retort(api, "export", "trackio", work.job_id, "--to", target)
    work.epoch(0, 2)
    work.epoch(0, 3)
    work.end_run(0)
    work.end_run(1)
    work.end()
    for _ in range(2):
        retort(api, "export", "trackio", work.job_id, "--to", target)
    with closing(sqlite3.connect(tmp_path / "trackio/retort.db")) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
        artifacts = database.execute("SELECT count(*) FROM artifact_versions").fetchone()
    assert [(name.rpartition(" ")[2], step) for name, step, _ in rows] == [
        (work.run_ids[0], number) for number in (1, 2, 3)
    ]
    assert [json.loads(metrics)["top1"] for _, _, metrics in rows] == [0.1, 0.2, 0.3]
    assert artifacts == (2,)
