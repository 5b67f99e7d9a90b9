"""Methods at the edges of their domain: finite and not negative, or a refusal that names the sample."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.method_inputs import ALL_PAIRS, EDGES, LOSSES, PAIRS, POLICIES, Logits, alone, evaluate, ordinary
from workers.errors import InvalidMethod, NotFinite
from workers.methods.catalog import parse_method
from workers.methods.combined import PRESETS
from workers.methods.method import Method, Term
from workers.methods.policies.expression import Expression
from workers.objective.log_softmax import one_hot
from workers.objective.objective import objective, objective_of
from workers.objective.statistics import batch_as_cache, row_statistics
from workers.objective.view import View

NAMES = [name for name in PRESETS if name != "custom"]
DISTILLING = [name for name in NAMES if name != "ce"]


def _as(logits: Logits, dtype: torch.dtype) -> Logits:
    student_BC, teacher_BC, labels_B = logits
    return student_BC.to(dtype), teacher_BC.to(dtype), labels_B


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("policy", "loss"), PAIRS)
def test_objective_every_policy_with_every_loss_is_finite_and_not_negative_at_every_edge(
    policy: str, loss: str, dtype: torch.dtype
) -> None:
    for edge, make in EDGES.items():
        result, gradient_BC = evaluate(alone(POLICIES[policy], LOSSES[loss]), _as(make(), dtype))
        assert torch.isfinite(gradient_BC).all(), edge
        for name, value in result.terms.items():
            assert torch.isfinite(value), (edge, name)
            assert value >= -1e-6, (edge, name)


REASONS = {
    ("asymmetric_label", "wttm"): "needs one temperature per sample",
    ("standardize", "mse"): "compares the logits themselves",
    ("max_logit", "mse"): "compares the logits themselves",
    ("max_logit_teacher", "mse"): "compares the logits themselves",
    ("learned_standardized", "mse"): "compares the logits themselves",
    ("learned", "lud"): "nothing would teach",
    ("learned_standardized", "lud"): "nothing would teach",
}


def test_objective_exactly_these_pairs_are_not_defined() -> None:
    assert {pair for pair, defined in ALL_PAIRS.items() if not defined} == set(REASONS)


@pytest.mark.parametrize(("pair", "reason"), REASONS.items())
def test_objective_pair_that_is_not_defined_is_refused_with_the_reason(pair: tuple[str, str], reason: str) -> None:
    policy, loss = POLICIES[pair[0]], LOSSES[pair[1]]
    expected = f"loss '{loss.kind}' is not defined with policy '{policy.kind}'.*{reason}"
    with pytest.raises(InvalidMethod, match=expected):
        parse_method({"preset": "custom", "terms": [{"policy": policy.model_dump(), "loss": loss.model_dump()}]})


@pytest.mark.parametrize("name", NAMES)
def test_objective_every_preset_is_finite_at_every_edge(name: str) -> None:
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
    assert result.student_temperature is not None
    assert result.teacher_temperature is not None
    torch.testing.assert_close(result.student_temperature, torch.full((8,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(result.teacher_temperature, torch.full((8,), 4.0, dtype=torch.float64))
    # Then both of its terms are plain KD, gradient included.
    plain = Method(name="plain", terms=(Term(weight=4.0),))
    torch.testing.assert_close(gradient_BC, evaluate(plain, logits)[1])


def test_dtkd_falls_back_sample_by_sample() -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    student_BC[3] -= 20.0
    result, _ = evaluate("dtkd", (student_BC, teacher_BC, labels_B))
    assert result.student_temperature is not None
    at_base_B = (torch.as_tensor(result.student_temperature) - 4.0).abs() < 1e-12
    assert at_base_B.tolist() == [False, False, False, True, False, False, False, False]


def test_dtkd_follows_the_formula_when_both_maxima_are_negative() -> None:
    student_BC, teacher_BC, labels_B = EDGES["negative_maxima"]()
    result, _ = evaluate("dtkd", (student_BC, teacher_BC, labels_B))
    x_B, y_B = teacher_BC.amax(dim=1), student_BC.amax(dim=1)
    torch.testing.assert_close(result.teacher_temperature, 8.0 * x_B / (x_B + y_B))


def test_normkd_ignores_a_teacher_that_says_nothing() -> None:
    result, _ = evaluate("normkd", EDGES["constant_teacher"]())
    assert result.terms["normkd"] == 0.0


def test_normkd_gives_a_constant_student_the_teachers_temperature() -> None:
    result, gradient_BC = evaluate("normkd", EDGES["constant_student"]())
    torch.testing.assert_close(result.student_temperature, result.teacher_temperature)
    assert gradient_BC.abs().max() < 10.0


def test_rld_has_nothing_below_a_label_that_is_ranked_last() -> None:
    result, _ = evaluate("rld", EDGES["label_last"]())
    assert result.terms["mcd"] == 0.0
    assert result.terms["scd"] > 0.0


def test_dkd_has_no_other_classes_with_two_classes() -> None:
    assert evaluate("dkd", EDGES["two_classes"]())[0].terms["nckd"] == 0.0


def test_objective_leaving_the_label_out_is_exact_however_large_the_logits() -> None:
    """The authors subtract 1000 from it, which a gap of 1e4 outweighs."""
    student_BC, teacher_BC, labels_B = EDGES["huge"]()
    result, _ = evaluate({"preset": "dkd", "temperature": 1}, (student_BC, teacher_BC, labels_B))
    others_BC = ~one_hot(labels_B, teacher_BC)
    log_p, log_q = (z_BC[others_BC].view(8, 9).log_softmax(dim=1) for z_BC in (teacher_BC, student_BC))
    torch.testing.assert_close(result.terms["nckd"], (log_p.exp() * (log_p - log_q)).sum(dim=1).mean())


def test_objective_small_divergence_keeps_its_digits() -> None:
    """Late in training p and q nearly agree, and sum p log(p/q) in float32 is mostly rounding."""
    _, teacher_BC, labels_B = _as(ordinary(), torch.float32)
    close: Logits = (teacher_BC + 1e-3 * ordinary(seed=1)[0].float(), teacher_BC, labels_B)
    narrow, wide = evaluate("kd", close)[0], evaluate("kd", _as(close, torch.float64))[0]
    assert wide.terms["kd"] < 1e-5
    torch.testing.assert_close(narrow.terms["kd"].double(), wide.terms["kd"], rtol=2e-4, atol=0.0)


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("side", "bad"),
    # A network that is trained has no -inf without NaN; a cache may.
    [(side, float(bad)) for side, bad in ((0, "nan"), (0, "inf"), (1, "nan"), (1, "inf"), (1, "-inf"))],
)
@pytest.mark.parametrize("name", DISTILLING)
def test_objective_logit_that_is_no_number_is_refused_by_sample(name: str, side: int, bad: float) -> None:
    logits = ordinary()
    logits[side][5, 2] = bad
    whose = ("student", "teacher")[side]
    with pytest.raises(NotFinite, match=f"method '{name}' is not finite: the {whose}'s logits of sample 5") as caught:
        evaluate(name, logits, epoch=2)
    assert caught.value.sample == 5


def test_objective_term_that_overflows_is_refused_by_sample_and_part() -> None:
    student_BC, teacher_BC, labels_B = ordinary(dtype=torch.float32)
    teacher_BC[4] *= 1e25
    with pytest.raises(NotFinite, match="'normkd' overflows on sample 4 of the batch"):
        evaluate("normkd", (student_BC, teacher_BC, labels_B))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            {"temperature": "max - 12"},
            "student temperature of sample 3 of the batch is -1.5, from .* positive and finite",
        ),
        ({"teacher": "max - 12", "student": "2"}, "teacher temperature of sample 3 of .* is -1.5, from 'max - 12'"),
        ({"temperature": "1 / (max - 10.5)"}, "temperature of sample 3 of the batch is inf"),
        ({"temperature": "log(max - 12)"}, "temperature of sample 3 of the batch is nan"),
        ({"temperature": "2", "weight": "max - 12"}, "weight of sample 3 of the .* is -1.5.*finite and not negative"),
        ({"temperature": "0 * max"}, "temperature of sample 0 of the batch is 0"),
    ],
)
def test_expression_outside_its_domain_is_refused_by_sample(policy: dict[str, str], message: str) -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    teacher_BC = teacher_BC - teacher_BC.amax(dim=1, keepdim=True) + 15.0
    teacher_BC[3] -= 4.5
    with pytest.raises(NotFinite, match=message) as caught:
        evaluate(alone(Expression.model_validate(policy), LOSSES["kl"]), (student_BC, teacher_BC, labels_B))
    assert caught.value.sample in (0, 3)


UNCHECKED = {
    "student": ("kd", lambda z_s_BC, z_t_BC: z_s_BC[5].fill_(float("nan"))),
    "teacher": ("rld", lambda z_s_BC, z_t_BC: z_t_BC[5].fill_(float("inf"))),
    "one logit of two ranks": ("lud", lambda z_s_BC, z_t_BC: z_s_BC[5, 2:3].fill_(float("nan"))),
    "a confidence": ("mlkd", lambda z_s_BC, z_t_BC: z_t_BC[5, 2:3].fill_(float("nan"))),
    "overflow": ("normkd", lambda z_s_BC, z_t_BC: z_t_BC[4].mul_(1e200)),
    "negative": ({"temperature": "max - 12"}, None),
    "infinite": ({"temperature": "1 / (max - 10.5)"}, None),
    "no number": ({"teacher": "log(max - 12)", "student": "2"}, None),
    "zero": ({"student": "where(max > 12, 1, 0)", "teacher": "2"}, None),
    "weight": ({"temperature": "2", "weight": "max - 12"}, None),
    "weight without use": ({"temperature": "2", "weight": "max - 12"}, None),
}
"""What a check refuses: a method, or an expression, and what is done to the logits."""


@pytest.mark.parametrize("case", UNCHECKED)
def test_objective_without_a_check_is_not_finite_where_a_check_would_raise(case: str) -> None:
    chosen, spoil = UNCHECKED[case]
    student_BC, teacher_BC, labels_B = ordinary()
    teacher_BC = teacher_BC - teacher_BC.amax(dim=1, keepdim=True) + 15.0
    method = (
        chosen
        if isinstance(chosen, str)
        else alone(Expression.model_validate(chosen), LOSSES["bild" if case == "weight without use" else "kl"])
    )
    before, _ = evaluate(method, (student_BC, teacher_BC, labels_B), check=False)
    assert torch.isfinite(before.total)
    if spoil is None:
        teacher_BC[3] -= 4.5
    else:
        spoil(student_BC, teacher_BC)
    after, _ = evaluate(method, (student_BC, teacher_BC, labels_B), check=False)
    assert not torch.isfinite(after.total)
    with pytest.raises(NotFinite):
        evaluate(method, (student_BC, teacher_BC, labels_B))


@pytest.mark.parametrize("name", [*NAMES, "expression"])
def test_objective_without_a_check_is_the_checked_one(name: str) -> None:
    method = alone(POLICIES["expression_apart"], LOSSES["kl"]) if name == "expression" else name
    (checked, gradient_BC), (unchecked, same_BC) = (
        evaluate(method, ordinary(), check=check) for check in (True, False)
    )
    assert torch.equal(checked.total, unchecked.total)
    assert torch.equal(gradient_BC, same_BC)


@pytest.mark.parametrize("name", NAMES)
def test_objective_terms_are_the_same_before_and_after_the_gradient_is_computed(name: str) -> None:
    """They are computed when they are asked for, and a training run asks some steps later."""
    student_BC, teacher_BC, labels_B = ordinary()
    student_BC = student_BC.detach().clone().requires_grad_()
    method = parse_method(name).expand()
    seen = View(student_BC, teacher_BC, row_statistics(teacher_BC))
    learned = {place: torch.tensor(theta) for place, theta in method.learned.items()}
    over_cache = batch_as_cache(method.cache_statistics, teacher_BC)
    result = objective_of(
        method, [seen] * method.views, labels_B, epoch=1000, epochs=2000, learned=learned, cache_statistics=over_cache
    )
    before = {term: value.clone() for term, value in result.terms.items()}
    torch.autograd.backward(result.total)
    assert list(before) == list(result.terms)
    assert all(torch.equal(value, result.terms[term]) for term, value in before.items())
    assert not any(value.requires_grad for value in result.terms.values())


def test_objective_weight_of_zero_is_allowed() -> None:
    result, _ = evaluate(alone(Expression(temperature="2", weight="0 * max"), LOSSES["kl"]), ordinary())
    assert result.total == 0.0


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
def test_objective_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _objective(changes)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("mlld", "'mlld' trains on two views of each sample; give the second"),
        ("ctkd", r"'ctkd' learns the temperature of its terms \['0'\]; give their parameters"),
        (alone(Expression(temperature="epochs"), LOSSES["kl"]), "say how many epochs the run has"),
    ],
    ids=["second view", "parameter", "epochs"],
)
def test_objective_what_a_method_needs_and_was_not_given_is_named(method: str | Method, message: str) -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    whole = method if isinstance(method, Method) else parse_method(method).expand()
    with pytest.raises(ValueError, match=message):
        objective(whole, student_BC, labels_B, epoch=1, teacher_logits_BC=teacher_BC)


# -------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_objective_narrow_logits_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    narrow = _as(ordinary(), dtype)
    result, gradient_BC = evaluate(name, narrow)
    wide, wide_gradient_BC = evaluate(name, _as(narrow, torch.float32))
    assert result.total.dtype == torch.float32
    assert gradient_BC.dtype == dtype
    torch.testing.assert_close(result.total, wide.total, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(gradient_BC, wide_gradient_BC.to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_objective_autocast_does_not_reach_the_loss(name: str) -> None:
    logits = _as(ordinary(), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = evaluate(name, logits)[0].total
    assert torch.equal(inside, evaluate(name, logits)[0].total)


# --------------------------------------------------------------------------------------------- the teacher's statistics


def _temperatures(name: str, teacher_BC: Tensor, statistics: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's: [B], or [] where it is one number."""
    student_BC, _, labels_B = ordinary()
    method = alone(POLICIES[name], LOSSES["kl"])
    result = objective(
        method,
        student_BC,
        labels_B,
        epoch=2,
        epochs=9,
        teacher_logits_BC=teacher_BC,
        teacher_statistics=statistics,
        learned={place: torch.tensor(theta) for place, theta in method.learned.items()},
    )
    student, teacher = (
        torch.as_tensor(tau, dtype=torch.float64) for tau in (result.student_temperature, result.teacher_temperature)
    )
    return student, teacher


