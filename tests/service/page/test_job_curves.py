"""Curves of a job's view: what is kept of documents, smoothing, bands, groups, and which runs need attention."""

import math
from typing import Any

import pytest

from service.page.job.curve_groups import GROUPS_MAX, SEED_LINES_MAX, CurveStyle, draw_groups, group_runs
from service.page.job.curve_store import CurveStore
from service.page.job.health import complaints, sparkline
from service.page.job.measures import MEASURES, RunCurve
from service.page.job.series import POINTS_MAX, over_seeds, smooth, thinned
from service.page.job.url_state import UrlState


def curve(name: str, top1: list[float], *, state: str = "running", method: str = "kd", seed: int = 0) -> RunCurve:
    values = {"validation_top1": dict(enumerate(top1, 1))}
    known = {"id": name, "name": name, "student": "cnn_s", "method": method}
    return RunCurve(**known, seed=seed, state=state, epochs=100, values=values)


def document(last_id: int, epochs: list[int], top1: list[float | None], state: str = "running") -> dict[str, Any]:
    run = {"run_id": "run_1", "name": "cnn_s kd seed 0", "student": "cnn_s", "method": "kd", "seed": 0, "epochs": 9}
    return {"last_id": last_id, "runs": [{**run, "state": state, "epoch": epochs, "metrics": {"top1": top1}}]}


def test_curve_store_takes_up_what_is_new_and_replaces_an_epoch_that_comes_again() -> None:
    store = CurveStore(None, "job_1")  # type: ignore[arg-type]  # Nothing is asked of it here.
    assert store.merge(document(5, [1, 2], [0.1, 0.2]))
    assert not store.merge(document(5, [], []))
    assert store.merge(document(9, [2, 3], [0.25, None]))
    assert store.runs["run_1"].values["top1"] == {1: 0.1, 2: 0.25}
    assert store.merge(document(9, [], [], state="paused"))
    assert store.runs["run_1"].state == "paused"


def test_smooth_is_an_average_without_the_bias_to_zero() -> None:
    assert smooth({1: 4.0, 2: 4.0, 5: 4.0}, 0.9) == pytest.approx({1: 4.0, 2: 4.0, 5: 4.0})
    # Weights 0.5 * 0.5 and 0.5, of 0.75 in all.
    assert smooth({1: 1.0, 2: 4.0}, 0.5)[2] == pytest.approx((0.25 * 1.0 + 0.5 * 4.0) / 0.75)
    assert smooth({1: 1.0, 2: 4.0}, 0.0) == {1: 1.0, 2: 4.0}


def test_over_seeds_has_mean_and_band_of_the_seeds_that_have_an_epoch() -> None:
    seeds = [{1: 1.0, 2: 2.0}, {1: 3.0}]
    assert over_seeds(seeds, "range") == [(1, 2.0, 1.0, 3.0), (2, 2.0, 2.0, 2.0)]
    epoch, mean, low, high = over_seeds(seeds, "std")[0]
    assert (epoch, mean, low, high) == pytest.approx((1, 2.0, 2.0 - math.sqrt(2), 2.0 + math.sqrt(2)))


def test_thinned_keeps_first_and_last_of_many_epochs() -> None:
    rows = [(float(epoch), 0.0, 0.0, 0.0) for epoch in range(1, 10 * POINTS_MAX + 4)]
    kept = thinned(rows)
    assert len(kept) <= POINTS_MAX + 1
    assert (kept[0], kept[-1]) == (rows[0], rows[-1])
    assert thinned(rows[:POINTS_MAX]) == rows[:POINTS_MAX]


def test_group_runs_has_one_colour_and_shape_for_each_method_and_a_dash_for_each_student() -> None:
    pairs = [(student, method) for student in ("small", "large") for method in ("ce", "kd")]
    known: dict[str, Any] = {"name": "", "seed": 0, "state": "running", "epochs": 9}
    runs = [RunCurve(id=f"{student} {method}", student=student, method=method, **known) for student, method in pairs]
    groups = group_runs(runs)
    assert [group.label for group in groups] == ["small ce", "small kd", "large ce", "large kd"]
    assert [group.colour == groups[0].colour for group in groups] == [True, False, True, False]
    assert [group.symbol == groups[0].symbol for group in groups] == [True, False, True, False]
    assert [group.dash for group in groups] == ["solid", "solid", "dashed", "dashed"]


