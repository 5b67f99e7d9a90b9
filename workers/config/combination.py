"""Combination of several teachers: how the rows of all are made one row for each sample."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from workers.config.teacher import TeacherSpec
from workers.errors import InvalidJob
from workers.methods.cache_statistics import ROW_STATISTICS
from workers.methods.expression_parser import parse
from workers.spec import AtMost, Spec

TEACHERS_MAX = 16
# Only ratios count; the bounds keep every share well inside float64.
TeacherWeight = Annotated[float, Field(strict=True, ge=1e-6, le=1e6, allow_inf_nan=False)]
WEIGHT_NAMES = (*ROW_STATISTICS, "classes")


def _reads_rows(text: str) -> str:
    unknown = sorted(parse(text).names.difference(WEIGHT_NAMES))
    if unknown:
        raise InvalidJob(
            f"combine.weights.expression reads {unknown[0]!r}, which is no statistic of a teacher's row: it may read "
            f"{', '.join(WEIGHT_NAMES)}"
        )
    return text


class ExpressionWeights(Spec):
    """Weights of each sample by an expression over the statistics of each teacher's row.

    Attributes:
        expression: in the language of temperature expressions; the names are those of ``WEIGHT_NAMES``. Its value
            multiplies the teacher's own weight, and must be finite and not negative.
    """

    expression: Annotated[str, Field(strict=True, min_length=1, max_length=4096), AfterValidator(_reads_rows)]


class Combination(Spec):
    """Combination of the rows of several teachers.

    Attributes:
        space: ``logits`` takes the weighted mean of the logits, ``probabilities`` the log of the weighted mean of the
            softmaxes at temperature 1. The latter are log-probabilities, which methods that depend on the level of the
            logits refuse.
        weights: ``fixed`` takes those of the teachers for every sample; ``confidence`` multiplies them, for each
            sample, by the largest softmax probability of the teacher; an expression by its value. They are divided by
            their sum.
    """

    space: Literal["logits", "probabilities"] = "logits"
    weights: Literal["fixed", "confidence"] | ExpressionWeights = "fixed"


class WeightedTeacher(TeacherSpec):
    """One of several teachers.

    Attributes:
        weight: in the combination, before ``Combination.weights`` and the division by the sum.
        name: what a person calls it, for warnings and model cards.
    """

    weight: TeacherWeight = 1.0
    name: Annotated[str, Field(max_length=200)] = ""

    @property
    def alone(self) -> TeacherSpec:
        """The teacher without its place in a combination: what its own caches are known by."""
        return TeacherSpec(**{name: getattr(self, name) for name in TeacherSpec.model_fields})


WeightedTeachers = Annotated[tuple[WeightedTeacher, ...], AtMost(TEACHERS_MAX)]


def check_count(count: int, *, combines: bool) -> None:
    """Refuse a list of one teacher, and a combination of none.

    Raises:
        InvalidJob: saying what to write instead.
    """
    if count == 1:
        raise InvalidJob("teachers has one teacher, a combination needs two or more: write it as `teacher`")
    if not count and combines:
        raise InvalidJob("combine says how several teachers are combined, and the job has one: list them in `teachers`")


def with_first_teacher(data: object) -> object:
    """A description whose ``teacher``, if it is left out, is the first one of ``teachers``."""
    if not isinstance(data, dict) or not data.get("teachers") or data.get("teacher") is not None:
        return data
    first = data["teachers"][0]
    if isinstance(first, WeightedTeacher):
        return {**data, "teacher": first.alone}
    if not isinstance(first, dict):
        return data
    return {**data, "teacher": {name: value for name, value in first.items() if name not in ("weight", "name")}}
