"""View of a batch: the logits of both networks on the same pictures, and the teacher's statistics.

Shapes: B batch, C classes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from workers.methods.cache_statistics import CacheStatistic
from workers.methods.method import Method
from workers.objective.mixed_labels import MixedLabels
from workers.objective.statistics import SharedTeacherTerms


@dataclass(frozen=True)
class View:
    """One view of a batch, seen by both networks.

    Attributes:
        student_logits_BC: with gradient; any float dtype.
        teacher_logits_BC: raw cached logits of the same view; needed if the method has terms.
        teacher_statistics: name -> [B] for at least ``method.statistics``, as cached;
            ``statistics.row_statistics`` makes them for a teacher that is run live.
        known: what other students have derived from the same teacher logits.
        mixed: second labels of the pictures; None where they are not mixed.
    """

    student_logits_BC: Tensor
    teacher_logits_BC: Tensor | None = None
    teacher_statistics: Mapping[str, Tensor] | None = None
    known: SharedTeacherTerms = field(default_factory=SharedTeacherTerms)
    mixed: MixedLabels | None = None


def check_view(method: Method, view: View, labels_B: Tensor) -> None:
    """Check the shapes and the presence of everything that the method needs, without touching a value on the device.

    Raises:
        ValueError: naming what does not fit or is not there.
    """
    shape = tuple(view.student_logits_BC.shape)
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
        raise ValueError(f"student logits are {shape}; [batch >= 1, classes >= 2] is needed")
    if tuple(labels_B.shape) != shape[:1]:
        raise ValueError(f"labels are {tuple(labels_B.shape)}; the student's logits {shape}")
    if not method.needs_teacher:
        return
    if view.teacher_logits_BC is None or tuple(view.teacher_logits_BC.shape) != shape:
        got = None if view.teacher_logits_BC is None else tuple(view.teacher_logits_BC.shape)
        raise ValueError(f"method {method.name!r} needs teacher logits {shape}; got {got}")
    for name in method.statistics:
        value_B = (view.teacher_statistics or {}).get(name)
        if value_B is None or tuple(value_B.shape) != shape[:1]:
            got = None if value_B is None else tuple(value_B.shape)
            raise ValueError(
                f"method {method.name!r} reads the cached statistic {name!r}, {shape[:1]}; got "
                f"{got}. Pass the cache's, or row_statistics(teacher_logits) for a live teacher"
            )


def check_cache_statistics(method: Method, given: Collection[CacheStatistic]) -> None:
    """Check that what the method reads over the whole cache is there.

    Raises:
        ValueError: naming what is not.
    """
    for statistic in set(method.cache_statistics).difference(given):
        raise ValueError(
            f"method {method.name!r} reads {statistic} over the teacher's whole cache, and it was not given: pass the "
            "cache's, or batch_as_cache(method.cache_statistics, teacher_logits) for a live teacher"
        )
