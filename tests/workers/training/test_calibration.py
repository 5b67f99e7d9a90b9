"""Temperature scaling: the fitted temperature minimises the likelihood, and what is done where nothing does."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from workers.measures import measure
from workers.training.evaluation.calibration import FLATTEST, fit_temperature

ROWS, CLASSES = 1500, 10


def calibrated(seed: int = 0, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Logits float32 [rows, CLASSES] whose softmax is the distribution that the labels are drawn from."""
    generator = torch.Generator().manual_seed(seed)
    logits_NC = 2.0 * torch.randn(rows, CLASSES, generator=generator)
    labels_N = torch.multinomial(logits_NC.softmax(dim=1), 1, generator=generator).squeeze(1)
    return logits_NC, labels_N


def separable(margin: float, rows: int = 100) -> tuple[Tensor, Tensor]:
    """Each row's label is ``margin`` above all other classes."""
    labels_N = torch.arange(rows) % CLASSES
    return margin * F.one_hot(labels_N, CLASSES).float(), labels_N


def nll(logits_NC: Tensor, labels_N: Tensor, temperature: float) -> float:
    return float(F.cross_entropy(logits_NC.double() / temperature, labels_N))


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 30.0, 1e4])
def test_fit_temperature_is_where_scipy_finds_the_least_likelihood(scale: float) -> None:
    logits_NC, labels_N = calibrated()
    logits_NC = scale * logits_NC
    expected = minimize_scalar(
        lambda log_t: nll(logits_NC, labels_N, scale * math.exp(log_t)), bracket=(-1, 1), tol=1e-10
    )
    fitted = fit_temperature(logits_NC, labels_N)
    # A minimum is flat: to half of the digits.
    assert fitted.temperature == pytest.approx(scale * math.exp(expected.x), rel=1e-6)
    assert nll(logits_NC, labels_N, fitted.temperature) <= expected.fun + 1e-12
    assert fitted.regime == "interior"
    assert fitted.evaluations < 25


def test_fit_temperature_ignores_shifts_of_rows_and_the_order_of_rows() -> None:
    logits_NC, labels_N = calibrated()
    offsets_N1 = 64.0 * torch.randint(-4, 5, (ROWS, 1))
    order_N = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    first = fit_temperature(logits_NC.double(), labels_N).temperature
    assert fit_temperature((logits_NC + offsets_N1.double())[order_N], labels_N[order_N]).temperature == pytest.approx(
        first, rel=1e-9
    )


def test_fit_temperature_does_not_depend_on_the_size_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_NC, labels_N = calibrated()
    whole = fit_temperature(logits_NC, labels_N).temperature
    monkeypatch.setattr("workers.training.evaluation.calibration._CELLS", 7 * CLASSES)
    assert fit_temperature(logits_NC, labels_N).temperature == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("ties", [0, 1])
@pytest.mark.parametrize("margin", [1e-4, 1.0, 3.0])
def test_fit_temperature_of_separable_rows_is_as_sure_as_one_more_row_that_is_even_allows(
    margin: float, ties: int
) -> None:
    """The likelihood itself would have T = 0, at which a single mistake on other rows costs infinitely much."""
    logits_NC, labels_N = separable(margin)
    if ties:
        logits_NC[torch.arange(100), (labels_N + 1) % CLASSES] = margin
    fitted = fit_temperature(logits_NC, labels_N)
    assert fitted.regime == "separable"
    least = ties * math.log(2.0)
    assert nll(logits_NC, labels_N, fitted.temperature) == pytest.approx(least + math.log(2.0) / 101, rel=1e-6)


def test_fit_temperature_leaves_separable_rows_that_are_surer_than_that_as_they_are() -> None:
    fitted = fit_temperature(*separable(300.0))
    assert (fitted.temperature, fitted.regime) == (1.0, "separable")


def test_fit_temperature_of_constant_rows_is_1() -> None:
    fitted = fit_temperature(torch.tensor([[3.0, 3.0, 3.0], [-1.0, -1.0, -1.0]]), torch.tensor([0, 2]))
    assert (fitted.temperature, fitted.regime) == (1.0, "constant")


def test_fit_temperature_of_logits_that_speak_against_the_labels_makes_them_even() -> None:
    logits_NC, labels_N = separable(3.0)
    fitted = fit_temperature(-logits_NC, labels_N)
    assert (fitted.temperature, fitted.regime) == (FLATTEST * 3.0, "flat")
    p_NC = (-logits_NC / fitted.temperature).softmax(dim=1)
    assert float((p_NC - 1 / CLASSES).abs().max()) < 0.01 / CLASSES


def test_fit_temperature_of_a_mistake_by_a_hair_is_finite() -> None:
    """Far out, where all but one row are certain, Newton's steps alone leave the bracket."""
    logits_NC, labels_N = separable(3.0)
    logits_NC[0] = 0.0
    logits_NC[0, (labels_N[0] + 1) % CLASSES] = 1e-6
    fitted = fit_temperature(logits_NC, labels_N)
    assert fitted.regime == "interior"
    values = [nll(logits_NC, labels_N, fitted.temperature * factor) for factor in (0.99, 1.0, 1.01)]
    assert values[1] == min(values)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), r"logits are \(3, 1\)"),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), r"rows >= 1"),
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64), r"labels \(2,\)"),
        (torch.tensor([[0.0, math.inf]]), torch.tensor([0]), "NaN or infinity"),
        (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "NaN or infinity"),
    ],
)
def test_fit_temperature_refuses_what_has_none(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)


def test_calibrated_logits_have_a_small_calibration_error_on_other_rows() -> None:
    """As ``normkd`` leaves its students: the classes are right, and the size of the logits says nothing."""
    logits_NC, labels_N = calibrated(rows=8000)
    small_NC = 0.02 * logits_NC
    fitted = fit_temperature(small_NC[:4000], labels_N[:4000])
    before = measure(small_NC[4000:], labels_N[4000:])
    after = measure(small_NC[4000:] / fitted.temperature, labels_N[4000:])
    assert before.ece > 0.4
    assert after.ece < 0.03
    assert after.nll < before.nll
    assert (after.top1, after.top5) == (before.top1, before.top5)


def test_fit_temperature_takes_float16_logits_that_were_kept_for_those_that_were_measured() -> None:
    """So a temperature can be fitted again from ``logits.safetensors``."""
    logits_NC, labels_N = calibrated()
    exact = fit_temperature(logits_NC, labels_N).temperature
    kept_NC = torch.from_numpy(logits_NC.numpy().astype(np.float16))
    assert fit_temperature(kept_NC, labels_N).temperature == pytest.approx(exact, rel=1e-3)
