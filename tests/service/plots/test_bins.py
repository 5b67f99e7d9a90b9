"""Bins of confidence as figures take them from a run's evaluation."""

import json

import numpy as np
import pytest

from service.client.client import Client
from service.plots.bins import calibrations_of
from service.plots.data import read
from tests.support.plot_cases import make_bins
from tests.support.service_helpers import Api
from tests.support.tracker_cases import Work

pytest_plugins = ["tests.support.service_fixtures"]


def test_calibrations_are_the_bins_of_the_evaluation() -> None:
    """Bins of 1, none and 3 rows, which are right by 0, nothing and 2."""
    bins = {"rows": [1, 0, 3], "accuracy": [0.0, None, 2 / 3], "confidence": [0.3, None, 0.9]}
    found = calibrations_of({"splits": {"test": {"ece": 0.25, "reliability": bins}, "validation": {"ece": 0.5}}})
    assert list(found) == ["test"]
    plain = found["test"].plain
    np.testing.assert_array_equal(plain.share_B, [0.25, 0.0, 0.75])
    np.testing.assert_array_equal(plain.accuracy_B, [0.0, np.nan, 2 / 3])
    np.testing.assert_array_equal(plain.confidence_B, [0.3, np.nan, 0.9])
    assert (plain.ece, found["test"].calibrated) == (0.25, None)


def test_read_of_a_run_takes_its_bins_before_and_after_calibration(api: Api) -> None:
    work = Work(api)
    work.end_run(0, more={"evaluation.json": json.dumps({"splits": {"test": make_bins(0)}}).encode()})
    with Client(api.url) as client:
        [run] = read(client, work.run_ids[0]).runs
    calibrated = run.calibrations["test"].calibrated
    assert calibrated is not None
    assert (run.calibrations["test"].plain.ece, calibrated.ece) == pytest.approx((0.1, 0.0))
