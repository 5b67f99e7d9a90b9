"""Progress: the columns of a job and of a run that follow from the events of workers."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from service.db.models import Json
from workers.cluster.outcomes import Numbered
from workers.teacher.cache_plan import CachePlan
from workers.teacher.forwards import carry_over, count_forwards, forwards_avoided


class CacheProgress:
    """Progress of a job's caches, by its events and the teacher's counters, over all events of one attempt.

    Args:
        forwards_in: folder of the counters of the job's workers, of all attempts, killed or not.
        stored: the job's ``teacher_forwards``, which they do not fall short of.

    Attributes:
        caches: keys of the caches that its events have named, by split.
    """

    def __init__(self, forwards_in: Path, stored: Json | None) -> None:
        self.forwards_in = forwards_in
        self.caches: dict[str, str] = {}
        known = stored or {"run": 0, "avoided": 0}
        self._avoided = max(0, known["avoided"])
        self._missing, self._last = 0, known["run"]
        with suppress(OSError):
            carry_over(forwards_in, known["run"])
        # On a full disk it is carried over here, until the engine ends.
        with suppress(OSError):
            self._missing = max(0, known["run"] - count_forwards(forwards_in))

    def forwards(self, needed: int | None = None) -> Json:
        """``teacher_forwards`` now.

        Args:
            needed: forward passes of a live teacher, known when both caches are complete; until then what is avoided
                is as it was stored.
        """
        # Of a disk that fails, what was known before.
        with suppress(OSError):
            self._last = max(self._last, self._missing + count_forwards(self.forwards_in))
        run = self._last
        return {"run": run, "avoided": self._avoided if needed is None else forwards_avoided(needed, run)}

    def columns(self, events: Sequence[Numbered]) -> Mapping[str, Any]:
        """Columns of the job that follow from its events."""
        columns: dict[str, Any] = {}
        for _, event in events:
            match event["type"]:
                case "stage":
                    columns["stage"] = event["stage"]
                case "inference_progress":
                    self.caches[event["split"]] = event["cache"]
                    columns["caches"] = dict(self.caches)
                    if event["split"] == "train":
                        names = ("rows_done", "rows_total", "rows_per_s", "eta_s")
                        columns["inference"] = {name: event[name] for name in names}
        return {**columns, "teacher_forwards": self.forwards()}

    def columns_at_end(self, plan: CachePlan, value: Json, needed: int | None = None) -> Mapping[str, Any]:
        """Columns of the job when its caches are complete, and its training stage begins.

        Args:
            plan: of the caches, with the teacher's accuracy.
            value: of the outcome, see ``Cluster.build_caches``.
            needed: forward passes of a live teacher; None where it is as the outcome says, for all runs were checked.
        """
        accuracy = plan.accuracy
        assert accuracy is not None
        # An actor of an earlier version, whose outcome this engine has found, knows accuracies alone.
        known = {split: {"top1": top1} for split, top1 in accuracy.measured.items()}
        return {
            "stage": "training",
            "teacher_forwards": self.forwards(value["teacher_forwards_needed"] if needed is None else needed),
            "teacher_accuracy": accuracy.test,
            "teacher_views_accuracy": accuracy.views,
            "teacher_metrics": value.get("teacher_metrics", known),
            "backoff": None,
        }


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
