"""Weights & Biases sink: a W&B run with the run's own id, online or in a folder (offline mode)."""

import os
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.trackers.sinks.base import RunFile, Sink, TrackedRun, is_web_address, safe_name

if TYPE_CHECKING:
    from wandb import Artifact, Run

_NAME_CHARS = 128


class WandbSink(Sink):
    """A W&B server, whose key is in ``WANDB_API_KEY``; or a folder, for ``wandb sync`` later."""

    package = "wandb"
    distribution = "wandb"
    help = "https://api.wandb.ai (or another server's address), or the absolute path of a folder for offline runs"

    @classmethod
    def check_target(cls, target: str) -> bool:
        return is_web_address(target) or Path(target).is_absolute()

    def __init__(self, target: str, project: str, scratch: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self._is_offline = not is_web_address(target)
        self._folder = Path(target) if self._is_offline else scratch
        self._folder.mkdir(parents=True, exist_ok=True)
        self._project = safe_name(project)[:_NAME_CHARS]
        settings: dict[str, Any] = {
            # Whatever it would tell of this machine is not of the machine that trains.
            "console": "off",
            "silent": True,
            "disable_code": True,
            "disable_git": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
            "x_save_requirements": False,
        }
        if not self._is_offline:
            settings["base_url"] = target
        self._settings = wandb.Settings(**settings)
        self._runs: dict[str, Run] = {}
        self._artifacts: dict[str, Artifact] = {}

    def start(self, run: TrackedRun) -> int:
        self._leave(run)
        self._artifacts.pop(run.id, None)
        if self._is_offline:
            # A folder of an offline run is not continued: it is written anew, with all epochs.
            for earlier in (self._folder / "wandb").glob(f"offline-run-*-{run.id}"):
                shutil.rmtree(earlier)
        opened = self._wandb.init(
            project=self._project,
            dir=str(self._folder),
            id=run.id,
            name=run.name[:_NAME_CHARS],
            group=(run.job_name or run.job_id)[:_NAME_CHARS],
            notes=f"Run {run.id} of job {run.job_id} of a Retort service",
            config=dict(run.parameters),
            mode="offline" if self._is_offline else "online",
            resume="allow",
            reinit="create_new",
            settings=self._settings,
        )
        self._runs[run.id] = opened
        # The step that would come next; 0 for a new run.
        return max(0, int(opened.starting_step) - 1)

    def log_metrics(self, run: TrackedRun, epoch: int, at: datetime, metrics: Mapping[str, float]) -> None:
        # W&B's own key for the time of a step.
        self._runs[run.id].log({**metrics, "_timestamp": at.timestamp()}, step=epoch, commit=True)

    def log_result(self, run: TrackedRun, result: Mapping[str, str | float], at: datetime) -> None:
        self._runs[run.id].summary.update({f"result/{name}": value for name, value in result.items()})

    def add_file(self, run: TrackedRun, file: RunFile) -> None:
        if run.id not in self._artifacts:
            self._artifacts[run.id] = self._wandb.Artifact(f"retort-{run.id}", type="retort-run")
        # Copied now: the files are gone before W&B's own process comes to them.
        self._artifacts[run.id].add_file(str(file.path), policy="mutable")

    def commit_files(self, run: TrackedRun) -> None:
        # The same files are the same version: W&B knows them by their digests.
        artifact = self._artifacts.pop(run.id, None)
        if artifact is not None:
            self._runs[run.id].log_artifact(artifact)

    def end(self, run: TrackedRun, state: str, at: datetime) -> None:
        opened = self._runs.pop(run.id, None)
        if opened is not None:
            opened.finish(exit_code=0 if state == "succeeded" else 1)

    def flush(self) -> None:
        """Nothing to do: W&B's own process has written what was logged to its folder, and a start asks the server."""

    def close(self) -> None:
        # Not as succeeded: nobody knows yet.
        for opened in self._runs.values():
            opened.finish(exit_code=1)
        self._runs.clear()

    def _leave(self, run: TrackedRun) -> None:
        opened = self._runs.pop(run.id, None)
        if opened is not None:
            opened.finish(exit_code=1)
