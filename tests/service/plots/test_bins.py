"""Bins of confidence: their numbers, and how much of a file of logits is in memory at once."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from service.client.client import Client
from service.plots import bins
from service.plots.bins import BINS, BadLogits, read_calibrations, reliability
from service.plots.data import LOGITS_FILE, read
from tests.support.plot_cases import make_prediction
from tests.support.service_helpers import Api
from tests.support.tracker_cases import Work

pytest_plugins = ["tests.support.service_fixtures"]


def test_reliability_bins_are_those_of_the_ece() -> None:
    """Two rows of confidence 0.9 of which one is right, and one of 0.6 that is wrong: |0.5 - 0.9| 2/3 + 0.6 / 3."""
    high, low = np.log(9.0), np.log(1.5)
    logits = np.array([[high, 0.0], [high, 0.0], [0.0, low]], dtype=np.float32)
    found = reliability(logits, np.array([0, 1, 0]), 2)
    assert found.ece == pytest.approx(0.4 * 2 / 3 + 0.6 / 3, abs=1e-6)
    assert found.share_B.sum() == pytest.approx(1.0)
    # (0.533, 0.6] holds 0.6, as right-closed bins do; rounding may lift it over the edge.
    assert found.share_B[13] == pytest.approx(2 / 3)
    assert found.share_B[8] + found.share_B[9] == pytest.approx(1 / 3)
    assert len(found.share_B) == BINS
    flat = reliability(logits, np.array([0, 1, 0]), 2, temperature=1e6)
    assert np.nanmax(flat.confidence_B) == pytest.approx(0.5, abs=1e-3)


def test_calibrations_are_read_from_float16_in_blocks_that_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_NC, labels_N = make_prediction(0, 5, rows=601)
    logits_NC = logits_NC.astype(np.float16)
    save_file({"test": logits_NC, "test_labels": labels_N}, tmp_path / "logits.safetensors")
    whole = [reliability(logits_NC, labels_N, 5), reliability(logits_NC, labels_N, 5, 4.0)]
    monkeypatch.setattr(bins, "_VALUES_AT_ONCE", 100)
    found = read_calibrations(tmp_path / "logits.safetensors", 4.0)
    assert list(found) == ["test"]
    assert read_calibrations(tmp_path / "logits.safetensors", None)["test"].calibrated is None
    for one, other in zip(whole, (found["test"].plain, found["test"].calibrated), strict=True):
        assert other is not None
        assert other.ece == pytest.approx(one.ece)
        np.testing.assert_array_equal(other.share_B, one.share_B)
        np.testing.assert_allclose(other.accuracy_B, one.accuracy_B)
        np.testing.assert_allclose(other.confidence_B, one.confidence_B)


def test_calibrations_of_a_large_file_are_read_in_bounded_memory(tmp_path: Path) -> None:
    """80 MB of logits, which would be 320 MB as float64."""
    rows, classes = 40_000, 1000
    logits_NC = np.zeros((rows, classes), np.float16)
    save_file({"test": logits_NC, "test_labels": np.zeros(rows, np.int64)}, tmp_path / "logits.safetensors")
    del logits_NC
    tracemalloc.start()
    try:
        found = read_calibrations(tmp_path / "logits.safetensors", None)
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()
    assert found["test"].plain.ece == pytest.approx(1.0 - 1.0 / classes)


def test_read_of_a_run_keeps_the_bins_of_its_logits(api: Api) -> None:
    logits_NC, labels_N = make_prediction(0, 5)
    work = Work(api)
    work.end_run(0, more={LOGITS_FILE: save({"test": logits_NC, "test_labels": labels_N})})
    with Client(api.url) as client:
        [run] = read(client, work.run_ids[0]).runs
    assert run.calibrations["test"].plain.ece == pytest.approx(reliability(logits_NC, labels_N, 5).ece)


def test_calibrations_of_a_damaged_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "logits.safetensors"
    save_file({"test": np.zeros((3, 2), np.float16), "test_labels": np.zeros(2, np.int64)}, path)
    with pytest.raises(BadLogits, match=r"\[3, 2\] with labels \(2,\)"):
        read_calibrations(path, None)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(BadLogits, match="cannot be read"):
        read_calibrations(path, None)
