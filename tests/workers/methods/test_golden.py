"""Every implemented method gives the numbers of its authors' own code: loss, terms and gradient."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.__main__ import main
from tests.golden.check import HERE, Case, Run, check, gradient_differences, load, number, relative, run
from tests.golden.recipes import NOT_TARGETS, RECIPES

CASES = {case.name: case for case in load(HERE)}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_golden_float64_equals_the_authors_code(name: str, case: Case) -> None:
    outcome = check(name, case)
    assert outcome.problem is None
    assert outcome.note is None
    assert set(outcome.differences) == {"total", "terms", "gradient"}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_golden_float32_is_as_close_as_float32_can_be(name: str, case: Case) -> None:
    reference = case.results[name]
    ours = run(RECIPES[name], case, torch.float32)
    assert ours.result.total.dtype == torch.float32
    assert relative(ours.result.total.item(), number(reference["total"])) < 1e-5
    differences = gradient_differences(reference, ours)
    assert differences is not None
    assert max(differences.values()) < 1e-4


def test_golden_every_golden_term_of_an_implemented_id_is_compared() -> None:
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
def test_golden_checker_sees_a_wrong_number(
    field: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = _copy(tmp_path)
    document["cases"]["s0_C10"]["results"]["kd"][field] = value
    (tmp_path / "golden.json").write_text(json.dumps(document))
    assert main([str(tmp_path)]) == 1
    misses = [row for row in capsys.readouterr().out.splitlines() if "MISS" in row]
    assert [row.split()[0] for row in misses] == ["kd"]


def test_golden_checker_names_what_it_cannot_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _copy(tmp_path)
    document["cases"]["s0_C10"]["results"]["of_tomorrow"] = {"total": 1.0}
    (tmp_path / "golden.json").write_text(json.dumps(document))
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "not implemented: of_tomorrow"


def test_golden_every_id_is_a_target_but_one_that_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    ids = set(json.loads((HERE / "golden.json").read_text())["methods"])
    assert ids == set(RECIPES) | set(NOT_TARGETS)
    assert set(NOT_TARGETS) == {"lud_transcription"}
    assert main([str(HERE)]) == 0
    assert "lud_transcription    not a target" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("mlld", "grad_view2_norm", 0.68420254),
        ("mlld", "grad_view2_first5", [0.0, -0.0138816700, 0.0589750364, 0.0542222629, -0.0077812657]),
        ("ctkd_epoch3", "grad_theta_after_reversal", 0.007261722490801699),
    ],
)
def test_golden_checker_sees_a_wrong_second_view_and_a_gradient_that_is_not_reversed(
    name: str, field: str, value: object, tmp_path: Path
) -> None:
    document = _copy(tmp_path)
    document["cases"]["s0_C10"]["results"] = {name: document["cases"]["s0_C10"]["results"][name] | {field: value}}
    (tmp_path / "golden.json").write_text(json.dumps(document))
    assert main([str(tmp_path)]) == 1


def test_golden_checker_refuses_numbers_of_other_hyperparameters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = _copy(tmp_path)
    document["methods"]["kd"]["hyperparameters"]["T"] = 2
    (tmp_path / "golden.json").write_text(json.dumps(document))
    assert main([str(tmp_path)]) == 1
    assert "its hyper-parameters are {'T': 2, 'ce': 0.1, 'kd': 0.9}, the recipe's {'T': 4" in capsys.readouterr().out


def test_golden_reference_that_is_not_a_number_is_met_with_a_finite_loss(
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


def test_golden_checker_refuses_a_folder_without_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert main([]) == 2


def test_golden_differences_below_an_absolute_floor_are_rounding() -> None:
    """A student that equals its teacher: the reference's gradient is 0 or 1e-17, and so has no digits to compare."""
    ours = Run(
        run(RECIPES["kd"], CASES["s0_C10"]).result,
        [torch.full((4, 5), 2e-14, dtype=torch.float64)],
        [torch.tensor(3e-13)],
    )
    names = ("grad_norm", "grad_abs_sum", "grad_cos_checksum", "grad_theta_after_reversal")
    reference = {**dict.fromkeys(names, 0.0), "grad_first5": [1e-17, 0.0, 0.0, 0.0, 0.0]}
    assert set((gradient_differences(reference, ours) or {"": 1.0}).values()) == {0.0}
    assert relative(1e-12, 0.0) == 0.0
    assert relative(3e-12, 0.0) > 1e-9
    apart = gradient_differences(reference | {"grad_norm": 1e-11}, ours)
    assert apart is not None
    assert apart["grad_norm"] > 0.5
