"""Jobs that train nothing, exports that need a validation split, and the plan of a single run."""

import pytest
from pydantic import ValidationError

from workers.config.draft import PlanDraft
from workers.config.export import Export, Int8
from workers.config.job import Plan
from workers.errors import InvalidJob

DIGITS = {"kind": "digits"}
TRAINS = {"dataset": DIGITS, "students": ["cnn_s", "cnn_m"], "methods": ["ce", "kd"], "seeds": [0, 1]}


def test_plan_that_evaluates_has_no_runs_of_its_own_and_no_recipe_fills_it_in() -> None:
    draft = PlanDraft.model_validate({"dataset": DIGITS, "evaluate": True, "training": {"device": "cpu"}})
    plan = draft.filled(draft.dataset)
    assert plan.runs() == ()
    assert plan.recipe is None
    assert plan.views.count == 1
    assert plan.training.device == "cpu"
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"students": ["cnn_s"]}, "leave students out"),
        ({"methods": ["ce"], "recipe": "none"}, "leave methods, recipe out"),
        ({"export": {"int8": {}}}, "leave export out"),
        ({"views": {"augmentation": {"recipe": "crop_flip"}, "count": 2}}, "leave views out"),
    ],
)
def test_plan_that_evaluates_refuses_what_is_for_training(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=f"evaluate is true, so nothing is trained: {named}"):
        PlanDraft.model_validate({"dataset": DIGITS, "evaluate": True, **fields})


@pytest.mark.parametrize("field", ["students", "methods"])
def test_plan_that_trains_names_students_and_methods(field: str) -> None:
    for given in ({name: value for name, value in TRAINS.items() if name != field}, {**TRAINS, field: []}):
        with pytest.raises(ValidationError, match=f"{field} is empty: name at least one"):
            PlanDraft.model_validate(given)


def test_plan_refuses_int8_without_a_validation_split_and_says_how_to_get_one() -> None:
    plan = Plan.model_validate({**TRAINS, "export": {"int8": {}}})
    with pytest.raises(InvalidJob, match=r"export\.int8 needs a validation split.*\"validation\": \{\"holdout\": 0\.1"):
        plan.splits(("train", "test"))
    assert plan.splits(("train", "validation", "test")) == ("train", "validation", "test")


def test_plan_dumps_no_export_at_its_default_so_that_digests_of_earlier_jobs_stay() -> None:
    assert not {"export", "evaluate"} & Plan.model_validate(TRAINS).model_dump().keys()
    plan = Plan.model_validate({**TRAINS, "export": {"int8": {"max_drop": 0.02}}})
    assert plan.export == Export(int8=Int8(max_drop=0.02))
    assert plan.model_dump()["export"]["int8"]["max_drop"] == 0.02


def test_plan_of_a_run_is_a_job_of_that_run_alone() -> None:
    training = {"student_lr": {"cnn_m": 0.01}, "optimizer": {"kind": "sgd", "lr": 0.1}}
    plan = Plan.model_validate({**TRAINS, "training": training})
    run = plan.runs()[-1]
    alone = Plan.model_validate_json(plan.of_run(run).model_dump_json())
    [only] = alone.runs()
    assert (only.student, only.method, only.seed) == (run.student, run.method, run.seed)
    assert alone.training == plan.training.of_student("cnn_m")
    assert alone.training.optimizer.lr == 0.01
