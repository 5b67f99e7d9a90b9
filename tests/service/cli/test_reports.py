"""Commands about results against a real API: tables for a terminal, as text, and over several jobs."""

import json
import re

import numpy as np
import pytest

from service.cli import main
from service.db.models import JobRecord
from service.db.states import State
from tests.support.reported import logits_of, post_results, result
from tests.support.service_helpers import Api

pytest_plugins = ["tests.support.service_fixtures"]

SEEDS = {
    ("ce", 0): result(0.50, 0.6),
    ("ce", 1): result(0.52, 0.61),
    ("kd", 0): result(0.55, 0.64),
    ("kd", 1): result(0.58, 0.66),
}


class Retort:
    """``retort`` in this process, asking ``api``."""

    def __init__(self, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
        self.api, self._capsys = api, capsys

    def __call__(self, *arguments: str) -> str:
        """Standard output of a command that succeeds."""
        status = main(["--url", self.api.url, *arguments])
        out, err = self._capsys.readouterr()
        assert status == 0, err
        return out

    def refused(self, *arguments: str) -> str:
        """Standard error of one that fails."""
        assert main(["--url", self.api.url, *arguments]) == 1
        return self._capsys.readouterr().err


@pytest.fixture
def retort(shared_api: Api, capsys: pytest.CaptureFixture[str]) -> Retort:
    return Retort(shared_api, capsys)


def test_report_shows_runs_then_methods_over_seeds_with_notes(retort: Retort) -> None:
    job_id = post_results(retort.api, {**SEEDS, ("kd", 2): result(0.9, 0.9), ("ce", 2): State.CANCELLED})
    with retort.api.context.database.write() as session:
        session.get_one(JobRecord, job_id).teacher_metrics = {"validation": {"top1": 0.875}}
    shown = retort("report", job_id)
    assert "top-1 87.5 % on the validation split" in shown
    runs, over_seeds, rest = shown.split("\n\n", 2)
    assert runs.split()[:6] == ["student", "method", "seed", "state", "top-1", "best"]
    assert len(runs.splitlines()) == 1 + 6
    header, ce, kd = over_seeds.splitlines()
    columns = ["student", "method", "seeds", "top-1 validation", "difference [95 %]", "ECE", "worst class"]
    assert re.split(r" {2,}", header.strip())[:7] == columns
    assert re.search(r"ce +2 +60\.50 ± 0\.71 % ", ce)
    # Differences 0.05 and 0.06: a t interval of one degree of freedom.
    assert "+5.50 [-0.85, +11.85]" in kd
    assert "note: 1 of 6 runs have not succeeded (1 cancelled); they are in no mean" in rest
    assert "note: differences leave out what has no run of the baseline with the same seed: cnn_s kd (seed 2)" in rest
    assert len(retort("report", job_id, "--group", "runs").split("\n\n")[0].splitlines()) == 7
    assert "top-1 validation" in retort("report", job_id, "--group", "seeds").splitlines()[0]


def test_report_prints_each_format(retort: Retort) -> None:
    job_id = post_results(retort.api, SEEDS)
    assert retort("report", job_id, "--format", "csv") == retort("report", job_id, "--csv")
    assert retort("report", job_id, "--format", "csv", "--group", "seeds").startswith("job_id,student,method,runs,")
    assert retort("report", job_id, "--format", "markdown", "--confidence", "0.9").startswith("| student | method |")
    assert "\\begin{tabular}" in retort("report", job_id, "--format", "latex")
    as_json = json.loads(retort("report", job_id, "--format", "json", "--baseline", "kd", "--confidence", "0.9"))
    assert (as_json["baseline"], as_json["confidence"], len(as_json["groups"])) == ("kd", 0.9, 2)
    assert as_json == json.loads(retort("--json", "report", job_id, "--baseline", "kd", "--confidence", "0.9"))
    assert "two formats: name one" in retort.refused("report", job_id, "--csv", "--format", "latex")
    assert "there are ce, kd" in retort.refused("report", job_id, "--baseline", "dkd")


def test_report_paired_by_samples_shows_a_p_value_of_each_seed(retort: Retort) -> None:
    labels = np.zeros(20, np.int64)
    logits = {
        (method, seed): logits_of(labels, np.arange(20) < (10 if method == "ce" else 16)) for method, seed in SEEDS
    }
    job_id = post_results(retort.api, SEEDS, logits)
    # Six rows one way and none the other: 2 / 2^6.
    assert "; seed 0 p 0.031; seed 1 p 0.031" in retort("report", job_id, "--paired", "samples", "--group", "seeds")


def test_compare_shows_one_table_over_jobs(retort: Retort) -> None:
    first = post_results(retort.api, SEEDS)
    second = post_results(retort.api, {("kd", 0): result(0.6, 0.7), ("kd", 1): result(0.64, 0.7)})
    table = retort("compare", first, second).splitlines()
    assert table[0].split()[:3] == ["job", "student", "method"]
    assert [line.split()[0] for line in table[1:4]] == [first, first, second]
    # The baseline's job, in a line of its own.
    assert table[4].split() == [first, first]
    assert json.loads(retort("--json", "compare", first, second, "--baseline-job", first))["baseline"] is None
    assert retort("compare", first, second, "--format", "csv").count(second) == 1
    other = post_results(retort.api, {("ce", 0): result(0.5)}, validation={"holdout": 0.25})
    refused = retort.refused("compare", first, other)
    assert "accept_different_data" in refused
    assert "note: " in retort("compare", first, other, "--accept-different-data")


def test_watch_of_a_job_with_a_cancelled_run_tells_how_many_have_succeeded(
    retort: Retort, capsys: pytest.CaptureFixture[str]
) -> None:
    api = retort.api
    job_id = post_results(api, {**SEEDS, ("ce", 1): State.CANCELLED})
    assert api.records.move_job(job_id, State.SUCCEEDED, attempt=1)
    assert main(["--url", api.url, "watch", job_id]) == 0
    assert "job succeeded (" in (err := capsys.readouterr().err)
    assert "3 succeeded" in err
    assert "1 cancelled" in err
