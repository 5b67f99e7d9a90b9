"""MLflow sink: an MLflow run for each run, found again by its tag ``retort.run_id``."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from service.trackers.sinks.base import RunFile, Sink, SinkNotReady, SinkRefused, TrackedRun, is_web_address, safe_name

if TYPE_CHECKING:
    from mlflow.entities import Run

# What MLflow takes at most: of one request, of the text of a parameter, of a tag.
_PARAMETERS_AT_ONCE = 100
_PARAMETER_CHARS = 6000
_TAG_CHARS = 5000
_KEY_CHARS = 250
_KEY_ALLOWED = "._- :/"
# MLflow's own codes for what another try does not change. The client makes ENDPOINT_NOT_FOUND, or BAD_REQUEST, of any
# 404 or 400 without JSON, which may be a proxy's while the server restarts.
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"})
_REFUSALS_OF_A_SERVER = frozenset({"BAD_REQUEST"})
_TOO_LARGE = 413
_EPOCH_TAG = "retort.epoch"
_STATES = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class MlflowSink(Sink):
    """An MLflow server, or a database or folder as MLflow names them."""

    package = "mlflow"
    distribution = "mlflow-skinny"
    help = "http://HOST:PORT of a tracking server (or sqlite:///FILE, with the whole of MLflow installed)"

    @classmethod
    def check_target(cls, target: str) -> bool:
        return is_web_address(target) or (target.startswith("sqlite:///") and len(target) > len("sqlite:///"))

    def __init__(self, target: str, project: str, scratch: Path) -> None:
        # Its own retries would take minutes, in which nobody is told of the outage.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        # It looks for a program git, and warns where there is none.
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=target, registry_uri=target)
        self._project = project
        self._experiment: str | None = None
        self._ids: dict[str, str] = {}

    def start(self, run: TrackedRun) -> int:
        from mlflow.entities import Param

        with self._refusals(run):
            found = self._find(run)
            tags = found.data.tags
            parameters = {_key(name): value[:_PARAMETER_CHARS] for name, value in run.parameters.items()}
            # A parameter never changes; those that a killed export has left out are missing.
            missing = [Param(name, value) for name, value in parameters.items() if name not in found.data.params]
            for first in range(0, len(missing), _PARAMETERS_AT_ONCE):
                some = missing[first : first + _PARAMETERS_AT_ONCE]
                self._client.log_batch(found.info.run_id, params=some, synchronous=True)
        self._ids[run.id] = found.info.run_id
        return int(tags.get(_EPOCH_TAG, "0"))

    def _find(self, run: TrackedRun) -> "Run":
        if self._experiment is None:
            self._experiment = self._find_experiment()
        runs = self._client.search_runs([self._experiment], f"tags.`retort.run_id` = '{run.id}'", max_results=1)
        if runs:
            return runs[0]
        tags = {
            "retort.run_id": run.id,
            "retort.job_id": run.job_id,
            "retort.job_name": run.job_name,
            # The page shows it as the run's description.
            "mlflow.note.content": f"Run {run.id} of job {run.job_id} of a Retort service",
        }
        begun = None if run.started_at is None else _milliseconds(run.started_at)
        given = {name: text[:_TAG_CHARS] for name, text in tags.items() if text}
        return self._client.create_run(self._experiment, begun, given, run_name=run.name[:_KEY_CHARS])

    def _find_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self._project)
        if found is None:
            try:
                created: str = self._client.create_experiment(self._project)
                return created
            except MlflowException:
                # Another export was faster, or it is none of that.
                found = self._client.get_experiment_by_name(self._project)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            # No refusal of a run: once it is restored, all runs are told.
            raise SinkNotReady(
                f"the MLflow experiment {self._project!r} was deleted: restore it (`mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`), or choose another with --project or RETORT_TRACKERS_PROJECT"
            )
        experiment: str = found.experiment_id
        return experiment

    def log_metrics(self, run: TrackedRun, epoch: int, at: datetime, metrics: Mapping[str, float]) -> None:
        # With the tag in the same request: MLflow writes metrics first, and takes the very same ones once.
        self._log(run, epoch, at, metrics=metrics, tags={_EPOCH_TAG: str(epoch)})

    def log_result(self, run: TrackedRun, result: Mapping[str, str | float], at: datetime) -> None:
        values = {f"result/{name}": value for name, value in result.items() if isinstance(value, float)}
        texts = {f"retort.result.{name}": value for name, value in result.items() if isinstance(value, str)}
        self._log(run, 0, at, metrics=values, tags=texts)

    def _log(
        self, run: TrackedRun, step: int, at: datetime, *, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Metric, RunTag

        with self._refusals(run):
            self._client.log_batch(
                self._ids[run.id],
                metrics=[Metric(_key(name), value, _milliseconds(at), step) for name, value in metrics.items()],
                tags=[RunTag(_key(name), value[:_TAG_CHARS]) for name, value in tags.items()],
                synchronous=True,
            )

    def add_file(self, run: TrackedRun, file: RunFile) -> None:
        id, tag = self._ids[run.id], f"retort.sha256.{safe_name(file.path.name)}"
        with self._refusals(run):
            if self._client.get_run(id).data.tags.get(tag) != file.sha256:
                self._client.log_artifact(id, str(file.path))
                self._client.set_tag(id, tag, file.sha256)

    def commit_files(self, run: TrackedRun) -> None:
        """Nothing waits: each file has been uploaded."""

    def end(self, run: TrackedRun, state: str, at: datetime) -> None:
        with self._refusals(run):
            self._client.set_terminated(self._ids.pop(run.id), _STATES[state], _milliseconds(at))

    def flush(self) -> None:
        """Nothing waits: every call has been answered."""

    def close(self) -> None:
        self._ids.clear()

    @contextmanager
    def _refusals(self, run: TrackedRun) -> Iterator[None]:
        """Raise SinkRefused for an answer that stays; what another try may change goes through."""
        try:
            yield
        except Exception as error:
            if not _is_refusal(error):
                raise
            # The runs of an experiment that was deleted meanwhile are refused, too, until it is restored or made anew.
            before, self._experiment = self._experiment, self._find_experiment()
            if before not in (None, self._experiment):
                raise
            raise SinkRefused(f"MLflow refuses run {run.id} ({run.name}): {error}") from error


def _is_refusal(error: Exception) -> bool:
    """Whether an error is an answer about this run that another try does not change."""
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, MlflowException):
        is_servers = isinstance(error, RestException) and error.error_code in _REFUSALS_OF_A_SERVER
        return is_servers or error.error_code in _REFUSALS
    # An upload of a file raises what ``requests`` raises.
    return getattr(getattr(error, "response", None), "status_code", None) == _TOO_LARGE


def _key(name: str) -> str:
    return safe_name(name, _KEY_ALLOWED)[:_KEY_CHARS]


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)
