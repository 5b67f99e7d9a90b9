"""Words and rows that a job's view makes of documents of the API."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from service.page.charts import hide_legend, on_phones
from service.page.job.confusion import CLASSES_MAX, chosen_classes, confused_rows, confusion_options
from service.page.job.evaluation import class_rows, reliability_options
from service.page.job.events import event_words
from service.page.job.measures import RunCurve
from service.page.job.page import JobPage
from service.page.job.results import DEFAULTS, columns_of, difference_words, epoch_rows, group_rows
from service.page.job.run_parts import log_line
from service.page.job.runs import run_row
from service.page.job.scatter import points_of
from service.page.job.url_state import UrlState
from service.page.job.words import duration, eta_words, percent
from service.page.viewer import ViewerApi

DIFFERENCE = {"mean": 0.012, "low": 0.009, "high": 0.0145, "n": 3}


def test_duration_has_two_units() -> None:
    found = [duration(seconds) for seconds in (0.4, 42, 185, 7800, 100_000)]
    assert found == ["0 s", "42 s", "3 min 5 s", "2 h 10 min", "1 d 3 h"]


def test_eta_words_say_how_long_and_by_what() -> None:
    eta = {"expected_at": "2026-01-01T00:10:00Z", "as_of": "2026-01-01T00:00:00Z", "based_on": "its own epochs"}
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert eta_words({"eta": eta}, now) == "about 10 min left (by its own epochs)"
    assert eta_words({"eta": None}) == eta_words({}) == ""


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (DIFFERENCE, "+1.20 [+0.90, +1.45] above 0"),
        ({**DIFFERENCE, "low": -0.02}, "+1.20 [-2.00, +1.45] includes 0"),
        ({**DIFFERENCE, "low": -0.02, "high": -0.01}, "+1.20 [-2.00, -1.00] below 0"),
        ({**DIFFERENCE, "low": None, "n": 1}, "+1.20 (no interval: 1 pair)"),
        (None, "–"),
    ],
)
def test_difference_words_say_what_the_interval_says(found: dict[str, Any] | None, words: str) -> None:
    assert difference_words(found) == words


def test_group_rows_begin_with_the_teacher_and_leave_out_groups_without_results() -> None:
    split = {"top1": {"mean": 0.7, "std": 0.01, "n": 2}, "difference": None, "samples": None, "worst_class": None}
    split |= dict.fromkeys(("agreement", "nll", "ece", "ece_calibrated", "top5"))
    groups = [{"student": "s", "method": "ce", "test": split}, {"student": "s", "method": "kd", "test": None}]
    teacher = {"test": {"top1": 0.8, "top5": 0.9, "nll": 1.0, "ece": 0.1}}
    rows = group_rows({"groups": groups, "teacher": teacher}, "test")
    assert [(row["name"], row["top1"]) for row in rows] == [("teacher", "80.00 %"), ("ce", "70.00 ± 1.00 %")]


def test_epoch_rows_tell_last_from_best_over_runs_that_succeeded() -> None:
    row = {"student": "s", "method": "ce", "state": "succeeded", "accuracy_last": 0.7, "accuracy_best": 0.8}
    rows = [{**row, "best_epoch": 4}, {**row, "best_epoch": 5, "accuracy_last": 0.6}, {**row, "state": "failed"}]
    [found] = epoch_rows(rows)
    assert (found["last"], found["best"], found["epochs"]) == ("65.00 %", "80.00 %", "4, 5")
    [without] = epoch_rows([{**row, "best_epoch": None, "accuracy_best": None}])
    assert without["best"] == "–"
    assert "no validation split" in without["epochs"]


def test_points_of_leave_out_runs_without_a_measure() -> None:
    row = {"student": "s", "method": "kd", "seed": 0, "accuracy": 0.7, "agreement": 0.9}
    found = points_of([row, {**row, "seed": 1, "agreement": None}], "agreement", "accuracy")
    assert found == {("s", "kd"): [(90.0, 70.0, 0)]}


def test_reliability_options_draw_bins_that_have_rows_only() -> None:
    bins = {"rows": [0, 30, 70], "accuracy": [None, 0.5, 0.9], "confidence": [None, 0.6, 0.8]}
    series = {each["name"]: each["data"] for each in reliability_options(bins, bins, "title")["series"]}
    assert series["as trained"] == series["calibrated by one temperature"] == [[60.0, 50.0], [80.0, 90.0]]
    assert [share for _, share in series["share of rows"]] == [0.0, 30.0, 70.0]


def test_confusion_shows_shares_of_the_true_class_and_zeros() -> None:
    cells = [[0, 0, 3], [0, 1, 1], [1, 1, 2]]
    [series] = confusion_options(cells, [0, 1], ["cat"], "title")["series"]
    # Across the predicted class, down the true one.
    assert series["data"] == [[0, 0, 75.0], [1, 0, 25.0], [0, 1, 0.0], [1, 1, 100.0]]
    [row] = confused_rows(cells, ["cat"])
    assert (row["true"], row["predicted"], row["rows"], row["share"]) == ("0 cat", "1", 1, "25.0 %")


def test_chosen_classes_are_those_with_the_most_mistakes() -> None:
    count = CLASSES_MAX + 10
    cells = [[index, index, 9] for index in range(count)] + [[count - 1, count - 2, 5]]
    chosen = chosen_classes(cells, count)
    assert len(chosen) == CLASSES_MAX
    assert {count - 1, count - 2} <= set(chosen)
    assert chosen_classes(cells, 3) == [0, 1, 2]


def test_class_rows_begin_with_the_largest_gap_to_the_teacher() -> None:
    rows = class_rows([0.9, 0.5, None], [0.9, 0.8, None], ["cat", "dog"])
    assert [(row["name"], row["gap"]) for row in rows] == [("1 dog", "-30.0"), ("0 cat", "+0.0"), ("2", "–")]


def test_event_words_are_sentences_and_json_where_the_type_is_unknown() -> None:
    metrics = {"validation_top1": 0.5, "top1": None, "train_loss": 1.0}
    epoch = {"epoch": 2, "epochs": 9, "metrics": metrics}
    assert event_words("epoch", epoch) == "2 of 9, validation top-1 50.00 %, loss 1.000"
    assert event_words("state", {"state": "failed", "error": {"message": "<b>"}}) == "failed: <b>"
    assert event_words("new", {"a": 1}) == '{"a": 1}'


def test_log_line_is_shown_as_it_is_where_it_is_no_json() -> None:
    line = '{"at": "2026-01-01T10:00:00.5+00:00", "level": "info", "event": "begins", "run_id": "r", "pid": 7}'
    assert log_line(line) == '2026-01-01 10:00:00 info    begins {"pid": 7}'
    assert log_line("[1]") == "[1]"
    assert log_line("half {") == "half {"


def test_run_row_warns_and_says_why() -> None:
    run: dict[str, Any] = dict.fromkeys(("metrics", "progress", "result", "set_aside", "waits_for"))
    run |= {"id": "run_1", "name": "n", "state": "failed", "epoch": 2, "epochs": 9, "attempt": 1}
    run |= {"error": {"message": "loss is not finite"}, "progress": {"step": 1, "steps": 4, "loss": 2.0}}
    row = run_row(run, None, {"run_1": "failed"})
    assert row["words"] == "⚠ failed: loss is not finite"
    assert (row["epoch"], row["loss"], row["top1"]) == ("2 of 9, 25 % of the next", "2.000", "–")


def test_legend_of_a_few_lines_is_shown_whole_on_a_phone() -> None:
    bins = {"rows": [0, 3], "accuracy": [None, 0.5], "confidence": [None, 0.9]}
    options = reliability_options(bins, bins, "title")
    [narrow, wide] = on_phones(options)["media"]
    assert (narrow["option"]["legend"]["type"], wide["option"]["legend"]["type"]) == ("plain", "scroll")
    assert narrow["option"]["grid"]["top"] > wide["option"]["grid"]["top"]
    assert on_phones({**options, "series": options["series"][:1]}) == {}
    hide_legend(options)
    assert on_phones(options) == {}


def test_columns_of_results_are_those_that_are_chosen_beside_the_name() -> None:
    report = {"confidence": 0.95, "baseline": "ce", "groups": [{"test": {"samples": None, "top1": {"mean": 0.5}}}]}
    assert [each["name"] for each in columns_of(report, "test", ["top1", "mcnemar"])] == ["name", "top1"]
    shown = [each["name"] for each in columns_of(report, "test", DEFAULTS["columns"].split(","))]
    assert shown == ["name", "top1", "difference", "agreement", "ece", "ece_calibrated", "worst"]
    tested = {**report, "groups": [{"test": {"samples": [{"seed": 0, "p_value": 0.5}], "top1": {"mean": 0.5}}}]}
    assert [each["name"] for each in columns_of(tested, "test", ["mcnemar"])] == ["name", "mcnemar"]


def test_columns_of_results_without_labels_have_the_kl_to_the_teacher_unasked() -> None:
    report = {"confidence": 0.95, "baseline": None, "groups": [{"test": {"samples": None, "top1": None}}]}
    assert [each["name"] for each in columns_of(report, "test", ["agreement"])] == ["name", "agreement", "kl"]


def test_run_row_has_the_top1_of_the_weights_that_leave_and_of_validation_where_test_has_no_labels() -> None:
    run: dict[str, Any] = dict.fromkeys(("error", "progress", "result", "set_aside", "waits_for"))
    run |= {"id": "run_1", "name": "n", "state": "running", "epoch": 9, "epochs": 9, "attempt": 1}
    run["metrics"] = {"top1": None, "validation_top1": 0.5, "validation_ema_top1": 0.6}
    assert run_row(run, None, {})["top1"] == percent(0.5)
    assert run_row({**run, "result": {"weights": "ema"}}, None, {})["top1"] == percent(0.6)


def test_first_epoch_is_looked_for_more_often_until_it_has_ended() -> None:
    job: dict[str, Any] = {"id": "job_a", "state": "running", "stage": "training"}
    page = JobPage(cast("ViewerApi", None), job, cast("UrlState", None))
    assert page.is_first_due
    page.job = {**job, "stage": "inference"}
    assert not page.is_first_due
    page.job = {**job, "state": "queued"}
    assert not page.is_first_due
    page.job = job
    page.store.runs["run_a"] = RunCurve("run_a", "a", "s", "kd", seed=0, state="running", epochs=3)
    assert page.is_first_due
    page.store.runs["run_a"].values["top1"] = {1: 0.5}
    assert not page.is_first_due