def test_draw_groups_draws_a_mean_with_its_band_and_leaves_out_seeds_beyond_a_limit() -> None:
    runs = [curve(f"run {seed}", [0.1, 0.2], seed=seed) for seed in range(SEED_LINES_MAX + 7)]
    style = CurveStyle(MEASURES["top1"], "validation_top1", "range", 0.0, is_log=False)
    series, left_out = draw_groups(group_runs(runs), style)
    assert [point["value"] for point in series[0]["data"]] == [(1, 10.0), (2, 20.0)]
    assert (len(series), left_out) == (3, "")
    each = CurveStyle(MEASURES["top1"], "validation_top1", "each", 0.0, is_log=False)
    series, left_out = draw_groups(group_runs(runs), each)
    assert len(series) == SEED_LINES_MAX
    assert "7 lines of seeds are left out" in left_out
    assert GROUPS_MAX < SEED_LINES_MAX


def test_draw_groups_leaves_what_is_not_positive_out_of_a_log_axis() -> None:
    style = CurveStyle(MEASURES["top1"], "validation_top1", "range", 0.0, is_log=True)
    series, _ = draw_groups(group_runs([curve("run", [0.0, 0.2])]), style)
    assert [point["value"] for point in series[0]["data"]] == [(2, 20.0)]
    # Of one seed there is no band.
    assert len(series) == 1


def test_complaints_name_runs_that_fell_are_far_behind_failed_or_were_lost() -> None:
    good = [curve(f"good {number}", [0.3, 0.6, 0.7]) for number in range(5)]
    found = complaints(
        [
            *good,
            curve("fell", [0.3, 0.6, 0.1]),
            curve("behind", [0.1, 0.1, 0.1]),
            curve("failed", [], state="failed"),
            curve("lost", [0.3], state="lost"),
            curve("stopped", [0.3, 0.6, 0.1], state="cancelled"),
            curve("over", [0.1, 0.1, 0.1], state="succeeded"),
        ]
    )
    assert found["fell"] == "diverging: top-1 fell from 60.0 % to 10.0 % in epoch 3"
    assert found["behind"] == "far behind: top-1 10.0 % in epoch 3, half of the runs have 70.0 %"
    assert found.keys() == {"fell", "behind", "failed", "lost"}


def test_a_run_ahead_of_the_others_is_compared_where_they_are() -> None:
    slow = [curve(f"slow {number}", [0.3, 0.6]) for number in range(3)]
    found = complaints([*slow, curve("nothing", [0.1] * 5), curve("late", [0.1, 0.1, 0.5]), curve("fast", [0.3, 0.9])])
    assert found == {"nothing": "far behind: top-1 10.0 % in epoch 5, half of the runs have 60.0 % in epoch 2"}


def test_sparkline_shows_the_whole_course() -> None:
    rising = sparkline(curve("run", [number / 100 for number in range(100)]))
    assert (rising[0], rising[-1], len(rising)) == ("▁", "█", 16)
    assert sparkline(curve("run", [0.5, 0.5])) == "▁▁"
    assert sparkline(curve("run", [0.5])) == ""


def test_url_state_holds_settings_within_their_bounds_and_leaves_out_defaults() -> None:
    given = {"tab": "<b>", "smooth": "7", "x": "agreement", "other": "1", "zoom": "nan"}
    state = UrlState("/jobs/j", given, {"tab": "curves", "smooth": "0", "x": "agreement", "zoom": "1"})
    assert state.choice("tab", ("curves", "runs")) == "curves"
    assert state.number("smooth", 0, 0.95) == 0.95
    assert state.number("zoom", 0, 9) == 1.0
    assert state.url == "/jobs/j?tab=%3Cb%3E&smooth=7&zoom=nan"
