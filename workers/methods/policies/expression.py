"""Temperatures as expressions over the cached statistics."""

import operator
from collections.abc import Sequence
from functools import partial, reduce
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from workers.errors import InvalidMethod
from workers.methods.cache_statistics import CacheStatistic
from workers.methods.expression import TEACHER_STATISTICS, Array, ParsedExpression
from workers.methods.expression_parser import parse
from workers.methods.policies.base import Policy, PolicyBatch, Statistics, Temperatures
from workers.spec import Flag


def _readable(text: str) -> str:
    parse(text)
    return text


ExpressionText = Annotated[str, Field(strict=True, min_length=1), AfterValidator(_readable)]


class Expression(Policy):
    """Temperatures written as text over the cached statistics; no deployment is needed for a new idea.

    Names: ``max``, ``min``, ``mean``, ``std``, ``sharpness`` of the teacher, the same with ``student_`` of the
    student; ``max_mean`` and so on, the mean over all rows of the cache, ``sample_max`` and so on, that over the views
    of the sample, and ``class_confidence``, that of the label's class (see ``cache_statistics.py``); ``classes``,
    ``epoch`` (from 1), ``epochs``. Functions: min, max, clip, log, exp, sqrt, abs, tanh,
    where(condition, then, otherwise). A temperature that is not positive and finite stops the run and names the
    sample. A row of which a ``clip`` changes a value counts as outside the domain: the bound decides there, and not the
    statistics.

    Attributes:
        temperature: of both networks; or give ``student`` and ``teacher`` apart.
        student: of the student's logits.
        teacher: of the teacher's logits.
        weight: W >= 0; None is T_s T_t.
        detach: whether the temperatures and the weight carry no gradient to the student's statistics.
    """

    title = "expression over the statistics"
    formula = "T_s, T_t and W as written, W = T_s T_t if it is not given"
    paper = "none"
    domain = "rows of which no clip of the text changes a value; the others take the bound"
    statistics = TEACHER_STATISTICS
    student_statistics = TEACHER_STATISTICS

    kind: Literal["expression"] = "expression"
    temperature: ExpressionText | None = None
    student: ExpressionText | None = None
    teacher: ExpressionText | None = None
    weight: ExpressionText | None = None
    detach: Flag = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = [name for name in ("temperature", "student", "teacher") if getattr(self, name) is not None]
        if given not in (["temperature"], ["student", "teacher"]):
            raise InvalidMethod(
                f"policy 'expression' takes temperature, or student and teacher; got {' and '.join(given) or 'neither'}"
            )
        return self

    @property
    def parsed(self) -> dict[str, ParsedExpression]:
        """``student``, ``teacher`` and, if it is given, ``weight``."""
        texts = {
            "student": self.student or self.temperature,
            "teacher": self.teacher or self.temperature,
            "weight": self.weight,
        }
        return {name: parse(text) for name, text in texts.items() if text is not None}

    @property
    def reads_level(self) -> bool:
        # Differences of these do not, which nobody can tell from the text.
        of_cache = {one.name.removeprefix("sample_").removesuffix("_mean") for one in self.cache_statistics}
        return bool({"max", "min", "mean", "sharpness"} & {*self.reads, *of_cache})

    @property
    def cache_statistics(self) -> tuple[CacheStatistic, ...]:
        found = {name for one in self.parsed.values() for name in one.cache_statistics}
        return tuple(map(CacheStatistic, sorted(found)))

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(sorted({name for one in self.parsed.values() for name in one.teacher_statistics}))

    @property
    def reads_of_student(self) -> tuple[str, ...]:
        return tuple(sorted({name for one in self.parsed.values() for name in one.student_statistics}))


def expression(student: Statistics, teacher: Statistics, config: Expression, batch: PolicyBatch) -> Temperatures:
    """Evaluate the texts; the weight is T_s T_t unless it has one. The caller checks whether the values are positive.

    Raises:
        ValueError: the text reads ``epochs``, which is not known here.
    """
    names: dict[str, Array] = {"classes": batch.full(batch.classes), "epoch": batch.full(batch.epoch)}
    names |= {name: teacher[name] for name in config.reads}
    names |= {f"student_{name}": student[name] for name in config.reads_of_student}
    names |= {one.name: batch.of_cache(one) for one in config.cache_statistics}
    if batch.epochs is not None:
        names["epochs"] = batch.full(batch.epochs)
    elif any("epochs" in one.names for one in config.parsed.values()):
        raise ValueError("the expression reads 'epochs': say how many epochs the run has")
    if config.detach:
        names = {name: batch.detached(values_B1) for name, values_B1 in names.items()}
    clips: list[tuple[Array, Array]] = []
    given = {
        side: one.evaluate(names, batch.xp, batch.full, lambda *clip: clips.append(clip))
        for side, one in config.parsed.items()
    }
    weight = given["weight"] if "weight" in given else given["student"] * given["teacher"]
    return Temperatures(given["student"], given["teacher"], weight, partial(_unclipped, clips) if clips else None)


def _unclipped(clips: Sequence[tuple[Array, Array]]) -> Array:
    """Boolean [B, 1], true where no clip has changed what it was given."""
    return reduce(operator.and_, [given_B1 == clipped_B1 for given_B1, clipped_B1 in clips])
