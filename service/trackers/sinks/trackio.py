"""Trackio sink: runs in a folder on this disk, which ``trackio show`` draws."""

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from service.trackers.sinks.base import RunFile, Sink, TrackedRun, safe_name

if TYPE_CHECKING:
    from trackio import Artifact, Run

_NAME_CHARS = 128


class TrackioSink(Sink):
    """A folder as Trackio's ``TRACKIO_DIR``: an SQLite file for the project, and the artifacts beside it."""

    package = "trackio"
    distribution = "trackio"
    help = "the absolute path of a folder, which becomes Trackio's TRACKIO_DIR"

    @classmethod
    def check_target(cls, target: str) -> bool:
        return Path(target).is_absolute()

    def __init__(self, target: str, project: str, scratch: Path) -> None:
        # Read once, when the package is imported.
        os.environ["TRACKIO_DIR"] = target
        import trackio

        if Path(trackio.TRACKIO_DIR) != Path(target):
            raise RuntimeError(f"this process writes to {trackio.TRACKIO_DIR} already: export to {target} in another")
        self._trackio = trackio
        self._project = safe_name(project)[:_NAME_CHARS]
        self._open: dict[str, Run] = {}
        self._artifacts: dict[str, Artifact] = {}

    def start(self, run: TrackedRun) -> int:
        self._leave(run)
        self._artifacts.pop(run.id, None)
        last = self._trackio.SQLiteStorage.get_max_step_for_run(self._project, _name(run))
        self._resumed(run)
        return int(last or 0)

    def log_metrics(self, run: TrackedRun, epoch: int, at: datetime, metrics: Mapping[str, float]) -> None:
        self._resumed(run).log(dict(metrics), step=epoch)

    def log_result(self, run: TrackedRun, result: Mapping[str, str | float], at: datetime) -> None:
        """Nothing: Trackio has no summary of a run, and result.json is among the files."""

    def add_file(self, run: TrackedRun, file: RunFile) -> None:
        if run.id not in self._artifacts:
            self._artifacts[run.id] = self._trackio.Artifact(f"retort-{run.id}", type="retort-run")
        self._artifacts[run.id].add_file(str(file.path))

    def commit_files(self, run: TrackedRun) -> None:
        # Trackio knows files by their digests: the same ones are the same version.
        artifact = self._artifacts.pop(run.id, None)
        if artifact is not None:
            self._resumed(run).log_artifact(artifact)

    def end(self, run: TrackedRun, state: str, at: datetime) -> None:
        self._leave(run)

    def flush(self) -> None:
        # A run is written by a thread of its own. To finish it is the way to wait for that; it can be taken up again.
        for id in list(self._open):
            self._open.pop(id).finish()

    def close(self) -> None:
        self.flush()

    def _resumed(self, run: TrackedRun) -> "Run":
        if run.id not in self._open:
            from trackio import context_vars

            # Trackio has one run at a time in its own variables, and would finish the one before.
            context_vars.current_run.set(None)
            self._open[run.id] = self._trackio.init(
                project=self._project,
                name=_name(run),
                group=(run.job_name or run.job_id)[:_NAME_CHARS],
                config=dict(run.parameters),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            context_vars.current_run.set(None)
        return self._open[run.id]

    def _leave(self, run: TrackedRun) -> None:
        opened = self._open.pop(run.id, None)
        if opened is not None:
            opened.finish()


def _name(run: TrackedRun) -> str:
    """Trackio resumes runs by name."""
    return f"{run.name[: _NAME_CHARS - len(run.id) - 1]} {run.id}"
