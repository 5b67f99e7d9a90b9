"""Early stopping and the best epoch: pure functions of a run's metrics, so that a resumed run decides as it would have.

Only the validation split decides; without one nothing is best.
"""

from collections.abc import Mapping, Sequence

from workers.config.training import Training
from workers.config.validation import is_better

Metrics = Sequence[Mapping[str, float | None]]


def best_epoch(metrics: Metrics, training: Training, min_delta: float = 0.0) -> int | None:
    """Epoch with the best value on the validation split, counted from 1, the earliest of equals.

    Args:
        metrics: a line for each epoch.
        training: by which metric, and of which weights.
        min_delta: a later epoch is better only by more than this.

    Returns:
        None where no line has the metric: there is no validation split, or, for agreement and KL, no teacher.
    """
    best: tuple[int, float] | None = None
    for number, line in enumerate(metrics, start=1):
        value = line.get(training.selected_by)
        if value is not None and (best is None or is_better(training.selection_metric, value, best[1], min_delta)):
            best = number, value
    return None if best is None else best[0]


def is_stopped_early(metrics: Metrics, training: Training) -> bool:
    """Whether ``early_stopping`` ends the run after these epochs."""
    rule = training.early_stopping
    if rule is None or not metrics:
        return False
    best = best_epoch(metrics, training, rule.min_delta)
    return best is not None and len(metrics) - best >= rule.patience
