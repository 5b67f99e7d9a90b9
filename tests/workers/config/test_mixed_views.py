"""Jobs with mixed views and with second views: what is refused by name, which view an epoch trains on."""

import pytest
from pydantic import ValidationError

from workers.config.cached_augmentation import describe_augmentation, read_held_out, read_recipe
from workers.config.job import Plan
from workers.config.labels import check_labels
from workers.config.mixing import CutMix, Mixup
from workers.config.operations import RandAugment, SecondView
from workers.config.views import CropFlip, ResizedCrop, Views
from workers.data.preparation.holdout_spec import Holdout
from workers.errors import InvalidJob, UnknownName
from workers.methods.combined import PRESETS

# Of the presets, those whose terms need one true class: nkd's authors take the heavier of two.
ONE_LABEL = ["ats", "dkd", "rld", "wsld", "normkd_dkd", "lskd_dkd", "lskd_rld", "atkd_dkd"]
FOR_MIXED = [name for name in PRESETS if name not in (*ONE_LABEL, "nkd", "custom")]
STRONG = SecondView(rand_augment=RandAugment(num_ops=2, magnitude=10))
CROP = {"recipe": "crop_flip"}


def plan(*methods: object, count: int = 2, **augmentation: object) -> Plan:
    job = {"dataset": {"kind": "digits"}, "students": ["cnn_s"], "methods": methods}
    return Plan.model_validate({**job, "views": {"augmentation": {**CROP, **augmentation}, "count": count}})


@pytest.mark.parametrize("name", ONE_LABEL)
def test_methods_that_need_one_true_class_are_refused_by_name_with_mixed_views(name: str) -> None:
    message = rf"method '{name}.*': .* one true class .*\((loss|policy) '\w+'\).*mixup and cutmix.*: .*\bkd\b"
    with pytest.raises(ValidationError, match=message):
        plan("kd", name, mixup={"probability": 0.5}, cutmix={"probability": 0.5})
    plan(name)


@pytest.mark.parametrize("name", [*FOR_MIXED, "nkd"])
def test_methods_that_do_without_one_true_class_have_mixed_views(name: str) -> None:
    plan(name, mixup={})
    plan(name, cutmix={})


def test_a_view_is_mixed_by_one_of_both_at_most() -> None:
    with pytest.raises(ValidationError, match=r"probabilities of mixup and cutmix are 1.5 together.* 0.5 each"):
        plan("kd", mixup={}, cutmix={"probability": 0.5})
    with pytest.raises(ValidationError, match="alpha"):
        plan("kd", mixup={"alpha": 0.0})
    with pytest.raises(UnknownName, match="mixup"):
        Plan.model_validate(
            {**plan("kd").model_dump(mode="json"), "views": {"augmentation": {"recipe": "none", "mixup": {}}}}
        )


def test_mixed_views_of_partly_labelled_pictures_are_refused_where_labels_count() -> None:
    samples = {"train": 1000, "test": 100}
    mixed = plan("kd", mixup={})
    with pytest.raises(InvalidJob, match=r"50 of 1,000 training pictures have a label.*ce_weight 0"):
        check_labels(mixed, samples, {"train": 50, "test": 100})
    for labelled in (0, 1000):
        check_labels(mixed, samples, {"train": labelled, "test": 100})
    check_labels(plan({"preset": "kd", "ce_weight": 0.0}, mixup={}), samples, {"train": 50, "test": 100})


def test_second_views_come_in_pairs_and_are_warned_of_where_no_method_sees_them() -> None:
    strong = {"second_view": {"rand_augment": {}}}
    [warning] = plan("kd", "dist", count=4, **strong).warnings
    assert "2 of 4 cached views are seen by no run; leave second_view out, or take mlld or lskd_mlkd" in warning
    both = plan("kd", "mlld", **strong)
    assert both.warnings == ()
    # A run of such a job is a job, too: that of its bundle.
    assert [both.of_run(run).views for run in both.runs()] == [both.views] * 2
    for count in (1, 3):
        with pytest.raises(ValidationError, match=f"count is {count}.*even"):
            plan("mlld", count=count, **strong)
    with pytest.raises(ValidationError, match="alternate"):
        plan("mlld", flip="alternate", **strong)
    with pytest.raises(ValidationError, match="second_view has no operation"):
        plan("mlld", second_view={})


def test_epochs_with_second_views_train_on_pairs() -> None:
    """A method of one view never sees a strong one, and one of two never a pair of two weak ones."""
    views = Views(augmentation=CropFlip(second_view=STRONG), count=6)
    assert [(views.view(epoch), views.view(epoch, 1)) for epoch in range(4)] == [(0, 1), (2, 3), (4, 5), (0, 1)]
    assert (views.seen(2), views.seen(9), views.seen(2, 2), views.seen(9, 2)) == (2, 3, 4, 6)
    assert views.recipes(2) == (CropFlip(), CropFlip(rand_augment=STRONG.rand_augment))
    fresh = views.model_copy(update={"fresh": True})
    assert [fresh.view(epoch) for epoch in range(5)] == [0, 2, 4, 6, 8]
    assert fresh.seen(5) == 5
    before = Views(augmentation=CropFlip(), count=3)
    assert [(before.view(epoch), before.view(epoch, 1)) for epoch in range(4)] == [(0, 1), (1, 2), (2, 0), (0, 1)]


def test_runs_without_a_teacher_have_fresh_views_from_the_last_pair_on() -> None:
    job = plan("ce", "mlld", count=4, second_view={"rand_augment": {}})
    for epochs, is_fresh in ((2, None), (3, True)):
        changed = {"views": {**job.views.model_dump(), "fresh": True}, "training": {"epochs": epochs}}
        of_epochs = Plan.model_validate({**job.model_dump(mode="json"), **changed})
        assert [of_epochs.views_of(run).fresh for run in of_epochs.runs()] == [is_fresh, None]


def test_a_mixed_cache_is_known_by_recipe_alpha_and_holdout_and_others_are_not() -> None:
    """Caches that are there keep their keys."""
    holdout = Holdout(holdout=0.1)
    plain = CropFlip()
    assert describe_augmentation(plain, holdout) == {"recipe": "crop_flip", "pad": 4, "flip": True}
    recipes = [CropFlip(mixup=Mixup()), CropFlip(mixup=Mixup(alpha=0.4)), ResizedCrop(cutmix=CutMix())]
    described = [describe_augmentation(recipe, held) for recipe in recipes for held in (None, holdout)]
    assert len({str(each) for each in described}) == 6
    for each, recipe in zip(described[::2], recipes, strict=True):
        assert (read_recipe(each), read_held_out(each)) == (recipe, None)
    for each, recipe in zip(described[1::2], recipes, strict=True):
        assert (read_recipe(each), read_held_out(each)) == (recipe, holdout)
