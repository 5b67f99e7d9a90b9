"""Methods at the edges of their domain: finite and not negative, or a refusal that names the sample."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.method_inputs import EDGES, Logits, evaluate, ordinary
from workers.composition import LOSS_CLASSES, POLICY_CLASSES, Method, Term
from workers.errors import NotFinite
from workers.methods import PRESETS, parse_method
from workers.objective import objective
from workers.parts import Asymmetric, Loss, MaxLogit, Policy, Wttm
from workers.softmax import one_hot
from workers.temperature import row_statistics

COMBINATIONS = [
    pytest.param(policy, loss, id=f"{type(policy).__name__}-{type(loss).__name__}")
    for policy, loss in itertools.product(
        [*(cls() for cls in POLICY_CLASSES), MaxLogit(form="teacher_only"), Asymmetric(label_temperature=4.0)],
        [cls() for cls in LOSS_CLASSES],
    )
    if not (isinstance(loss, Wttm) and isinstance(policy, Asymmetric) and policy.label_temperature)
]
NAMES = [name for name in PRESETS if name != "custom"]
DISTILLING = [name for name in NAMES if name != "ce"]


def _alone(policy: Policy, loss: Loss) -> Method:
    term = Term.model_validate({"policy": policy, "loss": loss})
    return Method(name="probe", ce_weight=0.0, terms=(term,))


def _as(logits: Logits, dtype: torch.dtype) -> Logits:
    student_BC, teacher_BC, labels_B = logits
    return student_BC.to(dtype), teacher_BC.to(dtype), labels_B


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("policy", "loss"), COMBINATIONS)
def test_every_policy_with_every_loss_is_finite_and_not_negative_at_every_edge(
    policy: Policy, loss: Loss, dtype: torch.dtype
) -> None:
    for edge, make in EDGES.items():
        result, gradient_BC = evaluate(_alone(policy, loss), _as(make(), dtype))
        assert torch.isfinite(gradient_BC).all(), edge
        for name, value in result.terms.items():
            assert torch.isfinite(value), (edge, name)
            assert value >= -1e-6, (edge, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_finite_at_every_edge(name: str) -> None:
    for edge, make in EDGES.items():
        # Early, so that a method of two phases is in its first.
        result, gradient_BC = evaluate(name, _as(make(), torch.float32), epoch=2)
        assert torch.isfinite(result.total), edge
        assert result.total >= 0, edge
        assert torch.isfinite(gradient_BC).all(), edge


@pytest.mark.parametrize("edge", ["negative_student_maximum", "opposite_maxima", "all_zero", "zero_student"])
def test_dtkd_takes_the_base_temperature_outside_its_domain(edge: str) -> None:
    logits = EDGES[edge]()
    result, gradient_BC = evaluate("dtkd", logits)
    assert result.student_temperature_B is not None
    assert result.teacher_temperature_B is not None
    torch.testing.assert_close(result.student_temperature_B, torch.full((8,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(result.teacher_temperature_B, torch.full((8,), 4.0, dtype=torch.float64))
    # Then both of its terms are plain KD, gradient included.
    plain = Method(name="plain", terms=(Term(weight=4.0),))
    torch.testing.assert_close(gradient_BC, evaluate(plain, logits)[1])


def test_dtkd_falls_back_sample_by_sample() -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    student_BC[3] -= 20.0
    result, _ = evaluate("dtkd", (student_BC, teacher_BC, labels_B))
    assert result.student_temperature_B is not None
    at_base_B = (result.student_temperature_B - 4.0).abs() < 1e-12
    assert at_base_B.tolist() == [False, False, False, True, False, False, False, False]


def test_dtkd_follows_the_formula_when_both_maxima_are_negative() -> None:
    student_BC, teacher_BC, labels_B = EDGES["negative_maxima"]()
    result, _ = evaluate("dtkd", (student_BC, teacher_BC, labels_B))
    x_B, y_B = teacher_BC.amax(dim=1), student_BC.amax(dim=1)
    torch.testing.assert_close(result.teacher_temperature_B, 8.0 * x_B / (x_B + y_B))


def test_normkd_ignores_a_teacher_that_says_nothing() -> None:
    result, _ = evaluate("normkd", EDGES["constant_teacher"]())
    assert result.terms["normkd"] == 0.0


def test_normkd_gives_a_constant_student_the_teachers_temperature() -> None:
    result, gradient_BC = evaluate("normkd", EDGES["constant_student"]())
    torch.testing.assert_close(result.student_temperature_B, result.teacher_temperature_B)
    assert gradient_BC.abs().max() < 10.0


def test_rld_has_nothing_below_a_label_that_is_ranked_last() -> None:
    result, _ = evaluate("rld", EDGES["label_last"]())
    assert result.terms["mcd"] == 0.0
    assert result.terms["scd"] > 0.0


def test_dkd_has_no_other_classes_with_two_classes() -> None:
    assert evaluate("dkd", EDGES["two_classes"]())[0].terms["nckd"] == 0.0


def test_leaving_the_label_out_is_exact_however_large_the_logits() -> None:
    """The authors subtract 1000 from it, which a gap of 1e4 outweighs."""
    student_BC, teacher_BC, labels_B = EDGES["huge"]()
    result, _ = evaluate({"preset": "dkd", "temperature": 1}, (student_BC, teacher_BC, labels_B))
    others_BC = ~one_hot(labels_B, teacher_BC)
    log_p, log_q = (z_BC[others_BC].view(8, 9).log_softmax(dim=1) for z_BC in (teacher_BC, student_BC))
    torch.testing.assert_close(result.terms["nckd"], (log_p.exp() * (log_p - log_q)).sum(dim=1).mean())


def test_a_small_divergence_keeps_its_digits() -> None:
    """Late in training p and q nearly agree, and sum p log(p/q) in float32 is mostly rounding."""
    _, teacher_BC, labels_B = _as(ordinary(), torch.float32)
    close: Logits = (teacher_BC + 1e-3 * ordinary(seed=1)[0].float(), teacher_BC, labels_B)
    narrow, wide = evaluate("kd", close)[0], evaluate("kd", _as(close, torch.float64))[0]
    assert wide.terms["kd"] < 1e-5
    torch.testing.assert_close(narrow.terms["kd"].double(), wide.terms["kd"], rtol=3e-3, atol=0.0)


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1], ids=["student", "teacher"])
@pytest.mark.parametrize("name", DISTILLING)
def test_a_logit_that_is_no_number_is_refused_by_sample(name: str, side: int, bad: float) -> None:
    logits = ordinary()
    logits[side][5, 2] = bad
    whose = ("student", "teacher")[side]
    with pytest.raises(NotFinite, match=f"method '{name}' is not finite: the {whose}'s logits of sample 5"):
        evaluate(name, logits, epoch=2)


def test_a_term_that_overflows_is_refused_by_sample_and_part() -> None:
    student_BC, teacher_BC, labels_B = ordinary(dtype=torch.float32)
    teacher_BC[4] *= 1e25
    with pytest.raises(NotFinite, match="'normkd' overflows on sample 4 of the batch"):
        evaluate("normkd", (student_BC, teacher_BC, labels_B))


def _objective(changes: dict[str, Any]) -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    arguments: dict[str, Any] = {
        "student_logits_BC": student_BC,
        "labels_B": labels_B,
        "teacher_logits_BC": teacher_BC,
        "teacher_statistics": row_statistics(teacher_BC),
        "epoch": 1,
    }
    objective(parse_method("dtkd").expand(), **(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 0}, "epoch is 0; epochs are counted from 1"),
        ({"student_logits_BC": torch.zeros(8, 1)}, "classes >= 2"),
        ({"student_logits_BC": torch.zeros(0, 10)}, "batch >= 1"),
        ({"labels_B": torch.zeros(7, dtype=torch.int64)}, r"labels are \(7,\)"),
        ({"teacher_logits_BC": None}, "needs teacher logits"),
        ({"teacher_logits_BC": torch.zeros(8, 9)}, r"needs teacher logits \(8, 10\); got \(8, 9\)"),
        ({"teacher_statistics": None}, "reads the cached statistic 'max'.*row_statistics"),
        ({"teacher_statistics": {"max": torch.zeros(8, 1)}}, r"got \(8, 1\)"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _objective(changes)


# -------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_narrow_logits_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    narrow = _as(ordinary(), dtype)
    result, gradient_BC = evaluate(name, narrow)
    wide, wide_gradient_BC = evaluate(name, _as(narrow, torch.float32))
    assert result.total.dtype == torch.float32
    assert gradient_BC.dtype == dtype
    torch.testing.assert_close(result.total, wide.total, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(gradient_BC, wide_gradient_BC.to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_reach_the_loss(name: str) -> None:
    logits = _as(ordinary(), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = evaluate(name, logits)[0].total
    assert torch.equal(inside, evaluate(name, logits)[0].total)


@pytest.mark.parametrize("name", DISTILLING)
def test_the_policy_reads_the_cached_statistics_and_no_others(name: str) -> None:
    """Wrong statistics change the loss, and the ones that are not declared are never touched."""
    student_BC, teacher_BC, labels_B = ordinary()
    method = parse_method(name).expand()
    statistics = row_statistics(teacher_BC)

    def total(given: dict[str, Tensor]) -> Tensor:
        return objective(
            method, student_BC, labels_B, epoch=2, teacher_logits_BC=teacher_BC, teacher_statistics=given
        ).total

    declared = {key: statistics[key] for key in method.statistics}
    assert torch.equal(total(declared), total(statistics))
    for key in method.statistics:
        # Up or down, far enough for any formula to notice.
        wrong = ({**declared, key: declared[key] * 4.0 + shift} for shift in (9.0, -40.0))
        assert any(not torch.equal(total(given), total(declared)) for given in wrong), key


@pytest.mark.parametrize("name", ["lskd", "normkd", "atkd"])
def test_a_small_temperature_far_from_zero_keeps_the_digits(name: str) -> None:
    """Logits of 1000 +- 0.01 over a temperature of 0.02: dividing first would leave two digits in float32."""
    student_BC, teacher_BC, labels_B = _as(ordinary(), torch.float32)
    offset: Logits = (1000.0 + 0.01 * student_BC, 1000.0 + 0.01 * teacher_BC, labels_B)
    narrow, wide = evaluate(name, offset)[0], evaluate(name, _as(offset, torch.float64))[0]
    torch.testing.assert_close(narrow.terms[name].double(), wide.terms[name], rtol=1e-3, atol=0.0)


def test_no_gradient_reaches_the_teacher() -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    teacher_BC.requires_grad_()
    statistics = row_statistics(teacher_BC)
    total = objective(
        parse_method("dtkd").expand(),
        student_BC.requires_grad_(),
        labels_B,
        epoch=1,
        teacher_logits_BC=teacher_BC,
        teacher_statistics=statistics,
    ).total
    (gradient,) = torch.autograd.grad(total, teacher_BC, allow_unused=True)
    assert gradient is None
