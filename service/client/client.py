"""A synchronous Python client of the Retort service: one method per route, nothing hidden.

::

    with Client("http://127.0.0.1:8765") as client:
        teacher = client.upload_teacher(Path("teacher.onnx"), preprocessing={...})
        job = client.submit({"teacher": teacher["id"], "dataset": {"kind": "digits"}, ...})
        client.wait(job["id"])
        print(client.report(job["id"]))

Answers are the JSON documents of the API as plain dictionaries (``/openapi.json`` describes their
fields), so that a newer service does not break an older client by a field it does not know. Lists
are walked to their end. Reads, requests of control (cancel, pause, resume, retry), submissions (by their
Idempotency-Key), event streams (by their numbers) and downloads (by Range) survive a broken
connection; the errors are those of ``service.client.transport``. It needs httpx2 alone and imports nothing
else of Retort.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import quote

import httpx2

from service.client.transport import (
    DEFAULT_URL,
    PATIENCE_S,
    STREAM_SILENCE_S,
    ApiProblem,
    ClientError,
    Connection,
    DamagedDownload,
    Document,
    Patience,
    ServiceUnreachable,
    UnusableProxy,
    WaitTimeout,
    parse_events,
)

__all__ = [
    "DEFAULT_URL",
    "ApiProblem",
    "Client",
    "ClientError",
    "DamagedDownload",
    "Document",
    "ServiceUnreachable",
    "UnusableProxy",
    "WaitTimeout",
]

# Checking an upload or re-reading a whole cache is work, not waiting.
_LONG_S = 900.0


class Client:
    """One service; a context manager that closes its connections.

    Args:
        base_url: where it is.
        api_key: sent as a bearer token; None for a service without keys.
        timeout_s: for one short request; uploads, verification and streams have their own.

    Raises:
        ValueError: ``base_url`` is not an http(s) address.
        UnusableProxy: the environment names a proxy that cannot be used.
    """

    def __init__(self, base_url: str = DEFAULT_URL, *, api_key: str | None = None, timeout_s: float = 30.0) -> None:
        self._connection = Connection(base_url, api_key, timeout_s)
        self.base_url = self._connection.base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the connections back."""
        self._connection.close()

    # ----------------------------------------------------------------------------------- service

    def ready(self) -> Document:
        """What /readyz says, with ``ready`` true or false; not ready is no error here."""
        response = self._connection.send("GET", "/readyz")
        if response.status_code not in (200, 503):
            raise ApiProblem.from_response(response)
        body: Document = response.json()
        return {**body, "ready": response.status_code == 200}

    def methods(self) -> list[Document]:
        """What a job's ``methods`` can name, with formula, defaults and JSON Schema."""
        return list(self._connection.pages("/v1/methods"))

    def preview_method(
        self,
        method: str | Mapping[str, object],
        cache: str,
        *,
        student_cache: str | None = None,
        epoch: int | None = None,
        epochs: int | None = None,
        bins: int | None = None,
    ) -> Document:
        """The temperatures that a method would give on a cache, from its statistics; nothing is trained.

        Args:
            method: as in a job: a name, or an object with ``preset``.
            cache: the key of a complete cache.
            student_cache: the key of another network's, which stands for the student's; None takes the teacher's.
            epoch: in which epoch, counted from 1; None for this and the next two takes the service's default.
            epochs: of how many.
            bins: of each histogram.
        """
        options = {"student_cache": student_cache, "epoch": epoch, "epochs": epochs, "bins": bins}
        given = {name: value for name, value in options.items() if value is not None}
        body = {"method": method, "cache": cache, **given}
        return self._connection.json("POST", "/v1/methods/preview", json=body, timeout=_LONG_S)

    def students(self) -> list[Document]:
        """What a job's ``students`` can name."""
        return list(self._connection.pages("/v1/students"))

    def recipes(self) -> list[Document]:
        """What a job's ``recipe`` can name, with the values that it fills in."""
        return list(self._connection.pages("/v1/recipes"))

    def gc(self, *, dry_run: bool = False, **limits: float | None) -> Document:
        """Deletes ended jobs, decoded data sets and events beyond limits, and says what has gone or would go.

        Args:
            dry_run: change nothing.
            limits: ``jobs_max_age_s``, ``jobs_max_count``, ``jobs_max_bytes``, ``decoded_max_bytes``,
                ``events_max_age_s``; the service's own where one is None or left out.
        """
        body = {"dry_run": dry_run, **limits}
        return self._connection.json("POST", "/v1/gc", json=body, timeout=_LONG_S, repeat=False)

    # ------------------------------------------------------------------------- teachers, data sets

    def upload_teacher(
        self,
        path: Path,
        *,
        name: str | None = None,
        preprocessing: Mapping[str, object] | None = None,
        output: str | None = None,
    ) -> Document:
        """Sends an ONNX file, streamed from disk; the same file again gives the same teacher.

        Args:
            path: the ONNX file.
            name: for people; the file's name by default.
            preprocessing: how a picture becomes the network's input (size, mean, std, ...).
            output: which output holds the logits; needed when there are several.
        """
        fields = {"name": name or path.stem}
        if preprocessing is not None:
            fields["preprocessing"] = json.dumps(preprocessing)
        if output is not None:
            fields["output"] = output
        with path.open("rb") as stream:
            return self._connection.json(
                "POST",
                "/v1/teachers",
                data=fields,
                files={"file": (path.name, stream, "application/octet-stream")},
                timeout=_LONG_S,
                repeat=False,
            )

    def teachers(self) -> Iterator[Document]:
        """Every teacher."""
        return self._connection.pages("/v1/teachers")

    def teacher(self, teacher_id: str) -> Document:
        """One teacher."""
        return self._connection.json("GET", f"/v1/teachers/{_part(teacher_id)}")

    def delete_teacher(self, teacher_id: str) -> None:
        """Forgets a teacher; refused while a job that has not ended uses it."""
        self._connection.done("DELETE", f"/v1/teachers/{_part(teacher_id)}", repeat=False)

    def create_dataset(self, name: str, spec: Mapping[str, object]) -> Document:
        """Registers a data set below the service's data root by name."""
        body = {"name": name, "spec": spec}
        return self._connection.json("POST", "/v1/datasets", json=body, repeat=False)

    def datasets(self) -> Iterator[Document]:
        """Every registered data set."""
        return self._connection.pages("/v1/datasets")

    def dataset(self, dataset_id: str) -> Document:
        """One data set."""
        return self._connection.json("GET", f"/v1/datasets/{_part(dataset_id)}")

    def delete_dataset(self, dataset_id: str) -> None:
        """Forgets the name and removes what it was decoded to; the pictures stay. Refused while a live job uses it."""
        self._connection.done("DELETE", f"/v1/datasets/{_part(dataset_id)}", repeat=False)

    # ------------------------------------------------------------------------------------- caches

    def caches(self) -> Iterator[Document]:
        """Every cache of teacher logits, complete or not."""
        return self._connection.pages("/v1/caches")

    def cache(self, key: str) -> Document:
        """One cache, by its key."""
        return self._connection.json("GET", f"/v1/caches/{_part(key)}")

    def verify_cache(self, key: str) -> Document:
        """Lets the service re-read every checksum and statistic of a cache; takes its time."""
        path = f"/v1/caches/{_part(key)}/verify"
        return self._connection.json("POST", path, timeout=_LONG_S)

    def delete_cache(self, key: str) -> None:
        """Deletes a cache; refused while it is pinned or a job that is being worked on uses it."""
        self._connection.done("DELETE", f"/v1/caches/{_part(key)}", repeat=False)

    def pin_cache(self, key: str) -> Document:
        """Keeps a cache from eviction and deletion."""
        return self._connection.json("POST", f"/v1/caches/{_part(key)}/pin")

    def unpin_cache(self, key: str) -> None:
        """Lets a cache be evicted and deleted again."""
        self._connection.done("DELETE", f"/v1/caches/{_part(key)}/pin")

    # --------------------------------------------------------------------------------------- jobs

    def submit(
        self,
        job: Mapping[str, object],
        *,
        idempotency_key: str | None = None,
        dry_run: bool = False,
    ) -> Document:
        """Posts a job.

        Args:
            job: teacher (id), dataset, students, methods, seeds, views, cache, training.
            idempotency_key: the same key and job give the same job again. One is made up for
                every call, so that a repetition after a broken connection cannot start two.
            dry_run: only show the runs that it would have.
        """
        if dry_run:
            return self._connection.json("POST", "/v1/jobs", json=job, params={"dry_run": "true"})
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._connection.json("POST", "/v1/jobs", json=job, headers=headers)

    def jobs(self, *, status: str | None = None) -> Iterator[Document]:
        """Every job, newest first; ``status`` keeps those in one state."""
        return self._connection.pages("/v1/jobs", {"status": status} if status else {})

    def job(self, job_id: str) -> Document:
        """One job with its state, stage and progress."""
        return self._connection.json("GET", f"/v1/jobs/{_part(job_id)}")

    def cancel(self, job_or_run_id: str) -> Document:
        """Asks a job or a run to stop; asking twice, or after its end, changes nothing."""
        return self._connection.json("POST", f"{_path(job_or_run_id)}/cancel")

    def pause(self, job_or_run_id: str) -> Document:
        """Asks a job or a run to save its state and stop for now; asking twice changes nothing."""
        return self._connection.json("POST", f"{_path(job_or_run_id)}/pause")

    def resume(self, job_or_run_id: str) -> Document:
        """Lets a paused job or run go on where it stopped; what is not paused stays as it is."""
        return self._connection.json("POST", f"{_path(job_or_run_id)}/resume")

    def retry(self, job_or_run_id: str) -> Document:
        """The job that tries the runs again that failed or were cancelled; asking twice gives the same one."""
        return self._connection.json("POST", f"{_path(job_or_run_id)}/retry")

    def pin(self, job_id: str) -> Document:
        """Keeps a job from deletion, by request or by age."""
        return self._connection.json("POST", f"/v1/jobs/{_part(job_id)}/pin")

    def unpin(self, job_id: str) -> None:
        """Lets a job be deleted again."""
        self._connection.done("DELETE", f"/v1/jobs/{_part(job_id)}/pin")

    def delete(self, job_or_run_id: str) -> None:
        """Deletes a job, or one run of it, with events and files; refused until the job has ended, and while pinned."""
        self._connection.done("DELETE", _path(job_or_run_id), timeout=_LONG_S, repeat=False)

    def runs(self, job_id: str) -> Iterator[Document]:
        """The runs of a job, in their order."""
        return self._connection.pages(f"/v1/jobs/{_part(job_id)}/runs")

    def run(self, run_id: str) -> Document:
        """One run with its state, last metrics and result."""
        return self._connection.json("GET", f"/v1/runs/{_part(run_id)}")

    def metrics(self, run_id: str) -> list[Document]:
        """One dictionary per trained epoch."""
        return list(self._connection.pages(f"/v1/runs/{_part(run_id)}/metrics"))

    def report(self, job_id: str) -> Document:
        """The table of a job's runs: accuracy, agreement, calibration, temperatures, seconds."""
        return self._connection.json("GET", f"/v1/jobs/{_part(job_id)}/report")

    def report_csv(self, job_id: str) -> str:
        """The same table as CSV text."""
        path = f"/v1/jobs/{_part(job_id)}/report"
        return self._connection.done("GET", path, headers={"Accept": "text/csv"}).text

    # ------------------------------------------------------------------------------------- events

    def events(
        self,
        job_or_run_id: str,
        *,
        after: int = 0,
        patience_s: float = PATIENCE_S,
        timeout_s: float | None = None,
    ) -> Iterator[Document]:
        """Every event of a job or run as it happens, from the first one, until its end.

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
        path = f"{_path(job_or_run_id)}/events"
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        patience = Patience(patience_s)
        while True:
            reason: Exception | str = "the event stream keeps ending early"
            try:
                for event in self._stream_events(path, after, patience, deadline):
                    after = event.get("seq") or after
                    yield event
                    if event["type"] == "done":
                        return
            except httpx2.TransportError as error:
                reason = error
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeout(f"{job_or_run_id} has not ended after {timeout_s} s; it goes on")
            patience.spend(self.base_url, reason)

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Document:
        """Blocks until the job has ended and returns it, whatever its end.

        A paused job has not ended: this waits on until it is resumed or cancelled.

        Raises:
            WaitTimeout: it had not ended after ``timeout_s``.
        """
        for _ in self.events(job_id, timeout_s=timeout_s):
            pass
        return self.job(job_id)

    def _stream_events(self, path: str, after: int, patience: Patience, deadline: float | None) -> Iterator[Document]:
        # Not as Last-Event-ID, which is not answered with ``done`` where nothing else is left.
        path, headers = f"{path}?after={after}", {"Accept": "text/event-stream"}
        silence_s = STREAM_SILENCE_S
        if deadline is not None:
            silence_s = max(0.01, min(silence_s, deadline - time.monotonic()))
        with self._connection.stream(path, headers, silence_s) as response:
            for event in parse_events(response.iter_bytes()):
                patience.restore()
                if event is not None:
                    yield event
                if deadline is not None and time.monotonic() >= deadline:
                    return

    # ---------------------------------------------------------------------------------- artifacts

    def artifacts(self, run_id: str) -> list[Document]:
        """The files of a run: name, size_bytes, sha256, media_type."""
        return list(self._connection.pages(f"/v1/runs/{_part(run_id)}/artifacts"))

    def download(
        self,
        run_id: str,
        name: str,
        path: Path,
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Path:
        """Fetches one artifact to ``path``; nobody ever sees half a file under that name.

        The bytes gather in a hidden file beside it, whose name holds the digest. When the
        connection or this process breaks, the next call goes on where it ended.

        Args:
            run_id: whose artifact.
            name: which, e.g. ``student.safetensors``.
            path: the file to write, replaced if it exists; its folder must exist.
            on_bytes: told the number of bytes there so far.

        Raises:
            DamagedDownload: the SHA-256 differs from the service's; the bytes were thrown away.
        """
        known = {artifact["name"]: artifact for artifact in self.artifacts(run_id)}
        if name not in known:
            has = ", ".join(known) or "none yet"
            raise ApiProblem(404, "No such artifact", f"{run_id} has no {name!r}; it has {has}")
        digest, size_bytes = known[name]["sha256"], known[name]["size_bytes"]
        partial = path.with_name(f".{path.name}.{digest[:16]}.part")
        url = f"/v1/runs/{_part(run_id)}/artifacts/{_part(name)}"
        try:
            self._fetch(url, digest, size_bytes, partial, on_bytes)
        except DamagedDownload:
            partial.unlink()
            raise
        partial.replace(path)
        return path

    def _fetch(
        self,
        url: str,
        digest: str,
        size_bytes: int,
        partial: Path,
        on_bytes: Callable[[int], None] | None,
    ) -> None:
        patience = Patience(PATIENCE_S)
        with partial.open("ab") as sink:
            while sink.tell() < size_bytes:
                try:
                    for there in self._fetch_rest(url, digest, sink):
                        patience.restore()
                        if on_bytes is not None:
                            on_bytes(there)
                    reason: Exception | str = f"{url} ends early"
                except httpx2.TransportError as error:
                    reason = error
                if sink.tell() < size_bytes:
                    patience.spend(self.base_url, reason)
            sink.flush()
            os.fsync(sink.fileno())
        with partial.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != digest:
            raise DamagedDownload(
                f"{url} arrived with SHA-256 {found}, the service announced {digest}: nothing was "
                "kept, download it again"
            )

    def _fetch_rest(self, url: str, digest: str, sink: BinaryIO) -> Iterator[int]:
        start = sink.tell()
        headers = {"Range": f"bytes={start}-", "If-Range": f'"{digest}"'} if start else {}
        with self._connection.stream(url, headers, STREAM_SILENCE_S) as response:
            announced = response.headers.get("ETag", "").removeprefix("W/").strip('"')
            if announced != digest:
                raise DamagedDownload(
                    f"{url} is now SHA-256 {announced or 'unknown'}, it was listed as {digest}: "
                    "it was replaced meanwhile, download it again"
                )
            if response.status_code != 206:
                sink.truncate(0)
            # No chunk size: what httpx2 would gather for one is lost when the connection breaks.
            for chunk in response.iter_raw():
                sink.write(chunk)
                yield sink.tell()


def _path(job_or_run_id: str) -> str:
    kind = "runs" if job_or_run_id.startswith("run_") else "jobs"
    return f"/v1/{kind}/{_part(job_or_run_id)}"


def _part(text: str) -> str:
    """``text`` as one segment of a path, whatever it holds."""
    return quote(text, safe="")
