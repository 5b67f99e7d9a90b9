"""The logits of a run's evaluation as it has computed them, beside those of the ONNX file that it has left."""

import json
from math import nan
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.config.task import TrainingTask
from workers.config.teacher import Preprocessing
from workers.data.preparation.prepared import open_prepared
from workers.events import ignore, never
from workers.run_files import ARTIFACTS
from workers.teacher.teacher import Teacher
from workers.training.evaluation.kept_logits import KeptLogits
from workers.training.loop import train_run


def evaluation_logits(order: TrainingTask) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Train a run to its end.

    Returns:
        Logits [N, C] of its last evaluation, on whatever device, and of ``student.onnx`` on the CPU.
    """
    seen: list[Tensor] = []

    class Seen(KeptLogits):
        """Before they are rounded. Of a run without a validation split, in the split's order."""

        def add(self, rows_B: Tensor, logits_BC: Tensor, predicted_B: Tensor) -> None:
            seen.append(logits_BC.cpu())
            super().add(rows_B, logits_BC, predicted_B)

    with patch("workers.training.evaluation.evaluate.KeptLogits", Seen):
        train_run(order, ignore, never)
    config = json.loads((order.folder / ARTIFACTS / "config.json").read_text())
    preprocessing = Preprocessing.model_validate(config["preprocessing"])
    exported = Teacher(order.folder / ARTIFACTS / "student.onnx", preprocessing, threads=1, device="cpu")
    test = open_prepared(order.folders.datasets, order.test_fingerprint)
    return torch.cat(seen).numpy(), exported.logits(test.take(slice(None)))


def relative_difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference of a logit, as a share of the largest expected one; NaN where all are 0."""
    largest = np.abs(expected).max()
    return float(np.abs(found - expected).max() / largest) if largest else nan
