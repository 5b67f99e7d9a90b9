"""Sums of an epoch's metrics, on the device: a step adds to them without waiting, and they are read in one copy.

K names of metrics.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workers.objective.objective import Objective

_SIDES = ("student", "teacher")
# Share of rows in the domain of the method's policies; what metrics show is its complement, which costs a step more.
_INSIDE = "inside_domain"
# On a CPU so many steps are added in a row: each takes a tenth of what it takes between the arithmetic of two steps,
# which drives this code out of the processor's caches. They are added in the same order, so the sums are the same.
_PENDING_STEPS = 16
# And no more than so much of their logits, which stay until then.
_PENDING_BYTES = 8 << 20


@dataclass(frozen=True)
class _Step:
    """What is added of a step; without gradients.

    Attributes:
        logits_BC: the student's.
        not_finite: float32 [], 1 if it made no update.
    """

    outcome: Objective
    logits_BC: Tensor
    labels_B: Tensor
    not_finite: Tensor


@dataclass(frozen=True)
class Reading:
    """What the sums held when they were read.

    Attributes:
        rows: that were trained on.
        bad_steps: the last so many steps made no update, for the loss or the gradient of the first was not finite.
        loss: summed over the rows.
        means: over the rows, as metrics.jsonl has them.
    """

    rows: int
    bad_steps: int
    loss: float
    means: dict[str, float | None]


class EpochSums:
    """What an epoch adds up.

    Attributes:
        steps, rows: that were trained on.
        seconds: this run's share of the time that its process, and those of earlier attempts, have spent on it.
        is_deferred: whether what ``add`` is given may be kept for some steps: nothing overwrites it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.steps, self.rows, self.seconds = 0, 0, 0.0
        self._names: tuple[str, ...] = ()
        # Temperatures that are one number for all samples cost the device nothing.
        self._constants: dict[str, float] = {}
        # [2K + 1]: sums of the values, sums of their squares, steps without an update.
        self._buffer: Tensor | None = None
        self.is_deferred = device.type == "cpu"
        # Steps that are not in the buffer yet.
        self._pending: list[_Step] = []

    @property
    def tensors(self) -> list[Tensor]:
        """What ``add`` changes on the device."""
        self._add_pending()
        return [] if self._buffer is None else [self._buffer]

    def add(self, outcome: Objective, logits_BC: Tensor, labels_B: Tensor, not_finite: Tensor) -> None:
        """Add a step's values on the device; ``count`` is told of it apart.

        Args:
            logits_BC: the student's, for the accuracy.
            not_finite: float32 [], 1 if the step made no update.
        """
        step = _Step(replace(outcome, total=outcome.total.detach()), logits_BC.detach(), labels_B, not_finite)
        if not self.is_deferred:
            self._add(step)
            return
        self._pending.append(replace(step, not_finite=not_finite.clone()))
        steps = len(self._pending)
        if steps == _PENDING_STEPS or steps * logits_BC.nbytes >= _PENDING_BYTES:
            self._add_pending()

    def _add_pending(self) -> None:
        for step in self._pending:
            self._add(step)
        self._pending.clear()

    def _add(self, step: "_Step") -> None:
        outcome = step.outcome
        correct_B = step.logits_BC.argmax(1) == step.labels_B
        rows = len(correct_B)
        values = {
            "train_loss": outcome.total,
            "train_accuracy": correct_B.mean(dtype=torch.float32),
            **{f"train_{name}": value for name, value in outcome.terms.items()},
        }
        if (inside := outcome.inside_share) is not None:
            values[_INSIDE] = inside
        for side, tau in zip(_SIDES, (outcome.student_temperature, outcome.teacher_temperature), strict=True):
            if isinstance(tau, Tensor):
                variance, mean = torch.var_mean(tau, correction=0)
                values |= {f"{side}_temperature_mean": mean, f"{side}_temperature_variance": variance}
            elif tau is not None:
                self._constants[side] = tau
        if self._buffer is None:
            self._names = tuple(values)
            self._buffer = torch.zeros(2 * len(values) + 1, dtype=torch.float64, device=self._device)
        count = len(self._names)
        # A run that an earlier version has begun goes on with the names that it had.
        values_K = torch.stack([values[name].to(torch.float32) for name in self._names])
        self._buffer[:count].add_(values_K, alpha=rows)
        if len(self._constants) < len(_SIDES) and outcome.student_temperature is not None:
            self._buffer[count:-1].addcmul_(values_K, values_K, value=rows)
        self._buffer[-1].add_(step.not_finite)

    def count(self, rows: int) -> None:
        """Count a step of so many rows, on the host."""
        self.steps += 1
        self.rows += rows

    def read(self) -> Reading:
        """Copy the sums to the host: waits for the device."""
        self._add_pending()
        count, rows = len(self._names), max(self.rows, 1)
        buffer = [0.0] if self._buffer is None else self._buffer.tolist()
        sums = dict(zip(self._names, buffer[:count], strict=True))
        squares = dict(zip(self._names, buffer[count:-1], strict=True))
        means: dict[str, float | None] = {
            name: value / rows for name, value in sums.items() if "_temperature_" not in name and name != _INSIDE
        }
        if _INSIDE in sums:
            means["outside_domain"] = 1.0 - sums[_INSIDE] / rows
        for side in _SIDES:
            mean_name, variance_name = f"{side}_temperature_mean", f"{side}_temperature_variance"
            mean: float | None = self._constants.get(side)
            deviation = None if mean is None else 0.0
            if mean_name in sums:
                mean = sums[mean_name] / rows
                # Of all samples: the mean variance within batches, and the variance of their means.
                variance = (sums[variance_name] + squares[mean_name]) / rows - mean**2
                deviation = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else variance
            means |= {mean_name: mean, f"{side}_temperature_std": deviation}
        return Reading(self.rows, int(buffer[-1]), sums.get("train_loss", 0.0), means)

    def reset(self) -> None:
        """Begin another epoch, at the same addresses."""
        self._pending.clear()
        self.steps, self.rows, self.seconds = 0, 0, 0.0
        # The constants stay: a replayed step does not tell them again.
        if self._buffer is not None:
            self._buffer.zero_()

    def state(self) -> dict[str, object]:
        """For a checkpoint; ``buffer`` still lies on the device."""
        self._add_pending()
        return {
            "steps": self.steps,
            "rows": self.rows,
            "seconds": self.seconds,
            "names": list(self._names),
            "constants": dict(self._constants),
            "buffer": self._buffer,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self._pending.clear()
        self.steps, self.rows, self.seconds = state["steps"], state["rows"], state["seconds"]
        self._names, self._constants = tuple(state["names"]), dict(state["constants"])
        self._buffer = None if state["buffer"] is None else state["buffer"].to(self._device)
