"""Commands that start processes: serve, api, engine, demo; and engine-health.

Their settings are the ``RETORT_*`` variables (``service.settings``); the few options here set the
same variables for the processes that they start.
"""

import contextlib
import math
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer

from service.cli.base import CommandFailed, session
from service.cli.processes import streams
from service.cli.processes.supervisor import GAVE_UP, command, end_with_stdin, free_port, supervise
from service.cli.processes.trackers import track_arguments
from service.client.client import Client
from service.client.errors import ClientError
from service.gpus import STARTING
from service.paths import local_url
from workers.garbage import collection_paused
from workers.texts import printable

if TYPE_CHECKING:
    from service.settings import Settings

PANEL = "The service"
# A reason against readiness that lasts so long is no part of the start.
UNREADY_S = 10.0
BEGUN_S = 10.0

Host = Annotated[str | None, typer.Option(help="RETORT_HOST; 127.0.0.1 by default.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="RETORT_PORT; 8765 by default, 0 a free one.")]
DataDir = Annotated[Path | None, typer.Option(help="RETORT_DATA_DIR: everything that the service writes.")]
DataRoot = Annotated[Path | None, typer.Option(help="RETORT_DATA_ROOT: where datasets may be read from.")]
WithParent = Annotated[
    bool,
    typer.Option("--until-stdin-closes", hidden=True, help="End when standard input closes."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, function in (
        ("serve", serve),
        ("demo", demo),
        ("api", api),
        ("engine", engine),
        ("engine-health", engine_health),
    ):
        app.command(name, rich_help_panel=PANEL)(function)


def serve(
    context: typer.Context,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    data_root: DataRoot = None,
    until_stdin_closes: WithParent = False,
) -> None:
    """Start the API and the engine; end both with Ctrl-C or SIGTERM."""
    from service.api.auth import check_binding
    from service.settings import Settings
    from service.trackers.address import parse_addresses

    streams.drop_unwritable()
    _export(host, port, data_dir, data_root)
    settings = Settings()
    trackers = parse_addresses(settings.trackers)
    for address in trackers:
        address.check_installed()
    if settings.port == 0:
        os.environ["RETORT_PORT"] = str(free_port(settings.host))
        settings = Settings()
    check_binding(settings)
    _refuse_taken_port(settings.host, settings.port)
    if until_stdin_closes:
        end_with_stdin()
    url = local_url(settings.host, settings.port)
    followers = {f"tracker {each}": command("--url", url, *track_arguments(settings, each)) for each in trackers}
    with Client(url) as client:
        readiness = _ReadinessWatch(client)
        status = supervise(
            {"api": command("api"), "engine": command("engine"), **followers},
            optional=followers.keys(),
            # A process that finds the variable is none of these, and has nobody who follows for it.
            environment={name: value for name, value in os.environ.items() if name.upper() != "RETORT_TRACKERS"},
            is_ready=readiness.ask,
            has_begun=lambda: readiness.has_begun,
            say=_say_as_service,
            ready_text=ready_text(settings, url),
        )
    raise typer.Exit(status)


class _ReadinessWatch:
    """Readiness of a service: asked, and printed once why it is not there, if that lasts.

    Attributes:
        has_begun: whether an engine has led and is through with its start, whatever its GPUs are like.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._reasons: list[str] = []
        self._say_at = math.inf
        self.has_begun = False
        self._ask_at = 0.0

    def ask(self) -> bool:
        if time.monotonic() < self._ask_at:
            return False
        try:
            answer = self._client.ready()
        except (ClientError, ValueError):
            return False
        has_ray = answer["parts"]["ray"]["ok"]
        if answer["heartbeat_age_s"] is not None and has_ray and STARTING not in answer["reasons"]:
            self.has_begun = True
            # A GPU may be broken for days, and every question is a line in the log.
            self._ask_at = time.monotonic() + BEGUN_S
        if answer["reasons"] != self._reasons:
            self._reasons, self._say_at = answer["reasons"], time.monotonic() + UNREADY_S
        if self._reasons and time.monotonic() > self._say_at:
            self._say_at = math.inf
            _say_as_service(f"not ready at {self._client.base_url}: {'; '.join(self._reasons)}")
        return bool(answer["ready"])


def ready_text(settings: "Settings", url: str) -> str:
    """Text of ``serve`` once it is ready: its address, its data, and whether it is open to this machine alone."""
    from service.api.auth import has_keys

    page = "the page and the API" if settings.page else "the API"
    text = f"ready at {url} ({page}; API docs: {url}/docs), data in {settings.data_dir.resolve()}"
    if has_keys(settings):
        return text
    return f"{text}; there is no API key (`retort keys create` makes one), so only this machine may call"


def api(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    data_root: DataRoot = None,
    until_stdin_closes: WithParent = False,
) -> None:
    """Run the API alone; it takes jobs even while no engine runs."""
    with collection_paused():
        from service.api import server
        from service.settings import Settings

    streams.drop_unwritable()
    _print_as_text()
    _export(host, port, data_dir, data_root)
    # Before the first thread, which the next lines may begin.
    server.share_one_heap()
    if until_stdin_closes:
        end_with_stdin()
    server.serve(Settings())


def engine(
    data_dir: DataDir = None,
    data_root: DataRoot = None,
    until_stdin_closes: WithParent = False,
) -> None:
    """Run the engine alone: it works on the jobs in the database until it is told to stop."""
    streams.drop_unwritable()
    # Ray reads these when it is imported: workers print lines of JSON, which it is not to add to, nor to summarise.
    os.environ |= {"RAY_DISABLE_WORKER_LOG_PREFIX": "1", "RAY_DEDUP_LOGS": "0"}
    _print_as_text()
    with collection_paused():
        import structlog

        from service.engine.process import run_engine
        from service.errors import RayFailed
        from service.logs import begin_log
        from service.settings import Settings

    _export(None, None, data_dir, data_root)
    settings = Settings()
    if until_stdin_closes:
        end_with_stdin()
    begin_log(settings)
    if settings.trackers:
        structlog.get_logger("retort.engine").warning(
            "RETORT_TRACKERS has no effect here, `retort serve` alone heeds it: run `retort track` for each address"
        )
    try:
        run_engine(settings)
    except RayFailed as error:
        structlog.get_logger("retort.engine").error("engine gives up", error=str(error))
        _complain(str(error))
        # The supervisor need not try that again.
        raise typer.Exit(GAVE_UP) from None
    except Exception:
        # One line is for a person at a terminal; the log of a service needs the place as well.
        structlog.get_logger("retort.engine").exception("engine failed")
        raise


def engine_health(data_dir: DataDir = None) -> None:
    """Say whether an engine leads and can work (Ray, GPUs, disk, clock); exit status 1 if not, with the reasons."""
    from service.db.database import Database
    from service.operations.readiness import ReadinessCheck
    from service.settings import Settings

    _export(None, None, data_dir, None)
    settings = Settings()
    database = Database(settings.database)
    try:
        look = ReadinessCheck(database, settings).look()
    finally:
        database.close()
    if not look.ready:
        raise CommandFailed("; ".join(look.reasons))
    _say(f"the engine was last heard of {look.heartbeat_age_s:.0f} s ago")


def demo(
    context: typer.Context,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where its service writes; a new folder in /tmp by default.")
    ] = None,
    keep: Annotated[
        bool | None,
        typer.Option(
            "--keep/--no-keep",
            help="Leave the service running, with --data-dir, too, if it is to be for days; or end it at once. "
            "By default it stays until Ctrl-C on a terminal, and elsewhere ends.",
        ),
    ] = None,
) -> None:
    """Distil digits, all the way over HTTP, in a few minutes."""
    from service.cli.processes.demo_run import run_demo

    hold = keep is None and sys.stdin.isatty() and sys.stdout.isatty()
    run_demo(session(context).client, data_dir, keep=bool(keep), hold=hold)


def _export(host: str | None, port: int | None, data_dir: Path | None, data_root: Path | None) -> None:
    """Set the variables behind the options, for the settings of this process and of its children."""
    given = {"HOST": host, "PORT": port, "DATA_DIR": data_dir, "DATA_ROOT": data_root}
    os.environ |= {f"RETORT_{name}": str(value) for name, value in given.items() if value is not None}


def _refuse_taken_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As uvicorn does: a port that is only waiting for its last packets is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CommandFailed(
                f"cannot listen on {host} port {port} ({error.strerror}): is a service running "
                "there already? Choose another with --port"
            ) from None


class _PrintableStream:
    """Text stream that writes control characters out, which a terminal would obey."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever a stream has
        return getattr(self._stream, name)


def _print_as_text() -> None:
    """Make this process write control characters out: Ray's lines of its workers hold names from strangers."""
    sys.stdout = cast(TextIO, _PrintableStream(sys.stdout))
    sys.stderr = cast(TextIO, _PrintableStream(sys.stderr))


def _say_as_service(text: str) -> None:
    _say(f"retort: {text}")


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"retort: {printable(' '.join(text.split()))}\n")
        sys.stderr.flush()


def _say(text: str) -> None:
    sys.stdout.write(f"{printable(text)}\n")
    sys.stdout.flush()
