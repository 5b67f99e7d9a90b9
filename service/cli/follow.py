"""Progress of a job: bars on a terminal, plain lines elsewhere, both from the event stream alone.

``JobView`` holds the state that the events have given so far; it neither draws nor waits. ``follow``
feeds it from the client, which takes a broken stream up again by itself. Stopping to watch does not
stop the job. Rates are rows (samples) per second, times seconds.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.cli import render as terminal
from service.client.client import Client
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


@dataclass
class CacheLine:
    """Inference of one cache, as far as it is known."""

    split: str
    rows_done: int = 0
    rows_total: int = 1
    rows_per_s: float | None = None
    eta_s: float | None = None
    rows_inferred: int | None = None
    seconds: float | None = None

    @property
    def text(self) -> str:
        """Text beside the bar."""
        rows = f"{self.rows_done:,} / {self.rows_total:,} rows"
        if self.rows_inferred == 0:
            return f"{rows}, all from the cache"
        if self.seconds is not None:
            return f"{rows} in {terminal.duration(self.seconds)}"
        rate = f", {self.rows_per_s:,.0f} rows/s" if self.rows_per_s else ""
        eta = f", {terminal.duration(self.eta_s)} left" if self.eta_s else ""
        return rows + rate + eta


@dataclass
class RunLine:
    """State of one run, as far as it is known; ``done`` counts epochs, with the part of the present one."""

    name: str
    state: str
    epochs: int
    done: float = 0.0
    epoch: int = 0
    top1: float | None = None
    loss: float | None = None
    error: str | None = None
    set_aside: str | None = None

    @property
    def text(self) -> str:
        """Text beside the bar."""
        if self.set_aside:
            return f"set aside: {self.set_aside}"
        if self.state in ("failed", "lost"):
            return f"{self.state}: {self.error or 'no reason known'}"
        if self.state in ("queued", "pausing", "paused", "cancelled") and not self.epoch:
            return self.state
        if self.state == "running" and not self.epoch:
            return "starting"
        parts = [f"epoch {self.epoch}/{self.epochs}"]
        if self.top1 is not None:
            parts.append(f"top-1 {terminal.percent(self.top1)}")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.state not in ("running", "succeeded"):
            parts.append(self.state)
        return ", ".join(parts)


@dataclass
class JobView:
    """State of a job by the events so far.

    Attributes:
        id: the job's id.
        name: the job's name, or its id.
        runs: by run id, in the job's order.
        caches: by key, in order of appearance.
    """

    id: str
    name: str
    runs: dict[str, RunLine]
    state: str = "queued"
    stage: str | None = None
    error: str | None = None
    set_aside: str | None = None
    caches: dict[str, CacheLine] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, job: Document, runs: list[Document]) -> "JobView":
        """View before the first event."""
        lines = {run["id"]: RunLine(run["name"], "queued", run["epochs"]) for run in runs}
        return cls(id=job["id"], name=job.get("name") or job["id"], runs=lines)

    @property
    def note(self) -> str:
        """Note for a person who waits for a job that is paused; empty for others."""
        if self.set_aside:
            return f"set aside, it goes on by itself: {self.set_aside}"
        return f"paused, this waits until `retort resume {self.id}`" if self.state == "paused" else ""

    def apply(self, event: Document) -> str:
        """Apply one event.

        Returns:
            A sentence about it for a log; may be empty.
        """
        data: Document = event.get("data") or {}
        run = self.runs.get(event.get("run_id") or "")
        match event["type"]:
            case "state":
                return self._apply_state(run, data)
            case "step" | "epoch" if run is not None:
                return _apply_training(run, event["type"], data)
            case "stage":
                self.stage = data["stage"]
                return f"stage: {self.stage}"
            case "log":
                return self._apply_log(run, data)
            case "inference_progress" | "cache_ready":
                return self._apply_cache(event["type"], data)
            case "contract_checked":
                views = data.get("views_accuracy")
                return (
                    f"the teacher is right on {terminal.percent(data['accuracy'])} of "
                    f"{data['rows']} labelled rows"
                    + (f" and {terminal.percent(views)} of their views" if views is not None else "")
                    + f", on {data['provider']}"
                )
        return ""

    def _apply_state(self, run: RunLine | None, data: Document) -> str:
        error = (data.get("error") or {}).get("message")
        set_aside = (data.get("set_aside") or {}).get("message")
        if run is None:
            self.state, self.error, self.set_aside = data["state"], error, set_aside
            is_mixed = self.state in TERMINAL and len({each.state for each in self.runs.values()}) > 1
            counts = f" ({_counts(self)})" if is_mixed else ""
            return f"job {self.note or self.state}{counts}" + (f": {error}" if error else "")
        run.state, run.error, run.set_aside = data["state"], error, set_aside
        if run.state == "running":
            self.stage = "training"
        if run.state == "succeeded":
            run.done = run.epochs
        if set_aside:
            return f"{run.name}: {run.text}"
        return f"{run.name}: {run.state}" + (f": {error}" if error else "")

    def _apply_log(self, run: RunLine | None, data: Document) -> str:
        sentence = f"{run.name}: {data['message']}" if run else str(data["message"])
        if data.get("level") == "warning":
            self.warnings.append(sentence)
            return f"warning: {sentence}"
        return sentence

    def _apply_cache(self, kind: str, data: Document) -> str:
        line = self.caches.setdefault(data["cache"], CacheLine(data["split"]))
        line.rows_total = data["rows_total"]
        if kind == "cache_ready":
            line.rows_done = line.rows_total
            line.rows_inferred, line.seconds = data["rows_inferred"], data["seconds"]
        else:
            line.rows_done = data["rows_done"]
            line.rows_per_s, line.eta_s = data["rows_per_s"], data["eta_s"]
        return f"inference, {line.split}: {line.text}"


def _apply_training(run: RunLine, kind: str, data: Document) -> str:
    run.epochs = data["epochs"]
    if kind == "step":
        run.epoch, run.loss = data["epoch"], data["loss"]
        run.done = data["epoch"] - 1 + data["step"] / data["steps"]
        return ""
    metrics = data["metrics"]
    run.epoch = data["epoch"]
    run.done = float(run.epoch)
    run.top1, run.loss = metrics.get("top1", metrics.get("validation_top1")), metrics.get("train_loss")
    return f"{run.name}: {run.text}"


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
    events = client.events(job_id, patience_s=patience_s)
    if console.is_terminal:
        _follow_live(events, view, console)
    else:
        _follow_lines(events, view, console)
    return client.job(job_id)


def _follow_live(events: Iterable[Document], view: JobView, console: Console) -> None:
    def draw() -> RenderableType:
        return render(view, max(4, console.height - _HEAD_LINES))

    with Live(get_renderable=draw, console=console, refresh_per_second=_REFRESH_PER_S):
        for event in events:
            view.apply(event)


def _follow_lines(events: Iterable[Document], view: JobView, console: Console) -> None:
    started = last_rows = time.monotonic()
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
    counts = _counts(view)
    if len(shown) < len(view.runs):
        counts += f" ({len(shown)} of {len(view.runs)} shown)"
    stage = view.stage if view.state == "running" and view.stage else view.state
    parts: list[RenderableType] = [terminal.shown(f"{view.name}: {stage}; runs: {counts}"), grid]
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


def _counts(view: JobView) -> str:
    states = [run.state for run in view.runs.values()]
    return ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
