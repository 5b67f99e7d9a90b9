"""Runs without a teacher train on another view in every epoch, and share a process with those that do the same."""

from pathlib import Path

import pytest
import torch

from tests.support.digits import SMALL, Digits, weights
from workers.config.job import JobSpec, StudentSpec
from workers.config.task import TrainingTask
from workers.config.training import Training
from workers.errors import InvalidJob
from workers.events import ignore, never
from workers.pipeline import run_job
from workers.training.loop import train_group, train_run
from workers.training.run_handle import RunHandle
from workers.training.share_out import share_out

pytestmark = pytest.mark.usefixtures("without_onnx")

# More than the two views that are cached.
EPOCHS = 3
TRAINING = Training(**{**dict(SMALL), "epochs": EPOCHS})


def job(digits: Digits, *methods: str, fresh: bool, **changes: object) -> JobSpec:
    views = {"views": digits.views.model_copy(update={"fresh": fresh}), "training": TRAINING}
    return JobSpec.model_validate({**dict(digits.job(*methods)), **views, **changes})


def tasks(digits: Digits, of: JobSpec, folder: Path) -> list[TrainingTask]:
    return [digits.plan.task_of_run(of, run, digits.folders, folder / str(run.index), threads=1) for run in of.runs()]


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_fresh_run_sees_what_it_would_with_as_many_views_as_epochs(digits: Digits, tmp_path: Path) -> None:
    """And one that is not fresh ends elsewhere, as it did before there were fresh views."""
    many = digits.views.model_copy(update={"count": EPOCHS})
    seen = {}
    for name, of in (
        ("fresh", job(digits, "ce", fresh=True)),
        ("many", job(digits, "ce", fresh=False, views=many)),
        ("few", job(digits, "ce", fresh=False)),
        ("before", JobSpec.model_validate({**dict(digits.job("ce")), "training": TRAINING})),
    ):
        [task] = tasks(digits, of, tmp_path / name)
        seen[name] = train_run(task, ignore, never)["views_seen"]
    assert seen == {"fresh": 3, "many": 3, "few": 2, "before": 2}
    assert_same_weights(tmp_path / "fresh/0", tmp_path / "many/0")
    assert_same_weights(tmp_path / "few/0", tmp_path / "before/0")
    few, fresh = weights(tmp_path / "few/0"), weights(tmp_path / "fresh/0")
    assert not all(torch.equal(few[name], fresh[name]) for name in few)


def test_share_out_keeps_runs_apart_that_see_other_views(digits: Digits) -> None:
    of = job(digits, "ce", "kd", "dtkd", fresh=True, seeds=(0, 1))
    groups = share_out(of.runs(), 9, 4, batches_of=of.batches_of)
    assert len(groups) == 6
    groups, waiting = [], of.runs()
    while waiting:
        groups += share_out(waiting, 1, 4, batches_of=of.batches_of)
        waiting = tuple(run for run in waiting if run not in groups[-1])
    labels = [[(run.method.label, run.seed) for run in group] for group in groups]
    assert labels == [[("ce", 0)], [("ce", 1)], [("kd", 0), ("dtkd", 0)], [("kd", 1), ("dtkd", 1)]]


def test_group_refuses_runs_that_see_other_views_and_cached_logits_of_fresh_ones(
    digits: Digits, tmp_path: Path
) -> None:
    ce, kd = tasks(digits, job(digits, "ce", "kd", fresh=True), tmp_path)
    with pytest.raises(InvalidJob, match="train them apart"):
        list(train_group([RunHandle(task, ignore, never) for task in (ce, kd)]))
    with pytest.raises(InvalidJob, match=r"views\.fresh is true, and the teacher's logits are cached"):
        train_run(kd.model_copy(update={"views": ce.views}), ignore, never)


def test_job_with_fresh_views_ends_with_the_bits_of_runs_apart(digits: Digits, tmp_path: Path) -> None:
    """In one process after the other: students of two rates side by side, ce apart from what has a teacher."""
    students = (StudentSpec(name="cnn_s"), StudentSpec(name="cnn_m"))
    training = TRAINING.model_copy(update={"student_lr": {"cnn_m": 1e-3}})
    of = job(digits, "ce", "kd", fresh=True, students=students, training=training)
    outcome = run_job(of, digits.folders, tmp_path / "job", ignore, never)
    assert [result["views_seen"] for result in outcome.results] == [3, 2, 3, 2]
    # They are no other views to the teacher: it was tried on these before, and they are cached.
    assert outcome.teacher_forwards == 0
    apart = tasks(digits, of, tmp_path / "apart")
    assert [task.training.optimizer.lr for task in apart] == [SMALL.optimizer.lr] * 2 + [1e-3] * 2
    for task in apart:
        train_run(task, ignore, never)
        assert_same_weights(task.folder, tmp_path / "job" / f"run-{task.run.index}")


def test_run_that_began_on_cached_views_goes_on_with_them(digits: Digits, tmp_path: Path) -> None:
    """Its checkpoint is taken up by the task of its stored plan, and by no task with fresh views."""
    before = JobSpec.model_validate({**dict(digits.job("ce")), "training": TRAINING})
    stored = JobSpec.model_validate_json(before.model_dump_json())
    [began], [again] = (tasks(digits, of, tmp_path / name) for of, name in ((before, "a"), (stored, "b")))
    [fresh] = tasks(digits, job(digits, "ce", fresh=True), tmp_path / "c")
    asked = 0

    def stop_in_the_third_epoch() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2 * 23 + 5

    with pytest.raises(Exception, match="was stopped in epoch 3"):
        train_run(began, ignore, stop_in_the_third_epoch)
    told: list[str] = []
    for task in (again, fresh):
        train_run(task.model_copy(update={"earlier": (began.folder,)}), lambda event: told.append(str(event)), never)
        told.append("ended")
    messages = "\n".join(told)
    assert "resumed after epoch 2" in messages.partition("ended")[0]
    assert "resumed" not in messages.partition("ended")[2]
