"""Choice of an epoch by the validation split: metrics, and early stopping.

Whatever chooses (the best epoch, the end of a run, a temperature) uses the validation split; test is only measured.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from workers.spec import NonNegative, Spec

SelectionMetric = Literal["top1", "top5", "nll", "ece", "agreement", "kl_to_teacher"]
# Of the metrics by which an epoch is chosen, those of which less is better.
_LESS_IS_BETTER: Final = frozenset({"nll", "ece", "kl_to_teacher"})


def is_better(metric: SelectionMetric, value: float, other: float, min_delta: float = 0.0) -> bool:
    """Whether ``value`` of a metric is better than another by more than ``min_delta``."""
    return (other - value if metric in _LESS_IS_BETTER else value - other) > min_delta


class EarlyStopping(Spec):
    """End a run when a metric of its validation split has not become better for so many epochs.

    Attributes:
        metric: as it stands in a run's metrics, without the prefix ``validation_``.
        patience: epochs without a better value.
        min_delta: by how much a value has to be better to count, in units of the metric.
    """

    metric: SelectionMetric = "top1"
    patience: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 10
    min_delta: NonNegative = 0.0
