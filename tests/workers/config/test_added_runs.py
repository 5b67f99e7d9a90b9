"""Plans of jobs that runs were added to: their runs, what the job's recipe gives to them, and what is refused."""

import pytest
from pydantic import ValidationError

from service.db.queries.api_queries import digest_of
from workers.config.draft import PlanDraft, with_added
from workers.config.job import Plan
from workers.config.run_block import RunBlock, student_at
from workers.errors import InvalidJob, UnknownName

CIFAR = {"kind": "cifar10"}


def filled(**fields: object) -> Plan:
    given = {"dataset": CIFAR, "students": ["resnet8"], "methods": ["ce", "dkd"], **fields}
    draft = PlanDraft.model_validate(given)
    return draft.filled(draft.dataset)


def block(**fields: object) -> RunBlock:
    return RunBlock.model_validate({"students": ["resnet8"], "methods": ["kd"], **fields})


def test_plan_without_added_runs_is_stored_as_before_and_of_run_has_none() -> None:
    plan = with_added(filled(seeds=[0, 1]), block(seeds=[5]))
    assert "added" not in filled().model_dump(mode="json")
    assert [(run.index, run.name) for run in plan.runs()][3:] == [
        (3, "resnet8 dkd seed 1"),
        (4, "resnet8 kd seed 5"),
    ]
    alone = plan.of_run(plan.runs()[4])
    assert "added" not in alone.model_dump(mode="json")
    assert [run.name for run in alone.runs()] == ["resnet8 kd seed 5"]


def test_plan_of_some_runs_has_those_alone_and_is_valid() -> None:
    """As it is sent to the process that checks them."""
    plan = with_added(filled(students=["resnet8", "mobilenet_v2"], recipe="mdistiller-cifar100"), block(seeds=[5]))
    some = plan.of_runs([1, 4])
    assert [run.name for run in some.runs()] == ["resnet8 dkd seed 0", "resnet8 kd seed 5"]
    # The learning rate of a student that is not there would be refused.
    assert plan.training.student_lr
    assert Plan.model_validate_json(some.model_dump_json()) == some


def test_added_runs_get_what_the_recipe_gives_as_if_they_had_been_posted_at_once() -> None:
    recipe = {"name": "mdistiller-cifar100", "teacher_network": "wrn_40_2"}
    first = {"students": ["wrn_16_2"], "methods": ["dkd"], "recipe": recipe, "views": {"count": 4}}
    more = {"students": ["shufflenet_v1"], "methods": ["dtkd"], "seeds": [3]}
    plan = with_added(filled(**first), RunBlock.model_validate(more))
    assert plan == filled(**first, added=[more])
    [method] = plan.added[0].methods
    assert (method.label, plan.training.student_lr) == ("dtkd(alpha=2, beta=0.5)", {"shufflenet_v1": 0.01})
    assert {"added.0.methods.0.alpha", "training.student_lr"} <= set((plan.recipe and plan.recipe.filled) or ())


def test_added_runs_leave_the_learning_rates_that_a_client_has_chosen() -> None:
    of_client = {"recipe": "mdistiller-cifar100", "training": {"optimizer": {"kind": "sgd", "lr": 0.1}}}
    assert not with_added(filled(**of_client), block(students=["mobilenet_v2"])).training.student_lr
    stated = {"recipe": "mdistiller-cifar100", "training": {"student_lr": {"resnet8": 0.02}}}
    assert with_added(filled(**stated), block(students=["mobilenet_v2"])).training.student_lr == {"resnet8": 0.02}


def test_block_of_more_runs_than_a_job_may_have_is_refused_before_anything_walks_through_them() -> None:
    """The product of these lists is 1e9; the body of a request for it has 15 kilobytes."""
    students = [{"name": "resnet8", "init": {"weights": f"{number}.safetensors"}} for number in range(1000)]
    methods = [{"preset": "kd", "temperature": 1 + number / 1000} for number in range(1000)]
    many = {"students": students, "methods": methods, "seeds": list(range(1000))}
    with pytest.raises(ValidationError, match="the block has 1000000000 runs, at most 1000 are allowed"):
        RunBlock.model_validate(many)
    with pytest.raises(ValidationError, match="the block has 1000000000 runs"):
        PlanDraft.model_validate({"dataset": CIFAR, "students": ["resnet8"], "methods": ["ce"], "added": [many]})
    with pytest.raises(ValidationError, match="the job has 1000000000 runs"):
        PlanDraft.model_validate({"dataset": CIFAR, **many})


REFUSED = [
    ({"methods": ["ce"]}, "'resnet8 ce seed 0' is in the job's plan already: leave it out"),
    ({"methods": ["ce", "dkd"], "seeds": [0, 1]}, "'resnet8 ce seed 0', 'resnet8 dkd seed 0' are in the job's plan"),
    ({"students": [{"name": "resnet8", "init": {"weights": "a.safetensors"}}]}, "with other first weights"),
    ({"methods": [{"preset": "custom", "name": "kd", "terms": [{"loss": "kl"}]}]}, "the name of a preset"),
    ({"methods": ["kd"], "seeds": [1, 1]}, "seeds names 1 twice"),
    ({"seeds": list(range(1000))}, "the job has 1002 runs, at most 1000"),
]


@pytest.mark.parametrize(("fields", "word"), REFUSED)
def test_added_runs_are_refused_by_name(fields: dict[str, object], word: str) -> None:
    with pytest.raises(InvalidJob, match=word.replace("(", r"\(")):
        with_added(filled(), block(**fields))


def test_blocks_of_a_posted_job_are_checked_together() -> None:
    same = {"students": ["resnet8"], "methods": ["ce"], "seeds": [0]}
    with pytest.raises(ValidationError, match="the run 'resnet8 ce seed 0' is there twice"):
        filled(added=[same])
    with pytest.raises(UnknownName, match=r"training\.student_lr"):
        Plan.model_validate({"dataset": CIFAR, "students": ["resnet8"], "methods": ["ce"]} | {"training": RATES})
    more = {"students": ["mobilenet_v2"], "methods": ["ce"]}
    assert filled(training=RATES, added=[more]).training.student_lr == {"mobilenet_v2": 0.01}
    with pytest.raises(ValidationError, match="leave added out"):
        filled(evaluate=True, students=[], methods=[], added=[more])


RATES = {"student_lr": {"mobilenet_v2": 0.01}}


def test_student_of_every_run_is_found_by_its_index() -> None:
    plan = with_added(filled(students=["resnet8", "resnet14"], seeds=[0, 1]), block(students=["vgg8"], seeds=[0, 1]))
    assert [student_at(plan.blocks, run.index) for run in plan.runs()] == [run.student.name for run in plan.runs()]
    assert student_at(plan.blocks, len(plan.runs())) == ""


def test_plans_of_stored_jobs_keep_their_digest() -> None:
    """It is in the rows of jobs that were posted before there were blocks."""
    plan = {"dataset": {"kind": "digits"}, "students": ["cnn_s"], "methods": ["ce", "kd"], "training": {"epochs": 3}}
    document = Plan.model_validate(plan).model_dump(mode="json")
    assert Plan.model_validate(document).model_dump(mode="json") == document
    assert digest_of(document) == DIGEST


DIGEST = "25f184e659c8d61b1150bbc8efe180da5e62eca8f41aa8c660c563bbb60a14e6"
