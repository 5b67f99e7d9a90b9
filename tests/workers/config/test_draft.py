"""Drafts of jobs: what a recipe fills in, what the client's own words keep, and that a stored job keeps all of it."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from workers.config import recipes
from workers.config.draft import PlanDraft
from workers.config.job import Plan
from workers.config.recipes import RECIPES
from workers.config.training import Training
from workers.config.views import Views
from workers.data.kinds.registry import KINDS
from workers.errors import InvalidJob, UnknownName
from workers.methods.catalog import describe

CIFAR = {"kind": "cifar10"}


def filled(**fields: object) -> Plan:
    """A job of ce and kd, as it is stored."""
    given = {"dataset": CIFAR, "students": ["resnet8"], "methods": ["ce", "kd"], **fields}
    draft = PlanDraft.model_validate(given)
    return draft.filled(draft.dataset)


def stored(plan: Plan) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(plan.model_dump_json())
    return document


# -------------------------------------------------------------------------------------------- the recipe of a dataset


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ({"kind": "digits"}, "digits"),
        (CIFAR, "small-pictures"),
        ({"kind": "mnist"}, "mnist"),
        ({"kind": "npz", "path": "a.npz"}, "small-pictures"),
        ({"kind": "folder", "path": "a", "image_size": [32, 32]}, "small-pictures"),
        ({"kind": "folder", "path": "a", "image_size": [224, 224]}, "large-pictures"),
    ],
)
def test_draft_without_training_and_views_has_those_of_its_dataset(dataset: object, name: str) -> None:
    plan = filled(dataset=dataset)
    assert plan.recipe is not None
    assert (plan.recipe.name, plan.recipe.chosen_by) == (name, "dataset")
    assert plan.training == Training.model_validate(RECIPES[name]["training"])
    assert plan.views == Views.model_validate({**RECIPES[name]["views"], "fresh": plan.views.fresh})
    assert plan.views.fresh is (None if name == "digits" else True)
    assert plan.training.epochs < Training().epochs


def test_every_dataset_kind_has_a_recipe_and_no_preset_warms_up_for_longer_than_it_trains() -> None:
    presets = [entry["id"] for entry in describe() if entry["id"] not in ("custom", "mlld", "lskd_mlkd")]
    for kind in KINDS:
        plan = filled(dataset={"kind": kind, "path": "a"} if kind != "digits" else {"kind": kind}, methods=presets)
        assert not plan.warnings, kind


def test_draft_that_states_some_of_training_has_the_defaults_of_the_rest() -> None:
    plan = filled(training={"epochs": 20})
    assert plan.training == Training(epochs=20)
    assert plan.views.count == RECIPES["small-pictures"]["views"]["count"]
    assert plan.recipe is not None
    assert {path.partition(".")[0] for path in plan.recipe.filled or ()} == {"views"}


def test_draft_that_states_both_has_no_recipe_but_fresh_views() -> None:
    both = {"training": {"epochs": 20}, "views": {"augmentation": {"recipe": "crop_flip"}, "count": 3}}
    plan = filled(**both)
    as_before = Plan.model_validate({"dataset": CIFAR, "students": ["resnet8"], "methods": ["ce", "kd"], **both})
    assert plan.recipe is not None
    assert plan.recipe.filled == ("views.fresh",)
    without = {"recipe": None, "views": plan.views.model_copy(update={"fresh": None})}
    assert plan.model_copy(update=without) == as_before


def test_draft_with_the_recipe_none_is_what_it_was_before_there_were_recipes() -> None:
    plan = filled(recipe="none")
    as_before = Plan.model_validate({"dataset": CIFAR, "students": ["resnet8"], "methods": ["ce", "kd"]})
    assert plan.model_copy(update={"recipe": None}) == as_before


# ------------------------------------------------------------------------------------------------------ named recipes


def test_draft_keeps_what_the_client_states_field_by_field() -> None:
    plan = filled(
        recipe="small-pictures",
        training={"epochs": 10, "optimizer": {"kind": "sgd", "momentum": 0.8}, "schedule": {"kind": "step"}},
        views={"count": 7, "seed": 3},
    )
    recipe = RECIPES["small-pictures"]["training"]
    optimizer = plan.training.optimizer
    assert optimizer.kind == "sgd"
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (
        0.05,
        0.8,
        recipe["optimizer"]["weight_decay"],
    )
    # Nothing of the recipe's cosine in another schedule, and its warm-up is the same share of the epochs.
    assert plan.training.schedule == Training().schedule
    assert plan.training.warmup_epochs == pytest.approx(10 * recipe["warmup_epochs"] / recipe["epochs"])
    assert plan.views == Views.model_validate(
        {**RECIPES["small-pictures"]["views"], "count": 7, "seed": 3, "fresh": True}
    )
    assert plan.recipe is not None
    assert "views.count" not in (plan.recipe.filled or ())
    assert "training.optimizer.lr" in (plan.recipe.filled or ())


def test_draft_with_another_optimizer_takes_nothing_of_the_recipes() -> None:
    plan = filled(recipe="mdistiller-cifar100", training={"optimizer": {"kind": "adamw"}}, students=["mobilenet_v2"])
    assert plan.training.optimizer == Training.model_validate({"optimizer": {"kind": "adamw"}}).optimizer
    assert not plan.training.student_lr


def test_draft_without_augmentation_has_one_view_whatever_the_recipe_says() -> None:
    plan = filled(recipe="mdistiller-cifar100", views={"augmentation": {"recipe": "none"}})
    assert (plan.views.count, plan.views.fresh) == (1, None)


def test_draft_of_mdistiller_gives_mobile_students_their_own_rate() -> None:
    plan = filled(recipe="mdistiller-cifar100", students=["resnet8", "mobilenet_v2", "shufflenet_v1"])
    rates = {name: plan.training.of_student(name).optimizer.lr for name in ("resnet8", "mobilenet_v2", "shufflenet_v1")}
    assert rates == {"resnet8": 0.05, "mobilenet_v2": 0.01, "shufflenet_v1": 0.01}
    assert not plan.training.of_student("mobilenet_v2").student_lr
    own = filled(
        recipe="mdistiller-cifar100", students=["mobilenet_v2"], training={"optimizer": {"kind": "sgd", "lr": 0.1}}
    )
    assert own.training.of_student("mobilenet_v2").optimizer.lr == 0.1


def test_draft_gives_methods_the_parameters_of_their_pair() -> None:
    recipe = {"name": "mdistiller-cifar100", "teacher_network": "resnet56"}
    methods = ["kd", "dkd", {"preset": "dtkd", "beta": 0.7}, "normkd_dkd"]
    plan = filled(recipe=recipe, students=["resnet20"], methods=methods)
    labels = ["kd", "dkd(beta=2)", "dtkd(alpha=1, beta=0.7)", "normkd_dkd(alpha=7, beta=2)"]
    assert [method.label for method in plan.methods] == labels
    assert filled(recipe=recipe, methods=methods).methods == filled(methods=methods).methods
    with pytest.raises(
        InvalidJob, match=r"'dkd' for each student .* \(resnet20: {'beta': 2\.0}, resnet8: its defaults\)"
    ):
        filled(recipe=recipe, students=["resnet20", "resnet8"], methods=["dkd"])


def test_draft_of_imagenet_takes_the_family_of_every_method_that_names_none() -> None:
    plan = filled(recipe="mdistiller-imagenet", methods=["kd", {"preset": "dkd", "family": "cifar"}])
    assert [method.label for method in plan.methods] == ["kd(family=imagenet)", "dkd"]


def test_plan_warns_of_a_warm_up_that_a_shortened_recipe_never_ends() -> None:
    plan = filled(recipe="mdistiller-cifar100", training={"epochs": 10}, methods=["dkd"])
    assert ["warm up over 20 epochs, and training.epochs is 10" in warning for warning in plan.warnings] == [True]
    assert not filled(recipe="mdistiller-cifar100", methods=["dkd"]).warnings


# ---------------------------------------------------------------------------------------------------------- refusals


def test_draft_leaves_the_number_of_views_to_the_recipe() -> None:
    assert filled(methods=["mlld"]).views.count > 1
    with pytest.raises(InvalidJob, match=r"views\.count is 1: use 2 or more.* Recipe 'digits' has filled in"):
        filled(dataset={"kind": "digits"}, methods=["mlld"])
    with pytest.raises(InvalidJob, match=r"^views: count is 8, but without augmentation"):
        filled(views={"count": 8}, training={})


def test_names_of_recipes_and_teachers_are_known() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'small-pictures'"):
        filled(recipe="small-picture")
    with pytest.raises(UnknownName, match="Did you mean 'resnet56'"):
        filled(recipe={"name": "mdistiller-cifar100", "teacher_network": "resnet65"})
    with pytest.raises(UnknownName, match=r"training\.student_lr 'resnet9'"):
        filled(training={"student_lr": {"resnet9": 0.1}})


def test_plan_refuses_a_recipe_that_is_not_filled_in() -> None:
    """It would be stored, and trained, with other values than it names."""
    plan = {"dataset": CIFAR, "students": ["resnet8"], "methods": ["kd"], "recipe": "mdistiller-cifar100"}
    with pytest.raises(ValidationError, match="'mdistiller-cifar100' has not been filled in"):
        Plan.model_validate(plan)


# -------------------------------------------------------------------------------------------------------- stored jobs


def test_stored_plan_keeps_its_values_when_the_recipe_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = filled(recipe="small-pictures")
    other = {**RECIPES["small-pictures"], "training": {**RECIPES["small-pictures"]["training"], "epochs": 77}}
    monkeypatch.setattr(recipes, "RECIPES", {**RECIPES, "small-pictures": other})
    monkeypatch.setattr("workers.config.draft.RECIPES", recipes.RECIPES)
    assert filled(recipe="small-pictures").training.epochs == 77
    assert Plan.model_validate(stored(plan)) == plan


def test_stored_plan_posted_again_is_the_same_job() -> None:
    """Also where the client has said that views are not to be fresh."""
    for changes in (
        {},
        {"recipe": "mdistiller-cifar100"},
        {"views": {"augmentation": {"recipe": "crop_flip"}, "fresh": False}},
    ):
        plan = filled(**changes)
        again = filled(**stored(plan))
        assert again.model_copy(update={"recipe": None}) == plan.model_copy(update={"recipe": None})


def test_stored_plan_of_an_earlier_version_has_neither_recipe_nor_fresh_views() -> None:
    views = {"augmentation": {"recipe": "crop_flip", "pad": 4, "flip": True}, "count": 3, "seed": 0}
    plan = Plan.model_validate({"dataset": CIFAR, "students": ["resnet8"], "methods": ["ce"], "views": views})
    assert stored(plan)["views"] == views
    assert {"recipe", "student_lr"}.isdisjoint({*stored(plan), *stored(plan)["training"]})
    assert [plan.views_of(run).view(5) for run in plan.runs()] == [2]


# -------------------------------------------------------------------------------------------------------- fresh views


def test_runs_without_a_teacher_see_fresh_views() -> None:
    plan = filled(methods=["ce", "kd"], views={"augmentation": {"recipe": "crop_flip"}, "count": 3})
    ce, kd = plan.runs()
    assert [plan.views_of(ce).view(epoch) for epoch in range(5)] == [0, 1, 2, 3, 4]
    assert [plan.views_of(kd).view(epoch) for epoch in range(5)] == [0, 1, 2, 0, 1]
    assert [plan.views_of(run).seen(5) for run in (ce, kd)] == [5, 3]
    assert plan.batches_of(ce) != plan.batches_of(kd)


def test_runs_share_batches_where_no_view_comes_twice() -> None:
    crops = {"augmentation": {"recipe": "crop_flip"}, "count": 4}
    ce, kd = (plan := filled(views=crops, training={"epochs": 4})).runs()
    assert plan.batches_of(ce) == plan.batches_of(kd)
    ce, kd = (plan := filled(views={**crops, "fresh": False}, training={"epochs": 40})).runs()
    assert plan.batches_of(ce) == plan.batches_of(kd)


def test_plan_warns_of_a_baseline_that_sees_fewer_views_than_it_could() -> None:
    crops = {"augmentation": {"recipe": "crop_flip"}, "count": 3}
    [warning] = filled(views={**crops, "fresh": False}).warnings
    assert "'ce' needs no teacher and could see 30 views of each picture in 30 epochs, but sees 3" in warning
    assert not filled(views=crops).warnings
    assert not filled(views={**crops, "fresh": False}, methods=["kd"]).warnings
    assert not filled(views={**crops, "fresh": False}, training={"epochs": 3}).warnings


def test_fresh_views_need_an_augmentation() -> None:
    with pytest.raises(ValidationError, match="fresh is true, but without augmentation"):
        Views(fresh=True)


# ------------------------------------------------------------------------------------------------------------- labels


TERM = {"loss": "kl"}


@pytest.mark.parametrize(
    ("methods", "named"),
    [
        ([{"preset": "custom", "terms": [TERM]}, {"preset": "custom", "terms": [{"loss": "dkd"}]}], "label 'custom'"),
        (["ce", {"preset": "custom", "name": "ce", "terms": [TERM]}], "named 'ce', which is the name of a preset"),
        ([{"preset": "kd", "temperature": 3}, {"preset": "kd", "temperature": 3.0000001}], r"label 'kd\(temperature=3"),
    ],
)
def test_draft_refuses_methods_with_one_label_and_a_stored_plan_may_have_them(
    methods: list[object], named: str
) -> None:
    body = {"dataset": {"kind": "digits"}, "students": ["cnn_s"], "methods": methods}
    draft = PlanDraft.model_validate(body)
    with pytest.raises(InvalidJob, match=named):
        draft.filled(draft.dataset)
    assert len(Plan.model_validate(body).methods) == 2