@pytest.mark.parametrize("name", POLICIES)
def test_objective_no_policy_touches_the_teachers_logits(name: str) -> None:
    """Other logits under the same statistics leave every temperature as it is, to the last bit."""
    _, teacher_BC, _ = ordinary()
    declared = {key: value for key, value in row_statistics(teacher_BC).items() if key in POLICIES[name].reads}
    before = _temperatures(name, teacher_BC, declared)
    for other_BC in (torch.zeros_like(teacher_BC), -7.0 * teacher_BC.flip(1)):
        after = _temperatures(name, other_BC, declared)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", [name for name, policy in POLICIES.items() if policy.reads])
def test_objective_every_declared_statistic_counts(name: str) -> None:
    _, teacher_BC, _ = ordinary()
    declared = {key: value for key, value in row_statistics(teacher_BC).items() if key in POLICIES[name].reads}
    before = _temperatures(name, teacher_BC, declared)
    for key in declared:
        # Up or down, far enough for any formula to notice.
        wrong = [{**declared, key: declared[key] * 4.0 + shift} for shift in (9.0, -40.0)]
        others = [tau_B for given in wrong for tau_B in _temperatures(name, teacher_BC, given)]
        assert any(not torch.equal(a, b) for a, b in zip(before * 2, others, strict=True)), key


