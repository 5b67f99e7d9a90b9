# Generated from asynchronous/job.py by python -m tests.repository.documents: change it there.
"""Jobs and runs as the client returns them: documents of the API that know what can be done with them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from service.client import documents
from service.client.choices import Choices
from service.client.filters import RunFilters
from service.client.reports import Report
from service.client.transport import Document
from service.client.typed_document import TypedDocument

if TYPE_CHECKING:
    from service.client.job_routes import JobRoutes


class _Controlled(TypedDocument):
    """Job or run that can be controlled. An answer that describes it renews this very object."""

    id: str

    def __init__(self, document: Document, routes: "JobRoutes") -> None:
        super().__init__(document)
        self._routes = routes

    def _renew(self, document: Mapping[str, Any]) -> Self:
        renewed = dict(document)
        self.clear()
        self.update(renewed)
        return self

    def cancel(self) -> Self:
        """Cancel it; after its end this changes nothing."""
        return self._renew(self._routes.cancel(self.id))

    def pause(self) -> Self:
        """Pause it: it saves its state and stops for now."""
        return self._renew(self._routes.pause(self.id))

    def resume(self) -> Self:
        """Resume it where it stopped."""
        return self._renew(self._routes.resume(self.id))

    def retry(self) -> "Job":
        """Retry it, as another job: the run, or the job's runs, that failed or were cancelled."""
        return self._routes.retry(self.id)

    def delete(self) -> None:
        """Delete it with its events and files; refused until the job has ended."""
        self._routes.delete(self.id)

    def events(self, *, after: int = 0, timeout_s: float | None = None) -> Iterator[documents.Event]:
        """Events of it as they happen, later than number ``after``, until its end."""
        return self._routes.events(self.id, after=after, timeout_s=timeout_s)


class JobSummary(_Controlled, documents.JobSummary):
    """Job of a list, without ``plan`` and ``run_ids``."""

    def refresh(self) -> Self:
        """Get the job again."""
        return self._renew(self._routes.job(self.id))

    def wait(self, *, timeout_s: float | None = None, progress: bool = True) -> Self:
        """Wait until the job has ended, whatever its end (``state``, ``error``).

        Args:
            timeout_s: how long; None waits on, through a pause as well.
            progress: show bars where standard error is a terminal, or in a notebook.

        Raises:
            WaitTimeout: it had not ended after ``timeout_s``; it goes on.
        """
        return self._renew(self._routes.wait(self.id, timeout_s=timeout_s, progress=progress))

    def edit(self, *, name: str | None = None, tags: Sequence[str] | None = None, note: str | None = None) -> Self:
        """Change name, tags (all of them) or note; what is None stays as it is."""
        return self._renew(self._routes.update_job(self.id, name=name, tags=tags, note=note))

    def add_runs(self, runs: Mapping[str, object]) -> Self:
        """Add students x methods x seeds to it, on the same caches; a job that has ended is queued again."""
        return self._renew(self._routes.add_runs(self.id, runs))

    def pin(self) -> Self:
        """Pin the job: keep it from deletion."""
        return self._renew(self._routes.pin(self.id))

    def unpin(self) -> Self:
        """Unpin the job, so that it can be deleted again."""
        self._routes.unpin(self.id)
        return self.refresh()

    def runs(self, **filters: Unpack[RunFilters]) -> Iterator["Run"]:
        """List the runs, in their order, that pass all filters, see ``RunFilters``."""
        return self._routes.runs(self.id, **filters)

    def report(self, **choices: Unpack[Choices]) -> Report:
        """Results of the job, by run and over seeds; see ``Choices``."""
        return self._routes.report(self.id, **choices)


class Job(JobSummary, documents.Job):
    """Job with what was posted (``plan``) and the ids of its runs."""


class Run(_Controlled, documents.Run):
    """Run of a job."""

    def extend(
        self, epochs: int, *, schedule: Mapping[str, object] | None = None, learning_rate: float | None = None
    ) -> Job:
        """Let it go on to so many epochs in all, as another job; it has succeeded and kept its checkpoint."""
        return self._routes.extend(self.id, epochs, schedule=schedule, learning_rate=learning_rate)

    def refresh(self) -> Self:
        """Get the run again."""
        return self._renew(self._routes.run(self.id))

    def history(self) -> list[TypedDocument]:
        """List the metrics of every trained epoch; ``metrics`` are those of the last one."""
        return self._routes.metrics(self.id)

    def artifacts(self) -> list[documents.Artifact]:
        """List the files of the run."""
        return self._routes.artifacts(self.id)

    def download(self, name: str, path: Path, *, on_bytes: Callable[[int], None] | None = None) -> Path:
        """Download a file of the run, ``student.onnx`` say, to ``path``, as the client does."""
        return self._routes.download(self.id, name, path, on_bytes=on_bytes)
