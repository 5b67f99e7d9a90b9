"""Temperatures that a run's method gives to the rows of a split, from statistics alone.

Shapes: N rows of the split, V views, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from service.api.gallery.kept_logits import LogitsFile, parts
from service.db.models import RunRecord
from service.errors import Conflict
from store import CacheReader
from store.statistics import STATISTICS, row_statistics
from workers.errors import InvalidMethod, NotFinite, UnknownName
from workers.methods.cache_statistics import CacheStatistic
from workers.methods.cache_values import Values, compute_cache_statistics
from workers.methods.catalog import parse_method
from workers.methods.method import Method, Term
from workers.methods.policies.learned import Learned
from workers.methods.preview import check_previewable, temperatures_of_rows
from workers.methods.preview_report import StatisticsTable

Float32 = npt.NDArray[np.float32]
HELD_OUT = (
    "rows that are held out for validation are among those of train: its cache has them, though no run trains on them"
)
STAND_IN = (
    "the student's statistics are taken to equal the teacher's, as of a student that has become its teacher: its own "
    "are not known on these pictures"
)


@dataclass(frozen=True)
class NetworkRowTemperatures:
    """Temperatures of one network, float32 [N]: the paper's T, and what divides the logits."""

    paper: Float32
    divisor: Float32


@dataclass(frozen=True)
class MethodRowTemperatures:
    """Temperatures of both networks, and what was assumed, in sentences."""

    teacher: NetworkRowTemperatures
    student: NetworkRowTemperatures
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


def held_out_notes(plan: Mapping[str, Any]) -> list[str]:
    """Sentence on the rows of a stored plan's ``train`` that no run trains on; nothing without a holdout."""
    return [HELD_OUT] if "holdout" in (plan.get("validation") or {}) else []


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


def student_statistics(kept: LogitsFile | None, term: Term, rows: int, classes: int) -> dict[str, Float32] | None:
    """Statistics of a student's kept logits, [1, N] by name; None where they are not those that a policy reads.

    Kept logits are less each row's largest: only what a shift does not change is known of them.
    """
    reads = set(term.policy.reads_of_student)
    if kept is None or not reads or not (term.policy.z_scores or reads <= {"std"}):
        return None
    found = [row_statistics(kept.read(part)) for part in parts(rows, classes)]
    return {name: np.concatenate([one[name] for one in found])[np.newaxis] for name in found[0]}


def training_statistics(root: Path, key: str, term: Term) -> dict[CacheStatistic, Values]:
    """Statistics over all views of a training cache that a policy reads, as in training; of most there are none.

    Raises:
        StoreError: the cache cannot be read.
    """
    wanted = term.policy.cache_statistics
    if not wanted:
        return {}
    names = {each.name.removeprefix("sample_").removesuffix("_mean") for each in wanted}
    with CacheReader.from_key(root, key) as reader:
        spec = reader.spec
        # One view after the other: those of all views and names can be larger than what this process may take.
        sums = {name: np.zeros(spec.samples) for name in names & set(STATISTICS)}
        for view in range(spec.views):
            for name, values_N in reader.statistics(view).items():
                if name in sums:
                    sums[name] += values_N
    means = {name: (sum_N / spec.views).astype(np.float32)[np.newaxis] for name, sum_N in sums.items()}
    return compute_cache_statistics(wanted, means, (), spec.classes)


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
) -> MethodRowTemperatures:
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
    return MethodRowTemperatures(
        teacher=NetworkRowTemperatures(given.teacher if given.paper is None else given.paper, given.teacher),
        student=NetworkRowTemperatures(given.student if given.paper is None else given.paper, given.student),
        notes=tuple(notes),
    )
