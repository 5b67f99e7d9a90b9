"""Routes of jobs, their runs, events and artifacts, a method of the client each."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypedDict, Unpack

from service.client.download import download_file
from service.client.errors import ApiProblem
from service.client.event_stream import follow_events
from service.client.transport import LONG_S, PATIENCE_S, Document, ServiceConnection, job_or_run_path, path_part


class JobFilters(TypedDict, total=False):
    """Filters and order of a list of jobs; ``/openapi.json`` describes them. ``status`` is ``state`` by its old name.

    A time is a ``datetime`` or ISO 8601; without a zone it is UTC.
    """

    state: str
    status: str
    tag: str
    name: str
    teacher: str
    dataset: str
    created_after: datetime | str
    created_before: datetime | str
    q: str
    sort: str


class RunFilters(TypedDict, total=False):
    """Filters of a job's runs; ``method`` is a label (``kd(temperature=2)``) or what comes before the parameters."""

    state: str
    student: str
    method: str


class JobRoutes:
    """Methods of ``Client`` about jobs and their runs."""

    _connection: ServiceConnection

    def submit(
        self,
        job: Mapping[str, object],
        *,
        idempotency_key: str | None = None,
        dry_run: bool = False,
    ) -> Document:
        """Post a job.

        Args:
            job: teacher (id), dataset, students, methods, seeds, recipe, views, cache, training.
            idempotency_key: the same key and job give the same job again. One is made up for
                every call, so that a repetition after a broken connection cannot start two.
            dry_run: only show the runs that it would have.
        """
        if dry_run:
            return self._connection.json("POST", "/v1/jobs", json=job, params={"dry_run": "true"})
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._connection.json("POST", "/v1/jobs", json=job, headers=headers)

    def jobs(self, **filters: Unpack[JobFilters]) -> Iterator[Document]:
        """List the jobs, newest first unless ``sort`` says otherwise, that pass all filters, see ``JobFilters``."""
        return self._connection.pages("/v1/jobs", _query(filters))

    def job(self, job_id: str) -> Document:
        """Get a job with its state, stage and progress."""
        return self._connection.json("GET", f"/v1/jobs/{path_part(job_id)}")

    def update_job(
        self, job_id: str, *, name: str | None = None, tags: Sequence[str] | None = None, note: str | None = None
    ) -> Document:
        """Change name, tags (all of them) or note of a job, in any state; what is None stays as it is."""
        given = {"name": name, "tags": None if tags is None else list(tags), "note": note}
        body = {field: value for field, value in given.items() if value is not None}
        return self._connection.json("PATCH", f"/v1/jobs/{path_part(job_id)}", json=body)

    def cancel(self, job_or_run_id: str) -> Document:
        """Cancel a job or a run; a second call, or one after its end, changes nothing."""
        return self._connection.json("POST", f"{job_or_run_path(job_or_run_id)}/cancel")

    def pause(self, job_or_run_id: str) -> Document:
        """Pause a job or a run, which saves its state and stops for now; a second call changes nothing."""
        return self._connection.json("POST", f"{job_or_run_path(job_or_run_id)}/pause")

    def resume(self, job_or_run_id: str) -> Document:
        """Resume a paused job or run where it stopped; one that is not paused stays as it is."""
        return self._connection.json("POST", f"{job_or_run_path(job_or_run_id)}/resume")

    def retry(self, job_or_run_id: str) -> Document:
        """Retry the runs that failed or were cancelled, as a new job; a second call gives the same one."""
        return self._connection.json("POST", f"{job_or_run_path(job_or_run_id)}/retry")

    def pin(self, job_id: str) -> Document:
        """Pin a job: keep it from deletion, by request or by age."""
        return self._connection.json("POST", f"/v1/jobs/{path_part(job_id)}/pin")

    def unpin(self, job_id: str) -> None:
        """Unpin a job, so that it can be deleted again."""
        self._connection.done("DELETE", f"/v1/jobs/{path_part(job_id)}/pin")

    def delete(self, job_or_run_id: str) -> None:
        """Delete a job, or one run of it, with events and files; refused until the job has ended, and while pinned."""
        self._connection.done("DELETE", job_or_run_path(job_or_run_id), timeout=LONG_S, repeat=False)

    def runs(self, job_id: str, **filters: Unpack[RunFilters]) -> Iterator[Document]:
        """List the runs of a job, in their order, that pass all filters, see ``RunFilters``."""
        return self._connection.pages(f"/v1/jobs/{path_part(job_id)}/runs", _query(filters))

    def run(self, run_id: str) -> Document:
        """Get a run with its state, last metrics and result."""
        return self._connection.json("GET", f"/v1/runs/{path_part(run_id)}")

    def metrics(self, run_id: str) -> list[Document]:
        """List the metrics of a run, one dictionary per trained epoch."""
        return list(self._connection.pages(f"/v1/runs/{path_part(run_id)}/metrics"))

    def events(
        self,
        job_or_run_id: str,
        *,
        after: int = 0,
        patience_s: float = PATIENCE_S,
        timeout_s: float | None = None,
    ) -> Iterator[Document]:
        """Events of a job or run as they happen, from the first one, until its end.

        A broken stream is taken up again after the last event that arrived: none is lost, none
        comes twice. The last event has the type ``done``.

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

    def stored_events(self, job_or_run_id: str, *, after: int = 0) -> Iterator[Document]:
        """List the events that there are by now, oldest first, without waiting for more.

        Args:
            job_or_run_id: a ``job_...`` or ``run_...`` id.
            after: leave out the events up to this number (``seq``).
        """
        return self._connection.pages(f"{job_or_run_path(job_or_run_id)}/events", {"after": str(after)})

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Document:
        """Wait until the job has ended and return it, whatever its end.

        A paused job has not ended: this waits on until it is resumed or cancelled.

        Raises:
            WaitTimeout: it had not ended after ``timeout_s``.
        """
        for _ in self.events(job_id, timeout_s=timeout_s):
            pass
        return self.job(job_id)

    def artifacts(self, run_id: str) -> list[Document]:
        """List the files of a run: name, size_bytes, sha256, media_type."""
        return list(self._connection.pages(f"/v1/runs/{path_part(run_id)}/artifacts"))

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


def _query(filters: Mapping[str, object]) -> dict[str, str]:
    """Query of a list: those of the filters that are not None."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else str(value)
        for name, value in filters.items()
        if value is not None
    }
