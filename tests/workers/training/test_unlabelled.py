"""Metrics of epochs and of splits in which rows have no label: means over the labelled rows, the teacher's over all."""

import pytest
import torch
import torch.nn.functional as F

from workers.measures import Measured, Measures, measure
from workers.methods.catalog import parse_method
from workers.objective.objective import objective
from workers.training.evaluation.evaluate import EvaluatedSplit
from workers.training.evaluation.final_evaluation import final_evaluation
from workers.training.metrics.epoch_sums import EpochSums

LABELS = torch.tensor([0, -1, 4, -1, -1, 2, 2, -1, 1, -1, -1, -1])


def logits(seed: int, rows: int = 12, classes: int = 6) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * 3


def means_of(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float | None]:
    sums, not_finite = EpochSums(torch.device("cpu")), torch.zeros(())
    for z_BC, y_B in batches:
        outcome = objective(parse_method("ce").expand(), z_BC, y_B, epoch=1, some_unlabelled=True)
        sums.add(outcome, z_BC, y_B, not_finite)
        sums.count(len(y_B))
    return sums.read().means


def test_epoch_sums_are_means_over_the_labelled_rows_of_all_batches() -> None:
    none_B = torch.full((12,), -1)
    batches = [(logits(0), LABELS), (logits(1), none_B), (logits(2, 5), torch.tensor([3, 3, -1, 5, 0]))]
    z_NC, y_N = torch.cat([z for z, _ in batches]), torch.cat([y for _, y in batches])
    means = means_of(batches)
    known = y_N >= 0
    assert means["train_ce"] == pytest.approx(float(F.cross_entropy(z_NC[known], y_N[known])), rel=1e-5)
    assert means["train_accuracy"] == pytest.approx(float((z_NC.argmax(1) == y_N)[known].float().mean()), rel=1e-5)
    without = means_of([(logits(1), none_B)])
    assert (without["train_ce"], without["train_accuracy"], without["train_loss"]) == (None, None, 0.0)


def test_measures_are_of_the_labelled_rows_and_those_beside_a_teacher_of_all() -> None:
    z_NC, teacher_NC, known = logits(0), logits(1), LABELS >= 0
    sums = Measures(torch.device("cpu"), some_unlabelled=True)
    sums.add(z_NC, LABELS, teacher_NC)
    found, expected = Measured.of(sums.totals, 12), measure(z_NC[known], LABELS[known])
    assert (found.rows, found.labelled) == (12, 5)
    for name in ("top1", "top5", "nll", "ece"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
    for name, of_bin in expected.reliability.items():
        assert found.reliability[name] == pytest.approx(of_bin), name
    assert found.agreement == pytest.approx(float((z_NC.argmax(1) == teacher_NC.argmax(1)).float().mean()))
    kl = F.kl_div(z_NC.log_softmax(1), teacher_NC.log_softmax(1), reduction="batchmean", log_target=True)
    assert found.kl == pytest.approx(float(kl), rel=1e-5)
    nothing = measure(z_NC, torch.full((12,), -1))
    assert (nothing.labelled, nothing.top1, nothing.top5, nothing.nll, nothing.ece) == (0, None, None, None, None)


def test_final_evaluation_fits_a_temperature_to_labelled_rows_and_none_without() -> None:
    def split(labels_N: torch.Tensor) -> EvaluatedSplit:
        z_NC = logits(0)
        return EvaluatedSplit(measure(z_NC, labels_N), True, z_NC, z_NC.argmax(1), labels_N=labels_N)

    known = LABELS >= 0
    some = final_evaluation({"validation": split(LABELS)})
    whole = EvaluatedSplit(
        measure(logits(0)[known], LABELS[known]),
        True,
        logits(0)[known],
        logits(0)[known].argmax(1),
        labels_N=LABELS[known],
    )
    assert some.temperature == pytest.approx(final_evaluation({"validation": whole}).temperature)
    assert some.documents["validation"]["labelled"] == 5
    assert sum(map(sum, some.documents["validation"]["confusion"])) == 5
    none = final_evaluation({"validation": split(torch.full((12,), -1))})
    assert (none.temperature, none.documents["validation"]["top1"]) == (None, None)
    assert none.documents["validation"]["worst_class"] is None
    assert none.whole["validation"]["confusion_cells"] == []
