"""A tracker that is a dictionary, and jobs that an engine works on step by step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from service.db.states import State
from service.trackers.sinks.base import RunFile, Sink, SinkRefused, TrackedRun
from tests.support.service_helpers import Api, add_job, start_run
from workers.files import file_sha256


@dataclass
class Kept:
    """What a tracker has of a run. ``calls`` is how often it was told each epoch."""

    parameters: dict[str, str]
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    times: dict[int, datetime] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    result: dict[str, str | float] = field(default_factory=dict)
    added: list[RunFile] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"


class RecordingSink(Sink):
    """Keeps what it is told in ``runs``, by target and run, as a tracker would: beyond the life of a sink.

    Attributes:
        refuses: the ids of runs that it does not take.
        fails: names of calls, each of which fails once in its turn; a name may stand there several times.
    """

    package = "json"
    distribution = "nothing"
    help = "any text"
    runs: ClassVar[dict[str, Kept]] = {}
    refuses: ClassVar[set[str]] = set()
    fails: ClassVar[list[str]] = []

    @classmethod
    def reset(cls) -> None:
        for kept in (cls.runs, cls.refuses, cls.fails):
            kept.clear()

    @classmethod
    def check_target(cls, target: str) -> bool:
        return bool(target)

    def __init__(self, target: str, project: str, scratch: Path) -> None:
        self._fail("open")

    def start(self, run: TrackedRun) -> int:
        self._fail("start")
        if run.id in self.refuses:
            raise SinkRefused(f"{run.name} is refused")
        kept = self.runs.setdefault(run.id, Kept(dict(run.parameters)))
        kept.added.clear()
        return max(kept.metrics, default=0)

    def log_metrics(self, run: TrackedRun, epoch: int, at: datetime, metrics: Mapping[str, float]) -> None:
        self._fail("log_metrics")
        kept = self.runs[run.id]
        kept.calls.append(epoch)
        kept.metrics[epoch], kept.times[epoch] = dict(metrics), at

    def log_result(self, run: TrackedRun, result: Mapping[str, str | float], at: datetime) -> None:
        self.runs[run.id].result = dict(result)

    def add_file(self, run: TrackedRun, file: RunFile) -> None:
        self._fail("add_file")
        assert file_sha256(file.path) == file.sha256
        self.runs[run.id].added.append(file)

    def commit_files(self, run: TrackedRun) -> None:
        kept = self.runs[run.id]
        kept.files = {file.path.name: file.path.read_bytes() for file in kept.added}
        kept.added.clear()

    def end(self, run: TrackedRun, state: str, at: datetime) -> None:
        self.runs[run.id].state = state

    def flush(self) -> None:
        self._fail("flush")

    def close(self) -> None:
        self._fail("close")

    def _fail(self, call: str) -> None:
        if self.fails and self.fails[0] == call:
            self.fails.pop(0)
            raise ConnectionError(f"{call} finds nobody")


class Work:
    """A job of two runs, ``ce`` and ``kd``, of three epochs each, in the hands of an engine.

    Attributes:
        job_id, run_ids: of the job.
    """

    def __init__(self, api: Api, **changes: object) -> None:
        self._api = api
        self.job_id = add_job(api.queries, **changes).id
        claimed = api.records.claim_job()
        assert claimed is not None
        assert claimed.id == self.job_id
        self.run_ids = [run.id for run in api.records.runs(self.job_id)]
        self._attempts = {id: start_run(api.records, id) for id in self.run_ids}

    def epoch(self, run: int, number: int) -> None:
        """Ends an epoch of a run."""
        metrics = {"epoch": number, "seconds": 2.0, "top1": number / 10, "agreement": None, "train_loss": 1 / number}
        event = {"type": "epoch", "epoch": number, "epochs": 3, "metrics": metrics}
        progress = {"epoch": number, "metrics": metrics}
        id = self.run_ids[run]
        told = self._api.records.record_events(
            self.job_id, id, self._attempt(run), [(number, event)], progress=progress
        )
        assert told == 1

    def end_run(self, run: int, state: State = State.SUCCEEDED, more: Mapping[str, bytes] | None = None) -> None:
        """Ends a run; one that succeeds leaves ``result.json``, a file, and ``more`` by name."""
        id, attempt, records = self.run_ids[run], self._attempt(run), self._api.records
        if state is not State.SUCCEEDED:
            assert records.move_run(id, attempt, state)
            return
        folder = self._api.settings.jobs_dir / self.job_id / id / "a1" / "artifacts"
        folder.mkdir(parents=True)
        (folder / "student.safetensors").write_bytes(id.encode())
        (folder / "result.json").write_text("{}\n")
        for name, content in (more or {}).items():
            (folder / name).write_bytes(content)
        artifacts = [
            {
                "name": path.name,
                "path": path.relative_to(self._api.settings.data_dir.resolve()).as_posix(),
                "size_bytes": path.stat().st_size,
                "sha256": file_sha256(path),
                "media_type": "application/octet-stream",
            }
            for path in sorted(folder.iterdir())
        ]
        result = {"last": {"top1": 0.3}, "best": {"epoch": 3, "top1": 0.3}, "environment": {"device": "cpu"}}
        assert records.record_result(id, attempt, artifacts, result)

    def end(self, state: State = State.SUCCEEDED) -> None:
        """Ends the job."""
        assert self._api.records.move_job(self.job_id, state)

    def finish(self) -> None:
        """All epochs, both runs, the job."""
        for run in (0, 1):
            for number in (1, 2, 3):
                self.epoch(run, number)
            self.end_run(run)
        self.end()

    def _attempt(self, run: int) -> int:
        attempt = self._attempts[self.run_ids[run]]
        assert attempt is not None
        return attempt
