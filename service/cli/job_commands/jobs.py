"""Commands about jobs and runs: submit, jobs, show, watch, cancel, pause, resume, retry, pin, delete."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from service.cli import render
from service.cli.base import BadInput, CliSession, CommandFailed, read_json, session
from service.cli.deletions import DryRun, show_preview
from service.cli.job_commands.follow import follow
from service.cli.job_commands.job_labels import NewTags, moment_of
from service.cli.job_commands.job_pages import counts, job_page, preview_page, run_page
from service.cli.job_commands.reports import results
from service.client.client import Client
from service.client.filters import JobFilters
from service.client.transport import Document

JobId = Annotated[str, typer.Argument(metavar="JOB_ID")]
AnyId = Annotated[str, typer.Argument(metavar="ID", help="Of a job or of a run.")]
_STATED = ("name", "preprocessing", "output", "output_kind", "class_names", "class_map", "input_values")
_TEACHER_KEYS = frozenset({"path", "data", *_STATED})


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (submit, jobs, show, watch, cancel, pause, resume, retry, pin, unpin, delete, download):
        app.command(rich_help_panel="Jobs")(command)


def submit(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="JOB.json", exists=True, dir_okay=False, readable=True)],
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only show its runs. A teacher file is uploaded even so."),
    ] = False,
    tag: NewTags = None,
    note: Annotated[str | None, typer.Option(help="A note on it, instead of the file's.")] = None,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Where its end is told; of a host that the service allows.")
    ] = None,
) -> None:
    """Post a job.

    In the file, "teacher" is the id of an uploaded one, or {"path": "teacher.onnx",
    "preprocessing": {...}}, which is uploaded first; the path counts from the file's folder. "teachers" is a list of
    {"id": ..., "weight": ...}, or with a "path" in place of the id.
    """
    options = session(context)
    job = read_json(file)
    if tag:
        job["tags"] = [*job.get("tags", []), *(new for new in tag if new not in job.get("tags", []))]
    if note is not None:
        job["note"] = note
    if webhook is not None:
        job["webhook"] = {"url": webhook}
    with options.client() as client:
        if isinstance(job.get("teacher"), dict):
            job["teacher"] = _upload(client, job["teacher"], file.parent)["id"]
        if isinstance(job.get("teachers"), list):
            job["teachers"] = [_uploaded(client, each, file.parent) for each in job["teachers"]]
        if dry_run:
            preview = client.submit(job, dry_run=True)
            options.show(preview, lambda: preview_page(preview))
            return
        posted = client.submit(job)
        show_or_watch(options, client, posted, watch=watch)


def jobs(
    context: typer.Context,
    state: Annotated[str | None, typer.Option("--state", "--status", help="Only those in this state.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only those with this tag.")] = None,
    name: Annotated[str | None, typer.Option(help="Only those whose name holds this.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Only those of the teacher with this id or name.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only those on this dataset: name, kind or path.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME|AGE", help="Only those posted since: 2026-11-30, or 12h, 7d ago.")
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="Only those with this in name, note, tags, teacher, dataset or id.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(help="By created_at, finished_at, name or state; with - before it in reverse.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
) -> None:
    """List jobs, newest first unless --sort says otherwise."""
    options = session(context)
    given = {"state": state, "tag": tag, "name": name, "teacher": teacher, "dataset": dataset, "q": search}
    given |= {"sort": sort, "created_after": None if since is None else moment_of(since)}
    with options.client() as client:
        wanted = client.jobs(**cast("JobFilters", given))
        found = [job for job, _ in zip(wanted, range(limit), strict=False)]
    has_tags = any(job.get("tags") for job in found)
    headers = ("id", "state", "runs", "name", *(("tags",) if has_tags else ()), "created")
    rows = [
        (
            job["id"],
            render.state(job["state"]),
            counts(job),
            job["name"],
            *((", ".join(job["tags"]),) if has_tags else ()),
            render.moment(job["created_at"]),
        )
        for job in found
    ]
    options.show(found, lambda: render.table(headers, rows))


def show(context: typer.Context, id: AnyId) -> None:
    """Show a job with its runs, or a run with its files."""
    options = session(context)
    with options.client() as client:
        if _is_run(id):
            run, files = client.run(id), client.artifacts(id)
            options.show({**run, "artifacts": files}, lambda: run_page(run, files))
        else:
            job, runs = client.job(id), list(client.runs(id))
            options.show({**job, "runs": runs}, lambda: job_page(job, runs))


def watch(context: typer.Context, id: AnyId) -> None:
    """Follow a job to its end; a run's id follows the job it belongs to."""
    options = session(context)
    with options.client() as client:
        watch_to_end(options, client, client.run(id)["job_id"] if _is_run(id) else id)


def cancel(context: typer.Context, id: AnyId) -> None:
    """Ask a job or a run to stop."""
    _request(context, id, Client.cancel)


def pause(context: typer.Context, id: AnyId) -> None:
    """Ask a job or a run to save its state and stop for now."""
    _request(context, id, Client.pause)


