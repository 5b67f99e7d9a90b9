"""Schedules of the learning rate, and warm restarts between them. Durations are epochs, or fractions of them."""

import math
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from workers.spec import AtMost, Flag, Fraction, Positive, Spec

MILESTONES_MAX = 100
RESTARTS_MAX = 100


class StepSchedule(Spec):
    """Multiply the learning rate by ``gamma`` when each fraction of the epochs has passed.

    The default is the papers' 150 / 180 / 210 of 240 epochs.
    """

    kind: Literal["step"] = "step"
    milestones: Annotated[tuple[Fraction, ...], AtMost(MILESTONES_MAX)] = (0.625, 0.75, 0.875)
    gamma: Positive = 0.1

    def boundaries(self, epochs: int) -> list[int]:
        """Epochs after which the rate changes, ascending, of so many in all.

        Rounded down to whole ones, as the papers' 150 / 180 / 210 of 240.
        """
        return sorted(math.floor(milestone * epochs + 1e-9) for milestone in self.milestones)


class CosineSchedule(Spec):
    """Half a cosine from the learning rate to ``final`` times it."""

    kind: Literal["cosine"] = "cosine"
    final: Fraction = 0.0


class OneCycleSchedule(Spec):
    """One cycle (Smith & Topin 2019, arXiv:1708.07120) as ``torch.optim.lr_scheduler.OneCycleLR``, momentum left alone.

    The learning rate rises to the optimizer's, its maximum, and falls far below where it began, step by step.

    Attributes:
        pct_start: share of the steps in which it rises.
        anneal: shape of both slopes.
        div_factor: the maximum is so many times the first rate.
        final_div_factor: the first rate is so many times the last.
        three_phase: fall to the first rate as slowly as it rose, and to the last in the steps that remain.
    """

    kind: Literal["one_cycle"] = "one_cycle"
    pct_start: Annotated[float, Field(strict=True, gt=0.0, lt=1.0)] = 0.3
    anneal: Literal["cos", "linear"] = "cos"
    div_factor: Annotated[float, Field(strict=True, ge=1.0, allow_inf_nan=False)] = 25.0
    final_div_factor: Annotated[float, Field(strict=True, ge=1.0, allow_inf_nan=False)] = 1e4
    three_phase: Flag = False

    @model_validator(mode="after")
    def _third_phase_is_left(self) -> Self:
        if self.three_phase and self.pct_start > 0.5:
            raise ValueError(f"pct_start is {self.pct_start}; with three_phase it must be at most 0.5")
        return self


Schedule = Annotated[StepSchedule | CosineSchedule | OneCycleSchedule, Field(discriminator="kind")]


class Restart(Spec):
    """Warm restart of the learning rate (SGDR; Loshchilov & Hutter 2017, arXiv:1608.03983).

    Weights, momentum and everything else go on; there is no warm-up.

    Attributes:
        after_epochs: trained before it.
        learning_rate: that ``schedule`` multiplies, of every student, in the place of the optimizer's.
        schedule: of the epochs from here to the next restart or the end, as if they were all.
    """

    after_epochs: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    learning_rate: Positive
    schedule: Schedule


class Phase(NamedTuple):
    """Epochs with one schedule: from the first one, or a restart, to the next restart or the end.

    Attributes:
        begin: epochs before it.
        end: epochs to its end, those before it included.
        learning_rate: that the schedule multiplies.
        warmup_epochs: over which it rises linearly to that.
    """

    begin: int
    end: int
    learning_rate: float
    schedule: StepSchedule | CosineSchedule | OneCycleSchedule
    warmup_epochs: float = 0.0
