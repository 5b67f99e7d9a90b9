"""Rates: which measured times a piece of work is estimated by, and in words how they were measured. Pure.

Of all that was measured the most alike counts, and of as much alike the median of the newest few. A student is
estimated by runs of that very student on that kind of device and such pictures alone; else there is no estimate.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self, TypeVar

from service.db.models import Json
from service.estimates.measured import (
    MeasuredCaches,
    MeasuredProcess,
    MeasuredRun,
    MeasuredTimes,
    pictures_of_plan,
    recipe_of_plan,
)

_NEWEST = 5
# A teacher of another file is taken for one as fast within this factor of its size.
_SIZE_FACTOR = 1.5

Item = TypeVar("Item")


@dataclass(frozen=True)
class Wanted:
    """Run whose time is asked for.

    Attributes:
        pictures, recipe, views: as of ``MeasuredRun``.
        device: None where it is not known which the engine has.
        group, at_once: runs of its process, and processes at the same time.
    """

    student: str
    method: str
    batch_size: int
    pictures: str
    recipe: str
    device: str | None
    trained: int
    measured: int
    group: int
    at_once: float
    views: int = 1


@dataclass(frozen=True)
class Rate:
    """Seconds, and how they were measured."""

    seconds: float
    basis: str


@dataclass(frozen=True)
class ProcessRate:
    """Seconds of a process beside the epochs of its runs.

    Attributes:
        start_s: until its first batch.
        end_s: from the last epoch of its runs to the end of the first one; the first export loads what exports.
        tail_s: from then on to the end of each further one.
    """

    start_s: float
    end_s: float
    tail_s: float
    basis: str


@dataclass(frozen=True)
class InferenceRate:
    """Rows a second of a teacher, and seconds from a job's start to its training beside them."""

    rows_per_s: float | None
    beside_s: float
    basis: str


def epoch_rate(measured: MeasuredTimes, wanted: Wanted) -> Rate | None:
    """Seconds of one epoch of a run; None where its student was never measured like this."""
    alike = [
        run
        for run in measured.runs
        if (run.student, run.pictures) == (wanted.student, wanted.pictures) and wanted.device in (None, run.device)
    ]

    def likeness(run: MeasuredRun) -> tuple[bool, bool, bool, bool, bool, float]:
        return (
            run.batch_size == wanted.batch_size,
            run.views == wanted.views,
            run.recipe == wanted.recipe,
            run.method == wanted.method,
            run.group == wanted.group,
            -abs(round(run.at_once) - round(wanted.at_once)),
        )

    best = _most_alike(alike, likeness)
    if not best:
        return None
    first = best[0]
    where = f"{_count(best, 'run')} of {first.student} by {first.method}, batch {first.batch_size}, {first.group} in a "
    where += f"process, {round(first.at_once)} at once, on {first.device}"
    others = [
        f"{name} {given} was never measured"
        for name, given, found in (
            ("batch", wanted.batch_size, first.batch_size),
            ("augmentation", wanted.recipe, first.recipe),
            ("method", wanted.method, first.method),
            ("a group of", wanted.group, first.group),
        )
        if given != found
    ]
    seconds = median(run.epoch_s(wanted.trained, wanted.measured, wanted.views) for run in best)
    return Rate(seconds, where + (f" ({', '.join(others)})" if others else ""))


def process_rate(
    measured: MeasuredTimes, student: str, pictures: str, device: str | None, *, runs: int
) -> ProcessRate | None:
    """Seconds of a process of so many runs beside their epochs; None where no process was measured on that device."""
    alike = [each for each in measured.processes if device in (None, each.device)]

    def likeness(each: MeasuredProcess) -> tuple[bool, bool, float]:
        return each.student == student, each.pictures == pictures, -abs(each.runs - runs)

    best = _most_alike(alike, likeness)
    if not best:
        return None
    first = best[0]
    beside_s = median(each.beside_s for each in best)
    ends = [each.end_s for each in best if each.end_s is not None]
    # Where events are packed nobody knows what is start and what is end; together they are what was measured.
    end_s = min(median(ends) if ends else beside_s / 2, beside_s)
    tails = [each.tail_s for each in alike if each.tail_s is not None and each.student == first.student]
    # Of single runs alone nobody knows what a further one takes.
    tail_s = median(tails[:_NEWEST]) if tails else 0.0
    basis = f"{_count(best, 'process', 'processes')} of {first.runs} {first.student}"
    start_s = max(0.0, beside_s - end_s - tail_s * (first.runs - 1))
    return ProcessRate(start_s=start_s, end_s=end_s, tail_s=tail_s, basis=basis)


