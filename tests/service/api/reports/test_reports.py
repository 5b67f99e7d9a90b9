"""Reports over seeds through the API: groups, differences, tests per sample, tables as text, several jobs in one."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sqlalchemy import Engine, event, update
from structlog.contextvars import get_contextvars

from service.api.middleware.request_context import REQUEST_ID_HEADER
from service.api.reports import statistics
from service.db.models import JobRecord, RunRecord
from service.db.states import State
from tests.support.reported import logits_of, post_results, result
from tests.support.service_helpers import Api

pytest_plugins = ["tests.support.service_fixtures"]

CE, KD = [0.5, 0.52, 0.51], [0.55, 0.58, 0.54]
SEEDS = {
    **{("ce", seed): result(CE[seed]) for seed in range(3)},
    **{("kd", seed): result(KD[seed]) for seed in range(3)},
}


def report(api: Api, job_id: str, **query: str | float) -> dict[str, Any]:
    answer = api.client.get(f"/v1/jobs/{job_id}/report", params=query)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def groups(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["method"]: group for group in document["groups"]}


# --------------------------------------------------------------------------------------------------------- over seeds


def test_report_groups_have_means_and_a_difference_paired_by_seed(shared_api: Api) -> None:
    job_id = post_results(shared_api, SEEDS)
    document = report(shared_api, job_id)
    assert [row["accuracy_last"] for row in document["rows"]] == [*CE, *KD]
    ce, kd = groups(document)["ce"], groups(document)["kd"]
    assert (ce["runs"], ce["seeds"]) == ({"succeeded": 3}, [0, 1, 2])
    assert ce["test"]["top1"] == {"mean": pytest.approx(0.51), "std": pytest.approx(0.01), "n": 3}
    assert ce["test"]["difference"] is None
    difference = kd["test"]["difference"]
    expected = stats.ttest_rel(KD, CE)
    interval = expected.confidence_interval(0.95)
    assert (difference["baseline"], difference["seeds"], difference["n"]) == ("ce", [0, 1, 2], 3)
    assert difference["mean"] == pytest.approx(np.mean(KD) - np.mean(CE))
    assert (difference["low"], difference["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert difference["p_value"] == pytest.approx(expected.pvalue)
    narrower = groups(report(shared_api, job_id, confidence=0.8))["kd"]["test"]["difference"]
    assert narrower["low"] == pytest.approx(expected.confidence_interval(0.8).low)
    turned = report(shared_api, job_id, baseline="kd")
    assert groups(turned)["ce"]["test"]["difference"]["mean"] == pytest.approx(-difference["mean"])
    assert groups(turned)["kd"]["test"]["difference"] is None


def test_report_of_one_seed_has_no_interval_and_says_that_it_ranks_noise(shared_api: Api) -> None:
    job_id = post_results(shared_api, {("ce", 0): result(0.5), ("kd", 0): result(0.6)})
    document = report(shared_api, job_id)
    found = groups(document)["kd"]["test"]
    assert found["top1"] == {"mean": 0.6, "std": None, "n": 1}
    assert found["difference"]["mean"] == pytest.approx(0.1)
    assert found["difference"]["low"] is found["difference"]["high"] is found["difference"]["p_value"] is None
    assert any(note.startswith("one seed ranks noise: cnn_s ce, cnn_s kd") for note in document["notes"])


def test_report_leaves_out_what_has_not_succeeded_and_seeds_without_a_pair(shared_api: Api) -> None:
    outcomes = {**SEEDS, ("ce", 2): State.CANCELLED, ("kd", 0): State.FAILED, ("kd", 3): result(0.9)}
    document = report(shared_api, post_results(shared_api, {**outcomes, ("ce", 3): State.RUNNING}))
    ce, kd = groups(document)["ce"], groups(document)["kd"]
    assert (ce["runs"], ce["seeds"]) == ({"succeeded": 2, "cancelled": 1, "running": 1}, [0, 1])
    assert kd["test"]["top1"]["n"] == 3
    assert (kd["test"]["difference"]["seeds"], kd["test"]["difference"]["low"]) == ([1], None)
    notes = " | ".join(document["notes"])
    assert "3 of 8 runs have not succeeded (1 cancelled, 1 running, 1 failed); they are in no mean" in notes
    assert "no run of the baseline with the same seed: cnn_s kd (seed 2, 3)" in notes


def test_report_with_equal_differences_gives_no_interval(shared_api: Api) -> None:
    outcomes = {(m, seed): result(0.1 * (seed + 2 * (m == "kd"))) for m in ("ce", "kd") for seed in range(1, 4)}
    document = report(shared_api, post_results(shared_api, outcomes))
    difference = groups(document)["kd"]["test"]["difference"]
    assert (difference["mean"], difference["n"], difference["low"]) == (pytest.approx(0.2), 3, None)
    assert any("all differences of cnn_s kd on test are equal" in note for note in document["notes"])


def test_report_without_the_default_baseline_says_so_and_a_wrong_one_is_refused(shared_api: Api) -> None:
    job_id = post_results(shared_api, {("kd", 0): result(0.5), ("dkd", 0): result(0.6)})
    document = report(shared_api, job_id)
    assert groups(document)["dkd"]["test"]["difference"] is None
    assert any("no run of the baseline 'ce' of cnn_s has succeeded" in note for note in document["notes"])
    refused = shared_api.client.get(f"/v1/jobs/{job_id}/report", params={"baseline": "ce"})
    assert refused.status_code == 422
    assert "no run has the method 'ce', which was named as the baseline: there are kd, dkd" in refused.json()["detail"]


def test_report_keeps_validation_apart_and_calls_nothing_best_without_it(shared_api: Api) -> None:
    chosen = {("ce", 0): result(0.5, 0.6), ("ce", 1): result(0.7, 0.8)}
    document = report(shared_api, post_results(shared_api, chosen))
    found = groups(document)["ce"]
    assert (found["validation"]["top1"]["mean"], found["test"]["top1"]["mean"]) == (
        pytest.approx(0.7),
        pytest.approx(0.6),
    )
    assert found["validation"]["worst_class"] == {"index": 0, "accuracy": pytest.approx(0.7), "teacher": None}
    assert found["validation"]["best_class"]["index"] == 1
    row = document["rows"][0]
    assert (row["accuracy_best"], row["best_epoch"], row["validation_accuracy"]) == (0.6, 1, 0.6)
    # As earlier versions have stored it: best on the test split.
    older = {"last": {"epoch": 2, "top1": 0.5, "top5": 0.9}, "best": {"epoch": 1, "top1": 0.9}, "best_epoch": 1}
    document = report(shared_api, post_results(shared_api, {("ce", 0): older}))
    row = document["rows"][0]
    assert (row["accuracy_last"], row["accuracy"], row["accuracy_best"], row["best_epoch"]) == (0.5, 0.5, None, None)
    assert groups(document)["ce"]["validation"] is None
    assert any("there is no validation split" in note for note in document["notes"])


def test_report_shows_calibration_and_the_teacher_beside_classes(shared_api: Api) -> None:
    """Of classes without a row neither is told."""
    of_run = result(0.5, 0.6, per_class=[0.25, None, 0.75])
    after = {"nll": {"before": 2.0, "after": 0.5}, "ece": {"before": 0.5, "after": 0.125}}
    of_run["calibration"] = {"temperature": 1.5, "split": "validation", **after, "test": after}
    job_id = post_results(shared_api, {("ce", 0): of_run})
    teacher = {"top1": 0.9, "top5": 1.0, "nll": 0.25, "ece": 0.05, "per_class": [0.8, None, 1.0]}
    with shared_api.context.database.write() as session:
        session.get_one(JobRecord, job_id).teacher_metrics = {"test": teacher}
    document = report(shared_api, job_id)
    assert document["teacher"]["test"] == teacher
    assert document["teacher"]["validation"] is None
    text = shared_api.client.get(f"/v1/jobs/{job_id}/report?format=markdown").text
    assert "| 90.00 | 100.00 | 0.2500 | 5.00 |" in text.splitlines()[2]
    assert "| 2: 75.00 (teacher 100.00) | 0: 25.00 (teacher 80.00) |" in text
    row, found = document["rows"][0], groups(document)["ce"]["test"]
    assert (row["calibration_temperature"], row["nll_calibrated"], row["ece_calibrated"]) == (1.5, 0.5, 0.125)
    assert found["ece_calibrated"]["mean"] == 0.125
    assert found["worst_class"] == {"index": 0, "accuracy": 0.25, "teacher": 0.8}
    assert found["best_class"] == {"index": 2, "accuracy": 0.75, "teacher": 1.0}


def test_report_of_a_job_without_a_test_split_says_that_nothing_was_measured_there(shared_api: Api) -> None:
    cut = {"holdout": 0.1, "seed": 0, "stratified": True}
    job_id = post_results(shared_api, {("ce", 0): result(None, 0.6)}, test=None, validation=cut)
    document = report(shared_api, job_id)
    row, found = document["rows"][0], groups(document)["ce"]
    assert (row["accuracy_last"], row["accuracy"], row["accuracy_best"]) == (None, None, 0.6)
    assert (found["test"], found["validation"]["top1"]["mean"]) == (None, 0.6)
    assert f"{job_id} has no test split ('test' is null): nothing was measured on test" in document["notes"]
    text = shared_api.client.get(f"/v1/jobs/{job_id}/report?format=markdown").text
    assert text.startswith("| student | method | seeds | top-1 validation | top-5 validation |")
    assert " test" not in text.splitlines()[0]


def test_report_keeps_stored_methods_with_one_label_apart(shared_api: Api) -> None:
    """As earlier versions have taken them: a custom method that has the baseline's name, and seeds of both."""
    outcomes = {(m, seed): result(0.5 + 0.2 * (m == "kd")) for m in ("ce", "kd") for seed in (0, 1)}
    job_id = post_results(shared_api, outcomes)
    spec = {"preset": "custom", "name": "ce", "terms": [{"loss": "kl"}]}
    ours = (RunRecord.job_id == job_id) & (RunRecord.method == "kd")
    with shared_api.context.database.write() as session:
        session.execute(update(RunRecord).where(ours).values(method="ce", method_spec=spec))
    document = report(shared_api, job_id)
    assert [row["method"] for row in document["rows"]] == ["ce", "ce", "ce #2", "ce #2"]
    found = groups(document)
    assert (found["ce"]["test"]["top1"]["mean"], found["ce"]["runs"]) == (0.5, {"succeeded": 2})
    assert found["ce #2"]["test"]["difference"]["mean"] == pytest.approx(0.2)
    assert any(note.startswith("ce #2 is another method than that without the number") for note in document["notes"])


