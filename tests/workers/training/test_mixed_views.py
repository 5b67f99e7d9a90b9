"""Training on mixed views: the batches that a run sees, rows that are held out, and what it is measured by."""

from pathlib import Path

import numpy as np
import pytest
import torch

from store import CacheReader, CacheSpec
from tests.support.digits import SMALL, Digits
from workers.augmentation.apply import apply
from workers.augmentation.draw import draw, pictures_of
from workers.augmentation.draw_mixing import draw_mixing
from workers.config.job import JobSpec
from workers.config.mixing import CutMix, Mixup
from workers.config.operations import RandAugment, SecondView
from workers.config.views import CropFlip, Views, recipe_of_view
from workers.data.preparation.holdout_rows import holdout_rows
from workers.data.preparation.holdout_spec import Holdout
from workers.errors import InvalidJob
from workers.events import Event, PreflightChecked, ignore, never
from workers.teacher.accuracy import measure_teacher
from workers.teacher.build_caches import build_caches
from workers.teacher.cache_plan import CachePlan
from workers.teacher.plan_caches import plan_caches
from workers.training.loop import train_run
from workers.training.optimization.micro_batches import micro_batches
from workers.training.training_feed import TrainingFeed

MIXED = CropFlip(
    pad=1,
    flip=False,
    mixup=Mixup(alpha=1.0, probability=0.5),
    cutmix=CutMix(probability=0.5),
    second_view=SecondView(rand_augment=RandAugment(magnitude=10)),
)
# On pictures of 8 x 8 pixels a strong view is too hard for the teacher.
ONE_KIND = MIXED.model_copy(update={"second_view": None})
HOLDOUT = Holdout(holdout=0.2)
CPU = torch.device("cpu")


@pytest.mark.parametrize("per_step", [1, 2])
def test_mixed_batches_are_of_the_drawn_pictures_with_both_labels(per_step: int, digits: Digits) -> None:
    train, views = digits.train, Views(augmentation=MIXED, count=4, seed=3)
    rows_N = np.arange(0, train.samples, 3)
    feed = TrainingFeed(train, views, None, 50, 0, CPU, per_step, rows_N=rows_N)
    labels_N, partners = np.asarray(train.labels_N), set()
    for epoch in (0, 1, 3):
        for step, batch in enumerate(feed.epoch(epoch)):
            index_B = batch.rows.numpy()
            assert len(batch.views) == per_step
            for place, seen in enumerate(batch.views):
                view = views.view(epoch, place)
                recipe = recipe_of_view(MIXED, view)
                drawn = draw(recipe, 3, view, index_B, train.height, train.width, partners_P=rows_N)
                pictures = torch.from_numpy(train.take(pictures_of(index_B, [drawn])))
                assert torch.equal(seen.images, apply(pictures, recipe, drawn))
                assert drawn.mixing is not None
                assert seen.mixed is not None
                np.testing.assert_array_equal(seen.mixed.others_B.numpy(), labels_N[drawn.mixing.sample])
                np.testing.assert_array_equal(seen.mixed.own_share_B.numpy(), drawn.mixing.own_share(8, 8))
                partners |= set(drawn.mixing.sample.tolist())
            np.testing.assert_array_equal(batch.labels.numpy(), labels_N[index_B])
            if step == 1:
                _check_parts(feed)
    assert partners <= set(rows_N.tolist())
    assert len(partners) > len(rows_N) / 2


def _check_parts(feed: TrainingFeed) -> None:
    """Parts of a batch whose gradient is accumulated have the second labels of their rows."""
    loaded = feed.load(feed.inputs_again(1))
    whole = loaded.batch.views[0].mixed
    assert whole is not None
    for part, piece in enumerate(micro_batches(loaded, SMALL.model_copy(update={"accumulate": 4}))):
        mixed = piece.batch.views[0].mixed
        assert mixed is not None
        assert torch.equal(mixed.others_B, whole.others_B[part::4])
        assert torch.equal(mixed.own_share_B, whole.own_share_B[part::4])


