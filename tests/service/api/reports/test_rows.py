"""Rows of reports: of the weights that leave a run, where there are two sets of them."""

import pytest

from service.api.reports.rows import report_row
from service.db.queries.report_queries import ReportedRun
from service.db.states import State
from service.plots.metrics import axis_of

LINE = {
    "epoch": 2,
    "top1": 0.5,
    "ema_top1": 0.6,
    "ema_nll": 1.5,
    "nll": 2.5,
    "validation_top1": 0.7,
    "validation_ema_top1": 0.8,
    "validation_agreement": 0.7,
    "validation_ema_agreement": 0.8,
    "validation_kl_to_teacher": 2.5,
    "validation_ema_kl_to_teacher": 1.5,
}


@pytest.mark.parametrize(("weights", "last", "best", "nll"), [("ema", 0.6, 0.8, 1.5), ("trained", 0.5, 0.7, 2.5)])
def test_report_row_is_of_the_weights_that_leave(weights: str, last: float, best: float, nll: float) -> None:
    result = {"last": LINE, "best": LINE, "best_epoch": 2, "weights": weights}
    run = ReportedRun("run_1", "job_1", "cnn_s", "kd", {}, 0, State.SUCCEEDED, LINE, result)
    row = report_row(run)
    assert (row.accuracy_last, row.accuracy_best, row.nll) == (last, best, nll)
    assert (row.validation_agreement, row.validation_kl_to_teacher) == (best, nll)


def test_axis_of_an_averages_metric_has_its_unit() -> None:
    assert axis_of("validation_ema_top1").label == "top-1 accuracy, validation (%), averaged weights"
    assert axis_of("ema_nll").label == "negative log-likelihood, test (nats), averaged weights"
