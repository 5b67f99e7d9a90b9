"""Draft of a job: what a client writes, and how a recipe fills in what it leaves out.

What the client states wins, field by field. Where it names no recipe, its dataset's stands for ``training`` and for
``views`` if the whole of it is left out, so that a job that states some fields of either keeps that model's defaults
for the others. A job is filled in once, when it is posted; what is stored states everything.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.config import JsonDict

from workers.config.combination import WeightedTeachers, with_first_teacher
from workers.config.dataset import DatasetSpec
from workers.config.job import JobSpec, Plan, StudentSpec
from workers.config.recipes import NONE, RECIPES, RecipeSpec, pair_parameters
from workers.config.run_block import RunBlock, run_name
from workers.config.teacher import TeacherSpec
from workers.config.training import Training
from workers.config.views import Views
from workers.errors import InvalidJob, RunsExist
from workers.methods.catalog import parse_method
from workers.methods.combined import PRESETS
from workers.methods.papers.base import Preset
from workers.students.catalog import check_student
from workers.texts import some_of

# Fields that tell variants apart: what a recipe says of one variant is nothing to another.
_TAGS = ("kind", "recipe")
_NAMED_MAX = 3


def _no_default(schema: JsonDict) -> None:
    """The model's default is not what a field has that is left out."""
    schema.pop("default", None)


class ViewsDraft(Views):
    """Views as a client writes them: a number of them is allowed where a recipe will say of what."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        return self if "augmentation" not in self.model_fields_set else self._check_distinct()

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        return self if "count" not in self.model_fields_set else self._check_pairs()


class PlanDraft(Plan):
    """A plan as a client writes it; what it leaves out, ``filled`` fills in."""

    views: ViewsDraft = Field(
        ViewsDraft(),
        description="left out: those of the recipe, or of the dataset's recipe",
        json_schema_extra=_no_default,
    )
    training: Training = Field(
        Training(),
        description="left out: that of the recipe, or of the dataset's recipe",
        json_schema_extra=_no_default,
    )

    @model_validator(mode="after")
    def _enough_views(self) -> Self:
        """Leave this check to the filled plan: the recipe may say how many views there are."""
        return self

    @model_validator(mode="after")
    def _recipe_is_filled_in(self) -> Self:
        return self

    @property
    def left_out(self) -> tuple[str, ...]:
        """Fields, of those that the dataset's recipe has, that the client has left out."""
        return tuple(name for name in ("training", "views") if name not in self.model_fields_set)

    def filled(self, dataset: DatasetSpec) -> Plan:
        """The plan with everything in place.

        Args:
            dataset: in the place of the draft's, which may be a name.

        Raises:
            InvalidJob: what the client states and what is filled in do not go together, or two methods have one label.
        """
        stated = {name: _stated(getattr(self, name)) for name in ("training", "views")}
        if self.evaluate:
            kept = {name: getattr(self, name) for name in Plan.model_fields}
            return Plan.model_validate(kept | stated | {"dataset": dataset})
        name = dataset.recipe if self.recipe is None else self.recipe.name
        recipe, told = RECIPES[name], list[str]()
        for part in self.left_out if self.recipe is None else ("training", "views"):
            stated[part] = _fill(stated[part], _meant(recipe[part], stated[part]), part, told)
        if recipe.get("reference_lr") and "training.optimizer.lr" in told and "student_lr" not in stated["training"]:
            usual = stated["training"]["optimizer"]["lr"]
            if rates := _reference_rates([student for block in self.blocks for student in block.students], usual):
                stated["training"]["student_lr"] = rates
                told.append("training.student_lr")
        if name != NONE and stated["views"].get("fresh") is None and _are_augmented(stated["views"]):
            stated["views"]["fresh"] = True
            told.append("views.fresh")
        fields = {name: getattr(self, name) for name in Plan.model_fields} | stated | {"dataset": dataset}
        if self.recipe is not None:
            fields["methods"] = _with_recipe(self.recipe, self.methods, self.students, told)
            fields["added"] = tuple(
                _block_with_recipe(self.recipe, block, told, place) for place, block in enumerate(self.added)
            )
        if self.recipe is not None or told:
            fields["recipe"] = RecipeSpec(
                name=name,
                teacher_network=None if self.recipe is None else self.recipe.teacher_network,
                chosen_by="dataset" if self.recipe is None else "client",
                filled=tuple(sorted(told)),
            )
        try:
            plan = Plan.model_validate(fields)
        except ValidationError as error:
            mistakes = error.errors(include_url=False, include_input=False)
            problem = "; ".join(_sentence(item["loc"], item["msg"]) for item in mistakes)
        else:
            check_labels_apart(plan.all_methods)
            return plan
        # Outside of the block, see ``workers.methods.catalog.parse_method``.
        if told:
            parts = ", ".join(sorted({path.partition(".")[0] for path in told}))
            problem += f". Recipe {name!r} has filled in what was left out of {parts}"
        raise InvalidJob(problem)


