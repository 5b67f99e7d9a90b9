"""The temperatures that a method would give, from a cache's statistics alone: nothing is trained, no logit is read.

The policies are the functions of ``policies`` that training runs, here on NumPy arrays and in float32 as there.
What a policy may read of the student is not known before there is one: it is taken from another cache (a weaker
network's), or from the teacher itself.

Shapes: V views, N samples, R = V N rows in the order (view, sample), B rows of a chunk, C classes, 1 kept for
broadcasting.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np
import numpy.typing as npt

from workers.errors import InvalidMethod, NotFinite
from workers.methods.cache_statistics import CacheStatistic
from workers.methods.cache_values import Values, compute_cache_statistics
from workers.methods.method import Method, Term
from workers.methods.policies.base import Temperatures
from workers.methods.policies.catalog import POLICIES
from workers.methods.policies.expression import Expression
from workers.methods.policies.learned import Learned
from workers.methods.policies.usable import Unusable, first_unusable
from workers.methods.preview_report import Float32, PreviewTerm, StatisticsTable, distribution

_CHUNK_ROWS = 1 << 16
_CHUNK_CELLS = 1 << 20  # [B, C] in chunks of 4 MiB, where a temperature differs between classes


def preview(
    method: Method,
    teacher: Mapping[str, Float32],
    classes: int,
    *,
    student: Mapping[str, Float32] | None = None,
    epoch: int,
    epochs: int,
    bins: int = 32,
) -> tuple[PreviewTerm, ...]:
    """Preview what each term's policy gives for every row; a learned temperature has its initial value.

    Args:
        method: cross-entropy alone has no terms.
        teacher: the cached statistics of every row, float32 [V, N] by name; all of them are shown of extreme rows.
        classes: C.
        student: the same of what stands for the student; None takes the teacher's.
        epoch: counted from 1.
        epochs: of the whole run.
        bins: of each histogram.

    Raises:
        InvalidMethod: a loss sets its temperature itself, or a policy reads the confidence of classes, from logits.
        NotFinite: a temperature or weight that would stop a run; ``sample`` is its place in the split.
        ValueError: the student's statistics have another shape than the teacher's.
    """
    for term in method.terms:
        check_previewable(method, term)
    table = StatisticsTable(teacher, student)
    return tuple(_preview_term(method, term, table, classes, epoch, epochs, bins) for term in method.terms)


@dataclass(frozen=True)
class CachedBatch:
    """``policies.base.PolicyBatch`` of ``rows`` rows whose labels are not known.

    Attributes:
        cache_statistics: over the cache; those of samples are of these rows, [B].
    """

    rows: int
    classes: int
    epoch: int
    epochs: int
    cache_statistics: Mapping[CacheStatistic, Values] = field(default_factory=dict)

    @property
    def xp(self) -> ModuleType:
        return np

    def full(self, value: float) -> Float32:
        return np.full((self.rows, 1), value, np.float32)

    def is_label(self) -> npt.NDArray[np.bool_]:
        # Any class will do: only the mean over classes is shown.
        label_BC = np.zeros((self.rows, self.classes), np.bool_)
        label_BC[:, 0] = True
        return label_BC

    def detached(self, values: Float32) -> Float32:
        return values

    def detached_statistics(self, statistics: Mapping[str, Float32]) -> Mapping[str, Float32]:
        return statistics

    def with_slope(self, shared: Temperatures, by: Float32, slope: Float32) -> Temperatures:
        return shared

    def of_cache(self, statistic: CacheStatistic) -> Float32:
        return np.broadcast_to(self.cache_statistics[statistic].reshape(-1, 1), (self.rows, 1))

    def theta(self, config: Learned, gradient_scale: float) -> np.float32:
        return np.float32(config.theta)


def _preview_term(
    method: Method, term: Term, table: StatisticsTable, classes: int, epoch: int, epochs: int, bins: int
) -> PreviewTerm:
    reads_student = bool(term.policy.reads_of_student)
    given = temperatures_of_rows(method, term, table, classes, epoch=epoch, epochs=epochs)
    return PreviewTerm(
        parts=term.part_names,
        policy=term.policy.kind,
        loss=term.loss.kind,
        student_is=table.student_is if reads_student else "unread",
        notes=tuple(_notes(term, table)),
        teacher=distribution(given.teacher, table, reads_student, bins),
        student=distribution(given.student, table, reads_student, bins),
        weight=distribution(given.weight, table, reads_student, bins),
    )


def _notes(term: Term, table: StatisticsTable) -> list[str]:
    notes = []
    if term.policy.reads_of_student and table.student_is == "teacher":
        notes.append(
            "the student's statistics are taken to equal the teacher's, as of a student that has become its teacher; "
            "name another network's cache as student_cache"
        )
    if isinstance(term.policy, Learned):
        notes.append("the temperature is learned: shown is the one that training begins with")
    if term.policy.gives_label_its_own:
        notes.append("the label's class has its own teacher temperature: shown is the mean over classes")
    return notes


def check_previewable(method: Method, term: Term) -> None:
    """Refuse a term whose temperatures do not follow from cached statistics.

    Raises:
        InvalidMethod: as ``preview``.
    """
    if term.loss.own_temperature:
        raise InvalidMethod(
            f"method {method.name!r} cannot be previewed: its loss {term.loss.kind!r} sets the temperature of its "
            "divergence itself, from both networks' logits, and a preview reads cached statistics alone"
        )
    if any(statistic.reads_logits for statistic in term.policy.cache_statistics):
        raise InvalidMethod(
            f"method {method.name!r} cannot be previewed: its policy {term.policy.kind!r} reads the confidence of "
            "classes, from the cached logits and the labels, and a preview reads cached statistics alone"
        )


def temperatures_of_rows(
    method: Method,
    term: Term,
    table: StatisticsTable,
    classes: int,
    *,
    epoch: int,
    epochs: int,
    of_cache: Mapping[CacheStatistic, Values] | None = None,
) -> Temperatures:
    """Compute the temperatures and weight that a term's policy gives for every row: float32 [R] each.

    ``paper`` is float32 [R] as well, or None where it is what divides the logits.

    Args:
        of_cache: the statistics of the whole cache that the policy reads; None computes them of the table.

    Raises:
        NotFinite: a temperature or weight that would stop a run; ``sample`` is its place in the split.
    """
    policy = term.policy
    chunk_rows = max(1, _CHUNK_CELLS // classes) if policy.gives_label_its_own else _CHUNK_ROWS
    whole = {side: np.empty(table.rows, np.float32) for side in ("student", "teacher", "weight")}
    paper_R: Float32 | None = None
    if of_cache is None:
        statistics = {name: values_R.reshape(-1, table.samples) for name, values_R in table.teacher.items()}
        of_cache = compute_cache_statistics(policy.cache_statistics, statistics, (), classes)
    for start in range(0, table.rows, chunk_rows):
        part = slice(start, min(start + chunk_rows, table.rows))
        student = {name: table.student[name][part, np.newaxis] for name in policy.reads_of_student}
        teacher = {name: table.teacher[name][part, np.newaxis] for name in policy.reads}
        # What leaves its domain becomes NaN or infinite, and is refused below.
        with np.errstate(all="ignore"):
            samples_B = np.arange(part.start, part.stop) % table.samples
            of_rows = {each: x[samples_B] if each.is_per_sample else x for each, x in of_cache.items()}
            batch = CachedBatch(part.stop - start, classes, epoch, epochs, cache_statistics=of_rows)
            decided = POLICIES[policy.kind](student, teacher, policy, batch)
            given = decided.as_arrays(batch)
            given = replace(given, teacher=given.teacher.mean(axis=1, keepdims=True))
            unusable = first_unusable(given, np)
        if unusable is not None:
            raise _refusal(method, term, unusable, *table.place(start + unusable.sample))
        for side, values_R in whole.items():
            values_R[part] = getattr(given, side)[:, 0]
        if decided.paper is not None:
            paper_R = np.empty(table.rows, np.float32) if paper_R is None else paper_R
            paper_R[part] = np.reshape(decided.paper, -1)
    return Temperatures(whole["student"], whole["teacher"], whole["weight"], paper=paper_R)


def _refusal(method: Method, term: Term, unusable: Unusable, view: int, sample: int) -> NotFinite:
    if isinstance(term.policy, Expression):
        reason = unusable.explain(term.policy, f"sample {sample}")
    else:
        what = "weight" if unusable.side == "weight" else f"{unusable.side} temperature"
        reason = (
            f"policy {term.policy.kind!r} gives sample {sample} the {what} {unusable.value:g}, because its statistics "
            "are too large or too small for float32: verify the cache"
        )
    return NotFinite(f"method {method.name!r}, view {view} of the cache: {reason}", sample)
