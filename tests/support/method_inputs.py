"""What the tests of methods share: policies and losses, ordinary logits, and those that training meets at its edges."""

from collections.abc import Callable, Mapping

import torch
from pydantic import ValidationError
from torch import Tensor

from workers.methods.catalog import parse_method
from workers.methods.loss import Loss
from workers.methods.losses import LOSS_CLASSES
from workers.methods.method import Method, Term
from workers.methods.policies.annealed import Annealed
from workers.methods.policies.asymmetric import Asymmetric
from workers.methods.policies.base import Policy
from workers.methods.policies.dtkd import Dtkd
from workers.methods.policies.expression import Expression
from workers.methods.policies.fixed import Fixed
from workers.methods.policies.learned import Learned
from workers.methods.policies.max_logit import MaxLogit
from workers.methods.policies.normkd import Normkd
from workers.methods.policies.standardize import Standardize
from workers.objective.objective import objective
from workers.objective.results import Objective
from workers.objective.statistics import batch_as_cache, row_statistics
from workers.objective.view import View

POLICIES: dict[str, Policy] = {
    "fixed": Fixed(),
    "dtkd": Dtkd(),
    "dtkd_sharpness": Dtkd(statistic="sharpness"),
    "normkd": Normkd(),
    "standardize": Standardize(),
    "max_logit": MaxLogit(),
    "max_logit_teacher": MaxLogit(form="teacher_only"),
    "annealed": Annealed(),
    "asymmetric": Asymmetric(),
    "asymmetric_label": Asymmetric(label_temperature=4.0),
    "learned": Learned(),
    "learned_standardized": Learned(standardize=True),
    "expression": Expression(temperature="clip(abs(max - mean) / log(classes), 1, 16)"),
    "expression_apart": Expression(
        student="clip(student_std, 0.5, 9)", teacher="clip(abs(student_max - min) / 4, 0.5, 9)", weight="4"
    ),
}
"""Every policy in every form."""

LOSSES: dict[str, Loss] = {kind: cls() for kind, cls in LOSS_CLASSES.items()}


def alone(policy: Policy, loss: Loss) -> Method:
    """One term and no cross-entropy."""
    return Method(name="probe", ce_weight=0.0, terms=(Term(policy=policy, loss=loss),))


def _defined(policy: Policy, loss: Loss) -> bool:
    try:
        Term(policy=policy, loss=loss)
    except ValidationError:
        return False
    return True


ALL_PAIRS = {(policy, loss): _defined(POLICIES[policy], LOSSES[loss]) for policy in POLICIES for loss in LOSSES}
"""Whether each policy goes with each loss, by their names above."""

PAIRS = [pair for pair, defined in ALL_PAIRS.items() if defined]

Logits = tuple[Tensor, Tensor, Tensor]
"""Student logits [B, C], teacher logits [B, C], labels [B]."""


def ordinary(batch: int = 8, classes: int = 10, seed: int = 0, dtype: torch.dtype = torch.float64) -> Logits:
    """A teacher that is usually right and a student that half follows it."""
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(classes, (batch,), generator=generator)
    teacher_BC = 2.0 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    teacher_BC[torch.arange(batch), labels_B] += 5.0
    noise_BC = torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    return (0.3 * teacher_BC + noise_BC).to(dtype), teacher_BC.to(dtype), labels_B


def _set_label(z_BC: Tensor, labels_B: Tensor, values_B: Tensor) -> Tensor:
    return z_BC.scatter(1, labels_B.unsqueeze(1), values_B.unsqueeze(1))


def _batch_of_one() -> Logits:
    return ordinary(batch=1)


def _two_classes() -> Logits:
    return ordinary(classes=2)


def _one_sample_of_two_classes() -> Logits:
    return ordinary(batch=1, classes=2)


def _constant_student() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return torch.full_like(student_BC, 3.1), teacher_BC, labels_B


def _constant_teacher() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return student_BC, torch.full_like(teacher_BC, 3.1), labels_B


