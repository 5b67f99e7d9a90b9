# Generated from asynchronous/job_routes.py by python -m tests.repository.documents: change it there.
"""Routes of jobs, their runs, events and artifacts, a method of the client each."""

import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, Unpack, overload

from service.client import documents
from service.client.download import download_file
from service.client.errors import ApiProblem
from service.client.event_stream import follow_events
from service.client.filters import JobFilters, RunFilters, filters_query
from service.client.job import Job, JobSummary, Run
from service.client.progress_bar import progress_bar
from service.client.reports import Reports
from service.client.transport import LONG_S, PATIENCE_S, Document, job_or_run_path, path_part
from service.client.typed_document import TypedDocument


class JobRoutes(Reports):
    """Methods of the client about jobs, their runs and results."""

    @overload
    def submit(
        self, job: Mapping[str, object], *, idempotency_key: str | None = None, dry_run: Literal[False] = False
    ) -> Job: ...

    @overload
    def submit(
        self, job: Mapping[str, object], *, idempotency_key: str | None = None, dry_run: Literal[True]
    ) -> documents.JobPreview: ...

    def submit(
        self, job: Mapping[str, object], *, idempotency_key: str | None = None, dry_run: bool = False
    ) -> Job | documents.JobPreview:
        """Post a job.

        Args:
            job: teacher (id), dataset, students, methods, seeds, recipe, views, cache, training.
            idempotency_key: the same key and job give the same job again. One is made up for
                every call, so that a repetition after a broken connection cannot start two.
            dry_run: only show the runs that it would have.
        """
        if dry_run:
            query = {"dry_run": "true"}
            return self._connection.typed("POST", "/v1/jobs", documents.JobPreview, json=job, params=query)
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._connection.typed("POST", "/v1/jobs", self._job, json=job, headers=headers)

    def jobs(self, **filters: Unpack[JobFilters]) -> Iterator[JobSummary]:
        """List the jobs, newest first unless ``sort`` says otherwise, that pass all filters, see ``JobFilters``."""
        query = filters_query(filters)
        return self._connection.pages("/v1/jobs", lambda document: JobSummary(document, self), query)

    def webhooks(self, *, status: str | None = None) -> Iterator[documents.JobWebhook]:
        """List how far the webhooks of all jobs are, newest first; ``status="given_up"`` keeps those, say."""
        return self._connection.pages("/v1/webhooks", documents.JobWebhook, {"status": status} if status else {})

    def job(self, job_id: str) -> Job:
        """Get a job with its state, stage and progress."""
        return self._connection.typed("GET", f"/v1/jobs/{path_part(job_id)}", self._job)

    def update_job(
        self, job_id: str, *, name: str | None = None, tags: Sequence[str] | None = None, note: str | None = None
    ) -> Job:
        """Change name, tags (all of them) or note of a job, in any state; what is None stays as it is."""
        given = {"name": name, "tags": None if tags is None else list(tags), "note": note}
        body = {field: value for field, value in given.items() if value is not None}
        return self._connection.typed("PATCH", f"/v1/jobs/{path_part(job_id)}", self._job, json=body)

    @overload
    def add_runs(
        self,
        job_id: str,
        runs: Mapping[str, object],
        *,
        idempotency_key: str | None = None,
        dry_run: Literal[False] = False,
    ) -> Job: ...

    @overload
    def add_runs(
        self, job_id: str, runs: Mapping[str, object], *, idempotency_key: str | None = None, dry_run: Literal[True]
    ) -> documents.JobPreview: ...

    def add_runs(
        self, job_id: str, runs: Mapping[str, object], *, idempotency_key: str | None = None, dry_run: bool = False
    ) -> Job | documents.JobPreview:
        """Add runs to a job, on the same caches; one that has ended is queued again.

        Args:
            job_id: which job.
            runs: students, methods and seeds, as of a job; every combination is a run.
            idempotency_key: as of ``submit``.
            dry_run: only show the runs that it would get, and their cost.
        """
        path = f"/v1/jobs/{path_part(job_id)}/runs"
        if dry_run:
            query = {"dry_run": "true"}
            return self._connection.typed("POST", path, documents.JobPreview, json=runs, params=query)
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._connection.typed("POST", path, self._job, json=runs, headers=headers)

    def cancel(self, job_or_run_id: str) -> Job | Run:
        """Cancel a job or a run; a second call, or one after its end, changes nothing."""
        return self._control(job_or_run_id, "cancel")

    def pause(self, job_or_run_id: str) -> Job | Run:
        """Pause a job or a run, which saves its state and stops for now; a second call changes nothing."""
        return self._control(job_or_run_id, "pause")

    def resume(self, job_or_run_id: str) -> Job | Run:
        """Resume a paused job or run where it stopped; one that is not paused stays as it is."""
        return self._control(job_or_run_id, "resume")

    def retry(self, job_or_run_id: str) -> Job:
        """Retry the runs that failed or were cancelled, as a new job; a second call gives the same one."""
        return self._connection.typed("POST", f"{job_or_run_path(job_or_run_id)}/retry", self._job)

    def extend(
        self,
        run_id: str,
        epochs: int,
        *,
        schedule: Mapping[str, object] | None = None,
        learning_rate: float | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Let a run that has succeeded and kept its checkpoint go on to more epochs, as a new job.

        Args:
            run_id: which run.
            epochs: in all, those that it has included.
            schedule: of all epochs since the last restart, or, with a learning rate, of the added ones; None is the
                run's own.
            learning_rate: of the added epochs, as a warm restart; None goes on in the run's schedule.
            idempotency_key: as of ``submit``.
        """
        given = {"schedule": schedule and dict(schedule), "learning_rate": learning_rate}
        body = {"epochs": epochs, **{field: value for field, value in given.items() if value is not None}}
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        path = f"/v1/runs/{path_part(run_id)}/extend"
        return self._connection.typed("POST", path, self._job, json=body, headers=headers)

    def pin(self, job_id: str) -> Job:
        """Pin a job: keep it from deletion, by request or by age."""
        return self._connection.typed("POST", f"/v1/jobs/{path_part(job_id)}/pin", self._job)

    def unpin(self, job_id: str) -> None:
        """Unpin a job, so that it can be deleted again."""
        self._connection.done("DELETE", f"/v1/jobs/{path_part(job_id)}/pin")

    def delete(self, job_or_run_id: str) -> None:
        """Delete a job, or one run of it, with events and files; refused until the job has ended, and while pinned."""
        self._connection.done("DELETE", job_or_run_path(job_or_run_id), timeout=LONG_S, repeat=False)

    def runs(self, job_id: str, **filters: Unpack[RunFilters]) -> Iterator[Run]:
        """List the runs of a job, in their order, that pass all filters, see ``RunFilters``."""
        return self._connection.pages(f"/v1/jobs/{path_part(job_id)}/runs", self._run, filters_query(filters))

    def run(self, run_id: str) -> Run:
        """Get a run with its state, last metrics and result."""
        return self._connection.typed("GET", f"/v1/runs/{path_part(run_id)}", self._run)

    def metrics(self, run_id: str) -> list[TypedDocument]:
        """List the metrics of a run, one dictionary per trained epoch."""
        return self._connection.all(f"/v1/runs/{path_part(run_id)}/metrics", TypedDocument)

    def events(
        self,
        job_or_run_id: str,
        *,
        after: int = 0,
        patience_s: float = PATIENCE_S,
        timeout_s: float | None = None,
    ) -> Generator[documents.Event]:
        """Events of a job or run as they happen, from the first one, until its end.

        A broken stream is taken up again after the last event that arrived: none is lost, none
        comes twice. The last event has the type ``done``, and of the other fields only ``state``.

        Args:
            job_or_run_id: a ``job_...`` or ``run_...`` id.
            after: leave out the events up to this number (``seq``).
            patience_s: how long nothing may answer before that is an error.
            timeout_s: how long to follow at all, to within the service's keep-alive of 15 s.

        Raises:
            ServiceUnreachable: after ``patience_s`` without an answer.
            WaitTimeout: after ``timeout_s``.
        """
        return follow_events(self._connection, job_or_run_id, after=after, patience_s=patience_s, timeout_s=timeout_s)

    def stored_events(self, job_or_run_id: str, *, after: int = 0) -> Iterator[documents.Event]:
        """List the events that there are by now, oldest first, without waiting for more.

        Args:
            job_or_run_id: a ``job_...`` or ``run_...`` id.
            after: leave out the events up to this number (``seq``).
        """
        path = f"{job_or_run_path(job_or_run_id)}/events"
        return self._connection.pages(path, documents.Event, {"after": str(after)})

    def wait(self, job_id: str, *, timeout_s: float | None = None, progress: bool = False) -> Job:
        """Wait until the job has ended and return it, whatever its end.

        A paused job has not ended: this waits on until it is resumed or cancelled.

        Args:
            job_id: which job.
            timeout_s: how long; None waits on.
            progress: show bars where standard error is a terminal, or in a notebook.

        Raises:
            WaitTimeout: it had not ended after ``timeout_s``.
        """
        with closing(self.events(job_id, timeout_s=timeout_s)) as events:
            if not progress:
                for _ in events:
                    pass
                return self.job(job_id)
            with progress_bar(len((self.job(job_id)).run_ids)) as show:
                for event in events:
                    show(event)
        return self.job(job_id)

    def artifacts(self, run_id: str) -> list[documents.Artifact]:
        """List the files of a run: name, size_bytes, sha256, media_type."""
        return self._connection.all(f"/v1/runs/{path_part(run_id)}/artifacts", documents.Artifact)

    def download(
        self,
        run_id: str,
        name: str,
        path: Path,
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Path:
        """Download one artifact to ``path``; there is never half a file under that name.

        The bytes gather in a hidden file beside it, whose name holds the digest. When the
        connection or this process breaks, the next call goes on where it ended.

        Args:
            run_id: whose artifact.
            name: which, e.g. ``student.safetensors``.
            path: the file to write, replaced if it exists; its folder must exist.
            on_bytes: called with the number of bytes there so far.

        Raises:
            DamagedDownload: the SHA-256 differs from the service's; the bytes are deleted.
        """
        known = {artifact["name"]: artifact for artifact in self.artifacts(run_id)}
        if name not in known:
            has = ", ".join(known) or "none yet"
            raise ApiProblem(404, "No such artifact", f"{run_id} has no {name!r}; it has {has}")
        digest, size_bytes = known[name]["sha256"], known[name]["size_bytes"]
        url = f"/v1/runs/{path_part(run_id)}/artifacts/{path_part(name)}"
        download_file(self._connection, url, path, digest=digest, size_bytes=size_bytes, on_bytes=on_bytes)
        return path

    def _control(self, job_or_run_id: str, action: str) -> Job | Run:
        document = self._connection.json("POST", f"{job_or_run_path(job_or_run_id)}/{action}")
        return self._run(document) if document["object"] == "run" else self._job(document)

    def _job(self, document: Document) -> Job:
        return Job(document, self)

    def _run(self, document: Document) -> Run:
        return Run(document, self)
