"""What must hold of every method on any logits: invariances, signs, the scale of the gradient."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.support.method_inputs import LOSSES, PAIRS, POLICIES, Logits, alone, evaluate, ordinary
from workers.methods.catalog import parse_method
from workers.methods.loss import Loss
from workers.methods.losses import Dkd, Kl
from workers.methods.method import Method, Term
from workers.methods.policies.base import Policy
from workers.methods.policies.dtkd import Dtkd
from workers.methods.policies.fixed import Fixed
from workers.methods.policies.standardize import Standardize
from workers.objective.objective import objective

NOT_SHIFT_INVARIANT = ("dtkd", "dtkd_sharpness", "asymmetric_label")
SHIFT_INVARIANT = [
    (policy, loss)
    for policy, loss in PAIRS
    if policy not in (*NOT_SHIFT_INVARIANT, "expression_apart") and LOSSES[loss].shift_invariant
]
LEVEL = [name for name in POLICIES if name not in ("annealed", "asymmetric", "asymmetric_label", "expression_apart")]
"""Policies that treat equal networks equally."""


@st.composite
def logits(draw: st.DrawFn) -> Logits:
    """Two independent logit matrices of any moderate scale and offset, float64, with labels."""
    batch, classes = draw(st.integers(1, 5)), draw(st.integers(2, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def matrix() -> Tensor:
        scale, offset = draw(st.floats(0.1, 10.0)), draw(st.floats(-5.0, 5.0))
        return scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64) + offset

    return matrix(), matrix(), torch.randint(classes, (batch,), generator=generator)


def _close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


any_pair = pytest.mark.parametrize(("policy", "loss"), PAIRS)
few = settings(max_examples=12, derandomize=True)


@any_pair
@few
@given(logits=logits())
def test_objective_no_term_is_negative(policy: str, loss: str, logits: Logits) -> None:
    result, _ = evaluate(alone(POLICIES[policy], LOSSES[loss]), logits)
    assert all(value >= -1e-12 for value in result.terms.values())


@pytest.mark.parametrize(("policy", "loss"), SHIFT_INVARIANT)
@few
@given(logits=logits(), student=st.floats(-50, 50), teacher=st.floats(-50, 50))
def test_objective_adding_a_constant_to_either_networks_logits_changes_nothing(
    policy: str, loss: str, logits: Logits, student: float, teacher: float
) -> None:
    method = alone(POLICIES[policy], LOSSES[loss])
    student_BC, teacher_BC, labels_B = logits
    before, gradient_BC = evaluate(method, logits)
    after, shifted_gradient_BC = evaluate(method, (student_BC + student, teacher_BC + teacher, labels_B))
    _close(after.total, before.total)
    _close(shifted_gradient_BC, gradient_BC)


@pytest.mark.parametrize("policy", [POLICIES[name] for name in NOT_SHIFT_INVARIANT], ids=NOT_SHIFT_INVARIANT)
def test_objective_some_policies_are_not_shift_invariant(policy: Policy) -> None:
    """Which is why caches hold raw logits: centring them would change this method."""
    generator = torch.Generator().manual_seed(0)
    student_BC, teacher_BC = (torch.randn(4, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    labels_B = torch.arange(4)
    before, _ = evaluate(alone(policy, Kl()), (student_BC, teacher_BC, labels_B))
    after, _ = evaluate(alone(policy, Kl()), (student_BC, teacher_BC + 3.0, labels_B))
    assert abs(after.total.item() / before.total.item() - 1.0) > 0.01


@pytest.mark.parametrize("loss", [Kl(), Dkd()], ids=["kl", "dkd"])
@few
@given(logits=logits(), factor=st.floats(0.2, 5.0))
def test_objective_standardised_losses_ignore_the_students_scale(loss: Loss, logits: Logits, factor: float) -> None:
    student_BC, teacher_BC, labels_B = logits
    # eps is the one thing that scale does not cancel.
    method = alone(Standardize(eps=1e-12), loss)
    before, gradient_BC = evaluate(method, logits)
    after, _ = evaluate(method, (student_BC * factor, teacher_BC, labels_B))
    _close(after.total, before.total)
    along_B = (gradient_BC * (student_BC - student_BC.mean(dim=1, keepdim=True))).sum(dim=1)
    _close(along_B, torch.zeros_like(along_B))


@pytest.mark.parametrize("loss", ["kl", "dkd", "bild", "mlkd"])
@pytest.mark.parametrize("policy", LEVEL)
@few
@given(logits=logits())
def test_objective_student_that_equals_its_teacher_is_left_alone(policy: str, loss: str, logits: Logits) -> None:
    _, teacher_BC, labels_B = logits
    result, gradient_BC = evaluate(alone(POLICIES[policy], LOSSES[loss]), (teacher_BC, teacher_BC, labels_B))
    _close(result.total, torch.zeros_like(result.total))
    _close(gradient_BC, torch.zeros_like(gradient_BC))


@few
@given(logits=logits())
def test_objective_squared_temperature_keeps_the_gradient_at_one_scale(logits: Logits) -> None:
    """At high T the gradient of T^2 KL tends to (z_s - z_t) / C, both centred, over the batch (Hinton et al.)."""
    student_BC, teacher_BC, _ = logits
    batch, classes = student_BC.shape
    _, gradient_BC = evaluate(alone(Fixed(temperature=1e4), Kl()), logits)
    apart_BC = student_BC - teacher_BC
    limit_BC = (apart_BC - apart_BC.mean(dim=1, keepdim=True)) / (classes * batch)
    torch.testing.assert_close(gradient_BC, limit_BC, rtol=0.0, atol=1e-2 * limit_BC.abs().max().item())


@any_pair
@few
@given(logits=logits(), data=st.data())
def test_objective_renaming_the_classes_only_renames_the_gradient(
    policy: str, loss: str, logits: Logits, data: st.DataObject
) -> None:
    student_BC, teacher_BC, labels_B = logits
    order_C = torch.tensor(data.draw(st.permutations(range(student_BC.shape[1]))))
    method = alone(POLICIES[policy], LOSSES[loss])
    before, gradient_BC = evaluate(method, logits)
    renamed = (student_BC[:, order_C], teacher_BC[:, order_C], order_C.argsort()[labels_B])
    after, renamed_gradient_BC = evaluate(method, renamed)
    _close(after.total, before.total)
    _close(renamed_gradient_BC, gradient_BC[:, order_C])


@any_pair
@few
@given(logits=logits(), data=st.data())
def test_objective_order_of_the_samples_does_not_matter(
    policy: str, loss: str, logits: Logits, data: st.DataObject
) -> None:
    order_B = torch.tensor(data.draw(st.permutations(range(logits[0].shape[0]))))
    method = alone(POLICIES[policy], LOSSES[loss])
    before, gradient_BC = evaluate(method, logits)
    after, ordered_gradient_BC = evaluate(method, (logits[0][order_B], logits[1][order_B], logits[2][order_B]))
    _close(after.total, before.total)
    _close(ordered_gradient_BC, gradient_BC[order_B])


@pytest.mark.parametrize("loss", [name for name in LOSSES if name not in ("lud", "wsld")])
@few
@given(logits=logits())
def test_objective_gradient_is_that_of_the_loss(loss: str, logits: Logits) -> None:
    """Along a random direction, against a central difference. (LUD and WSLD detach parts on purpose.)"""
    student_BC, teacher_BC, labels_B = logits
    generator = torch.Generator().manual_seed(1)
    direction_BC = torch.randn(student_BC.shape, generator=generator, dtype=torch.float64)
    method = alone(Fixed(), LOSSES[loss])
    _, gradient_BC = evaluate(method, logits)
    step = 1e-5
    ahead, behind = (
        evaluate(method, (student_BC + sign * step * direction_BC, teacher_BC, labels_B))[0].total for sign in (1, -1)
    )
    numeric = (ahead - behind) / (2 * step)
    torch.testing.assert_close((gradient_BC * direction_BC).sum(), numeric, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------- weights and warm-up


def test_objective_warmup_scales_the_terms_and_not_the_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    student_BC, teacher_BC = (torch.randn(4, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    inputs = (student_BC, teacher_BC, torch.arange(4))
    method = Method(name="probe", ce_weight=0.5, terms=(Term(weight=3.0),), warmup_epochs=20)
    for epoch, factor in ((1, 0.05), (5, 0.25), (20, 1.0), (21, 1.0)):
        result, _ = evaluate(method, inputs, epoch=epoch)
        _close(result.total, 0.5 * result.terms["ce"] + factor * 3.0 * result.terms["kl"])


def test_objective_two_phases_never_mix() -> None:
    inputs = ordinary()
    method = parse_method({"preset": "annealing_kd", "steps": 2, "epochs_per_step": 3, "ce_weight": 0.5}).expand()
    totals = []
    for epoch in range(1, 9):
        result, _ = evaluate(method, inputs, epoch=epoch)
        _close(result.total, result.terms["mse"] if epoch <= 6 else 0.5 * result.terms["ce"])
        totals.append(result.total.item())
    # Two steps of three epochs each, then cross-entropy.
    assert [totals.index(total) for total in totals] == [0, 0, 0, 3, 3, 3, 6, 6]


def test_objective_annealed_teacher_arrives_in_full() -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    method = parse_method({"preset": "annealing_kd", "steps": 4}).expand()
    for epoch in range(1, 5):
        result, _ = evaluate(method, (student_BC, teacher_BC, labels_B), epoch=epoch)
        _close(result.total, (student_BC - epoch / 4 * teacher_BC).square().mean())


def test_objective_labels_own_temperature_is_shown_in_the_mean() -> None:
    result, _ = evaluate("ats", ordinary())
    _close(torch.full((8,), 3.1).double(), torch.as_tensor(result.teacher_temperature))


def test_objective_part_reports_its_unweighted_value() -> None:
    generator = torch.Generator().manual_seed(0)
    student_BC, teacher_BC = (torch.randn(4, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    inputs = (student_BC, teacher_BC, torch.arange(4))
    light, heavy = (
        Method(name="probe", terms=(Term(loss=Dkd(alpha=alpha, beta=2.0), weight=weight),))
        for alpha, weight in ((1.0, 1.0), (7.0, 0.5))
    )
    assert evaluate(light, inputs)[0].terms == evaluate(heavy, inputs)[0].terms
    terms = evaluate(heavy, inputs)[0].terms
    _close(evaluate(heavy, inputs)[0].total, terms["ce"] + 0.5 * (7.0 * terms["tckd"] + 2.0 * terms["nckd"]))


def test_objective_temperatures_shown_are_those_that_vary() -> None:
    generator = torch.Generator().manual_seed(0)
    student_BC, teacher_BC = (3.0 + torch.randn(4, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    inputs = (student_BC, teacher_BC, torch.arange(4))
    both = Method(name="probe", terms=(Term(name="plain"), Term(policy=Dtkd(), name="dynamic")))
    result, _ = evaluate(both, inputs)
    assert isinstance(result.student_temperature, Tensor)
    assert result.student_temperature.shape == (4,)
    assert not result.student_temperature.requires_grad
    assert len(set(result.student_temperature.tolist())) == 4
    assert evaluate("ce", inputs)[0].student_temperature is None
    assert evaluate("kd", inputs)[0].student_temperature == 4.0


def test_objective_label_smoothing_touches_the_cross_entropy_alone() -> None:
    student_BC, teacher_BC, labels_B = ordinary()
    method = parse_method("kd").expand()
    results = [
        objective(method, student_BC, labels_B, epoch=1, teacher_logits_BC=teacher_BC, label_smoothing=amount)
        for amount in (0.0, 0.1)
    ]
    assert results[0].terms["kd"] == results[1].terms["kd"]
    expected = torch.nn.functional.cross_entropy(student_BC, labels_B, label_smoothing=0.1)
    _close(results[1].terms["ce"], expected)