def _both_constant() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return torch.full_like(student_BC, 1e4), torch.full_like(teacher_BC, 3.1), labels_B


def _one_constant_row() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    student_BC[2], teacher_BC[5] = 0.7, -0.2
    return student_BC, teacher_BC, labels_B


def _all_zero() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return torch.zeros_like(student_BC), torch.zeros_like(teacher_BC), labels_B


def _zero_student() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return torch.zeros_like(student_BC), teacher_BC, labels_B


def _huge() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return student_BC * 1e4, teacher_BC * 1e4, labels_B


def _huge_student() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return student_BC * 1e4, teacher_BC, labels_B


def _huge_and_opposed() -> Logits:
    _, teacher_BC, labels_B = ordinary()
    return -teacher_BC * 1e4, teacher_BC * 1e4, labels_B


def _far_from_zero() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return student_BC + 1e4, teacher_BC - 1e4, labels_B


def _tiny() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return student_BC * 1e-6, teacher_BC * 1e-6, labels_B


def _teacher_wrong() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return student_BC, teacher_BC.roll(1, dims=1), labels_B


def _label_last() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return student_BC, _set_label(teacher_BC, labels_B, teacher_BC.amin(dim=1) - 1.0), labels_B


def _label_ties_with_top() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    teacher_BC = teacher_BC.roll(1, dims=1)
    return student_BC, _set_label(teacher_BC, labels_B, teacher_BC.amax(dim=1)), labels_B


def _label_ties_with_last() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return student_BC, _set_label(teacher_BC, labels_B, teacher_BC.amin(dim=1)), labels_B


def _negative_student_maximum() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return student_BC - 20.0, teacher_BC, labels_B


def _negative_maxima() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return student_BC - 30.0, teacher_BC - 20.0, labels_B


def _opposite_maxima() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    shift_B1 = student_BC.amax(dim=1, keepdim=True) + teacher_BC.amax(dim=1, keepdim=True)
    return student_BC - shift_B1, teacher_BC, labels_B


def _student_maximum_near_zero() -> Logits:
    student_BC, teacher_BC, labels_B = ordinary()
    return student_BC - student_BC.amax(dim=1, keepdim=True) + 1e-6, teacher_BC, labels_B


EDGES: dict[str, Callable[[], Logits]] = {
    edge.__name__.removeprefix("_"): edge
    for edge in (
        _batch_of_one,
        _two_classes,
        _one_sample_of_two_classes,
        _constant_student,
        _constant_teacher,
        _both_constant,
        _one_constant_row,
        _all_zero,
        _zero_student,
        _huge,
        _huge_student,
        _huge_and_opposed,
        _far_from_zero,
        _tiny,
        _teacher_wrong,
        _label_last,
        _label_ties_with_top,
        _label_ties_with_last,
        _negative_student_maximum,
        _negative_maxima,
        _opposite_maxima,
        _student_maximum_near_zero,
    )
}


def evaluate(
    method: Method | str | Mapping[str, object], logits: Logits, epoch: int = 1000, check: bool = True
) -> tuple[Objective, Tensor]:
    """The objective and its gradient [B, C], with the teacher's statistics taken from its logits.

    The second view of a method that has two is the first with its rows turned round.
    """
    student_BC, teacher_BC, labels_B = logits
    student_BC = student_BC.detach().clone().requires_grad_()
    method = method if isinstance(method, Method) else parse_method(method).expand()
    turned_BC = teacher_BC.flip(0)
    result = objective(
        method,
        student_BC,
        labels_B,
        epoch=epoch,
        epochs=2000,
        teacher_logits_BC=teacher_BC,
        teacher_statistics=row_statistics(teacher_BC),
        second=View(student_BC.detach().flip(0), turned_BC, row_statistics(turned_BC)),
        learned={name: torch.tensor(theta) for name, theta in method.learned.items()},
        cache_statistics=batch_as_cache(method.cache_statistics, teacher_BC.nan_to_num()),
        check=check,
    )
    (gradient_BC,) = torch.autograd.grad(result.total, student_BC)
    return result, gradient_BC
