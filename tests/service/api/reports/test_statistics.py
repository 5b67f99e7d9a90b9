"""Statistics over seeds, against statsmodels, a second implementation, and at the edges of few and equal values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.weightstats import DescrStatsW

from service.api.reports.statistics import (
    class_means,
    discordant,
    estimate,
    extremes,
    mcnemar,
    paired_differences,
    t_intervals,
)

fractions = st.floats(0, 1, allow_nan=False)
counts = st.integers(0, 400)


@given(st.lists(fractions, min_size=2, max_size=12), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_t_intervals_and_estimate_are_statsmodels(values: list[float], confidence: float) -> None:
    found = estimate(values)
    assert found is not None
    known = DescrStatsW(values, ddof=0)
    std = DescrStatsW(values).std * math.sqrt(len(values) / (len(values) - 1))
    assert (found.mean, found.std, found.n) == (pytest.approx(known.mean), pytest.approx(std, abs=1e-12), len(values))
    [interval] = t_intervals([found], confidence)
    if found.std is None or found.std <= 1e-12:
        assert interval is None
        return
    assert interval is not None
    low, high = known.tconfint_mean(alpha=1 - confidence)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    _, p_value, _ = known.ttest_mean(0)
    assert interval.p_value == pytest.approx(p_value, abs=1e-9)


def test_t_intervals_keep_their_places_among_means_that_have_none() -> None:
    """One value, no value, equal values and values that differ, of different counts, in one call."""
    samples = [[0.5], [], [0.1, 0.3], [0.2, 0.2, 0.2], [0.1, 0.2, 0.4]]
    first, second, third, fourth, fifth = t_intervals([estimate(sample) for sample in samples], 0.95)
    assert first is second is fourth is None
    assert third is not None
    assert fifth is not None
    # The 97.5 % quantiles of t with 1 and 2 degrees of freedom, from a table.
    assert (third.low, third.high) == (pytest.approx(0.2 - 12.706 * 0.1, abs=1e-4), pytest.approx(1.4706, abs=1e-4))
    spread = 4.303 * np.std([0.1, 0.2, 0.4], ddof=1) / math.sqrt(3)
    assert fifth.high == pytest.approx(0.7 / 3 + spread, abs=1e-4)


def test_t_intervals_have_none_for_differences_that_differ_by_rounding_alone() -> None:
    found = estimate([0.3 - 0.2, 0.2 - 0.1, 0.6 - 0.5])
    assert found is not None
    assert found.std != 0
    assert t_intervals([found], 0.95) == [None]


def test_estimate_of_one_value_has_no_deviation_and_of_none_is_none() -> None:
    found = estimate([0.25, None, math.nan, math.inf])
    assert found is not None
    assert (found.mean, found.std, found.n) == (0.25, None, 1)
    assert estimate([]) is estimate([None]) is None


def test_paired_differences_are_of_the_keys_that_both_have() -> None:
    assert paired_differences({0: 0.5, 1: 0.75, 7: 1.0}, {1: 0.5, 0: 0.5, 2: 0.0}) == {0: 0.0, 1: 0.25}
    assert paired_differences({0: 1.0}, {}) == {}


@given(counts, counts)
def test_mcnemar_is_statsmodels(only_baseline: int, only_method: int) -> None:
    table = [[100, only_baseline], [only_method, 50]]
    known = statsmodels_mcnemar(table, exact=True).pvalue if only_baseline + only_method else 1.0
    assert mcnemar(only_baseline, only_method) == pytest.approx(min(1.0, known), rel=1e-9)


def test_mcnemar_of_few_rows_is_the_binomial_sum() -> None:
    """One row against six: 2 (1 + 7) / 128."""
    assert mcnemar(1, 6) == pytest.approx(0.125)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0


def test_discordant_counts_rows_that_one_alone_gets_right() -> None:
    baseline, method = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 0], bool)
    assert discordant(baseline, method) == (2, 1)
    with pytest.raises(ValueError, match="has to be the same rows"):
        discordant(baseline, method[:4])


def test_extremes_of_class_means_leave_out_classes_without_rows() -> None:
    found = extremes(class_means([[0.5, None, 1.0, 0.25], [0.7, None, 0.8, 0.75]]))
    assert found is not None
    assert found.worst == (3, pytest.approx(0.5))
    assert found.best == (2, pytest.approx(0.9))
    # Of equals the first.
    assert (tied := extremes(class_means([[0.5, 0.5]]))) is not None
    assert (tied.worst[0], tied.best[0]) == (0, 0)
    assert extremes(class_means([[None, None]])) is None
    assert extremes(np.zeros(0)) is None