def test_rows_of_which_a_picture_has_no_label_have_none(digits: Digits) -> None:
    some = digits.train.labels_N.copy()
    some[::2] = -1
    dataset = type(digits.train)(**{**vars(digits.train), "labels_N": some})
    for batch in TrainingFeed(dataset, Views(augmentation=MIXED, count=2), None, 64, 0, CPU).epoch(0):
        mixed = batch.views[0].mixed
        assert mixed is not None
        assert torch.equal(batch.labels < 0, mixed.others_B < 0)
        assert 0.6 < (batch.labels < 0).float().mean() < 0.9


@pytest.fixture(scope="module")
def planned(digits: Digits) -> tuple[JobSpec, CachePlan, list[Event]]:
    """A job on mixed views that holds rows out, and its complete caches."""
    views = Views(augmentation=ONE_KIND, count=2)
    job = digits.job("kd", "nkd").model_copy(update={"views": views, "validation": HOLDOUT})
    events: list[Event] = []
    plan = plan_caches(job, digits.folders, events.append, never, threads=1, device="cpu")
    build_caches(plan, digits.folders, ignore, never, threads=1, device="cpu")
    return job, plan, events


def test_mixed_caches_are_of_the_rows_that_are_trained_on(
    planned: tuple[JobSpec, CachePlan, list[Event]], digits: Digits, tmp_path: Path
) -> None:
    job, plan, _ = planned
    assert plan.train_cache.augmentation["held_out"] == HOLDOUT.model_dump(mode="json")
    for run in job.runs():
        task = plan.task_of_run(job, run, digits.folders, tmp_path / str(run.index), threads=1)
        last = train_run(task, ignore, never)["last"]
        # Mixed views are harder than the pictures as they are.
        assert last["validation_top1"] > 0.5
        assert last["train_accuracy"] < last["validation_top1"]
    held_out = {"held_out": Holdout(holdout=0.3).model_dump(mode="json")}
    augmentation = {"augmentation": plan.train_cache.augmentation | held_out}
    other = CacheSpec.model_validate({**plan.train_cache.model_dump(), **augmentation})
    changed = plan.model_copy(update={"train_cache": other})
    build_caches(changed, digits.folders, ignore, never, threads=1, device="cpu")
    with pytest.raises(InvalidJob, match="mixed with rows of another holdout"):
        train_run(changed.task_of_run(job, job.runs()[0], digits.folders, tmp_path / "x", threads=1), ignore, never)


def test_teachers_of_mixed_views_are_judged_by_views_before_and_measured_by_both_labels(
    planned: tuple[JobSpec, CachePlan, list[Event]], digits: Digits
) -> None:
    _, plan, events = planned
    [checked] = [event for event in events if isinstance(event, PreflightChecked)]
    # Of views that are moved by a pixel, and not mixed: as those of the other tests.
    before = measure_teacher(digits.plan, digits.folders).accuracy.views
    assert checked.views_accuracy == pytest.approx(before, abs=0.08)

    found = measure_teacher(plan, digits.folders).accuracy.views
    train, spec = digits.train, plan.train_cache
    labels_N = np.asarray(train.labels_N)
    kept = np.delete(np.arange(train.samples), holdout_rows(labels_N, HOLDOUT, train.class_names))
    hits = 0.0
    for view in range(2):
        mixing = draw_mixing(ONE_KIND, 0, view, np.arange(train.samples), partners_P=kept)
        predicted, share = _predicted(digits, plan, view), mixing.own_share(8, 8)
        hits += float((share * (predicted == labels_N) + (1 - share) * (predicted == labels_N[mixing.sample])).sum())
    assert found == pytest.approx(hits / (2 * spec.samples), rel=1e-5)
    assert before is not None
    assert 0.5 * before < found < before


def _predicted(digits: Digits, plan: CachePlan, view: int) -> np.ndarray:
    return CacheReader(digits.folders.caches, plan.train_cache).logits(view).argmax(axis=1)
