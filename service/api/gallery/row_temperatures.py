"""Temperatures that a run's method gives to the rows of a split, from statistics alone.

Shapes: N rows of the split, V views, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.api.gallery.kept_logits import KeptLogits, parts
from service.db.models import RunRecord
from service.errors import Conflict
from store.statistics import row_statistics
from workers.errors import InvalidMethod, NotFinite, UnknownName
from workers.methods.cache_statistics import CacheStatistic
from workers.methods.cache_values import Values
from workers.methods.catalog import parse_method
from workers.methods.method import Method, Term
from workers.methods.policies.learned import Learned
from workers.methods.preview import check_previewable, temperatures_of_rows
from workers.methods.preview_report import StatisticsTable

Float32 = npt.NDArray[np.float32]
STAND_IN = (
    "the student's statistics are taken to equal the teacher's, as of a student that has become its teacher: the run "
    "has kept none that its policy reads"
)


@dataclass(frozen=True)
class NetworkTemperatures:
    """Temperatures of one network, float32 [N]: the paper's T, and what divides the logits."""

    paper: Float32
    divisor: Float32


@dataclass(frozen=True)
class MethodTemperatures:
    """Temperatures of both networks, and what was assumed, in sentences."""

    teacher: NetworkTemperatures
    student: NetworkTemperatures
    notes: tuple[str, ...] = ()

    def varying(self) -> tuple[Literal["paper", "divisor"], Float32]:
        """The teacher's temperature that rows can be ordered by: the paper's, or else what divides the logits.

        Raises:
            Conflict: all rows have the same.
        """
        for name, values_N in (("paper", self.teacher.paper), ("divisor", self.teacher.divisor)):
            if values_N.min() != values_N.max():
                return ("paper" if name == "paper" else "divisor"), values_N
        raise Conflict(
            f"the method gives every picture the same teacher temperature, {self.teacher.divisor[0]:g}: there is no "
            "highest or lowest; ask for by=disagreement or by=teacher_mistakes"
        )


def method_of(run: RunRecord) -> Method:
    """Method of a run.

    Raises:
        Conflict: it trains nothing, or this version does not know its method any more.
    """
    if not run.method_spec:
        raise Conflict(f"{run.id} evaluates a teacher: it has no method, and no temperatures")
    try:
        return parse_method(dict(run.method_spec)).expand()
    except (InvalidMethod, UnknownName) as error:
        raise Conflict(f"the method of {run.id} cannot be read any more: {error}") from None


def term_of(method: Method, place: int) -> Term:
    """Term of a method by its place, from 0.

    Raises:
        Conflict: it has no such term, or its temperatures do not follow from statistics.
    """
    if not method.terms:
        raise Conflict(f"method {method.name!r} is cross-entropy alone: it has no temperature")
    if place >= len(method.terms):
        raise Conflict(
            f"method {method.name!r} has {len(method.terms)} terms, counted from 0: there is no term {place}"
        )
    term = method.terms[place]
    try:
        check_previewable(method, term)
    except InvalidMethod as error:
        raise Conflict(str(error)) from None
    return term


def student_statistics(kept: KeptLogits | None, term: Term, rows: int, classes: int) -> dict[str, Float32] | None:
    """Statistics of a student's kept logits, [1, N] by name; None where they are not those that a policy reads.

    Kept logits are less each row's largest: only what a shift does not change is known of them.
    """
    reads = set(term.policy.reads_of_student)
    if kept is None or not reads or not (term.policy.z_scores or reads <= {"std"}):
        return None
    found = [row_statistics(kept.read(part)) for part in parts(rows, classes)]
    return {name: np.concatenate([one[name] for one in found])[np.newaxis] for name in found[0]}


def method_temperatures(
    method: Method,
    term: Term,
    teacher: Mapping[str, Float32],
    classes: int,
    *,
    student: Mapping[str, Float32] | None,
    epoch: int,
    epochs: int,
    of_cache: Mapping[CacheStatistic, Values] | None = None,
) -> MethodTemperatures:
    """Compute the temperatures of every row.

    Args:
        teacher: statistics of the teacher's rows, [1, N] by name.
        student: of the student's; None takes the teacher's.
        of_cache: statistics of the run's training cache that the policy reads; None computes them of these rows.

    Raises:
        Conflict: a temperature that no loss could use.
    """
    try:
        given = temperatures_of_rows(
            method, term, StatisticsTable(teacher, student), classes, epoch=epoch, epochs=epochs, of_cache=of_cache
        )
    except NotFinite as error:
        raise Conflict(str(error)) from None
    notes = [STAND_IN] if term.policy.reads_of_student and student is None else []
    if isinstance(term.policy, Learned):
        notes.append("the temperature is learned: shown is the one that training begins with")
    return MethodTemperatures(
        teacher=NetworkTemperatures(given.teacher if given.paper is None else given.paper, given.teacher),
        student=NetworkTemperatures(given.student if given.paper is None else given.paper, given.student),
        notes=tuple(notes),
    )
