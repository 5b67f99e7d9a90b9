"""Final evaluation of a run: the weights that leave it, on every split that is measured, and the temperature for them.

Made once, when the last epoch is done, by the process that trains: the network runs on its device, the temperature is
fitted on the CPU. It is part of the run's last
checkpoint, so that another process may write the artifacts. What a database keeps of it is bounded whatever the number
of classes (``documents``); the whole goes to ``evaluation.json``, and the logits to ``logits.safetensors``.

Each run of a group holds its logits (``KeptLogits``) from its last epoch on until its artifacts are written, and once
more while a file of them is: 4 bytes x classes x rows of all its splits, 200 MB for 50,000 rows of 1,000 classes.
Nothing else here grows with rows times classes.

Shapes: N rows of a split, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workers.events import Split
from workers.measures import Measured, accuracy_per_class, class_document, confusion_cells, confusion_document, measure
from workers.training.evaluation.calibration import FittedTemperature, fit_temperature
from workers.training.evaluation.evaluate import EvaluatedSplit

# Logits of evenly spread rows of the validation split that the temperature is fitted to, at most.
_FITTED_CELLS = 1 << 25


@dataclass(frozen=True)
class FinalEvaluation:
    """Measures of the weights that leave a run, as plain values and tensors, so that a checkpoint can hold them.

    Attributes:
        documents: ``evaluation`` of result.json, by split.
        calibration: ``calibration`` of result.json; None without a labelled validation split.
        whole: ``evaluation.json`` without its head, by split.
        tensors: ``logits.safetensors``: of each split its logits less the row's largest [N, C], as ``KeptLogits`` has
            them, and ``SPLIT_labels``, int64 [N]; rows in the split's order.
    """

    documents: dict[str, dict[str, Any]]
    calibration: dict[str, Any] | None
    whole: dict[str, dict[str, Any]]
    tensors: dict[str, Tensor]

    @property
    def temperature(self) -> float | None:
        """The fitted temperature; None without a labelled validation split."""
        return None if self.calibration is None else float(self.calibration["temperature"])

    def state(self) -> dict[str, object]:
        """Return the fields, for a checkpoint."""
        return dict(vars(self))

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "FinalEvaluation":
        """Restore the evaluation that a checkpoint holds."""
        return cls(**state)


def final_evaluation(splits: Mapping[Split, EvaluatedSplit], *, keep_logits: bool = True) -> FinalEvaluation:
    """Make documents and tensors of what was measured; the temperature is fitted to the validation split.

    Args:
        splits: ``validation`` and ``test``, as far as they are there.
        keep_logits: make ``tensors``, too.
    """
    validation = splits.get("validation")
    fitted = None
    if validation is not None and validation.measured.labelled:
        logits_NC, labels_N = validation.logits_NC, validation.labels_N
        if validation.measured.labelled < validation.measured.rows:
            logits_NC, labels_N = logits_NC[labels_N >= 0], labels_N[labels_N >= 0]
        # A temperature is one number: so many logits fix it, and a whole split of many classes would take minutes.
        stride = -(-logits_NC.numel() // _FITTED_CELLS)
        fitted = fit_temperature(logits_NC[::stride], labels_N[::stride])
    calibrated = {} if fitted is None else {split: _calibrated(found, fitted) for split, found in splits.items()}
    documents: dict[str, dict[str, Any]] = {}
    whole: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    for split, found in splits.items():
        cells_M3 = confusion_cells(found.labels_N.numpy(), found.predicted_N.numpy())
        classes = found.logits_NC.shape[1]
        documents[split] = {
            **_figures(found.measured, has_teacher=found.has_teacher),
            **class_document(cells_M3, classes),
            **confusion_document(cells_M3, classes),
        }
        whole[split] = {
            **_figures(found.measured, has_teacher=found.has_teacher),
            "per_class": accuracy_per_class(cells_M3, classes),
            "confusion_cells": cells_M3.tolist(),
            "reliability": dict(found.measured.reliability),
        }
        if split in calibrated:
            after = calibrated[split]
            whole[split]["calibrated"] = {
                "nll": after.nll,
                "ece": after.ece,
                "reliability": dict(after.reliability),
            }
        if keep_logits:
            tensors[split] = found.logits_NC
            tensors[f"{split}_labels"] = found.labels_N
    calibration = None
    if fitted is not None:
        changes = {split: _change(found.measured, calibrated[split]) for split, found in splits.items()}
        calibration = {
            "temperature": fitted.temperature,
            "split": "validation",
            "fit": fitted.regime,
            **changes["validation"],
            "test": changes.get("test"),
        }
    return FinalEvaluation(documents, calibration, whole, tensors)


def _figures(measured: Measured, *, has_teacher: bool) -> dict[str, object]:
    return {
        "rows": measured.rows,
        "top1": measured.top1,
        "top5": measured.top5,
        "nll": measured.nll,
        "ece": measured.ece,
        "kl": measured.kl if has_teacher else None,
        "agreement": measured.agreement if has_teacher else None,
        **({} if measured.labelled == measured.rows else {"labelled": measured.labelled}),
    }


def _calibrated(found: EvaluatedSplit, fitted: FittedTemperature) -> Measured:
    return measure(found.logits_NC, found.labels_N, fitted.temperature)


def _change(before: Measured, after: Measured) -> dict[str, dict[str, float | None]]:
    return {
        "nll": {"before": before.nll, "after": after.nll},
        "ece": {"before": before.ece, "after": after.ece},
    }
