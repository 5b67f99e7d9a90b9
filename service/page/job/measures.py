"""Measures of runs that can be drawn over epochs: name, unit, and their metrics by split."""

from collections.abc import Mapping
from dataclasses import dataclass, field

SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class Measure:
    """A measure of each epoch.

    Attributes:
        label: with its unit.
        metrics: name of the metric by split; the split is "" where it is of no split.
        factor: from the metric to the unit.
    """

    label: str
    metrics: Mapping[str, str]
    factor: float = 1.0

    def metric(self, split: str) -> str:
        """Metric on a split, or on the first that has one."""
        return self.metrics.get(split) or next(iter(self.metrics.values()))


def _evaluated(label: str, metric: str, factor: float = 1.0, train: str = "") -> Measure:
    """Measure that is evaluated on the validation and the test split, and perhaps while training."""
    metrics = {"test": metric, "validation": f"validation_{metric}"}
    return Measure(label, metrics | ({"train": train} if train else {}), factor)


def _temperature(network: str, which: str, label: str) -> Measure:
    return Measure(f"{label}, mean over the training rows", {"": f"{network}{which}_temperature_mean"})


MEASURES: Mapping[str, Measure] = {
    "top1": _evaluated("Top-1 accuracy (%)", "top1", 100.0, train="train_accuracy"),
    "loss": Measure("Training loss, of the whole objective (nats)", {"train": "train_loss"}),
    "ce": Measure("Cross-entropy while training (nats)", {"train": "train_ce"}),
    "agreement": _evaluated("Agreement with the teacher (%)", "agreement", 100.0),
    "kl": _evaluated("KL(teacher || student) (nats)", "kl_to_teacher"),
    "ece": _evaluated("Expected calibration error (%)", "ece", 100.0),
    "nll": _evaluated("Negative log-likelihood (nats)", "nll"),
    "top5": _evaluated("Top-5 accuracy (%)", "top5", 100.0),
    "teacher_t": _temperature("teacher", "_paper", "Teacher's temperature, the paper's T"),
    "student_t": _temperature("student", "_paper", "Student's temperature, the paper's T"),
    "teacher_divisor": _temperature("teacher", "", "Divisor of the teacher's logits"),
    "student_divisor": _temperature("student", "", "Divisor of the student's logits"),
    "lr": Measure("Learning rate", {"": "lr"}),
    "speed": Measure("Training throughput (pictures/s)", {"": "images_per_s"}),
    "seconds": Measure("Time of an epoch (s)", {"": "seconds"}),
}


@dataclass
class RunCurve:
    """Metrics of one run over its epochs.

    Attributes:
        values: by metric and epoch (from 1).
    """

    id: str
    name: str
    student: str
    method: str
    seed: int
    state: str
    epochs: int
    values: dict[str, dict[int, float]] = field(default_factory=dict)

    def last(self, metric: str) -> tuple[int, float] | None:
        """Last epoch that has a metric, with its value."""
        found = self.values.get(metric)
        if not found:
            return None
        epoch = max(found)
        return epoch, found[epoch]
