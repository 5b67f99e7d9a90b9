"""View of a batch: the logits of both networks on the same pictures, and the teacher's statistics.

Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

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
    """

    student_logits_BC: Tensor
    teacher_logits_BC: Tensor | None = None
    teacher_statistics: Mapping[str, Tensor] | None = None
    known: SharedTeacherTerms = field(default_factory=SharedTeacherTerms)
