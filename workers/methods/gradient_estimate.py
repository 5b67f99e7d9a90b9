"""Estimate of the gradient that a method begins with, beside that of cross-entropy, from a cache's statistics alone.

A term's gradient by a row of the student's logits is about (weight x W / T_s) times how far the two tempered
distributions are apart. All of it is known before training but the student, which is taken to be fresh: its logits
have the standard deviation ``FRESH_STD`` and know nothing of the teacher's. A distribution is taken to be one class at
the top and the others as the exponential of normally distributed logits, which the maximum, mean and standard deviation
of a row fix.

It is an estimate, within a factor of 2 or so (``tests/workers/methods/test_gradient_estimate.py`` measures it).
Matrices over the batch, differences of logits and losses with a temperature of their own are left out.

Shapes: V views, N samples, R = V N rows, C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.errors import NotFinite
from workers.methods.losses import Dist, Dkd, Nkd, Rld
from workers.methods.method import Method, Term
from workers.methods.policies.base import Temperatures
from workers.methods.preview import temperatures_of_rows
from workers.methods.preview_report import Float32, StatisticsTable

FRESH_STD = 0.25
"""Of the logits of a network that was just initialised: 0.07 (vgg8) to 0.62 (resnet20), mostly 0.2 to 0.3."""

WARNED_RATIO = 10.0

Float64 = Any
"""A float64 array [R]; NumPy's own type becomes Any in arithmetic."""


@dataclass(frozen=True)
class TermGradient:
    """Gradient that a term begins with.

    Attributes:
        parts: what metrics call the parts of its loss.
        scale: its weight x W, the mean over the rows, without the warm-up.
        ratio: of the mean norm of its gradient in the first epoch, by a row of logits, to that of cross-entropy with
            weight 1; warm-up included.
    """

    parts: tuple[str, ...]
    scale: float
    ratio: float


class _Rows:
    """Distributions of one network's rows at temperatures, float64 [R].

    Args:
        statistics: of the rows by name, [R].
        tau_R: their temperatures.
    """

    def __init__(self, statistics: Mapping[str, Float32], tau_R: Float64 | float, classes: int) -> None:
        top_R, mean_R, std_R = (statistics[name].astype(np.float64) for name in ("max", "mean", "std"))
        others, tops_R = classes - 1, top_R - mean_R
        # Of the classes but the first: how far their mean lies below it, and their variance.
        self._below_R = tops_R * classes / others / tau_R
        variance_R = np.maximum(std_R**2 - tops_R**2 * classes / others**2, 0.0) / tau_R**2
        self._classes = classes
        self.rest_R = np.minimum(np.sqrt(np.expm1(np.minimum(variance_R, 50.0)) / others), 1.0)
        self._log_rest_R = np.log(others) - self._below_R + variance_R / 2
        peak_R = 1.0 / (1.0 + np.exp(np.clip(self._log_rest_R, -50.0, 50.0)))
        uniform = 1.0 / classes
        self.apart_R = np.hypot(np.maximum(peak_R - uniform, 0.0), (1.0 - peak_R) * self.rest_R)

    @property
    def log_sum_R(self) -> Float64:
        """Logsumexp of the tempered row, less its maximum."""
        return np.logaddexp(0.0, self._log_rest_R)


class _Pair:
    """Both networks' rows at a term's temperatures.

    Attributes:
        gain_R: W / T_s.
    """

    def __init__(self, table: StatisticsTable, classes: int, given: Temperatures) -> None:
        self._table, self.classes, self.given = table, classes, given
        self.gain_R = given.weight.astype(np.float64) / given.student

    def at(self, tau_s_R: Float64 | float, tau_t_R: Float64 | float) -> tuple[_Rows, _Rows]:
        """The student's rows and the teacher's, at any temperatures."""
        return _Rows(self._table.student, tau_s_R, self.classes), _Rows(self._table.teacher, tau_t_R, self.classes)

    def apart_R(self, tau: float | None = None) -> Float64:
        """||q - p||, at the term's temperatures or at one for both."""
        student, teacher = self.at(*(self.own if tau is None else (tau, tau)))
        return np.hypot(student.apart_R, teacher.apart_R)

    @property
    def rest_apart_R(self) -> Float64:
        """The same of the classes but the first, among themselves."""
        student, teacher = self.at(*self.own)
        return np.hypot(student.rest_R, teacher.rest_R)

    @property
    def power_sum_R(self) -> Float64:
        """sum_c S(z_t)_c^(1/T_t)."""
        _, tempered = self.at(*self.own)
        _, plain = self.at(1.0, 1.0)
        return np.exp(tempered.log_sum_R - plain.log_sum_R / self.given.teacher)

    @property
    def own(self) -> tuple[Float64, Float64]:
        """The term's temperatures."""
        return self.given.student.astype(np.float64), self.given.teacher.astype(np.float64)