# --------------------------------------------------------------------------------------------------------- per sample


def test_report_with_paired_samples_tests_each_seed_from_kept_logits(shared_api: Api) -> None:
    labels = np.arange(100) % 2
    # Six rows that kd alone gets right and one that ce alone does; of seed 1 ce has kept nothing.
    ce, kd = np.arange(100) < 50, (np.arange(100) < 56) & (np.arange(100) > 0)
    logits = {("ce", 0): logits_of(labels, ce), ("kd", 0): logits_of(labels, kd), ("kd", 1): logits_of(labels, kd)}
    outcomes = {(m, seed): result(0.5) for m in ("ce", "kd") for seed in (0, 1)}
    job_id = post_results(shared_api, outcomes, logits)
    assert groups(report(shared_api, job_id))["kd"]["test"]["samples"] is None
    document = report(shared_api, job_id, paired="samples")
    runs = {(row["method"], row["seed"]): row["run_id"] for row in document["rows"]}
    assert groups(document)["kd"]["test"]["samples"] == [
        {
            "seed": 0,
            "run_id": runs["kd", 0],
            "baseline_run_id": runs["ce", 0],
            "rows": 100,
            "only_baseline": 1,
            "only_method": 6,
            "p_value": pytest.approx(0.125),
        }
    ]
    notes = " | ".join(document["notes"])
    assert f"{runs['ce', 1]} has kept no logits" in notes
    assert "seeds are not pooled" in notes
    text = shared_api.client.get(f"/v1/jobs/{job_id}/report?paired=samples&format=markdown").text
    assert "p = 0.1250 (seed 0)" in text


