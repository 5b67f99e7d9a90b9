"""Benchmarks run, print what they write, and time their calls in turns. No time is judged here."""

import gc
import importlib
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks.bench import Options, Timing, interleaved
from tests.benchmarks.gpu import QUICK_PARTS, run_part
from tests.benchmarks.gpu_parts import Bench, Finding
from tests.benchmarks.methods import BAR, CALL_LIMIT_S, METHODS, Cell, as_json, measure, report, verdict, whole_batch
from tests.benchmarks.plot import Chart, write_svg
from tests.benchmarks.retention import measure as measure_retention
from tests.benchmarks.scaling import MEMORY, TIMES, Sweep
from tests.benchmarks.scaling_process import watched
from tests.fake_cuda.processes import FakeCuda
from workers.methods.combined import PRESETS

ROOT = Path(__file__).resolve().parents[2]


def completed(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """A program that has ended well."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done


def cell(batch: int = 64, **seconds: float) -> Cell:
    """A student's step of 1 s, ``ce`` of 0 s, and the given times; the other methods are skipped."""
    losses = {name: Timing([value] * 3) for name, value in {"ce": 0.0, **seconds}.items()}
    return Cell(100, batch, Timing([1.0] * 3), losses, {name: 99.0 for name in METHODS if name not in losses})


def test_benchmarks_import_what_is_there() -> None:
    modules = [
        importlib.import_module(f"tests.benchmarks.{path.stem}") for path in (ROOT / "tests/benchmarks").glob("*.py")
    ]
    assert len(modules) > 30


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
    done = completed(command)
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


# -------------------------------------------------------------------------------------------------------------- scaling


def sweep(name: str, sizes: list[int], seconds: list[float], memory: list[float]) -> Sweep:
    """All times are ``seconds``, all memory is ``memory``."""
    points = [(1000, size) if name == "classes" else (size, 10) for size in sizes]
    figures = [
        {**dict.fromkeys(TIMES.values(), time), **dict.fromkeys(MEMORY.values(), bytes_)}
        for time, bytes_ in zip(seconds, memory, strict=True)
    ]
    return Sweep(name, dict(zip(points, figures, strict=True)))


@pytest.mark.parametrize("name", ["rows-100", "classes"])
def test_exponents_and_bytes_are_those_of_what_grows(name: str) -> None:
    found = sweep(name, [10, 100, 1000], [0.1, 1.0, 10.0], [1070.0, 1700.0, 8000.0])
    assert found.exponent("epoch_s") == pytest.approx(1.0)
    assert sweep(name, [1, 10, 100], [1.0, 1.0, 100.0], [5.0] * 3).exponent("epoch_s", 2) == pytest.approx(2.0)
    assert found.memory("reader_bytes") == pytest.approx((1000.0, 7.0))
    assert sweep(name, [10, 1000], [3.0, 3.0], [5.0, 5.0]).exponent("open_s") == pytest.approx(0.0)


def test_private_memory_is_seen_at_its_highest_and_without_mapped_files(tmp_path: Path) -> None:
    np.zeros(20 << 20, np.uint8).tofile(tmp_path / "mapped")
    gc.collect()  # or what other tests have left may go meanwhile
    figures: dict[str, float] = {}
    with watched(figures):
        assert int(np.memmap(tmp_path / "mapped", np.uint8, "r").max()) == 0
    assert figures["private_bytes"] < 10 << 20
    with watched(figures) as seen:
        block = np.ones(40 << 20, np.uint8)
        looks = len(seen)
        while len(seen) < looks + 2:
            assert block.all()
        del block
    assert 40 << 20 <= figures["private_bytes"] < 60 << 20


def test_a_chart_has_its_points_where_the_decades_say(tmp_path: Path) -> None:
    path = tmp_path / "chart.svg"
    write_svg(
        path, [Chart("times & sizes", "rows", "s", {"a": [(1, 1), (10, 10), (100, 100)], "b": [(1, 1), (100, 1)]})]
    )
    drawn = ET.parse(path).getroot()
    places = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in drawn.iter("{http://www.w3.org/2000/svg}circle")]
    (x1, y1), (x2, y2), (x3, y3), lowest, _ = places
    assert (x1, y1) == lowest
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)  # rounded to a tenth of a pixel
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert x2 > x1
    assert y1 > y2
    assert {"times & sizes", "a", "b", "1", "10", "100"} <= {text.text for text in drawn.iter() if text.text}