@pytest.mark.parametrize("name", DISTILLING)
def test_method_statistics_are_those_of_its_policies_and_suffice(name: str) -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    method = parse_method(name).expand()
    statistics = row_statistics(teacher_BC)

    def total(given: dict[str, Tensor]) -> Tensor:
        return objective(
            method,
            student_BC,
            labels_B,
            epoch=2,
            teacher_logits_BC=teacher_BC,
            teacher_statistics=given,
            second=View(student_BC, teacher_BC, given),
            learned={place: torch.tensor(theta) for place, theta in method.learned.items()},
            cache_statistics=batch_as_cache(method.cache_statistics, teacher_BC),
        ).total

    assert torch.equal(total({key: statistics[key] for key in method.statistics}), total(statistics))
    for key in method.statistics:
        with pytest.raises(ValueError, match=f"reads the cached statistic '{key}'"):
            total({other: value for other, value in statistics.items() if other != key})


@pytest.mark.parametrize("name", ["lskd", "normkd", "atkd"])
def test_objective_small_temperature_far_from_zero_keeps_the_digits(name: str) -> None:
    """Logits of 1000 +- 0.01 over a temperature of 0.02: dividing first would leave two digits in float32."""
    student_BC, teacher_BC, labels_B = _as(ordinary(), torch.float32)
    offset: Logits = (1000.0 + 0.01 * student_BC, 1000.0 + 0.01 * teacher_BC, labels_B)
    narrow, wide = evaluate(name, offset)[0], evaluate(name, _as(offset, torch.float64))[0]
    torch.testing.assert_close(narrow.terms[name].double(), wide.terms[name], rtol=1e-3, atol=0.0)


def test_objective_no_gradient_reaches_the_teacher() -> None:
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
