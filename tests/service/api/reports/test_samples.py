"""Predictions of runs: how much of their logits is in memory at once."""

import numpy as np
import numpy.typing as npt
import pytest

from service.api.reports.samples import _correct


class _Slice:
    """Slice of a file, which keeps how many cells were asked for at once."""

    def __init__(self, logits_NC: npt.NDArray[np.float16]) -> None:
        self.logits_NC = logits_NC
        self.cells: list[int] = []

    def get_shape(self) -> list[int]:
        return list(self.logits_NC.shape)

    def get_dtype(self) -> str:
        return "F16"

    def __getitem__(self, rows: slice) -> npt.NDArray[np.float16]:
        part = self.logits_NC[rows]
        self.cells.append(part.size)
        return part


@pytest.mark.parametrize("classes", [1, 10, 1 << 21])
def test_correct_rows_are_found_within_a_bound_of_memory_for_any_number_of_classes(classes: int) -> None:
    rows = 5
    logits = _Slice(np.zeros((rows, classes), np.float16))
    logits.logits_NC[3:, -1] = 1.0
    found = _correct(logits, np.full(rows, classes - 1, np.int64))
    assert found.tolist() == ([True] * rows if classes == 1 else [False] * 3 + [True] * 2)
    assert max(logits.cells) <= 1 << 22
    assert len(logits.cells) == (3 if classes == 1 << 21 else 1)
