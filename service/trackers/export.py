"""Export of a job: its stored events, told to a sink one after the other.

The same for a job that has ended and for one that goes on. Events may come again, and a tracker says itself how far a
run is: what it has is not told twice. Metrics that no event of the job carries (of a retry, the epochs before it) are
taken from the run.
"""

import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from service.client.client import Client
from service.client.errors import ApiProblem
from service.client.transport import Document
from service.db.states import TERMINAL
from service.trackers.documents import finite, flat_result, moment, tracked_run
from service.trackers.sinks.base import RunFile, Sink, SinkRefused, TrackedRun

_GONE = 404
log = structlog.get_logger("retort.trackers")


@dataclass
class _OpenRun:
    """A run that the tracker has, and the last epoch that it has of it."""

    tracked: TrackedRun
    epoch: int


class JobExport:
    """Export of one job: what a sink has been told of it.

    Args:
        client: of the service.
        job: its document.
        sink: of a tracker.
        with_files: whether the artifacts of runs that succeed are uploaded, too.

    Attributes:
        is_ended: whether the job has ended by its last event of a state.
        refused: runs that the tracker does not take, or that were deleted, with the reason.
        runs: how many were told to the tracker as ended.
    """

    def __init__(self, client: Client, job: Document, sink: Sink, *, with_files: bool) -> None:
        self._client, self._job, self._sink, self._with_files = client, job, sink, with_files
        self._open: dict[str, _OpenRun] = {}
        self.is_ended = False
        self.refused: dict[str, str] = {}
        self.runs = 0

    def apply(self, event: Document) -> None:
        """Tell the sink what an event brings.

        Raises:
            ClientError: the service does not answer.
            Exception: whatever the tracker's package raises when the tracker cannot be reached. The event may be
                applied again by another ``JobExport``.
        """
        run_id, data = event.get("run_id"), event.get("data") or {}
        if event["type"] == "state" and run_id is None:
            # One that has ended is queued again if runs are added to it.
            self.is_ended = data["state"] in TERMINAL
        if run_id is None or run_id in self.refused:
            return
        try:
            if event["type"] == "epoch":
                self._tell_epoch(run_id, data, event)
            elif event["type"] == "state" and data["state"] in TERMINAL:
                self._tell_end(run_id, data["state"], event)
        except SinkRefused as error:
            self.refused[run_id] = str(error)
            log.error("the tracker refuses a run, which is left out", run_id=run_id, error=str(error))
        except ApiProblem as error:
            if error.status != _GONE:
                raise
            # Runs of an ended job can be deleted one by one; the others are still there.
            self.refused[run_id] = f"{run_id} was deleted before all of it was told"
            log.info("a run was deleted before all of it was told", run_id=run_id)

    def _tell_epoch(self, run_id: str, data: Document, event: Document) -> None:
        run = self._opened(run_id)
        epoch = int(data["epoch"])
        if epoch > run.epoch + 1:
            self._tell_missing(run, epoch - 1)
        if epoch > run.epoch:
            self._sink.log_metrics(run.tracked, epoch, _at(event), finite(data["metrics"]))
            run.epoch = epoch

    def _tell_end(self, run_id: str, state: str, event: Document) -> None:
        document = self._client.run(run_id)
        if document["started_at"] is None:
            # Cancelled before it began: a tracker has nothing to show of it.
            return
        run = self._opened(run_id)
        self._tell_missing(run, document["epoch"])
        if document["result"] is not None:
            self._sink.log_result(run.tracked, flat_result(document["result"]), _at(event))
        if self._with_files:
            self._tell_files(run.tracked)
        self._sink.end(run.tracked, state, _at(event))
        del self._open[run_id]
        self.runs += 1

    def _opened(self, run_id: str) -> _OpenRun:
        if run_id not in self._open:
            tracked = tracked_run(self._job, self._client.run(run_id))
            self._open[run_id] = _OpenRun(tracked, self._sink.start(tracked))
        return self._open[run_id]

    def _tell_missing(self, run: _OpenRun, last: int) -> None:
        """Tell the epochs up to ``last`` that the tracker lacks, from the run's own metrics."""
        if run.epoch >= last:
            return
        began = run.tracked.started_at or _at(self._job)
        trained_s = 0.0
        for line in self._client.metrics(run.tracked.id):
            epoch = int(line["epoch"])
            trained_s += line.get("seconds") or 0.0
            if run.epoch < epoch <= last:
                self._sink.log_metrics(run.tracked, epoch, began + timedelta(seconds=trained_s), finite(line))
                run.epoch = epoch

    def _tell_files(self, run: TrackedRun) -> None:
        listed = self._client.artifacts(run.id)
        if not listed:
            return
        with tempfile.TemporaryDirectory(prefix="retort-export-") as folder:
            for file in listed:
                path = self._client.download(run.id, file["name"], Path(folder) / Path(file["name"]).name)
                self._sink.add_file(run, RunFile(path, file["sha256"]))
            self._sink.commit_files(run)


def _at(document: Document) -> datetime:
    at = moment(document.get("at") or document["created_at"])
    assert at is not None
    return at
