"""Description of a job: ``Plan`` is what a client decides, ``JobSpec`` adds the teacher's file.

Frozen pydantic models, light enough for the API process, which embeds them and redefines none. Unknown keys are refused
everywhere, with the nearest known one. Units stand in the names.
"""

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.cache import CacheOptions
from workers.config.combination import (
    Combination,
    WeightedTeacher,
    WeightedTeachers,
    check_count,
    with_first_teacher,
)
from workers.config.dataset import DatasetSpec
from workers.config.export import Export
from workers.config.extension import Extension
from workers.config.method_views import check_views, second_view_warnings
from workers.config.recipes import Recipe
from workers.config.run_block import RUNS_MAX, Methods, RunBlock, Seeds, Students, check_distinct
from workers.config.run_block import RunSpec as RunSpec
from workers.config.student import StudentSpec as StudentSpec
from workers.config.teacher import TeacherSpec
from workers.config.training import Training
from workers.config.views import Views
from workers.data.preparation.holdout_spec import Holdout
from workers.errors import InvalidJob, UnknownName
from workers.events import Split
from workers.methods.papers.base import Preset
from workers.spec import AtMost, Flag, Spec
from workers.students.catalog import check_drop_path


class Plan(Spec):
    """A job without its teacher; its runs are all combinations of students, methods and seeds, and those ``added``.

    Attributes:
        evaluate: measure the teacher, which may be any classifier, on every split but train, and train nothing.
        group_size: where more runs wait than there is room for, at most so many of one seed are trained in one process
            on the same batches; 1 trains each apart. It changes no result.
        accept_teacher: use the teacher although the preflight doubts its class order, preprocessing, accuracy or
            kind of output; what it found becomes warnings.
        export: what the runs leave beside their weights; it changes no training.
        validation: cuts a validation split from the training split; None takes the dataset's own, if it has one.
        test: ``dataset`` is the dataset's own test split; None measures nothing on one.
        combine: how the rows of several teachers become one; None with several is the mean of their logits.
        recipe: what has filled in the fields that the client has left out, see ``workers.config.draft``; None if
            nothing has.
        added: further runs, after those of ``students``, ``methods`` and ``seeds``; a block for each time that runs
            were added to the job.
        extends: the run that has ended and that the job's only one goes on from; said by the service.
    """

    name: Annotated[str, Field(max_length=200)] = ""
    dataset: DatasetSpec
    views: Views = Views()
    cache: CacheOptions = CacheOptions()
    evaluate: Flag = Field(False, exclude_if=lambda given: not given)
    students: Students = ()
    methods: Methods = ()
    seeds: Seeds = (0,)
    training: Training = Training()
    group_size: Annotated[int, Field(strict=True, ge=1, le=64)] = 4
    # Joined later, as ``Training.cuda_graph``.
    accept_teacher: Flag = Field(False, exclude_if=lambda given: not given)
    export: Export = Field(Export(), exclude_if=lambda given: given == Export())
    validation: Holdout | None = Field(None, exclude_if=lambda given: given is None)
    test: Literal["dataset"] | None = Field("dataset", exclude_if=lambda given: given == "dataset")
    combine: Combination | None = Field(None, exclude_if=lambda given: given is None)
    recipe: Recipe | None = Field(None, exclude_if=lambda given: given is None)
    added: Annotated[tuple[RunBlock, ...], AtMost(RUNS_MAX)] = Field((), exclude_if=lambda given: not given)
    extends: Extension | None = Field(None, exclude_if=lambda given: given is None)

    @model_validator(mode="after")
    def _trains_or_evaluates(self) -> Self:
        if not self.evaluate:
            for field in ("students", "methods"):
                if not getattr(self, field):
                    raise ValueError(f'{field} is empty: name at least one, or train nothing by `"evaluate": true`')
            return self
        trains = {
            "students": self.students,
            "methods": self.methods,
            "added": self.added,
            "recipe": self.recipe,
            "export": self.export != Export(),
            "views": self.views.count > 1,
        }
        given = [name for name, is_given in trains.items() if is_given]
        if given:
            raise ValueError(f"evaluate is true, so nothing is trained: leave {', '.join(given)} out")
        return self

    @model_validator(mode="after")
    def _bounded_and_distinct(self) -> Self:
        runs = sum(block.count for block in self.blocks)
        if runs > RUNS_MAX:
            raise InvalidJob(f"the job has {runs} runs, at most {RUNS_MAX} are allowed: split it")
        check_distinct(self.blocks)
        if self.extends is not None and runs != 1:
            raise ValueError(f"the job extends run {self.extends.run} and has {runs} runs: it can have that one alone")
        return self

    @model_validator(mode="after")
    def _enough_views(self) -> Self:
        check_views(self.all_methods, self.views)
        return self

    @model_validator(mode="after")
    def _students_have_drop_path(self) -> Self:
        for student in self.all_students if self.training.drop_path is not None else ():
            check_drop_path(student.name)
        return self

    @model_validator(mode="after")
    def _samples_apart_where_accumulated(self) -> Self:
        for method in self.all_methods if self.training.accumulate > 1 else ():
            losses = [term.loss.kind for term in method.expand().terms if term.loss.needs_batch]
            if losses:
                raise InvalidJob(
                    f"training.accumulate is {self.training.accumulate}, and loss {losses[0]!r} of method "
                    f"{method.label!r} compares the samples of a batch with each other, which parts of a batch cannot: "
                    "leave accumulate out, or set training.actors, which sees whole batches"
                )
        return self

    @model_validator(mode="after")
    def _recipe_is_filled_in(self) -> Self:
        if self.recipe is not None and self.recipe.filled is None:
            raise InvalidJob(
                f"recipe {self.recipe.name!r} has not been filled in: read the job as a "
                "workers.config.draft.JobDraft, whose job() does that"
            )
        return self

    @model_validator(mode="after")
    def _rates_of_own_students(self) -> Self:
        names = [student.name for student in self.all_students]
        for name in self.training.student_lr:
            if name not in names:
                raise UnknownName("student of this job in training.student_lr", name, names)
        return self

    def splits(self, of_dataset: Collection[Split]) -> tuple[Split, ...]:
        """Splits that the job uses of a dataset with those of its own, a holdout included.

        Raises:
            InvalidJob: the job asks for a split that is not there, for two validation splits, or measures nothing.
        """
        has_own = "validation" in of_dataset
        if self.validation is not None and has_own:
            raise InvalidJob(
                "the dataset has a validation split of its own, and the job cuts another one from train "
                f"(validation.holdout {self.validation.holdout}): leave `validation` out"
            )
        validates = has_own or self.validation is not None
        if self.test is not None and "test" not in of_dataset:
            holdout = "" if validates else ' with `"validation": {"holdout": 0.1}`'
            raise InvalidJob(
                f'the dataset has no test split (it has {", ".join(of_dataset)}): add one, or say `"test": null`'
                f"{holdout}, and nothing is measured on one"
            )
        if not validates and self.test is None:
            raise InvalidJob(
                'with `"test": null` and no validation split nothing would be measured: '
                'cut one from train by `"validation": {"holdout": 0.1}`'
            )
        option = self.training.needs_validation or (None if self.export.int8 is None else "export.int8")
        if not validates and option is not None:
            raise InvalidJob(
                f"{option} needs a validation split, and the dataset has none (it has {', '.join(of_dataset)}): "
                'cut one from train by `"validation": {"holdout": 0.1}`. The test split is only measured'
            )
        return ("train", *(("validation",) if validates else ()), *(("test",) if self.test is not None else ()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what is probably not meant, and is done all the same."""
        told = [(method.label, method.expand().shortfall(self.training.epochs)) for method in self.all_methods]
        shortfalls = tuple(f"method {label!r}: {shortfall}" for label, shortfall in told if shortfall)
        return (*shortfalls, *self._baseline_warnings(), *second_view_warnings(self.all_methods, self.views))

    def _baseline_warnings(self) -> tuple[str, ...]:
        """Of runs without a teacher that see fewer views than they could: one sentence, or none."""
        views, epochs = self.views, self.training.epochs
        baselines = [repr(method.label) for method in self.all_methods if not method.expand().needs_teacher]
        if not baselines or views.augmentation.recipe == "none" or (seen := views.seen(epochs)) >= epochs:
            return ()
        return (
            f"method {', '.join(baselines)} needs no teacher and could see {epochs} views of each picture in {epochs} "
            f"epochs, but sees {seen}: a baseline on few views makes distillation look better than it is; "
            "set views.fresh to true",
        )

    def views_of(self, run: RunSpec) -> Views:
        """Views that a run trains on: fresh ones where the job has them, it needs no teacher, and they are others."""
        is_fresh = self.views.fresh and self.training.epochs > self.views.distinct
        if is_fresh and not run.method.expand().needs_teacher:
            return self.views
        return self.views.model_copy(update={"fresh": None})

    def batches_of(self, run: RunSpec) -> tuple[int, Views]:
        """Equal for two runs that see the same batches."""
        return run.seed, self.views_of(run)

    @property
    def largest_group(self) -> int:
        """Most runs of one process: ``group_size``, or 1 where each run has processes of its own."""
        return self.group_size if self.training.actors == 1 else 1

    def of_run(self, run: RunSpec) -> "Plan":
        """The plan whose only run is this one; it states everything, so no recipe is part of it."""
        kept = {name: getattr(self, name) for name in Plan.model_fields}
        kept |= {"students": (run.student,), "methods": (run.method,), "seeds": (run.seed,)}
        kept |= {"added": (), "extends": None, "recipe": None}
        return Plan.model_construct(**kept | {"training": self.training.of_student(run.student.name)})

    @property
    def epochs_before(self) -> int:
        """Epochs that its only run has before it begins, where it extends another one; else 0."""
        return 0 if self.extends is None else self.extends.training.epochs

    @property
    def blocks(self) -> tuple[RunBlock, ...]:
        """Blocks of its runs: its own students, methods and seeds, and what was added."""
        if not (self.students and self.methods):
            return self.added
        own = {name: getattr(self, name) for name in RunBlock.model_fields}
        return (RunBlock.model_construct(**own), *self.added)

    @property
    def all_students(self) -> tuple[StudentSpec, ...]:
        """Students of all blocks, each once."""
        return tuple(dict.fromkeys(student for block in self.blocks for student in block.students))

    @property
    def all_methods(self) -> tuple[Preset, ...]:
        """Methods of all blocks, each once."""
        return tuple(dict.fromkeys(method for block in self.blocks for method in block.methods))

    def runs(self) -> tuple[RunSpec, ...]:
        """All runs, block by block; in each students slowest and seeds fastest."""
        combinations = [each for block in self.blocks for each in block.runs]
        return tuple(
            RunSpec(index=index, student=student, method=method, seed=seed)
            for index, (student, method, seed) in enumerate(combinations)
        )

    def of_runs(self, indices: Collection[int]) -> Self:
        """The plan of these of its runs alone, in their order, each a block of its own; one at least."""
        runs = [run for run in self.runs() if run.index in indices]
        first, *others = (RunBlock(students=(run.student,), methods=(run.method,), seeds=(run.seed,)) for run in runs)
        names = {run.student.name for run in runs}
        rates = {name: lr for name, lr in self.training.student_lr.items() if name in names}
        training = self.training.model_copy(update={"student_lr": rates})
        return self.model_copy(update={**dict(first), "added": tuple(others), "training": training})


class JobSpec(Plan):
    """A plan with its teacher, as ``python -m workers.pipeline job.json`` and the engine take it.

    Attributes:
        teacher: the first one of several.
        teacher_name: what a person calls it, for model cards.
        teachers: all of several; none where there is one.
    """

    teacher: TeacherSpec
    teacher_name: str = Field("", max_length=200, exclude_if=lambda given: not given)
    teachers: WeightedTeachers = Field((), exclude_if=lambda given: not given)

    @model_validator(mode="before")
    @classmethod
    def _first_of_several(cls, data: object) -> object:
        return with_first_teacher(data)

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        check_count(len(self.teachers), combines=self.combine is not None)
        return self

    @property
    def all_teachers(self) -> tuple[WeightedTeacher, ...]:
        """Every teacher, with its weight and name."""
        alone = {name: getattr(self.teacher, name) for name in TeacherSpec.model_fields}
        return self.teachers or (WeightedTeacher(**alone, name=self.teacher_name),)
