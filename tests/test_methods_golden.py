"""Every implemented method gives the numbers of its authors' own code: loss, terms and gradient."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.__main__ import main
from tests.golden.check import HERE, Case, check, gradient_differences, load, number, relative, run
from tests.golden.recipes import RECIPES

CASES = {case.name: case for case in load(HERE)}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_float64_equals_the_authors_code(name: str, case: Case) -> None:
    outcome = check(name, case)
    assert outcome.problem is None
    assert outcome.note is None
    assert set(outcome.differences) == {"total", "terms", "gradient"}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_float32_is_as_close_as_float32_can_be(name: str, case: Case) -> None:
    reference = case.results[name]
    result, gradient_BC = run(RECIPES[name], case, torch.float32)
    assert result.total.dtype == torch.float32
    assert relative(result.total.item(), number(reference["total"])) < 1e-5
    differences = gradient_differences(reference, gradient_BC)
    assert differences is not None
    assert max(differences.values()) < 1e-4


def test_every_golden_term_of_an_implemented_id_is_compared() -> None:
    case = CASES["s0_C10"]
    for name, recipe in RECIPES.items():
        assert set(recipe.terms) == set(case.results[name]["terms"]), name


def _copy(folder: Path) -> dict[str, Any]:
    for file in ("golden.json", "golden.npz"):
        shutil.copy(HERE / file, folder / file)
    document: dict[str, Any] = json.loads((folder / "golden.json").read_text())
    document["cases"] = {"s0_C10": document["cases"]["s0_C10"]}
    return document


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("total", 4.53015780),
        ("terms", {"kd_weighted": 4.2278245}),
        ("grad_norm", 0.24023520),
        ("grad_first5", [0.0, -0.00039992925, 0.026678783, 0.0228243276, -0.0081149134]),
        ("grad_cos_checksum", -0.3587123),
        ("grad_abs_sum", 2.34151968),
    ],
)
def test_the_checker_sees_a_wrong_number(
    field: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = _copy(tmp_path)
    document["cases"]["s0_C10"]["results"]["kd"][field] = value
    (tmp_path / "golden.json").write_text(json.dumps(document))
    assert main([str(tmp_path)]) == 1
    misses = [row for row in capsys.readouterr().out.splitlines() if "MISS" in row]
    assert [row.split()[0] for row in misses] == ["kd"]


def test_the_checker_names_what_it_cannot_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _copy(tmp_path)
    document["cases"]["s0_C10"]["results"]["of_tomorrow"] = {"total": 1.0}
    (tmp_path / "golden.json").write_text(json.dumps(document))
    assert main([str(tmp_path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("not implemented: ")
    assert last.endswith("of_tomorrow")


def test_a_reference_that_is_not_a_number_is_met_with_a_finite_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = _copy(tmp_path)
    results = document["cases"]["s0_C10"]["results"]
    results["kd"] |= {"total": "nan", "terms": {"kd_weighted": "nan"}, "grad_norm": "nan"}
    results["lskd"]["grad_first5"] = ["nan"] * 5
    (tmp_path / "golden.json").write_text(json.dumps(document))
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "reference nan, ours 4.53016 with a finite gradient" in printed
    assert "reference gradient is not finite, ours is" in printed


def test_the_checker_refuses_a_folder_without_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert main([]) == 2
