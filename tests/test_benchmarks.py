"""Benchmarks run, print what they write, and time their calls in turns. No time is judged here."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.benchmarks.bench import Options, Timing, interleaved
from tests.benchmarks.methods import BAR, CALL_LIMIT_S, METHODS, Cell, as_json, measure, report, verdict, whole_batch
from workers.combinations import PRESETS

ROOT = Path(__file__).resolve().parents[1]


def cell(batch: int = 64, **seconds: float) -> Cell:
    """A student's step of 1 s, ``ce`` of 0 s, and the given times; the other methods are skipped."""
    losses = {name: Timing([value] * 3) for name, value in {"ce": 0.0, **seconds}.items()}
    return Cell(100, batch, Timing([1.0] * 3), losses, {name: 99.0 for name in METHODS if name not in losses})


# --------------------------------------------------------------------------------------------------------------- timing


def test_every_call_is_made_in_every_round_in_changing_order() -> None:
    made: list[str] = []
    names = "abcd"
    timings = interleaved({name: partial(made.append, name) for name in names}, rounds=6)
    assert made[:4] == list(names)  # to warm up
    rounds = [tuple(made[start : start + 4]) for start in range(4, len(made), 4)]
    assert len(rounds) == 6
    assert all(sorted(one) == list(names) for one in rounds)
    assert len(set(rounds)) > 3
    assert all(len(timing.seconds) == 6 for timing in timings.values())


def test_a_call_shorter_than_a_turn_is_repeated_and_each_repetition_timed() -> None:
    made: list[str] = []
    timings = interleaved({name: partial(made.append, name) for name in "ab"}, rounds=2, turn_s=600.0, most=7)
    assert {len(set(made[start : start + 7])) for start in range(2, len(made), 7)} == {1}
    assert [len(timing.seconds) for timing in timings.values()] == [14, 14]


def test_the_spread_is_half_the_middle_half() -> None:
    timing = Timing([1.0, 2.0, 3.0, 4.0, 50.0])
    assert (timing.median_s, timing.spread_s) == (3.0, 1.0)


# -------------------------------------------------------------------------------------------------------------- methods


def test_an_overhead_is_what_a_method_adds_to_ce_as_a_share_of_the_step() -> None:
    given = Cell(100, 64, Timing([4.0] * 2), {"ce": Timing([1.0] * 2), "kd": Timing([1.0, 3.0])}, {})
    assert given.overhead("kd") == 0.25
    assert given.spread("kd") == 0.125


def test_a_call_that_would_take_too_long_is_expected_from_the_smaller_batch() -> None:
    small = cell(batch=512, lud=CALL_LIMIT_S / 3)
    assert small.predicted_s("lud", 1024) == pytest.approx(4 * CALL_LIMIT_S / 3)
    assert small.predicted_s("kd", 1024) == 4 * 99.0


def test_what_would_take_too_long_is_not_called() -> None:
    measured = measure(Options(json=None, quick=True, device=torch.device("cpu")), 100, 4, cell(batch=2, kd=0.01))
    assert set(measured.losses) == {"ce", "kd"}
    assert set(measured.skipped) == set(METHODS) - {"ce", "kd"}


def test_what_is_skipped_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    report([cell(kd=0.01)])
    printed = capsys.readouterr().out
    assert re.search(r"^kd +1\.00 ±0\.00$", printed, re.MULTILINE)
    assert re.search(r"^lud +whole batch +skipped$", printed, re.MULTILINE)
    assert "lud at B=64 is skipped: a call could take 99 s, the limit is 10" in printed


def test_the_last_line_names_who_misses_the_bar() -> None:
    assert whole_batch("dist")
    assert not whole_batch("dkd")
    assert "missed by dkd at B=64 (4.0 %)" in verdict([cell(kd=0.5 * BAR, dkd=0.04, dist=1.0)])
    assert "all 2 figures are" in verdict([cell(kd=0.5 * BAR, dkd=0.5 * BAR, dist=1.0)])


def test_the_program_prints_what_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "methods.json"
    command = [sys.executable, "-m", "tests.benchmarks.methods", "--quick", "--threads", "1", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    written = json.loads(path.read_text())
    assert written["benchmark"] == "methods"
    assert written["environment"]["torch"] == torch.__version__
    assert (written["environment"]["threads"], written["environment"]["device"]) == (1, "cpu")
    (only,) = written["cells"]
    assert set(only) == set(as_json(cell()))
    assert (only["classes"], only["batch"], only["skipped"]) == (100, 64, {})
    assert set(only["methods"]) == set(PRESETS) - {"ce", "custom"} | {"expression"}
    assert re.search(rf"^student's step, ms +{1000 * only['student_s']:.1f}$", done.stdout, re.MULTILINE)
    for name, figure in only["methods"].items():
        assert figure["overhead"] == pytest.approx((figure["median_s"] - only["ce_s"]) / only["student_s"])
        notes = ["whole batch"] * figure["whole_batch"] + ["2 views"] * (figure["views"] == 2)
        shown = f"{100 * figure['overhead']:.2f} ±{100 * figure['spread']:.2f}"
        assert re.search(rf"^{name} +{', '.join(notes)} *{re.escape(shown)}$", done.stdout, re.MULTILINE), name
    missed = {
        name for name, figure in only["methods"].items() if figure["overhead"] >= BAR and not figure["whole_batch"]
    }
    last = done.stdout.splitlines()[-1]
    assert set(re.findall(r"(\w+) at B=64", last)) == missed
