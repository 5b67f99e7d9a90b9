"""The objective: what it refuses, whom the gradient of a maximum goes to, which factor counts, which rows it covers."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.support.method_inputs import LOSSES, POLICIES, alone, evaluate, ordinary
from workers.errors import NotFinite
from workers.methods.catalog import parse_method
from workers.methods.combined import PRESETS
from workers.methods.loss import Loss
from workers.methods.losses import LOSS_CLASSES, Dist, Kl, Rld
from workers.methods.method import Method, Term
from workers.methods.policies.dtkd import Dtkd
from workers.methods.policies.expression import Expression
from workers.methods.policies.fixed import Fixed
from workers.methods.policies.normkd import Normkd
from workers.objective.objective import objective
from workers.objective.reductions import maximum, minimum
from workers.objective.statistics import batch_as_cache, row_statistics

DISTILLING = [name for name in PRESETS if name not in ("ce", "custom")]

# ----------------------------------------------------------------------------------------------------- teacher's logits


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
@pytest.mark.parametrize("loss", LOSSES)
def test_objective_refuses_a_teacher_logit_that_is_not_finite_under_every_loss(loss: str, value: float) -> None:
    """The cached statistics say nothing of it: a bit may have flipped in the logits alone."""
    student_BC, teacher_BC, labels_B = ordinary(dtype=torch.float32)
    method = alone(Fixed(), LOSSES[loss])
    over_cache = batch_as_cache(method.cache_statistics, teacher_BC)
    statistics = row_statistics(teacher_BC)
    broken_BC = teacher_BC.half()
    # The class that every method cares least about: not the label, and far from the top.
    rows = broken_BC.scatter(1, labels_B.unsqueeze(1), math.inf)
    broken_BC[3, int(rows[3].argmin())] = value

    def watched(*, check: bool) -> Sequence[Tensor]:
        return objective(
            method,
            student_BC,
            labels_B,
            epoch=2,
            epochs=9,
            teacher_logits_BC=broken_BC,
            teacher_statistics=statistics,
            cache_statistics=over_cache,
            check=check,
        ).watched

    with pytest.raises(NotFinite, match="the teacher's logits of sample 3 of the batch hold NaN or infinity") as raised:
        watched(check=True)
    assert raised.value.sample == 3
    # What a step that waits for nothing goes by.
    assert not all(map(math.isfinite, watched(check=False)))


def test_objective_takes_the_largest_logits_that_a_cache_can_hold() -> None:
    student_BC, teacher_BC, labels_B = ordinary(dtype=torch.float32)
    widest_BC = teacher_BC / teacher_BC.abs().amax() * 65504.0
    result, _ = evaluate("kd", (student_BC, widest_BC.half(), labels_B))
    assert all(map(math.isfinite, result.watched))


# ------------------------------------------------------------------------------------------------------- tied maxima


def _released_dtkd(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """DTKD's term with torch's ``max(dim)``, of which autograd gives one place the gradient."""
    x_B1, y_B1 = teacher_BC.max(dim=1, keepdim=True)[0], student_BC.max(dim=1, keepdim=True)[0]
    tau_t_B1, tau_s_B1 = 2 * x_B1 / (x_B1 + y_B1) * temperature, 2 * y_B1 / (x_B1 + y_B1) * temperature
    log_p_BC, log_q_BC = (teacher_BC / tau_t_B1).log_softmax(1), (student_BC / tau_s_B1).log_softmax(1)
    kl_B = (log_p_BC.exp() * (log_p_BC - log_q_BC)).sum(1)
    return (kl_B * (tau_t_B1 * tau_s_B1).squeeze(1)).mean()


def test_dtkd_gives_the_gradient_of_tied_maxima_to_one_of_them_as_released() -> None:
    student_BC, teacher_BC, _ = ordinary(batch=16)
    student_BC = student_BC.abs() + 1.0
    top_B1 = student_BC.amax(dim=1, keepdim=True)
    student_BC[:, [2, 7]] = top_B1 + 0.5
    student_BC.requires_grad_()
    released = _released_dtkd(student_BC, teacher_BC, 4.0)
    (expected_BC,) = torch.autograd.grad(released, student_BC)
    result, gradient_BC = evaluate(alone(Dtkd(), Kl()), (student_BC, teacher_BC, torch.zeros(16, dtype=torch.int64)))
    torch.testing.assert_close(result.total, released)
    torch.testing.assert_close(gradient_BC, expected_BC)
    # The tied classes have one logit, and so one probability: only the maximum tells them apart.
    assert not torch.allclose(gradient_BC[:, 2], gradient_BC[:, 7])


@pytest.mark.parametrize(("ours", "theirs"), [(maximum, torch.max), (minimum, torch.min)])
def test_extremes_of_equal_logits_have_one_gradient_as_of_torch(ours: object, theirs: object) -> None:
    z_BC = torch.tensor([[1.0, 3.0, 3.0, 1.0]], requires_grad=True)
    values = [f(z_BC) for f in (ours, lambda z: theirs(z, dim=1, keepdim=True)[0])]  # type: ignore[operator]
    assert values[0].item() == values[1].item()
    found, expected = (torch.autograd.grad(value.sum(), z_BC)[0] for value in values)
    assert found.tolist() == expected.tolist()
    assert sorted(found[0].tolist()) == [0.0, 0.0, 0.0, 1.0]


# ----------------------------------------------------------------------------------------------------------- the factor


def _slope(temperature: float, loss: Loss) -> float:
    _, gradient_BC = evaluate(alone(Fixed(temperature=temperature), loss), ordinary(batch=64))
    return float(gradient_BC.norm())


@pytest.mark.parametrize("kind", LOSS_CLASSES)
def test_loss_scale_none_leaves_the_policys_weight_out(kind: str) -> None:
    """And ``tau_squared`` has it: the parts that the weight counts for differ by T^2, the others do not."""
    policy = Fixed(temperature=3.0)
    both = [LOSS_CLASSES[kind](scale=scale) for scale in ("tau_squared", "none")]
    with_it, without = (evaluate(alone(policy, loss), ordinary())[0].terms for loss in both)
    unweighted = {"target", "cc", "bc", "class_rank", "sample_rank"}
    for name in with_it.keys() - {"ce"}:
        ratio = with_it[name] / without[name]
        if kind == "lud" and name == "kl":
            # Its own temperature, between its bounds.
            assert 4.0 <= ratio <= 36.0
        else:
            assert ratio == pytest.approx(1.0 if name in unweighted else 9.0)


def test_loss_scale_none_reaches_the_binary_part_of_rld() -> None:
    given, without = (Rld(binary_temperature=2.0, scale=scale) for scale in ("tau_squared", "none"))
    with_it, plain = (evaluate(alone(Fixed(), loss), ordinary())[0].terms["scd"] for loss in (given, without))
    assert with_it / plain == pytest.approx(4.0)


def test_dist_grows_with_the_temperature_unless_its_scale_is_none() -> None:
    growth = {
        scale: _slope(64.0, Dist(scale=scale)) / _slope(1.0, Dist(scale=scale)) for scale in ("tau_squared", "none")
    }
    assert growth["tau_squared"] > 500.0
    assert 0.1 < growth["none"] < 10.0
    # A divergence is what the factor was made for.
    assert 0.1 < _slope(64.0, Kl()) / _slope(1.0, Kl()) < 10.0


@pytest.mark.parametrize("kind", LOSS_CLASSES)
def test_loss_scale_is_written_only_if_it_is_not_the_published_one(kind: str) -> None:
    """What was stored before there was such a field, and its digest, is what it was."""
    published = "none" if kind == "bild" else "tau_squared"
    loss = LOSS_CLASSES[kind]()
    assert loss.scale == published
    assert "scale" not in loss.model_dump()
    other = "tau_squared" if kind == "bild" else "none"
    assert LOSS_CLASSES[kind](scale=other).model_dump()["scale"] == other


def test_dist_preset_passes_its_scale_on_and_names_it() -> None:
    method = parse_method({"preset": "dist", "scale": "none"})
    assert method.label == "dist(scale=none)"
    assert method.expand().terms[0].loss.scale == "none"
    assert "scale" not in parse_method("dist").model_dump()


# --------------------------------------------------------------------------------------------------------------- domain


def _share(method: Method, *logits: Tensor) -> float | None:
    student_BC, teacher_BC, labels_B = logits
    inside = evaluate(method, (student_BC, teacher_BC, labels_B))[0].inside_share
    return None if inside is None else float(inside)


@pytest.mark.parametrize("name", ["fixed", "annealed", "asymmetric", "learned", "expression_apart"])
def test_objective_has_no_share_of_rows_for_a_policy_without_bounds(name: str) -> None:
    policy = Expression(temperature="max / 2 + 9") if name == "expression_apart" else POLICIES[name]
    assert _share(alone(policy, Kl()), *ordinary()) is None


@pytest.mark.parametrize(
    "name", ["dtkd", "normkd", "standardize", "max_logit", "max_logit_teacher", "learned_standardized"]
)
def test_objective_counts_the_rows_in_a_policys_domain(name: str) -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    method = alone(POLICIES[name], Kl())
    assert _share(method, student_BC, teacher_BC, labels_B) == 1.0
    if name == "dtkd":
        student_BC[[1, 4]] -= 30.0
    elif name == "normkd":
        student_BC[1], teacher_BC[4] = 0.5, -2.0
    else:
        student_BC[[1, 4]] = 0.5
        teacher_BC[[1, 4]] = -2.0
    assert _share(method, student_BC, teacher_BC, labels_B) == 0.75


def test_objective_counts_the_rows_that_no_clip_of_an_expression_changes() -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    tops = teacher_BC.amax(dim=1).sort().values.tolist()
    # Two rows lie below, one above.
    low, high = (tops[1] + tops[2]) / 2, (tops[6] + tops[7]) / 2
    method = alone(Expression(student=f"clip(max, {low}, 1000)", teacher=f"clip(max, 0.001, {high})"), Kl())
    assert _share(method, student_BC, teacher_BC, labels_B) == pytest.approx(5 / 8)


def test_objective_counts_a_row_once_that_several_terms_exclude() -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    student_BC[2] = 0.5
    student_BC[5] -= 30.0
    terms = (Term(policy=Dtkd(), name="a"), Term(policy=Normkd(), name="b"), Term(policy=Normkd(scale=3.0), name="c"))
    method = Method(name="probe", terms=terms)
    assert _share(method, student_BC, teacher_BC, labels_B) == 0.75
    result, _ = evaluate(method, (student_BC, teacher_BC, labels_B))
    # Those of both normkd terms are the same rows.
    assert len(result.inside) == 2


@pytest.mark.parametrize("name", DISTILLING)
def test_objective_computes_the_domain_of_each_view_once(name: str) -> None:
    result, _ = evaluate(name, ordinary())
    assert len(result.inside) <= (2 if name == "lskd_mlkd" else 1)


# --------------------------------------------------------------------------------------------------------------- level


@pytest.mark.parametrize("name", DISTILLING)
def test_objective_depends_on_the_level_of_the_teachers_rows_exactly_for_methods_that_say_so(name: str) -> None:
    """What a softmax behind a teacher takes away: another constant from each row of logits."""
    student_BC, teacher_BC, labels_B = ordinary(batch=16)
    shifted_BC = teacher_BC - teacher_BC.logsumexp(dim=1, keepdim=True)
    method = parse_method(name).expand()
    assert bool(method.level_readers) is (name in ("dtkd", "ats", "annealing_kd", "lud"))
    totals = [
        evaluate(method, (student_BC, z_BC, labels_B), epoch=2)[0].total.item() for z_BC in (teacher_BC, shifted_BC)
    ]
    assert (totals[0] == pytest.approx(totals[1], rel=1e-9)) is not bool(method.level_readers)
