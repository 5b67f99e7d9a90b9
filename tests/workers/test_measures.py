"""Measures of a classifier: hand-made rows whose figures can be said without a computer, and bounded documents."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from workers.measures import (
    CONFUSED_MAX,
    CONFUSION_MAX,
    ECE_BINS,
    PER_CLASS_MAX,
    Measured,
    Measures,
    accuracy_per_class,
    class_document,
    confusion_cells,
    confusion_document,
    measure,
)

# Label, what was predicted.
LABELS, PREDICTED = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 2, 0, 1, 3])


def test_measures_of_rows_that_are_known() -> None:
    """Two classes at 0.8 and 0.2: three of four right at a confidence of 0.8."""
    z_NC = torch.tensor([[0.8, 0.2]] * 4).log()
    found = measure(z_NC, torch.tensor([0, 0, 0, 1]))
    assert (found.rows, found.top1, found.top5) == (4, 0.75, 1.0)
    assert found.nll == pytest.approx(-(3 * np.log(0.8) + np.log(0.2)) / 4, rel=1e-6)
    assert found.ece == pytest.approx(0.05, abs=1e-6)
    # 0.8 is the upper end of the twelfth of fifteen bins.
    assert [place for place, rows in enumerate(found.reliability["rows"]) if rows] in ([11], [12])
    assert len(found.reliability["accuracy"]) == ECE_BINS
    assert [value for value in found.reliability["accuracy"] if value is not None] == [0.75]
    assert [value for value in found.reliability["confidence"] if value is not None] == [pytest.approx(0.8)]


def test_measures_do_not_depend_on_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    z_NC, y_N = torch.randn(100, 7, generator=generator), torch.randint(7, (100,), generator=generator)
    teacher_NC = torch.randn(100, 7, generator=generator)
    found = []
    for size in (100, 9):
        sums = Measures(torch.device("cpu"))
        parts = zip(torch.split(z_NC, size), torch.split(y_N, size), torch.split(teacher_NC, size), strict=True)
        predicted = [sums.add(*part) for part in parts]
        assert torch.equal(torch.cat(predicted), z_NC.argmax(dim=1))
        found.append(Measured.of(sums.totals, 100))
    assert found[0].kl > 0
    assert found[0].nll == pytest.approx(found[1].nll, rel=1e-6)
    assert (found[0].agreement, found[0].top5) == (found[1].agreement, found[1].top5)
    assert found[0].ece == pytest.approx(found[1].ece, rel=1e-6)


def test_confusion_cells_are_those_that_are_not_0() -> None:
    assert confusion_cells(LABELS, PREDICTED).tolist() == [[0, 0, 2], [0, 2, 1], [1, 0, 1], [1, 1, 1], [3, 3, 1]]


def test_accuracy_per_class_is_null_where_no_row_has_it() -> None:
    assert accuracy_per_class(confusion_cells(LABELS, PREDICTED), 4) == [0.6667, 0.5, None, 1.0]


def test_class_document_names_the_best_and_the_worst_class() -> None:
    document = class_document(confusion_cells(LABELS, PREDICTED), 4)
    assert (document["best_class"], document["worst_class"]) == ([3, 1.0], [1, 0.5])


def test_confusion_document_has_a_row_for_each_label() -> None:
    document = confusion_document(confusion_cells(LABELS, PREDICTED), 4)
    assert document["confusion"] == [[2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert document["most_confused"] == [[0, 2, 1], [1, 0, 1]]


def _all_wrong(classes: int) -> NDArray[np.int64]:
    labels_N = np.arange(classes)
    return confusion_cells(labels_N, (labels_N + 1) % classes)


@pytest.mark.parametrize("classes", [CONFUSION_MAX + 1, PER_CLASS_MAX + 1, 100_000])
def test_documents_of_classes_stay_small_whatever_their_number(classes: int) -> None:
    cells_M3 = _all_wrong(classes)
    document = {**class_document(cells_M3, classes), **confusion_document(cells_M3, classes)}
    assert document["confusion"] is None
    assert (document["per_class"] is None) == (classes > PER_CLASS_MAX)
    assert len(document["most_confused"]) == CONFUSED_MAX
    assert len(str(document)) < 10 * PER_CLASS_MAX
    assert len(confusion_document(_all_wrong(CONFUSION_MAX), CONFUSION_MAX)["confusion"]) == CONFUSION_MAX
