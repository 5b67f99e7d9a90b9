"""Sums of an epoch's metrics, on the device: a step adds to them without waiting, and they are read in one copy.

K names of metrics, R kinds of temperatures that vary, X cells of a histogram (``temperatures``).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.methods.temperature_bins import CELLS, TemperatureDistribution
from workers.objective.mixed_labels import MixedLabels
from workers.objective.results import Objective
from workers.training.metrics.temperatures import (
    EpochTemperatures,
    NetworkTemperatures,
    bin_edges,
    count_cells,
    metrics_of,
)

_SIDES = ("student", "teacher")
# Share of rows in the domain of the method's policies; what metrics show is its complement, which costs a step more.
_INSIDE = "inside_domain"
# Share of rows with a label, where some have none, and the means that are over those rows.
_LABELLED, _OF_LABELLED = "labelled", ("train_ce", "train_accuracy")
_VARIANCE = "_temperature_variance"
# On a CPU so many steps are added in a row: each takes a tenth of what it takes between the arithmetic of two steps,
# which drives this code out of the processor's caches. They are added in the same order, so the sums are the same.
_PENDING_STEPS = 16
# And no more than so much of their logits, which stay until then.
_PENDING_BYTES = 8 << 20


@dataclass(frozen=True)
class _Step:
    """Values of a step that are added to the sums; without gradients.

    Attributes:
        logits_BC: the student's.
        not_finite: float32 [], 1 if it made no update.
        mixed: second labels of mixed pictures.
    """

    outcome: Objective
    logits_BC: Tensor
    labels_B: Tensor
    not_finite: Tensor
    mixed: MixedLabels | None


@dataclass(frozen=True)
class Reading:
    """Reading of the sums: counts, the loss, means and temperatures.

    Attributes:
        rows: that were trained on.
        bad_steps: the last so many steps made no update, for the loss or the gradient of the first was not finite.
        loss: summed over the rows.
        means: over the rows, as metrics.jsonl has them.
        temperatures: of the rows.
    """

    rows: int
    bad_steps: int
    loss: float
    means: dict[str, float | None]
    temperatures: EpochTemperatures


class EpochSums:
    """Sums of an epoch's metrics, on the device.

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
        # [(K + 2)^2 + R X]: over all rows, sums of the products of (1, whether there was no update, the values) with
        # each other, of which sums and squares are read: one launch for both; then histograms.
        self._buffer: Tensor | None = None
        self._largest_batch = 1
        self._edges, self._one = bin_edges(device), torch.ones((), device=device)
        self._one_double = self._one.double()
        self.is_deferred = device.type == "cpu"
        # Steps that are not in the buffer yet.
        self._pending: list[_Step] = []

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors on the device that ``add`` changes."""
        self._add_pending()
        return [] if self._buffer is None else [self._buffer]

    def add(
        self,
        outcome: Objective,
        logits_BC: Tensor,
        labels_B: Tensor,
        not_finite: Tensor,
        *,
        mixed: MixedLabels | None = None,
    ) -> None:
        """Add a step's values on the device; ``count`` is to be called for it apart.

        Args:
            logits_BC: the student's, for the accuracy.
            not_finite: float32 [], 1 if the step made no update.
            mixed: second labels of mixed pictures.
        """
        step = _Step(
            replace(outcome, total=outcome.total.detach()), logits_BC.detach(), labels_B, not_finite, mixed=mixed
        )
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
        # A row without a label, -1, is never correct.
        predicted_B, labels_B, mixed = step.logits_BC.argmax(1), step.labels_B, step.mixed
        correct_B = predicted_B == labels_B if mixed is None else mixed.accuracy(predicted_B, labels_B)
        rows = len(correct_B)
        # A client names terms: what is the loop's own comes last, and so keeps its name.
        values = {
            **{f"train_{name}": value for name, value in outcome.terms.items()},
            "train_loss": outcome.total,
            "train_accuracy": correct_B.mean(dtype=torch.float32),
        }
        if (share := outcome.labelled_share) is not None:
            # Sums over the labelled rows alone, as the accuracy's is.
            values |= {_OF_LABELLED[0]: values[_OF_LABELLED[0]] * share, _LABELLED: share}
        if (inside := outcome.inside_share) is not None:
            values[_INSIDE] = inside
        given = {
            "student": outcome.student_temperature,
            "teacher": outcome.teacher_temperature,
            "paper": outcome.paper_temperature,
        }
        self._constants |= {kind: tau for kind, tau in given.items() if isinstance(tau, float)}
        varying = {kind: tau for kind, tau in given.items() if isinstance(tau, Tensor)}
        tau_RB = None
        if varying:
            tau_RB = torch.stack(list(varying.values())).to(torch.float32)
            variance_R, mean_R = torch.var_mean(tau_RB, dim=1, correction=0)
            for kind, variance, mean in zip(varying, variance_R.unbind(), mean_R.unbind(), strict=True):
                values |= {f"{kind}_temperature_mean": mean, f"{kind}{_VARIANCE}": variance}
        size = len(values) + 2
        if self._buffer is None:
            self._names = tuple(values)
            length = size**2 + CELLS * len(varying)
            self._buffer = torch.zeros(length, dtype=torch.float64, device=self._device)
        factors = torch.stack([self._one, step.not_finite, *(value.to(torch.float32) for value in values.values())])
        self._buffer[: size**2].view(size, size).addr_(factors, factors, alpha=rows)
        if tau_RB is not None:
            count_cells(self._buffer[size**2 :].view(-1, CELLS), tau_RB, self._edges, self._one_double)

    def count(self, rows: int) -> None:
        """Count a step of so many rows, on the host."""
        self.steps += 1
        self.rows += rows
        self._largest_batch = max(self._largest_batch, rows)

    def read(self) -> Reading:
        """Copy the sums to the host: waits for the device."""
        self._add_pending()
        size, rows = len(self._names) + 2, max(self.rows, 1)
        buffer = np.zeros(size**2) if self._buffer is None else self._buffer.cpu().numpy()
        products = buffer[: size**2].reshape(size, size)
        sums = dict(zip(self._names, products[0, 2:].tolist(), strict=True))
        squares = dict(zip(self._names, products.diagonal()[2:].tolist(), strict=True))
        # Only the last batch of an epoch is smaller than the others.
        bad_steps = math.ceil(products[0, 1] / self._largest_batch)
        cells_RX = buffer[size**2 :].reshape(-1, CELLS).astype(np.int64)
        temperatures = self._temperatures(sums, squares, cells_RX)
        means: dict[str, float | None] = {
            name: value / rows for name, value in sums.items() if name.startswith("train_")
        }
        if _LABELLED in sums:
            means |= {name: sums[name] / sums[_LABELLED] if sums[_LABELLED] else None for name in _OF_LABELLED}
        if _INSIDE in sums:
            means["outside_domain"] = 1.0 - sums[_INSIDE] / rows
        means |= {f"{side}_temperature_{of}": None for side in _SIDES for of in ("mean", "std")}
        means |= metrics_of(temperatures)
        return Reading(self.rows, bad_steps, sums.get("train_loss", 0.0), means, temperatures=temperatures)

    def _temperatures(
        self, sums: Mapping[str, float], squares: Mapping[str, float], cells_RX: NDArray[np.int64]
    ) -> EpochTemperatures:
        """Return the distributions of each network's temperatures, from the sums."""
        rows = max(self.rows, 1)
        found = {kind: TemperatureDistribution(constant, 0.0) for kind, constant in self._constants.items()}
        varying = [kind for kind in (*_SIDES, "paper") if f"{kind}{_VARIANCE}" in sums]
        for kind, cells_X in zip(varying, cells_RX, strict=True):
            mean_name = f"{kind}_temperature_mean"
            mean = sums[mean_name] / rows
            # Of all samples: the mean variance within batches, and the variance of their means.
            variance = (sums[f"{kind}{_VARIANCE}"] + squares[mean_name]) / rows - mean**2
            deviation = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else variance
            found[kind] = TemperatureDistribution(mean, deviation, cells_X)
        return {
            side: NetworkTemperatures(found[side], found.get("paper", found[side])) for side in _SIDES if side in found
        }

    def reset(self) -> None:
        """Begin another epoch, at the same addresses."""
        self._pending.clear()
        self.steps, self.rows, self.seconds = 0, 0, 0.0
        # The constants stay: a replayed step does not tell them again.
        if self._buffer is not None:
            self._buffer.zero_()

    def state(self) -> dict[str, object]:
        """Return the state for a checkpoint; ``buffer`` still lies on the device."""
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
