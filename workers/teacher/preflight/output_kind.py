"""Output kind of a teacher: as a client has stated it, or by the values and the last operator.

| kind | what is seen | stored logits |
|---|---|---|
| probabilities | >= 0, each row sums to 1 | their log |
| log_probabilities | <= 0, the exponentials of each row sum to 1 | as they are |
| percent | >= 0, each row sums to 100 | log of a hundredth |
| sigmoid | between 0 and 1, made by the operator Sigmoid | log p - log (1 - p) |
| logits | the rest | as they are |

Values between 0 and 1 that no Sigmoid has made, and scaled or rounded probabilities, may be several of these: they are
refused until a client states the kind. A stated kind has to be possible for every value.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from store.spec import StoredKind
from workers.config.teacher import SOFTMAX_KINDS, OutputKind
from workers.errors import ContractViolation
from workers.teacher.preflight.session import Outputs
from workers.teacher.wording import TEACHER, Wording

# Probabilities of a row sum to 1 up to their own rounding.
SUM_TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2}
# Percentages, and what a client has stated, may be rounded: their sums differ by so much of the sum itself.
SCALED_SUM_TOLERANCE = 0.01

STORED: dict[OutputKind, StoredKind] = {
    "logits": "logits",
    "log_probabilities": "logits",
    "probabilities": "log_probabilities",
    "sigmoid": "sigmoid",
    "percent": "percent",
}
_STATE_IT = '("sigmoid", "probabilities" or "percent"), and they are turned into logits.'


class OutputOrigin(Protocol):
    """Origin of outputs: a graph, or a file of logits that were imported."""

    @property
    def output(self) -> str:
        """Name of the output."""

    @property
    def output_dtype(self) -> str:
        """Type of its values."""

    @property
    def output_operator(self) -> str:
        """Operator that has made it; empty where that is not known."""


class FoundKind(NamedTuple):
    """Kind of a teacher's output.

    Attributes:
        kind: what the output is taken for.
        warnings, refusals: sentences about it.
    """

    kind: OutputKind
    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    @property
    def stored(self) -> StoredKind:
        """Way in which logits are made of it, as the cache has it."""
        return STORED[self.kind]

    @property
    def is_normalised(self) -> bool:
        """Whether the logits' level is lost to a softmax."""
        return self.kind in SOFTMAX_KINDS


def find_kind(
    origin: OutputOrigin, outputs_RN: Outputs, stated: OutputKind | None, *, wording: Wording = TEACHER
) -> FoundKind:
    """Kind of the outputs [R, N], all columns of the graph's own.

    Raises:
        ContractViolation: they cannot be of the stated kind.
    """
    z_RN = outputs_RN.astype(np.float64)
    tolerance = SUM_TOLERANCE[origin.output_dtype]
    if stated is not None:
        return _stated(z_RN, stated, tolerance, origin.output, wording=wording)
    is_positive = bool((z_RN >= 0).all())
    if not is_positive:
        is_log = bool((z_RN <= 0).all()) and _sums_to(np.exp(z_RN), 1, tolerance)
        return (
            FoundKind("log_probabilities", (_said("log_probabilities", z_RN, wording),))
            if is_log
            else FoundKind("logits")
        )
    if _sums_to(z_RN, 1, tolerance):
        return FoundKind("probabilities", (_said("probabilities", z_RN, wording),))
    if _sums_to(z_RN, 100, 100 * tolerance):
        return FoundKind("percent", (_said("percent", z_RN, wording),))
    if z_RN.max() <= 1 and origin.output_operator == "Sigmoid":
        return FoundKind("sigmoid", (_said("sigmoid", z_RN, wording),))
    return FoundKind("logits", refusals=tuple(_not_logits(origin.output, z_RN.max(), z_RN.sum(axis=1), wording)))


def _stated(
    z_RN: NDArray[np.float64], kind: OutputKind, tolerance: float, output: str, *, wording: Wording
) -> FoundKind:
    is_positive = bool((z_RN >= 0).all())
    if kind == "logits":
        looks_like = is_positive and (_sums_to(z_RN, 1, tolerance) or z_RN.max() <= 1)
        warning = (
            f"{wording.who}'s {wording.values} ({output!r}) lie between 0 and 1, and are used as logits, for its "
            "output_kind says so: a softmax over them is nearly flat"
        )
        return FoundKind(kind, (warning,) if looks_like else ())
    rounded = max(tolerance, SCALED_SUM_TOLERANCE)
    possible: dict[OutputKind, Callable[[], bool]] = {
        "log_probabilities": lambda: bool((z_RN <= tolerance).all()) and _sums_to(np.exp(z_RN), 1, rounded),
        "probabilities": lambda: is_positive and _sums_to(z_RN, 1, rounded),
        "percent": lambda: is_positive and _sums_to(z_RN, 100, 100 * rounded),
        "sigmoid": lambda: is_positive and bool(z_RN.max() <= 1),
    }
    if not possible[kind]():
        sums_R = z_RN.sum(axis=1)
        raise ContractViolation(
            f"{wording.its}output_kind is {kind!r}, but its {wording.values} ({output!r}) lie between {z_RN.min():.4g} "
            f"and {z_RN.max():.4g} and their rows sum to {sums_R.min():.4g} .. {sums_R.max():.4g}: {wording.restate}"
        )
    return FoundKind(kind, (_said(kind, z_RN, wording),))


def _sums_to(values_RN: NDArray[np.float64], wanted: float, tolerance: float) -> bool:
    return bool(np.abs(values_RN.sum(axis=1) - wanted).max() <= tolerance)


def _said(kind: OutputKind, z_RN: NDArray[np.float64], wording: Wording) -> str:
    """Sentence on how logits are made of outputs that are none."""
    keeps = "Logits without a softmax keep more, and temperature methods that use their size (max, norm) mean those"
    if kind == "log_probabilities":
        return (
            f"{wording.made_by} a log-softmax: {wording.them} is cached as it is. Temperature methods that use the "
            "logits' size (max, norm) mean logits without it"
        )
    zeros = int((z_RN == 0).sum())
    rounded = f" {zeros} of {z_RN.size} were rounded to 0, and have the log -87.3." if zeros else ""
    if kind == "probabilities":
        return f"{wording.made_by} a softmax: the log of {wording.them} is cached, at least -87.3.{rounded} {keeps}"
    if kind == "percent":
        return (
            f"{wording.who}'s {wording.values} are percent: the log of a hundredth of them is cached.{rounded} {keeps}"
        )
    ones = int((z_RN >= 1).sum())
    lost = f" {ones} of {z_RN.size} were rounded to 1, and all have the logit 16.6: export the logits." if ones else ""
    return (
        f"{wording.made_by} a sigmoid: log p - log (1 - p) of {wording.them} is cached, the logits before the sigmoid "
        f"up to rounding.{lost} Methods take a softmax over them, as of one class in each picture"
    )


def _not_logits(output: str, largest: float, sums_R: NDArray[np.float64], wording: Wording) -> list[str]:
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
        f"{wording.who.capitalize()}'s {wording.values} ({output!r}) {what}, not logits, and a softmax over them would "
        f"be nearly flat or nearly hard. {wording.give_logits} {_STATE_IT}"
    ]
