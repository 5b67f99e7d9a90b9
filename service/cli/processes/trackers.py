"""Commands that tell experiment trackers of jobs: export, track. Both are clients of the service."""

import hashlib
import os
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from service.cli.base import CommandFailed, session
from service.cli.processes.supervisor import UNTIL_STDIN_CLOSES, end_with_stdin

if TYPE_CHECKING:
    from service.settings import Settings
    from service.trackers.address import TrackerAddress

Project = Annotated[str, typer.Option(help="The tracker's project or experiment.")]
WithoutFiles = Annotated[bool, typer.Option("--without-files", help="Leave the artifacts out: weights, ONNX, logs.")]
# A tracker's packages need processor time, too: the training goes first.
_NICE = 10
# They log every request.
_QUIET = ("httpx", "httpx2", "urllib3")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel="Jobs")(export)
    app.command(rich_help_panel="The service")(track)


def export(
    context: typer.Context,
    tracker: Annotated[str, typer.Argument(metavar="TRACKER", help="mlflow, wandb or trackio.")],
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID")],
    to: Annotated[str, typer.Option(help="Where it is: http://127.0.0.1:5000 for mlflow, a folder for trackio.")],
    project: Project = "retort",
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
    without_files: WithoutFiles = False,
) -> None:
    """Write a job's runs to a tracker: parameters, metrics, results, artifacts; again is an update.

    A tracker needs its package: pip install 'retort[mlflow]', 'retort[wandb]' or 'retort[trackio]'.
    """
    import tempfile

    from service.trackers.address import parse_address

    address = parse_address(f"{tracker}:{to}")
    # Before the others, which need what the extra brings as well.
    address.check_installed()
    from service.trackers.export import JobExport
    from service.trackers.guard import quiet

    options = session(context)
    with options.client() as client, tempfile.TemporaryDirectory(prefix="retort-export-") as scratch:
        job = client.job(job_id)
        sink = quiet(address.open(project, Path(scratch)))
        try:
            told = JobExport(client, job, sink, with_files=not without_files)
            for event in client.events(job_id) if follow else client.stored_events(job_id):
                if event["type"] != "done":
                    told.apply(event)
            sink.flush()
        finally:
            sink.close()
    if told.refused:
        raise CommandFailed("; ".join(told.refused.values()))
    document = {"job_id": job_id, "tracker": str(address), "project": project, "runs": told.runs}
    document["is_ended"] = told.is_ended
    rest = "" if told.is_ended else "; the job goes on, and so does what is missing"
    options.show(document, lambda: Text(f"{told.runs} runs of {job_id} are in {project} at {address}{rest}"))


def track_arguments(settings: "Settings", address: "TrackerAddress") -> list[str]:
    """Arguments of ``retort`` that follow all jobs for a tracker as the settings of the service say."""
    options = {
        "--cursor-dir": str(settings.trackers_dir),
        "--project": settings.trackers_project,
        "--stall-s": str(settings.trackers_stall_s),
    }
    return ["track", str(address), *(part for option in options.items() for part in option)]


def cursor_name(address: "TrackerAddress", project: str, jobs: Collection[str]) -> str:
    """Name of a cursor's file: of the process that follows all jobs, or of each set of jobs and project its own."""
    if not jobs:
        return f"{address.slug}.sqlite3"
    digest = hashlib.sha256("\n".join((project, *sorted(set(jobs)))).encode()).hexdigest()
    return f"{address.slug}-jobs-{digest[:12]}.sqlite3"


def track(
    context: typer.Context,
    tracker: Annotated[str, typer.Argument(metavar="TRACKER:TARGET", help="As in RETORT_TRACKERS.")],
    cursor_dir: Annotated[Path, typer.Option(help="Where it is kept how far the tracker is.")],
    project: Project = "retort",
    job: Annotated[
        list[str] | None, typer.Option(metavar="JOB_ID", help="Only this one, and end once all of it is told.")
    ] = None,
    without_files: WithoutFiles = False,
    stall_s: Annotated[float, typer.Option(min=1, help="A tracker that hangs for so long ends this process.")] = 300.0,
    until_stdin_closes: Annotated[
        bool, typer.Option(UNTIL_STDIN_CLOSES, hidden=True, help="End when standard input closes.")
    ] = False,
) -> None:
    """Follow all jobs of a service and tell a tracker of them; RETORT_TRACKERS has `retort serve` start this.

    With --job only these, ended or not, and end by itself; exit status 1 if the tracker lacks something then.
    """
    from service.trackers.address import parse_address

    address = parse_address(tracker)
    address.check_installed()
    from service.trackers.cursor import Cursor
    from service.trackers.follow import Follower
    from service.trackers.guard import Watchdog, quiet
    from service.trackers.patience import Patience
    from workers import logs

    if until_stdin_closes:
        end_with_stdin()
    logs.configure("info", _QUIET)
    os.nice(_NICE)
    # The data directory is nobody else's, whichever process makes it.
    os.umask(0o077)
    path = cursor_dir / cursor_name(address, project, job or ())
    cursor = Cursor(path)
    patience = Patience(cursor, stall_s)
    watchdog = Watchdog(patience)
    watchdog.start()
    with session(context).client() as client:
        follower = Follower(
            client,
            cursor,
            lambda: watchdog.guarded(lambda: quiet(address.open(project, cursor_dir / address.slug))),
            with_files=not without_files,
            patience=patience,
            only=job or (),
        )
        # Nothing sets it: a signal ends the process, at any moment, and the cursor says from where to go on; with --job
        # to the next process that is given the same jobs and project.
        follower.run(threading.Event())
        follower.close()
        # Jobs of which all is told begin anew where somebody asks for them again.
        path.unlink()
    if follower.lacking:
        raise CommandFailed("; ".join(follower.lacking.values()))
