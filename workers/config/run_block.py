"""Runs of a job: one (``RunSpec``), and blocks of students x methods x seeds (``RunBlock``) that a plan consists of."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Self

from pydantic import FailFast, Field, model_validator

from workers.config.student import Student, StudentSpec
from workers.errors import InvalidJob
from workers.methods.catalog import MethodChoice
from workers.methods.papers.base import Preset
from workers.spec import AtMost, Seed, Spec

RUNS_MAX = 1000


Students = Annotated[tuple[Student, ...], AtMost(RUNS_MAX)]
# The first wrong one ends it: each takes time to refuse, and its exceptions hold memory until all are told.
Methods = Annotated[tuple[MethodChoice, ...], FailFast(), AtMost(RUNS_MAX)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AtMost(RUNS_MAX)]


def run_name(student: StudentSpec, method: Preset, seed: int) -> str:
    """Name of a run; those of a job are different."""
    return f"{student.name} {method.label} seed {seed}"


class RunSpec(Spec):
    """One student to train: which network, by which method, from which seed."""

    index: int
    student: StudentSpec
    method: MethodChoice
    seed: Seed

    @property
    def name(self) -> str:
        return run_name(self.student, self.method, self.seed)


class RunBlock(Spec):
    """Students x methods x seeds, each combination of which is a run."""

    students: Annotated[Students, Field(min_length=1)]
    methods: Annotated[Methods, Field(min_length=1)]
    seeds: Seeds = (0,)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        # Lists of a few kilobytes have a product of 1e9, which nobody may walk through.
        if self.count > RUNS_MAX:
            raise InvalidJob(f"the block has {self.count} runs, at most {RUNS_MAX} are allowed: split it")
        return self

    @property
    def count(self) -> int:
        """Number of its runs."""
        return len(self.students) * len(self.methods) * len(self.seeds)

    @property
    def runs(self) -> Iterator[tuple[StudentSpec, Preset, int]]:
        """Student, method and seed of each run, students slowest and seeds fastest."""
        return ((s, m, seed) for s in self.students for m in self.methods for seed in self.seeds)


def student_at(blocks: Sequence[RunBlock], index: int) -> str:
    """Name of the student of a run by its index in the plan; empty where there is no such run."""
    for block in blocks:
        if index < block.count:
            return block.students[index // (block.count // len(block.students))].name
        index -= block.count
    return ""


def check_distinct(blocks: Sequence[RunBlock]) -> None:
    """Refuse blocks in which a run is named twice, or a student with two sorts of first weights.

    Raises:
        ValueError: naming it.
    """
    for block in blocks:
        for field in ("students", "methods", "seeds"):
            twice = next((value for value, count in Counter(getattr(block, field)).items() if count > 1), None)
            if twice is not None:
                raise ValueError(f"{field} names {twice!r} twice; every run of a job must be different")
    names = [student.name for student in dict.fromkeys(s for block in blocks for s in block.students)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"students names {twice[0]!r} twice, with other first weights: a report tells runs apart by their "
            "student's name; post a job for each"
        )
    if len(blocks) > 1:
        counted = Counter(run_name(*run) for block in blocks for run in block.runs)
        if again := next((name for name, count in counted.items() if count > 1), None):
            raise ValueError(f"the run {again!r} is there twice; every run of a job must be different")