class JobDraft(PlanDraft):
    """A draft with its teacher's file, as ``python -m workers.pipeline job.json`` takes it."""

    teacher: TeacherSpec
    teachers: WeightedTeachers = ()

    @model_validator(mode="before")
    @classmethod
    def _first_of_several(cls, data: object) -> object:
        return with_first_teacher(data)

    def job(self) -> JobSpec:
        """The job, with everything in place.

        Raises:
            InvalidJob: as ``filled``.
        """
        return JobSpec.model_validate(
            {**dict(self.filled(self.dataset)), "teacher": self.teacher, "teachers": self.teachers}
        )


def with_added(plan: Plan, block: RunBlock) -> Plan:
    """The plan of a job that these runs are added to.

    What the recipe of the job gives to methods and students, it gives to the added ones.

    Raises:
        RunsExist: the block names a run that is there.
        InvalidJob: it does not go with the rest of the plan.
    """
    training, recipe = plan.training, plan.recipe
    if recipe is not None:
        told = list(recipe.filled or ())
        if recipe.chosen_by == "client":
            block = _block_with_recipe(recipe, block, told, len(plan.added))
        if RECIPES[recipe.name].get("reference_lr") and "training.optimizer.lr" in told:
            # Of those that are there, runs have begun.
            new = [student for student in block.students if student not in plan.all_students]
            rates = _reference_rates(new, training.optimizer.lr)
            if rates and ("training.student_lr" in told or not training.student_lr):
                training = training.model_copy(update={"student_lr": {**training.student_lr, **rates}})
                told.append("training.student_lr")
        recipe = recipe.model_copy(update={"filled": tuple(sorted(set(told)))})
    there = {run.name for run in plan.runs()}
    names = (run_name(*run) for run in block.runs)
    if again := [repr(name) for name in names if name in there]:
        raise RunsExist(
            f"{some_of(again, _NAMED_MAX)} {'is' if len(again) == 1 else 'are'} in the job's plan already: leave "
            f"{'it' if len(again) == 1 else 'them'} out"
        )
    changed = {"added": (*plan.added, block), "training": training, "recipe": recipe}
    try:
        whole = Plan.model_validate({name: getattr(plan, name) for name in Plan.model_fields} | changed)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False)
        problem = "; ".join(_sentence((), item["msg"]) for item in mistakes)
    else:
        check_labels_apart(whole.all_methods)
        return whole
    raise InvalidJob(problem)


def check_labels_apart(methods: Sequence[Preset]) -> None:
    """Refuse methods that a report could not tell apart by their labels; stored plans may have some.

    Raises:
        InvalidJob: two methods have one label, or a custom one has the name of a preset.
    """
    for method in methods:
        if method.id() == "custom" and method.label != "custom" and method.label in PRESETS:
            raise InvalidJob(
                f"a custom method is named {method.label!r}, which is the name of a preset: give it another `name`"
            )
    label, count = Counter(method.label for method in methods).most_common(1)[0]
    if count > 1:
        raise InvalidJob(
            f"{count} different methods have the label {label!r}, by which results are told apart: give each custom "
            "method a `name` of its own, and let parameters differ within six digits"
        )