def resume(context: typer.Context, id: AnyId) -> None:
    """Let a paused job or run go on where it stopped."""
    _request(context, id, Client.resume)


def retry(
    context: typer.Context,
    id: AnyId,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the new job to its end.")] = False,
) -> None:
    """Post what failed or was cancelled of a job (or one such run) again, as a new job."""
    options = session(context)
    _check_id(id)
    with options.client() as client:
        made = client.retry(id)
        show_or_watch(options, client, made, watch=watch)


def pin(context: typer.Context, id: JobId) -> None:
    """Keep a job from deletion and retention."""
    with session(context).client() as client:
        client.pin(id)


def unpin(context: typer.Context, id: JobId) -> None:
    """Let a job be deleted again."""
    with session(context).client() as client:
        client.unpin(id)


def delete(context: typer.Context, id: AnyId, dry_run: DryRun = False) -> None:
    """Delete a job that has ended, or one run of it, with events and files."""
    options, kind = session(context), "runs" if _is_run(id) else "jobs"
    with options.client() as client:
        if dry_run:
            show_preview(options, client, kind, id)
        else:
            client.delete(id)


def download(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="RUN_ID")],
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to; RUN_ID by default.")] = None,
) -> None:
    """Fetch the files of a run; those that are there already are not fetched again."""
    options = session(context)
    folder = to or Path(id)
    with options.client() as client:
        files = client.artifacts(id)
        if not files:
            raise CommandFailed(f"{id} has no files: its state is {client.run(id)['state']}")
        folder.mkdir(parents=True, exist_ok=True)
        with _transfer() as progress:
            for file in files:
                _download_one(client, id, file, folder, progress=progress)
    rows = [(str(folder / file["name"]), render.size(file["size_bytes"])) for file in files]
    options.show(files, lambda: render.table(("file", "size>"), rows))


def _uploaded(client: Client, teacher: object, folder: Path) -> object:
    """One of several teachers with its id; what is neither an upload nor an id the service refuses."""
    if not isinstance(teacher, dict) or "path" not in teacher:
        return teacher
    weight = {"weight": teacher["weight"]} if "weight" in teacher else {}
    alone = {name: value for name, value in teacher.items() if name != "weight"}
    return {"id": _upload(client, alone, folder)["id"], **weight}


def _upload(client: Client, teacher: Document, folder: Path) -> Document:
    unknown = sorted(teacher.keys() - _TEACHER_KEYS)
    if unknown or "path" not in teacher:
        raise BadInput(
            f'"teacher" has {", ".join(unknown) or "no path"}; it is an id, or an object with '
            f'"path" and perhaps {", ".join(sorted(_TEACHER_KEYS - {"path"}))}'
        )
    return client.upload_teacher(
        folder / teacher["path"],
        data=folder / teacher["data"] if teacher.get("data") else None,
        **{name: teacher.get(name) for name in _STATED},
    )


def _request(context: typer.Context, id: str, call: Callable[[Client, str], Document]) -> None:
    options = session(context)
    _check_id(id)
    with options.client() as client:
        document = call(client, id)
    options.show(document, lambda: render.state(document["state"]))


def show_or_watch(options: CliSession, client: Client, job: Document, *, watch: bool, text: str | None = None) -> None:
    """Show a job that was posted, by its id or a text, or follow it to its end."""
    if watch:
        sys.stderr.write(f"{job['id']}\n")
        watch_to_end(options, client, job["id"])
    else:
        options.show(job, lambda: Text(text or job["id"]))


def watch_to_end(options: CliSession, client: Client, job_id: str) -> None:
    """Follow a job to its end and show its report. Raises CommandFailed unless it has succeeded."""
    try:
        job = follow(client, job_id, render.console(stderr=True))
    except KeyboardInterrupt:
        sys.stderr.write(f"\nthe job goes on: `retort watch {job_id}`, or stop it: `retort cancel {job_id}`\n")
        raise
    document = client.report(job_id)
    options.show(document, lambda: results(document))
    if job["state"] != "succeeded":
        message = (job["error"] or {}).get("message")
        raise CommandFailed(f"{job_id} {job['state']}" + (f": {message}" if message else ""))


def _check_id(id: str) -> None:
    if not id.startswith(("job_", "run_")):
        raise BadInput(f"{id!r} is no id of a job (job_...) or run (run_...)")


def _is_run(id: str) -> bool:
    _check_id(id)
    return id.startswith("run_")


def _transfer() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return Progress(*columns, TransferSpeedColumn(), console=render.console(stderr=True))


def _download_one(client: Client, run_id: str, file: Document, folder: Path, progress: Progress) -> None:
    path = folder / file["name"]
    if path.parent != folder or file["name"] in ("", ".."):
        raise BadInput(f"the service names a file {file['name']!r}; that is no plain name")
    task = progress.add_task(file["name"], total=file["size_bytes"])
    if not _is_there(path, file["sha256"]):
        client.download(
            run_id,
            file["name"],
            path,
            on_bytes=lambda there: progress.update(task, completed=there),
        )
    progress.update(task, completed=file["size_bytes"])


def _is_there(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
