"""Progress bars of a job that is waited for, drawn by rich from the job's events; ``retort watch`` shows more."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_ENDED = frozenset({"succeeded", "failed", "cancelled"})


@contextmanager
def progress_bar(runs: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Bars on standard error where that is a terminal, or in a notebook; nothing elsewhere.

    Args:
        runs: how many the job has.

    Yields:
        A function that takes each event of the job.
    """
    # Not at the top: who waits without a bar needs no rich.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    quiet = not (console.is_terminal or console.is_jupyter)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=quiet) as progress:
        bars = _Bars()
        rows_bar = progress.add_task("teacher's rows", total=None, visible=False)
        runs_bar = progress.add_task("queued", total=runs)

        def show(event: Mapping[str, Any]) -> None:
            bars.apply(event)
            done, total = (sum(counts) for counts in zip(*bars.rows.values(), strict=True)) if bars.rows else (0, 0)
            progress.update(rows_bar, completed=done, total=total, visible=total > 0)
            # Runs may have been added since.
            count, part = max(runs, len(bars.runs)), sum(bars.runs.values())
            progress.update(runs_bar, total=count, completed=part, description=bars.state)

        yield show
        # In a notebook rich would leave the bars as they were up to a tenth of a second ago.
        progress.refresh()


class _Bars:
    """Lengths of the bars by the events so far.

    Attributes:
        rows: of each cache, how many are there and how many there will be.
        runs: of each run, the part that is done, from 0 to 1.
        state: the job's.
    """

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, int]] = {}
        self.runs: dict[str, float] = {}
        self.state = "queued"

    def apply(self, event: Mapping[str, Any]) -> None:
        """Apply one event; those of which no bar tells change nothing."""
        data, run_id = event.get("data") or {}, str(event.get("run_id"))
        match event["type"]:
            case "state" if event.get("run_id") is None:
                self.state = data["state"]
            case "state" if data["state"] in _ENDED:
                self.runs[run_id] = 1.0
            case "step":
                self.runs[run_id] = (data["epoch"] - 1 + data["step"] / data["steps"]) / data["epochs"]
            case "epoch":
                self.runs[run_id] = data["epoch"] / data["epochs"]
            case "inference_progress":
                self.rows[data["cache"]] = data["rows_done"], data["rows_total"]
            case "cache_ready":
                self.rows[data["cache"]] = data["rows_total"], data["rows_total"]