def test_scaling_prints_what_it_writes_and_draws_it(tmp_path: Path) -> None:
    path = tmp_path / "scaling.json"
    command = [sys.executable, "-m", "tests.benchmarks.scaling", "--quick", "--json", str(path)]
    done = completed(command)
    (only,) = json.loads(path.read_text())["sweeps"]
    assert [(point["samples"], point["classes"]) for point in only["points"]] == [(500, 100), (5000, 100)]
    for point in only["points"]:
        times = " +".join(f"{1e3 * point[name]:,.2f}" for name in TIMES.values())
        memory = " +".join(f"{point[name] / 1e6:.1f}" for name in MEMORY.values())
        assert re.search(rf"^ *{point['samples']:,} +[\d.]+ +{times} +{memory}$", done.stdout, re.MULTILINE)
    exponents = " +".join(f"{only['exponents'][name]:.2f}" for name in TIMES.values())
    assert re.search(rf"^ *exponent +{exponents} *$", done.stdout, re.MULTILINE)
    assert "<polyline" in path.with_suffix(".svg").read_text()


# -------------------------------------------------------------------------------------------- reading, inference, epoch


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["reading", "inference", "epoch"])
def test_the_other_programs_run(name: str, tmp_path: Path) -> None:
    run_quickly(name, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("shared_data")
def test_the_views_program_prints_a_row_for_each_number_of_views(tmp_path: Path) -> None:
    path = tmp_path / "views.json"
    done = completed([sys.executable, "-m", "tests.benchmarks.views", "--quick", "--json", str(path)])
    figures = json.loads(path.read_text())["figures"]
    assert [line["name"] for line in figures] == ["1", "fresh"]
    for line in figures:
        [ce], [kd] = line["top1"]["ce"], line["top1"]["kd"]
        shown = rf"^{line['name']} +{100 * ce:.1f} +{100 * kd:.1f} +{100 * (kd - ce):+.1f}$"
        assert re.search(shown, done.stdout, re.MULTILINE), line


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("shared_data")
def test_the_program_of_unlabelled_pictures_has_a_line_for_each_case(tmp_path: Path) -> None:
    run_quickly("unlabelled", tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert [(line["method"], line["labels"], line["pictures"]) for line in figures] == [
        ("ce", 20, 20),
        ("kd", 20, 200),
        ("kd", 0, 200),
        ("kd", 20, 20),
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["methods", "inference", "epoch", "streaming"])
def test_what_computes_is_measured_on_a_gpu_where_asked(name: str, tmp_path: Path) -> None:
    assert run_quickly(name, tmp_path, "--device", "cuda")["device"] not in ("cpu", "cuda")


def run_quickly(name: str, folder: Path, *options: str) -> dict[str, object]:
    """Returns where it says that it was measured."""
    path = folder / "figures.json"
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--quick", "--json", str(path), *options]
    completed(command)
    written = json.loads(path.read_text())
    assert written["benchmark"] == name
    environment: dict[str, object] = written["environment"]
    return environment


# ------------------------------------------------------------------------------------------------------------------ gpu


@pytest.mark.fake_cuda
def test_gpu_program_reports_each_part_on_the_fake_device(fake_cuda: FakeCuda, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--quick", "--json", str(path)]
    done = subprocess.run(
        command, env=fake_cuda.environment(), capture_output=True, text=True, check=False, cwd=ROOT, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = {part["part"]: part for part in json.loads(path.read_text())["parts"]}
    assert {name: part["state"] for name, part in parts.items()} == {
        **dict.fromkeys(QUICK_PARTS, "ran"),
        "copies": "cannot run",
    }
    assert parts["copies"]["said"] == "it needs two GPUs, and there is 1"
    judged = {name: {each["judgement"] for each in part["findings"]} for name, part in parts.items()}
    assert judged["graph"] == {"not judged on the fake"}
    assert judged["syncs"] == judged["oom"] == {"holds"}
    for finding in (finding for part in parts.values() for finding in part["findings"]):
        shown = rf"^{re.escape(finding['what'])} +{finding['value']:.4g}\b"
        assert re.search(shown, done.stdout, re.MULTILINE), finding


def test_gpu_program_ends_with_one_sentence_where_no_gpu_is() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"This measures on a GPU, and there is none that works: torch .*\n", done.stderr)


def test_gpu_part_is_left_out_if_the_time_is_not_enough(tmp_path: Path) -> None:
    report = run_part("steps", Bench(tmp_path, torch.device("cpu"), quick=True), left_s=20.0)
    assert (report.state, report.said) == ("left out", "it may take 60 s, and 20 s are left")


def test_gpu_finding_without_a_number_misses_its_bar() -> None:
    assert not Finding("a ratio", math.nan, at_least=1.0).holds
    assert not Finding("a ratio", math.nan, at_most=1.0).holds
    assert Finding("a ratio", 1.0, at_least=1.0, at_most=1.0).holds
    assert Finding("a ratio", math.nan).holds is None


# ------------------------------------------------------------------------------------------------------------ encodings


def test_the_encodings_program_prints_what_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "encodings.json"
    command = [sys.executable, "-m", "tests.benchmarks.encodings", "--quick", "--threads", "1", "--json", str(path)]
    done = completed(command)
    written = json.loads(path.read_text())
    assert written["benchmark"] == "encodings"
    for line in written["fidelity"]:
        shown = rf"^{re.escape(line['encoding'])} +{line['row_bytes']:,} +{line['kl'][0]:.1e} "
        assert re.search(shown, done.stdout, re.MULTILINE), line
        alike = line["cosine"] == line["averaged"]
        assert alike != line["encoding"].startswith("sparse")
    best = {line["encoding"]: line["cosine"][2] for line in written["fidelity"]}
    assert 0.999 < best["uint8"] < best["float16"] <= 1
    for one in written["decoding"]:
        shown = rf"^ +{one['classes']:,} +{re.escape(one['encoding'])} +{1e3 * one['batch_s']:.3f} "
        assert re.search(shown, done.stdout, re.MULTILINE), one


# ----------------------------------------------------------------------------------------------------------------- load


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_load_program_prints_what_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    command = [sys.executable, "-m", "tests.benchmarks.load", "--quick", "--json", str(path)]
    done = completed(command)
    written = json.loads(path.read_text())
    assert written["benchmark"] == "load"
    clients = written["clients"]
    assert len(clients["routes"]) == 4
    for route, of in clients["routes"].items():
        assert of["requests"] > 0
        assert of["errors"] == 0
        shown = rf"^{re.escape(route)} +{of['requests']:,} +{of['unchanged']:,} +0 +{of['p50_ms']:.1f} "
        assert re.search(shown, done.stdout, re.MULTILINE), route
    events = clients["events"]
    assert events["received"] > 0
    assert [events[name] for name in ("lost", "doubled", "broken", "silent")] == [0] * 4
    for database, pages in written["lists"]["databases"].items():
        assert pages["/metrics"]["items"] == written["lists"]["jobs"]
        for page, of in pages.items():
            assert re.search(rf"^{database} +{re.escape(page)} +{of['items']:.0f} ", done.stdout, re.MULTILINE)
    for number, of in enumerate(written["memory"], start=1):
        assert of["events"] > 0
        shown = rf"^ *{number} +{of['requests']:,} +{of['events']:,} +{of['resident_bytes'] / (1 << 20):.1f}$"
        assert re.search(shown, done.stdout, re.MULTILINE)


def test_the_benchmark_of_retention_shows_a_day_before_and_after(tmp_path: Path) -> None:
    """Compacting takes events and leaves jobs; half of the jobs go, then all."""
    before, filled, compacted, half, none = measure_retention(tmp_path, jobs=2, epochs=3, seed=0)
    assert [row[1] for row in (before, filled, compacted, half, none)] == ["0", "2", "2", "1", "0"]
    assert (filled[2], compacted[2], compacted[3]) == ("88", "0", "6")
    assert [row[5] for row in (filled, compacted, half, none)] == ["2.6", "2.6", "1.3", "0.0"]
