"""Logits of an evaluated split: float16 less the row's largest, in memory that is bounded, through a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.method_inputs import ordinary
from workers.events import Split
from workers.measures import measure
from workers.training.evaluation.evaluate import EvaluatedSplit
from workers.training.evaluation.final_evaluation import FinalEvaluation, final_evaluation
from workers.training.evaluation.kept_logits import KeptLogits
from workers.training.optimization.distributed import Replicas

ALONE = Replicas(0, 1, Path("nowhere"), torch.device("cpu"))


def kept(z_NC: torch.Tensor) -> torch.Tensor:
    """As a split's evaluation keeps logits, which come in two batches."""
    logits = KeptLogits(*z_NC.shape)
    for rows_B in torch.arange(len(z_NC)).chunk(2):
        logits.add(rows_B, z_NC[rows_B], z_NC[rows_B].argmax(dim=1))
    return logits.whole(ALONE, torch.device("cpu"))[0]


def evaluated(scale: float, rows: int = 50) -> dict[Split, EvaluatedSplit]:
    z_NC, _, y_N = ordinary(batch=rows, dtype=torch.float32)
    z_NC = scale * z_NC
    return {"validation": EvaluatedSplit(measure(z_NC, y_N), False, kept(z_NC), z_NC.argmax(dim=1), labels_N=y_N)}


def test_final_evaluation_keeps_logits_beyond_the_range_of_float16_as_float32() -> None:
    found = final_evaluation(evaluated(1e6))
    assert found.tensors["validation"].dtype == torch.float32
    assert final_evaluation(evaluated(1.0)).tensors["validation"].dtype == torch.float16
    assert found.documents["validation"]["kl"] is None
    assert found.calibration is not None
    assert found.calibration["test"] is None


def test_kept_logits_that_turn_out_to_be_large_keep_those_before() -> None:
    z_NC = torch.tensor([[0.0, -1.0], [-3.0, 2.0], [0.0, 0.0], [-1e6, 0.0]])
    expected_NC = torch.tensor([[0.0, -1.0], [-5.0, 0.0], [0.0, 0.0], [-1e6, 0.0]])
    torch.testing.assert_close(kept(z_NC), expected_NC, rtol=0, atol=0)


@pytest.mark.parametrize("offset", [0.0, 50.0, 500.0])
def test_final_evaluation_keeps_logits_of_which_float16_moves_no_row(offset: float) -> None:
    """No softmax fixes an offset, and far from 0 float16 would make the largest logits of a row alike."""
    z_NC = 4.0 * torch.randn(5000, 100, generator=torch.Generator().manual_seed(0)) + offset
    y_N = z_NC.argmax(dim=1)
    found = final_evaluation({"test": EvaluatedSplit(measure(z_NC, y_N), False, kept(z_NC), y_N, labels_N=y_N)})
    kept_NC = found.tensors["test"]
    assert kept_NC.dtype == torch.float16
    assert torch.equal(kept_NC.argmax(dim=1), y_N)
    assert final_evaluation(evaluated(1.0), keep_logits=False).tensors == {}


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation makes."""

    nbytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor) and not each._is_view():
                self.nbytes = max(self.nbytes, each.nbytes)
        return made


def test_evaluation_of_many_rows_and_classes_makes_nothing_larger_than_the_float16_that_it_keeps() -> None:
    """Of 4,096 rows of 1,024 classes, 8 MiB; what is fitted and measured is in blocks."""
    y_N = torch.arange(4096) % 1024
    with Largest() as largest:
        logits = KeptLogits(4096, 1024)
        for rows_B in torch.arange(4096).chunk(64):
            logits.add(rows_B, torch.randn(64, 1024), y_N[rows_B])
        z_NC, predicted_N = logits.whole(ALONE, torch.device("cpu"))
        measured = measure(z_NC, y_N)
        split = EvaluatedSplit(measured, False, z_NC, predicted_N, labels_N=y_N)
        found = final_evaluation({"validation": split, "test": split})
    assert found.tensors["test"].nbytes == 8 << 20
    assert largest.nbytes <= 8 << 20


def test_final_evaluation_goes_through_a_checkpoint(tmp_path: Path) -> None:
    found = final_evaluation(evaluated(1.0))
    torch.save(found.state(), tmp_path / "state")
    again = FinalEvaluation.of_state(torch.load(tmp_path / "state", weights_only=True))
    assert (again.documents, again.calibration, again.whole) == (found.documents, found.calibration, found.whole)
    assert torch.equal(again.tensors["validation"], found.tensors["validation"])
