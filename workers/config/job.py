"""Description of a job: ``Plan`` is what a client decides, ``JobSpec`` adds the teacher's file, ``RunSpec`` is one run.

Frozen pydantic models, light enough for the API process, which embeds them and redefines none. Unknown keys are refused
everywhere, with the nearest known one. Units stand in the names.
"""

from collections import Counter
from typing import Annotated, Self

from pydantic import BeforeValidator, FailFast, Field, model_validator

from workers.config.cache import CacheOptions
from workers.config.dataset import DatasetSpec
from workers.config.export import Export
from workers.config.teacher import TeacherSpec
from workers.config.training import Training
from workers.config.views import Views
from workers.errors import InvalidJob
from workers.methods.catalog import MethodChoice
from workers.spec import AtMost, Flag, Seed, Spec
from workers.students.catalog import check_student

RUNS_MAX = 1000


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class StudentSpec(Spec):
    """A student architecture; a bare name in JSON is accepted for it."""

    name: Annotated[str, Field(min_length=1, max_length=128)]

    @model_validator(mode="after")
    def _exists(self) -> Self:
        check_student(self.name)
        return self


Student = Annotated[StudentSpec, BeforeValidator(_named, json_schema_input_type=StudentSpec | str)]


class RunSpec(Spec):
    """One student to train: which network, by which method, from which seed."""

    index: int
    student: StudentSpec
    method: MethodChoice
    seed: Seed

    @property
    def name(self) -> str:
        return f"{self.student.name} {self.method.label} seed {self.seed}"


class Plan(Spec):
    """A job without its teacher; its runs are all combinations of students, methods and seeds.

    Attributes:
        group_size: where more runs wait than there is room for, at most so many of one seed are trained in one process
            on the same batches; 1 trains each apart. It changes no result.
        accept_teacher: use the teacher although the preflight doubts its class order, preprocessing, accuracy or
            kind of output; what it found becomes warnings.
        export: what the runs leave beside their weights; it changes no training.
    """

    name: Annotated[str, Field(max_length=200)] = ""
    dataset: DatasetSpec
    views: Views = Views()
    cache: CacheOptions = CacheOptions()
    students: Annotated[tuple[Student, ...], Field(min_length=1), AtMost(RUNS_MAX)]
    # The first wrong one ends it: each takes time to refuse, and its exceptions hold memory until all are told.
    methods: Annotated[tuple[MethodChoice, ...], FailFast(), Field(min_length=1), AtMost(RUNS_MAX)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AtMost(RUNS_MAX)] = (0,)
    training: Training = Training()
    group_size: Annotated[int, Field(strict=True, ge=1, le=64)] = 4
    # Joined later, as ``Training.cuda_graph``.
    accept_teacher: Flag = Field(False, exclude_if=lambda given: not given)
    export: Export = Field(Export(), exclude_if=lambda given: given == Export())

    @model_validator(mode="after")
    def _bounded_and_distinct(self) -> Self:
        runs = len(self.students) * len(self.methods) * len(self.seeds)
        if runs > RUNS_MAX:
            raise InvalidJob(f"the job has {runs} runs, at most {RUNS_MAX} are allowed: split it")
        for field in ("students", "methods", "seeds"):
            twice = next((value for value, count in Counter(getattr(self, field)).items() if count > 1), None)
            if twice is not None:
                raise ValueError(f"{field} names {twice!r} twice; every run of a job must be different")
        return self

    @model_validator(mode="after")
    def _enough_views(self) -> Self:
        for method in self.methods:
            if method.expand().views > self.views.count:
                raise InvalidJob(
                    f"method {method.label!r} compares two views of each sample, and views.count is "
                    f"{self.views.count}: use 2 or more, with the recipe crop_flip or resized_crop"
                )
        return self

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what is probably not meant, and is done all the same."""
        told = [(method.label, method.expand().shortfall(self.training.epochs)) for method in self.methods]
        return tuple(f"method {label!r}: {shortfall}" for label, shortfall in told if shortfall)

    @property
    def largest_group(self) -> int:
        """Most runs of one process: ``group_size``, or 1 where each run has processes of its own."""
        return self.group_size if self.training.actors == 1 else 1

    def of_run(self, run: RunSpec) -> "Plan":
        """The plan whose only run is this one."""
        kept = {name: getattr(self, name) for name in Plan.model_fields}
        kept |= {"students": (run.student,), "methods": (run.method,), "seeds": (run.seed,)}
        return Plan.model_construct(**kept)

    def runs(self) -> tuple[RunSpec, ...]:
        """All runs, students slowest and seeds fastest."""
        combinations = [(s, m, seed) for s in self.students for m in self.methods for seed in self.seeds]
        return tuple(
            RunSpec(index=index, student=student, method=method, seed=seed)
            for index, (student, method, seed) in enumerate(combinations)
        )


class JobSpec(Plan):
    """A plan with its teacher, as ``python -m workers.pipeline job.json`` and the engine take it.

    Attributes:
        teacher_name: what a person calls it, for model cards.
    """

    teacher: TeacherSpec
    teacher_name: Annotated[str, Field(max_length=200)] = ""
