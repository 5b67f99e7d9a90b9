"""What follows from what workers tell: the columns of a job and of a run that show how far it is."""

from collections.abc import Mapping, Sequence
from typing import Any

from workers.outcomes import Numbered


class CacheProgress:
    """What a job's events say of its caches and of the teacher's work, over all events of one attempt.

    Attributes:
        spent_before: forward passes that earlier attempts have run.
        caches: keys of the caches that were told of, by split.
    """

    def __init__(self, spent_before: int) -> None:
        self.spent_before = spent_before
        self._contract = 0
        self._inferred: dict[str, int] = {}
        self.caches: dict[str, str] = {}

    def columns(self, events: Sequence[Numbered]) -> Mapping[str, Any]:
        """Columns of the job that follow from its events."""
        columns: dict[str, Any] = {}
        for _, event in events:
            match event["type"]:
                case "stage":
                    columns["stage"] = event["stage"]
                case "contract_checked":
                    self._contract = event["forwards"]
                case "inference_progress":
                    self.caches[event["split"]] = event["cache"]
                    self._inferred[event["split"]] = event["rows_inferred"]
                    columns["caches"] = dict(self.caches)
                    if event["split"] == "train":
                        names = ("rows_done", "rows_total", "rows_per_s", "eta_s")
                        columns["inference"] = {name: event[name] for name in names}
        run = self.spent_before + self._contract + sum(self._inferred.values())
        # What is avoided is known when both caches are complete.
        return {**columns, "teacher_forwards": {"run": run, "avoided": 0}}


def run_progress(events: Sequence[Numbered]) -> dict[str, Any]:
    """Columns of the run that follow from its events."""
    progress: dict[str, Any] = {}
    for _, event in events:
        match event["type"]:
            case "step":
                names = ("epoch", "step", "steps", "loss", "images_per_s")
                progress["progress"] = {name: event[name] for name in names}
            case "epoch":
                progress |= {"epoch": event["epoch"], "metrics": event["metrics"], "progress": None}
    return progress