def _dkd(pair: _Pair, loss: Dkd) -> Float64:
    return pair.gain_R * (loss.alpha * pair.apart_R() + loss.beta * pair.rest_apart_R)


def _rld(pair: _Pair, loss: Rld) -> Float64:
    tau = loss.binary_temperature
    scale = 1.0 if loss.scale == "none" else (tau or 1.0) ** 2
    binary_R = pair.gain_R * pair.apart_R() if tau is None else scale / tau * pair.apart_R(tau)
    return loss.alpha * binary_R + loss.beta * pair.gain_R * pair.rest_apart_R


def _nkd(pair: _Pair, loss: Nkd) -> Float64:
    return pair.apart_R(1.0) + loss.gamma * pair.gain_R * pair.rest_apart_R


def _dist(pair: _Pair, loss: Dist) -> Float64:
    # A correlation ignores the scale of what it compares: the flatter the student, the steeper.
    student, _ = pair.at(*pair.own)
    return (loss.beta + loss.gamma) * pair.gain_R / (pair.classes * student.apart_R)


_FORMULAS: dict[str, Callable[..., Float64]] = {
    "kl": lambda pair, loss: pair.gain_R * pair.apart_R(),
    "cross_entropy": lambda pair, loss: pair.gain_R * pair.apart_R(),
    "wsld": lambda pair, loss: pair.gain_R * pair.apart_R(),
    "wttm": lambda pair, loss: pair.gain_R * pair.power_sum_R * pair.apart_R(),
    "dkd": _dkd,
    "rld": _rld,
    "nkd": _nkd,
    "dist": _dist,
}


def estimate_gradients(
    method: Method, teacher: Mapping[str, Float32], classes: int, *, epochs: int
) -> tuple[TermGradient, ...]:
    """Estimate the gradient that each term begins with; terms that cannot be estimated are left out.

    Args:
        teacher: the cached statistics of rows, all of them by name, float32 [V, N].
        classes: C.
        epochs: of the whole run; expressions may read it.
    """
    _, warmup = method.factors(1)
    table = StatisticsTable(teacher, _fresh(next(iter(teacher.values())).shape, classes))
    found = (_estimate(method, term, table, classes, epochs=epochs, warmup=warmup) for term in method.terms)
    return tuple(gradient for gradient in found if gradient is not None)


def _estimate(
    method: Method, term: Term, table: StatisticsTable, classes: int, *, epochs: int, warmup: float
) -> TermGradient | None:
    formula = _FORMULAS.get(term.loss.kind)
    if formula is None or any(statistic.reads_logits for statistic in term.policy.cache_statistics):
        return None
    try:
        given = temperatures_of_rows(method, term, table, classes, epoch=1, epochs=epochs)
    except NotFinite:
        # Of a student that is taken to be so; training says it of one that is.
        return None
    if term.loss.scale == "none":
        given = Temperatures(given.student, given.teacher, np.ones_like(given.student))
    with np.errstate(all="ignore"):
        mean = float(formula(_Pair(table, classes, given), term.loss).mean())
    ratio = warmup * term.weight * mean / np.sqrt(1.0 - 1.0 / classes)
    return TermGradient(term.part_names, term.weight * float(given.weight.mean(dtype=np.float64)), ratio)


def _fresh(shape: tuple[int, ...], classes: int) -> dict[str, Float32]:
    """Statistics of the rows of a student that was just initialised: normally distributed logits around 0."""
    reach = FRESH_STD * np.sqrt(2.0 * np.log(classes))
    values = {"max": reach, "min": -reach, "mean": 0.0, "std": FRESH_STD}
    values["sharpness"] = np.log(classes) + FRESH_STD**2 / 2
    return {name: np.full(shape, value, np.float32) for name, value in values.items()}


def gradient_warnings(method: Method, teacher: Mapping[str, Float32], classes: int, *, epochs: int) -> tuple[str, ...]:
    """A sentence if the terms begin with a gradient of more than ``WARNED_RATIO`` times that of cross-entropy.

    Args:
        teacher: as in ``estimate_gradients``; empty where nothing is known of it.
    """
    if not method.needs_teacher or not teacher:
        return ()
    gradients = estimate_gradients(method, teacher, classes, epochs=epochs)
    total = sum(gradient.ratio for gradient in gradients)
    if total <= WARNED_RATIO:
        return ()
    largest = max(gradients, key=lambda gradient: gradient.ratio)
    return (
        f"method {method.name!r} begins with a gradient of about {total:.0f} times that of cross-entropy alone: weight "
        f"x W of {' and '.join(largest.parts)} is {largest.scale:.3g} on this teacher. At a learning rate that was "
        "chosen for cross-entropy it may end below ce: lower training.optimizer.lr or the weight, or give a warm-up",
    )
