"""Temperatures as expressions over the cached statistics."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from workers.errors import InvalidMethod
from workers.methods.expression import TEACHER_STATISTICS, Array
from workers.methods.expression import Expression as ParsedExpression
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
    student, ``classes``, ``epoch`` (from 1), ``epochs``. Functions: min, max, clip, log, exp, sqrt, abs, tanh,
    where(condition, then, otherwise). A temperature that is not positive and finite stops the run and names the
    sample.

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
        return bool({"max", "min", "mean", "sharpness"} & set(self.reads))

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(sorted({name for one in self.parsed.values() for name in one.teacher_statistics}))

    @property
    def reads_of_student(self) -> tuple[str, ...]:
        return tuple(sorted({name for one in self.parsed.values() for name in one.student_statistics}))


def expression(student: Statistics, teacher: Statistics, config: Expression, batch: PolicyBatch) -> Temperatures:
    """What the text says, weight T_s T_t unless that is said too; whether it is positive is the caller's to check.

    Raises:
        ValueError: the text reads ``epochs``, which is not known here.
    """
    names: dict[str, Array] = {"classes": batch.full(batch.classes), "epoch": batch.full(batch.epoch)}
    names |= {name: teacher[name] for name in config.reads}
    names |= {f"student_{name}": student[name] for name in config.reads_of_student}
    if batch.epochs is not None:
        names["epochs"] = batch.full(batch.epochs)
    elif any("epochs" in one.names for one in config.parsed.values()):
        raise ValueError("the expression reads 'epochs': say how many epochs the run has")
    if config.detach:
        names = {name: batch.detached(values_B1) for name, values_B1 in names.items()}
    given = {side: one.evaluate(names, batch.xp, batch.full) for side, one in config.parsed.items()}
    return Temperatures(given["student"], given["teacher"], given.get("weight", given["student"] * given["teacher"]))
