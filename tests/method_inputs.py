"""Inputs that the tests of methods share: ordinary logits, and those that real training meets at
its edges.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from workers.composition import Method
from workers.methods import parse_method
from workers.objective import Objective, objective
from workers.temperature import row_statistics

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
    method: Method | str | Mapping[str, object], logits: Logits, epoch: int = 1000
) -> tuple[Objective, Tensor]:
    """The objective and its gradient [B, C], with the teacher's statistics taken from its logits."""
    student_BC, teacher_BC, labels_B = logits
    student_BC = student_BC.detach().clone().requires_grad_()
    result = objective(
        method if isinstance(method, Method) else parse_method(method).expand(),
        student_BC,
        labels_B,
        epoch=epoch,
        teacher_logits_BC=teacher_BC,
        teacher_statistics=row_statistics(teacher_BC),
    )
    (gradient_BC,) = torch.autograd.grad(result.total, student_BC)
    return result, gradient_BC