def _reference_rates(students: Iterable[StudentSpec], usual: float) -> dict[str, float]:
    """Learning rates of students whose papers take another one than the usual."""
    rates = {student.name: check_student(student.name).reference_lr for student in students}
    return {name: lr for name, lr in rates.items() if lr is not None and lr != usual}


def _with_recipe(
    recipe: RecipeSpec, methods: Sequence[Preset], students: Sequence[StudentSpec], told: list[str], *, place: str = ""
) -> tuple[Preset, ...]:
    """The methods, with what the recipe's authors give for them, or for this teacher and student.

    Raises:
        InvalidJob: they give something else for each of the students.
    """
    made = []
    for number, method in enumerate(methods):
        given = RECIPES[recipe.name].get("methods", {}) | _of_pair(recipe, method.id(), students)
        missing = {name: value for name, value in given.items() if name not in method.model_fields_set}
        told += [f"{place}methods.{number}.{name}" for name in missing]
        made.append(parse_method({**_stated(method), **missing}) if missing else method)
    return tuple(made)


def _block_with_recipe(recipe: RecipeSpec, block: RunBlock, told: list[str], place: int) -> RunBlock:
    methods = _with_recipe(recipe, block.methods, block.students, told, place=f"added.{place}.")
    return block.model_copy(update={"methods": methods})


def _of_pair(recipe: RecipeSpec, method: str, students: Sequence[StudentSpec]) -> dict[str, float]:
    network, names = recipe.teacher_network, [student.name for student in students]
    if network is None:
        return {}
    given = {name: pair_parameters(recipe.name, method, network, name) for name in names}
    if any(parameters != given[names[0]] for parameters in given.values()):
        pairs = ", ".join(f"{name}: {parameters or 'its defaults'}" for name, parameters in given.items())
        raise InvalidJob(
            f"recipe {recipe.name!r} has other parameters of method {method!r} for each student of the teacher "
            f"{network!r} ({pairs}): post a job for each student, or state the parameters"
        )
    return given[names[0]]


def _stated(model: BaseModel) -> dict[str, Any]:
    """Fields that a client has stated, and of those inside it the same."""
    values = ((name, getattr(model, name)) for name in type(model).model_fields if name in model.model_fields_set)
    return {name: _stated(value) if isinstance(value, BaseModel) else value for name, value in values}


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    where, what = ".".join(map(str, place)), message.removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def _are_augmented(views: Mapping[str, Any]) -> bool:
    return bool(views.get("augmentation", {}).get("recipe", NONE) != NONE)


def _meant(recipe: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recipe for ``training`` or ``views``, beside what is stated."""
    meant = dict(recipe)
    if "warmup_epochs" in meant and "epochs" in stated:
        meant["warmup_epochs"] = round(meant["warmup_epochs"] * stated["epochs"] / meant["epochs"], 6)
    if "augmentation" in stated and not _are_augmented(stated):
        meant.pop("count", None)
    return meant


def _fill(stated: Mapping[str, Any], recipe: Mapping[str, Any], where: str, told: list[str]) -> dict[str, Any]:
    """``stated`` with what it lacks of ``recipe``; the paths of that are added to ``told``."""
    filled = dict(stated)
    for name, value in recipe.items():
        path = f"{where}.{name}"
        if name not in stated:
            filled[name] = value
            told += [f"{path}.{field}" for field in value] if isinstance(value, Mapping) else [path]
        elif isinstance(value, Mapping) and all(stated[name].get(tag) == value.get(tag) for tag in _TAGS):
            filled[name] = _fill(stated[name], value, path, told)
    return filled
