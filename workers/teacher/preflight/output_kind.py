"""Output kind of a teacher: logits, log-probabilities or probabilities, by the values of its outputs."""

import numpy as np
from numpy.typing import NDArray

from workers.teacher.preflight.report import OutputKind
from workers.teacher.preflight.session import Outputs, TeacherSession

# Probabilities of a row sum to 1 up to their own rounding.
SUM_TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2}
# Percentages are often rounded: their sums differ by so much of the sum itself.
SCALED_SUM_TOLERANCE = 0.01


def are_normalised(teacher: TeacherSession, outputs_RN: Outputs) -> bool:
    """Whether rows are probabilities or log-probabilities: the logits' level is lost to a softmax."""
    z_RN = outputs_RN.astype(np.float64)
    if (z_RN <= 0).all():
        z_RN = np.exp(z_RN)
    tolerance = SUM_TOLERANCE[teacher.graph.output_dtype]
    return bool((z_RN >= 0).all() and np.abs(z_RN.sum(axis=1) - 1).max() <= tolerance)


def output_kind(teacher: TeacherSession, outputs_RN: Outputs) -> tuple[OutputKind, list[str], list[str]]:
    """Kind that the outputs are taken for, warnings, refusals."""
    is_positive = bool((outputs_RN >= 0).all())
    if not are_normalised(teacher, outputs_RN):
        if not is_positive:
            return "logits", [], []
        z_RN = outputs_RN.astype(np.float64)
        return "logits", [], _not_logits(teacher.graph.output, z_RN.max(), z_RN.sum(axis=1))
    if is_positive:
        return (
            "log_probabilities",
            [
                "the teacher ends in a softmax: the log of its output is cached, at least -87.3. Logits without a "
                "softmax keep more, and temperature methods that use their size (max, norm) mean those"
            ],
            [],
        )
    return (
        "logits",
        [
            "the teacher ends in a log-softmax: its output is cached as it is. Temperature methods that use the "
            "logits' size (max, norm) mean logits without it"
        ],
        [],
    )


def _not_logits(output: str, largest: float, sums_R: NDArray[np.float64]) -> list[str]:
    """The refusal of outputs >= 0 that are probabilities of their own or scaled ones; none if they may be logits."""
    low, high = float(sums_R.min()), float(sums_R.max())
    if high > 0 and high - low <= SCALED_SUM_TOLERANCE * high and not 0.9 <= high <= 1.1:
        what = (
            f"are all >= 0 and each row sums to {high:.4g}: they are scaled probabilities (percent, where that is 100)"
        )
    elif largest <= 1:
        what = (
            f"are all between 0 and 1 and the rows sum to {low:.3g} .. {high:.3g}: they are what a sigmoid makes, or a "
            "rounded softmax (whose rows sum to 1)"
        )
    else:
        return []
    return [
        f"The teacher's outputs ({output!r}) {what}, not logits, and a softmax over them would be nearly flat or "
        "nearly hard. Export the logits, what goes into the last Sigmoid or Softmax, or name the output that holds "
        "them in the teacher's `output`."
    ]
