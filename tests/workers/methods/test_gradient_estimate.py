"""The estimate of the first gradient beside the gradient itself, and the warning that is made of it."""

import numpy as np
import pytest
import torch

from workers.methods.catalog import parse_method
from workers.methods.gradient_estimate import FRESH_STD, estimate_gradients, gradient_warnings
from workers.methods.method import Method
from workers.objective.objective import objective
from workers.objective.statistics import row_statistics

# Classes, by how much the label's logit stands out, spread of the others: a teacher that is right on 8 to 9 of 10.
TEACHERS = [(10, 10.0, 4.0), (100, 10.0, 2.5)]
ESTIMATED = ("kd", "dtkd", "normkd", "lskd", "atkd", "dkd", "rld", "nkd", "wsld", "ttm", "wttm", "ctkd", "ats", "dist")
BATCH = 256

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _rows(classes: int, height: float, spread: float) -> Rows:
    """A fresh student's logits, a teacher's, and the labels."""
    generator = torch.Generator().manual_seed(0)
    labels_B = torch.randint(classes, (BATCH,), generator=generator)
    teacher_BC = spread * torch.randn(BATCH, classes, generator=generator)
    teacher_BC[torch.arange(BATCH), labels_B] += height
    return FRESH_STD * torch.randn(BATCH, classes, generator=generator), teacher_BC, labels_B


def _statistics(teacher_BC: torch.Tensor) -> dict[str, np.ndarray]:
    return {name: x_B.numpy()[np.newaxis] for name, x_B in row_statistics(teacher_BC).items()}


def _measured(method: Method, rows: Rows) -> float:
    """Mean norm of the terms' gradient by a row of logits, in those of cross-entropy alone."""
    student_BC, teacher_BC, labels_B = rows
    student_BC = student_BC.clone().requires_grad_()
    norms = []
    for each in (method.model_copy(update={"ce_weight": 0.0}), parse_method("ce").expand()):
        total = objective(
            each,
            student_BC,
            labels_B,
            epoch=1,
            epochs=10,
            teacher_logits_BC=teacher_BC,
            teacher_statistics=row_statistics(teacher_BC),
            learned={name: torch.tensor(theta) for name, theta in each.learned.items()},
        ).total
        (gradient_BC,) = torch.autograd.grad(total, student_BC)
        norms.append(float(gradient_BC.norm(dim=1).mean()))
    return norms[0] / norms[1]


@pytest.mark.parametrize("name", ESTIMATED)
@pytest.mark.parametrize("teacher", TEACHERS, ids=["10 classes", "100 classes"])
def test_gradient_estimate_is_near_the_gradient_of_a_fresh_student(
    teacher: tuple[int, float, float], name: str
) -> None:
    rows = _rows(*teacher)
    method = parse_method({"preset": name, "warmup_epochs": 0}).expand()
    estimates = estimate_gradients(method, _statistics(rows[1]), teacher[0], epochs=10)
    assert sum(each.ratio for each in estimates) / _measured(method, rows) == pytest.approx(1.0, rel=0.8)


def test_gradient_estimate_knows_weight_times_w() -> None:
    rows = _rows(10, 10.0, 4.0)
    statistics = _statistics(rows[1])
    [kd] = estimate_gradients(parse_method("kd").expand(), statistics, 10, epochs=10)
    [normkd] = estimate_gradients(parse_method("normkd").expand(), statistics, 10, epochs=10)
    assert kd.scale == pytest.approx(0.9 * 16)
    assert normkd.scale == pytest.approx(0.9 * float((4 * statistics["std"] ** 2).mean()), rel=1e-5)
    assert normkd.parts == ("normkd",)


def test_gradient_estimate_counts_the_warm_up_and_the_scale_of_a_loss() -> None:
    statistics = _statistics(_rows(10, 10.0, 4.0)[1])

    def ratio(**given: object) -> float:
        term = {"policy": {"kind": "fixed", "temperature": 4}, "loss": {"kind": "kl", **given.pop("loss", {})}}  # type: ignore[dict-item]
        method = parse_method({"preset": "custom", "terms": [term], **given}).expand()
        [estimate] = estimate_gradients(method, statistics, 10, epochs=10)
        return estimate.ratio

    assert ratio(warmup_epochs=20) == pytest.approx(ratio() / 20)
    assert ratio(loss={"scale": "none"}) == pytest.approx(ratio() / 16)


@pytest.mark.parametrize(
    ("method", "is_warned"),
    [
        ("kd", False),
        ("normkd", True),
        ("dkd", False),
        ({"preset": "rld", "warmup_epochs": 1}, True),
        ("rld", False),
        ({"preset": "normkd", "kd_weight": 0.1}, False),
        ("lud", False),
        ("ce", False),
    ],
)
def test_gradient_warning_names_a_method_that_begins_with_tens_of_times_cross_entropy(
    method: object, is_warned: bool
) -> None:
    statistics = _statistics(_rows(10, 10.0, 4.0)[1])
    found = gradient_warnings(parse_method(method).expand(), statistics, 10, epochs=10)
    assert bool(found) is is_warned
    if method == "normkd":
        assert "method 'normkd' begins with a gradient of about" in found[0]
        assert "weight x W of normkd is" in found[0]


def test_gradient_warning_needs_to_know_the_teacher() -> None:
    assert gradient_warnings(parse_method("normkd").expand(), {}, 10, epochs=10) == ()


def test_gradient_estimate_leaves_an_expression_out_that_a_fresh_student_has_no_temperature_for() -> None:
    policy = {"kind": "expression", "temperature": "student_max - 100"}
    method = parse_method({"preset": "custom", "terms": [{"policy": policy}]}).expand()
    assert estimate_gradients(method, _statistics(_rows(10, 10.0, 4.0)[1]), 10, epochs=10) == ()
