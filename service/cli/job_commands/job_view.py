"""State of a job as its events give it: caches, runs, warnings. It neither draws nor waits.

Rates are rows (samples) per second, times seconds.
"""

from dataclasses import dataclass, field

from service.cli import render as terminal
from service.client.kept_metrics import kept_top1
from service.client.transport import Document
from service.db.states import TERMINAL


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
        eta: its expected end, as in its document.
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
    eta: Document | None = None

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

    @property
    def counts(self) -> str:
        """Runs by state: "3 succeeded, 1 cancelled"."""
        states = [run.state for run in self.runs.values()]
        return ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))

    def apply(self, event: Document) -> str:
        """Apply one event.

        Returns:
            A sentence about it for a log; may be empty.
        """
        data: Document = event.get("data") or {}
        run_id = event.get("run_id")
        # One that was added since goes by its id; the events of its epochs say how many there are.
        run = self.runs.setdefault(run_id, RunLine(run_id, "queued", 1)) if run_id else None
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
            case "contract_checked" if data["accuracy"] is None:
                return (
                    f"none of {data['rows']} pictures has a label: the teacher's mean entropy is "
                    f"{terminal.number(data.get('entropy'), 3)} nats, and it takes "
                    f"{terminal.percent(data.get('agreement'))} of them for the same class when they are moved, on "
                    f"{data['provider']}"
                )
            case "contract_checked":
                views = data.get("views_accuracy")
                return (
                    f"the teacher is right on {terminal.percent(data['accuracy'])} of "
                    f"{data.get('labelled') or data['rows']} labelled rows"
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
            counts = f" ({self.counts})" if is_mixed else ""
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
    run.top1, run.loss = kept_top1(metrics, {}), metrics.get("train_loss")
    return f"{run.name}: {run.text}"
