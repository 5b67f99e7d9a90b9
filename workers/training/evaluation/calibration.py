"""Temperature scaling: the one temperature T at which a trained network's softmax(z / T) fits held-out labels best.

Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599. The mean negative log-likelihood is convex
in 1/T, so its derivative is increasing and has at most one zero: Newton's method in log(1/T), with a bracket that is
halved wherever a step would leave it. All arithmetic is float64, over blocks of rows.

Where the likelihood has no best temperature, one is chosen:

- logits that are constant in every row say the same at any temperature: T is 1;
- logits that speak against the labels fit best at T = infinity: T is ``FLATTEST`` times their largest spread, at which
  all probabilities are equal to about 1 %;
- if every label has its row's largest logit (separable), the likelihood rises as T falls to 0, and N rows without a
  mistake do not say how rare one is. T is the one at which the likelihood is that of N certain rows and one more that
  is even between two classes, log(2) / (N + 1) in the mean, and no more than 1 where T = 1 is more certain already.

Shapes: N rows, C classes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FLATTEST = 100.0
_CELLS = 1 << 18
_STEPS, _PRECISION = 200, 1e-10

Regime = Literal["interior", "constant", "separable", "flat"]


@dataclass(frozen=True)
class FittedTemperature:
    """A temperature, and what decided it.

    Attributes:
        temperature: T > 0, by which logits are divided.
        regime: ``interior`` if it minimises the likelihood, else which of the cases of the module's docstring it is.
        evaluations: how often the likelihood was computed.
    """

    temperature: float
    regime: Regime
    evaluations: int


@dataclass(frozen=True)
class _Moments:
    """Means over the rows at one inverse temperature b.

    Attributes:
        nll: of the labels, in nats.
        slope, curvature: its first and second derivative by b.
    """

    nll: float
    slope: float
    curvature: float


class _Likelihood:
    """Mean negative log-likelihood of labels under softmax(b z), with derivatives by b.

    Attributes:
        spread: the largest difference of two logits of a row.
        is_separable: whether every label has its row's largest logit, alone or tied.
        limit: what the likelihood then tends to as b grows: of ties alone.
    """

    def __init__(self, logits_NC: Tensor, labels_N: Tensor) -> None:
        self._logits_NC, self._labels_N = logits_NC, labels_N
        self.evaluations = 0
        self.spread, self.is_separable, limit = 0.0, True, 0.0
        for below_BC, below_label_B in self._blocks():
            self.spread = max(self.spread, -float(below_BC.min()))
            self.is_separable = self.is_separable and not bool(below_label_B.any())
            limit += float((below_BC == 0).sum(dim=1).double().log().sum())
        self.limit = limit / len(labels_N)

    def at(self, inverse: float) -> _Moments:
        """The likelihood and its derivatives, in one pass."""
        self.evaluations += 1
        nll = slope = curvature = 0.0
        for below_BC, below_label_B in self._blocks():
            x_BC = inverse * below_BC
            p_BC = x_BC.softmax(dim=1)
            mean_B1 = (p_BC * below_BC).sum(dim=1, keepdim=True)
            nll += float((x_BC.logsumexp(dim=1) - inverse * below_label_B).sum())
            slope += float((mean_B1.squeeze(1) - below_label_B).sum())
            curvature += float((p_BC * (below_BC - mean_B1).square()).sum())
        rows = len(self._labels_N)
        return _Moments(nll / rows, slope / rows, curvature / rows)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits below their row's largest [B, C], the label's [B]), float64, both <= 0."""
        rows = max(1, _CELLS // self._logits_NC.shape[1])
        for z_BC, y_B in zip(torch.split(self._logits_NC, rows), torch.split(self._labels_N, rows), strict=True):
            z_BC = z_BC.double()
            below_BC = z_BC - z_BC.amax(dim=1, keepdim=True)
            yield below_BC, below_BC.gather(1, y_B[:, None]).squeeze(1)


def fit_temperature(logits_NC: Tensor, labels_N: Tensor) -> FittedTemperature:
    """Fit the temperature that minimises the mean negative log-likelihood of labels under softmax(z / T).

    Args:
        logits_NC: of rows that the network was not trained on, float32 or float64, finite, C >= 2, on the CPU.
        labels_N: int64, 0..C-1.

    Raises:
        ValueError: shapes that do not fit, no rows, or logits that are not finite.
    """
    shape = tuple(logits_NC.shape)
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 2 or tuple(labels_N.shape) != shape[:1]:
        raise ValueError(
            f"logits are {shape} and labels {tuple(labels_N.shape)}; [rows >= 1, classes >= 2] and [rows] are needed"
        )
    if not bool(torch.isfinite(logits_NC).all()):
        raise ValueError("logits hold NaN or infinity: no temperature can be fitted to them")
    likelihood = _Likelihood(logits_NC, labels_N)

    def fitted(temperature: float, regime: Regime) -> FittedTemperature:
        return FittedTemperature(temperature, regime, likelihood.evaluations)

    if likelihood.spread == 0.0:
        return fitted(1.0, "constant")
    flattest = 1.0 / (FLATTEST * likelihood.spread)
    if likelihood.at(flattest).slope >= 0.0:
        return fitted(1.0 / flattest, "flat")
    if likelihood.is_separable:
        enough = likelihood.limit + math.log(2.0) / (labels_N.numel() + 1)

        def above_enough(inverse: float) -> tuple[float, float]:
            moments = likelihood.at(inverse)
            return enough - moments.nll, -moments.slope

        if likelihood.at(1.0).nll <= enough:
            return fitted(1.0, "separable")
        return fitted(1.0 / _zero_of(above_enough, flattest), "separable")

    def slope(inverse: float) -> tuple[float, float]:
        moments = likelihood.at(inverse)
        return moments.slope, moments.curvature

    return fitted(1.0 / _zero_of(slope, flattest), "interior")


def _zero_of(increasing: Callable[[float], tuple[float, float]], low: float) -> float:
    """Find the zero of an increasing function of b > 0: Newton's method in log b in a bracket, halved where it fails.

    Args:
        increasing: b -> (value, derivative by b); it is negative at ``low``, and positive from some b on.
    """
    bottom = top = math.log(low)
    while increasing(math.exp(top))[0] < 0.0:
        bottom, top = top, top + math.log(4.0)
    at = (bottom + top) / 2.0
    for _ in range(_STEPS):
        value, derivative = increasing(math.exp(at))
        if value < 0.0:
            bottom = at
        else:
            top = at
        step = -value / (derivative * math.exp(at)) if derivative > 0.0 else math.inf
        if not bottom < at + step < top:
            # Beyond the bracket by less than this is a zero of the function's rounding.
            step = (bottom + top) / 2.0 - at if abs(step) > _PRECISION else 0.0
        at += step
        if abs(step) <= _PRECISION:
            break
    return math.exp(at)
