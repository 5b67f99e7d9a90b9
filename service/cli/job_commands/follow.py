"""Progress of a job: bars on a terminal, plain lines elsewhere, both from the event stream.

When the job is expected to end is asked of the service now and then, as long as there are events.

``follow`` feeds a ``JobView`` from the client, which takes a broken stream up again by itself. Stopping
to watch does not stop the job.
"""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.cli import render as terminal
from service.cli.job_commands.job_view import JobView, RunLine
from service.client.client import Client
from service.client.errors import ServiceUnreachable
from service.client.transport import PATIENCE_S, Document
from service.db.states import TERMINAL

_BAR_WIDTH = 32
_REFRESH_PER_S = 4
# Lines that the live view needs beside the runs.
_HEAD_LINES = 6
_WAITING_STATES = frozenset({"queued", "paused"})
# In a log, a line per so much progress is enough.
_LOG_EVERY_S = 5.0
_LOG_EPOCHS = 5
_ASK_EVERY_S = 5.0
_LOG_ETA_EVERY_S = 30.0


def follow(client: Client, job_id: str, console: Console, *, patience_s: float = PATIENCE_S) -> Document:
    """Follow a job until it ends; a paused one has not ended.

    Args:
        patience_s: how long the service may not answer.

    Returns:
        The job at its end.

    Raises:
        KeyboardInterrupt: a person stopped watching; the job goes on.
        ClientError: there is no such job, or the service does not come back.
    """
    view = JobView.of(client.job(job_id), list(client.runs(job_id)))
    events = _with_expected_end(client.events(job_id, patience_s=patience_s), view, client)
    if console.is_terminal:
        _follow_live(events, view, console)
    else:
        _follow_lines(events, view, console)
    return client.job(job_id)


def _with_expected_end(events: Iterable[Document], view: JobView, client: Client) -> Iterator[Document]:
    """Pass events on, and put the expected end of the job into its view every few seconds."""
    asked = -math.inf
    for event in events:
        if time.monotonic() - asked > _ASK_EVERY_S:
            # The stream waits for a service that is away, and says so if it does not come back.
            with contextlib.suppress(ServiceUnreachable):
                view.eta = client.job(view.id).get("eta")
            asked = time.monotonic()
        yield event


def _follow_live(events: Iterable[Document], view: JobView, console: Console) -> None:
    def draw() -> RenderableType:
        return render(view, max(4, console.height - _HEAD_LINES))

    with Live(get_renderable=draw, console=console, refresh_per_second=_REFRESH_PER_S):
        for event in events:
            view.apply(event)


def _follow_lines(events: Iterable[Document], view: JobView, console: Console) -> None:
    started = last_rows = last_eta = time.monotonic()
    for event in events:
        sentence = view.apply(event)
        now = time.monotonic()
        if event["type"] == "inference_progress":
            if now - last_rows < _LOG_EVERY_S:
                continue
            last_rows = now
        if sentence and not (event["type"] == "epoch" and _between(event["data"])):
            # One line, so that no message can look like the next one.
            console.print(f"{now - started:7.1f} s  {' '.join(sentence.split())}", soft_wrap=True)
        if view.eta and now - last_eta > _LOG_ETA_EVERY_S and view.state == "running":
            last_eta = now
            console.print(f"{now - started:7.1f} s  {terminal.left(view.eta)}", soft_wrap=True)


def _between(data: Document) -> bool:
    """Whether an epoch is none of the first, the last and the few that a log shows between."""
    epoch, epochs = int(data["epoch"]), int(data["epochs"])
    return epoch not in (1, epochs) and epoch % max(1, epochs // _LOG_EPOCHS) != 0


def render(view: JobView, runs_max: int) -> RenderableType:
    """Draw the bars: one for each cache, one for each run.

    Args:
        runs_max: with more runs than this, those that train come first, then those that ended.
    """
    grid = Table.grid(padding=(0, 2, 0, 0))
    for line in view.caches.values():
        bar = ProgressBar(total=line.rows_total, completed=line.rows_done, width=_BAR_WIDTH)
        grid.add_row(f"teacher, {line.split} rows", bar, line.text)
    shown = _shown(view, runs_max)
    for run in shown:
        bar = ProgressBar(total=run.epochs, completed=run.done, width=_BAR_WIDTH)
        text = terminal.shown(run.text, terminal.COLOURS.get(run.state, ""))
        grid.add_row(terminal.shown(run.name), bar, text)
    counts = view.counts
    if len(shown) < len(view.runs):
        counts += f" ({len(shown)} of {len(view.runs)} shown)"
    stage = view.stage if view.state == "running" and view.stage else view.state
    left = f"; {terminal.left(view.eta)}" if view.eta and view.state in ("queued", "running") else ""
    parts: list[RenderableType] = [terminal.shown(f"{view.name}: {stage}; runs: {counts}{left}"), grid]
    if view.error:
        parts.append(terminal.shown(view.error, "red"))
    elif view.note:
        parts.append(Text(view.note, style=terminal.COLOURS["paused"]))
    elif view.warnings:
        parts.append(terminal.shown(view.warnings[-1], "yellow"))
    return Group(*parts)


def _shown(view: JobView, runs_max: int) -> list[RunLine]:
    runs = list(view.runs.values())
    if len(runs) <= runs_max:
        return runs
    ranked = sorted(runs, key=lambda run: (run.state in _WAITING_STATES, run.state in TERMINAL))
    chosen = {id(run) for run in ranked[:runs_max]}
    return [run for run in runs if id(run) in chosen]