@pytest.mark.parametrize("damage", ["cut", "labels", "dtype"])
def test_report_with_paired_samples_refuses_files_that_do_not_pair(shared_api: Api, damage: str) -> None:
    labels = np.arange(10) % 2
    right = labels == 0
    others = {**logits_of(1 - labels if damage == "labels" else labels, right)}
    if damage == "dtype":
        others["test"] = others["test"].astype(np.float64)
    job_id = post_results(
        shared_api,
        {("ce", 0): result(0.5), ("kd", 0): result(0.5)},
        {("ce", 0): logits_of(labels, right), ("kd", 0): others},
    )
    if damage == "cut":
        (file,) = (shared_api.settings.data_dir / "jobs" / job_id).glob(
            f"{shared_api.records.runs(job_id)[1].id}/a1/logits.safetensors"
        )
        file.write_bytes(file.read_bytes()[:-8])
    answer = shared_api.client.get(f"/v1/jobs/{job_id}/report", params={"paired": "samples"})
    assert answer.status_code == 409
    expected = {
        "cut": "cannot be read",
        "labels": "different test rows",
        "dtype": "logits are F16 or F32 [rows, classes]",
    }
    assert expected[damage] in answer.json()["detail"]


# --------------------------------------------------------------------------------------------------------- as text