@dataclass(frozen=True)
class WantedTeacher:
    """Teacher whose rate is asked for.

    Attributes:
        input_size: (height, width) of its input as JSON; ``null`` takes the pictures'.
        pictures, recipe: as of ``MeasuredCaches``.
    """

    sha256: str
    size_bytes: int | None
    input_size: str
    pictures: str
    recipe: str

    @classmethod
    def of(cls, sha256: str, size_bytes: int | None, preprocessing: Json, plan: Json) -> Self:
        """A teacher for the pictures of a plan, which may be of an earlier version; both are JSON."""
        input_size = json.dumps(preprocessing.get("size"))
        return cls(sha256, size_bytes, input_size, pictures_of_plan(plan), recipe_of_plan(plan))


def inference_rate(measured: MeasuredTimes, teacher: WantedTeacher, *, infers: bool = True) -> InferenceRate | None:
    """Rate of a teacher, or of one of about its size and the same input; None where no job was measured.

    Args:
        infers: rows are missing; where none is, jobs that inferred none say how long the rest takes.
    """
    pictures = teacher.pictures
    whole = [each for each in measured.caches if each.pictures == pictures] or measured.caches
    if not whole:
        return None
    ran = [each for each in measured.caches if each.rows and each.seconds > 0]
    own = [each for each in ran if each.teacher_sha256 == teacher.sha256]
    others = [each for each in ran if each.teacher_input == teacher.input_size and _is_near(each, teacher)]
    found = own or others

    def likeness(each: MeasuredCaches) -> tuple[bool, bool, int]:
        # Of few rows the time is that of opening the teacher.
        return each.pictures == pictures, each.recipe == teacher.recipe, round(math.log2(each.rows))

    best = _most_alike(found, likeness)
    # Where nothing was inferred the data had been prepared, and the teacher tried.
    like_this = ([each for each in whole if bool(each.rows) is infers] or whole)[:_NEWEST]
    beside_s = median(each.beside_s for each in like_this)
    if not best:
        return InferenceRate(None, beside_s, f"{_count(like_this, 'job')} of other teachers")
    whose = "this teacher" if own else "another teacher of about its size and the same input"
    other = "" if best[0].recipe == teacher.recipe else f" (views {teacher.recipe} were never measured)"
    basis = f"{best[0].rows:,} rows of {whose} in an earlier job{other}"
    return InferenceRate(median(each.rows / each.seconds for each in best), beside_s, basis)


def rate_of_several(rates: Sequence[InferenceRate | None], rows: Sequence[int]) -> InferenceRate | None:
    """Rate of several teachers, one after the other, over so many rows of each; None where none is known."""
    found = [rate for rate in rates if rate is not None]
    if len(found) < len(rates):
        return None
    shares = rows if any(rows) else [1] * len(rows)
    seconds = [
        None if rate.rows_per_s is None else count / rate.rows_per_s
        for rate, count in zip(found, shares, strict=True)
        if count
    ]
    known = [each for each in seconds if each is not None]
    per_s = sum(shares) / sum(known) if len(known) == len(seconds) else None
    # The data is prepared once.
    return InferenceRate(per_s, max(rate.beside_s for rate in found), "; ".join(dict.fromkeys(r.basis for r in found)))


def _is_near(found: MeasuredCaches, wanted: WantedTeacher) -> bool:
    if found.teacher_bytes is None or wanted.size_bytes is None:
        return False
    return max(found.teacher_bytes, wanted.size_bytes) <= _SIZE_FACTOR * min(found.teacher_bytes, wanted.size_bytes)


def _most_alike(items: Iterable[Item], likeness: Callable[[Item], tuple[float, ...]]) -> Sequence[Item]:
    """The newest few of those that are most alike."""
    listed = list(items)
    if not listed:
        return ()
    best = max(map(likeness, listed))
    return [item for item in listed if likeness(item) == best][:_NEWEST]


def _count(items: Sequence[object], one: str, many: str | None = None) -> str:
    return f"{len(items)} {one if len(items) == 1 else many or one + 's'}"