def test_report_as_text_has_a_line_per_run_or_group(shared_api: Api) -> None:
    job_id = post_results(shared_api, SEEDS)

    def lines(**query: str) -> list[str]:
        answer = shared_api.client.get(f"/v1/jobs/{job_id}/report", params=query)
        kinds = {"csv": "text/csv", "markdown": "text/markdown", "latex": "application/x-latex"}
        assert answer.headers["content-type"].startswith(kinds[query["format"]])
        assert answer.headers["content-disposition"].startswith(f'attachment; filename="{job_id}.')
        return answer.text.splitlines()

    assert len(lines(format="csv")) == 1 + 6
    _, kd = csv.DictReader(io.StringIO("\n".join(lines(format="csv", group="seeds"))))
    assert float(kd["test_difference_mean"]) == pytest.approx(np.mean(KD) - np.mean(CE))
    assert (kd["succeeded"], kd["test_difference_baseline"], kd["validation_top1_mean"]) == ("3", "ce", "")
    table = lines(format="markdown")
    assert table[0].startswith("| student | method | seeds | top-1 test |")
    assert table[2].startswith("| teacher |")
    assert table[4].startswith("| cnn\\_s | kd | 3 | 55.67 ± 2.08 |")
    assert "| +4.67 [+0.87, +8.46] |" in table[4]
    assert len(lines(format="markdown", group="runs")) == 2 + 6
    tex = lines(format="latex")
    assert tex[1].startswith(r"\begin{tabular}{llrrrr")
    assert any(line.startswith(r"cnn\_s & kd & 3 & 55.67 $\pm$ 2.08 &") for line in tex)


def test_report_as_json_of_one_grouping_leaves_the_other_out(shared_api: Api) -> None:
    job_id = post_results(shared_api, SEEDS)
    runs, seeds = report(shared_api, job_id, group="runs"), report(shared_api, job_id, group="seeds")
    assert (len(runs["rows"]), len(runs["groups"]), len(seeds["rows"]), len(seeds["groups"])) == (6, 0, 0, 2)


# ------------------------------------------------------------------------------------------------------- performance


def test_report_of_a_thousand_runs_takes_no_more_statements_and_intervals_than_one_of_six(
    shared_api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """250 methods of four seeds with ten classes. A call of scipy, or a statement, takes its time whatever is asked."""
    calls: Counter[str] = Counter()
    counted = list[str]()
    t_intervals = statistics.t_intervals

    def count_intervals(
        means: Sequence[statistics.MeanOfSample | None], confidence: float
    ) -> list[statistics.Interval | None]:
        calls["intervals"] += 1
        return t_intervals(means, confidence)

    monkeypatch.setattr(statistics, "t_intervals", count_intervals)

    def made_by(job_id: str, groups: int) -> dict[str, int]:
        calls.clear()
        counted[:] = [f"of-{groups}-groups"]
        # Not from memory: see ``response_cache``.
        headers = {"Last-Event-ID": "0", REQUEST_ID_HEADER: counted[0]}
        answer = shared_api.client.get(f"/v1/jobs/{job_id}/report", headers=headers)
        assert len(answer.json()["groups"]) == groups
        return dict(calls)

    def count_statement(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        # Of this request alone, as others poll meanwhile; and not of its key, which is read again every second.
        if [get_contextvars().get("request_id")] == counted and "SELECT" in statement and "api_keys" not in statement:
            calls["statements"] += 1

    small = post_results(shared_api, SEEDS)
    methods = [{"preset": "kd", "temperature": 1 + place / 100} for place in range(250)]
    job = shared_api.post_job(methods=["ce", *methods[1:]], seeds=[0, 1, 2, 3])
    assert shared_api.records.claim_job() is not None
    of_run = result(0.5, 0.6, per_class=[0.5] * 10)
    with shared_api.context.database.write() as session:
        session.execute(
            update(RunRecord).where(RunRecord.job_id == job["id"]).values(state=State.SUCCEEDED, result=of_run)
        )
    event.listen(Engine, "before_cursor_execute", count_statement)
    try:
        of_six, of_a_thousand = made_by(small, 2), made_by(job["id"], 250)
    finally:
        event.remove(Engine, "before_cursor_execute", count_statement)
    assert of_a_thousand == of_six == {"statements": 3, "intervals": 2}
    assert of_six["intervals"] == 2
    assert of_six["statements"] > 0
