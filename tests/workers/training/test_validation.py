"""Validation split in training: what is trained on, what chooses the epoch, what ends a run early."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.digits import SMALL, Digits, weights
from tests.workers.training.test_loop import stop_after
from workers.augmentation.apply import to_input
from workers.config.job import JobSpec
from workers.config.task import TrainingTask
from workers.config.training import Training
from workers.config.validation import EarlyStopping
from workers.data.preparation.holdout_rows import holdout_rows
from workers.data.preparation.holdout_spec import Holdout
from workers.data.preparation.prepared import SubsetDataset, open_prepared
from workers.errors import InvalidJob, Stopped
from workers.events import Epoch, ignore, never
from workers.pipeline import run_job
from workers.students.build import build_student
from workers.teacher.build_caches import build_caches
from workers.teacher.forwards import forwards_needed
from workers.teacher.plan_caches import plan_caches
from workers.training.feed.batches import student_preprocessing
from workers.training.loop import train_run
from workers.training.metrics.early_stopping import best_epoch, is_stopped_early
from workers.training.training_feed import TrainingFeed

HOLDOUT = Holdout(holdout=0.1, seed=3)


def lines(*values: float | None) -> list[Mapping[str, float | None]]:
    return [{"validation_top1": value, "validation_nll": None if value is None else -value} for value in values]


def job_of(digits: Digits, **changes: object) -> JobSpec:
    return digits.job("kd").model_copy(update={"validation": HOLDOUT, **changes})


def task_of(digits: Digits, folder: Path, training: Training, earlier: tuple[Path, ...] = ()) -> TrainingTask:
    job = job_of(digits, training=training)
    plan = plan_caches(job, digits.folders, ignore, never, threads=1, device="cpu")
    build_caches(plan, digits.folders, ignore, never, threads=1, device="cpu")
    return plan.task_of_run(job, job.runs()[0], digits.folders, folder, threads=1, earlier=earlier)


# ------------------------------------------------------------------------------------ pure functions


def test_best_epoch_is_the_earliest_of_equals_and_of_less_is_better() -> None:
    by_nll = Training(early_stopping=EarlyStopping(metric="nll"))
    assert best_epoch(lines(0.5, 0.7, 0.7, 0.6), Training()) == 2
    assert best_epoch(lines(0.5, 0.7, 0.6), by_nll) == 2
    assert best_epoch(lines(0.5, 0.55, 0.7), Training(), min_delta=0.1) == 3
    assert best_epoch([{"top1": 0.9}], Training()) is None
    assert best_epoch(lines(None, None), Training()) is None
    assert best_epoch([], Training()) is None


def test_early_stopping_counts_epochs_without_a_better_value() -> None:
    training = Training(epochs=100, early_stopping=EarlyStopping(patience=2, min_delta=0.01))
    assert not is_stopped_early(lines(0.5, 0.505), training)
    assert is_stopped_early(lines(0.5, 0.505, 0.509), training)
    assert not is_stopped_early(lines(0.5, 0.505, 0.511), training)
    assert not is_stopped_early([], training)
    assert not is_stopped_early(lines(0.5, 0.4, 0.3), Training(epochs=100))


# ------------------------------------------------------------------------------------- what a job uses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": Training(keep="best"), "validation": None}, r"training.keep 'best' needs a validation split"),
        ({"training": Training(early_stopping=EarlyStopping()), "validation": None}, r"training.early_stopping needs"),
        ({"test": None, "validation": None}, "nothing would be measured"),
    ],
)
def test_job_splits_refuse_what_needs_a_validation_split(
    digits: Digits, changes: Mapping[str, object], message: str
) -> None:
    with pytest.raises(InvalidJob, match=message):
        job_of(digits, **changes).splits(("train", "test"))


def test_job_splits_are_those_of_the_dataset_and_the_holdout(digits: Digits) -> None:
    assert job_of(digits).splits(("train", "test")) == ("train", "validation", "test")
    assert job_of(digits, test=None).splits(("train",)) == ("train", "validation")
    assert job_of(digits, validation=None).splits(("train", "validation", "test")) == ("train", "validation", "test")
    with pytest.raises(InvalidJob, match="validation split of its own"):
        job_of(digits).splits(("train", "validation", "test"))
    with pytest.raises(InvalidJob, match="has no test split"):
        job_of(digits, validation=None).splits(("train", "validation"))


def test_digests_of_jobs_without_a_validation_split_are_those_of_before(digits: Digits) -> None:
    dumped = digits.job("kd").model_dump(mode="json")
    assert not {"validation", "test"} & dumped.keys()
    assert not {"early_stopping", "keep", "keep_logits", "calibrated_output"} & dumped["training"].keys()
    assert not {"validation_fingerprint", "validation_cache"} & digits.order("kd", Path("x")).model_dump().keys()


# ---------------------------------------------------------------------------------------- what is trained


def test_holdout_shares_the_training_cache_and_is_not_trained_on(digits: Digits, tmp_path: Path) -> None:
    task = task_of(digits, tmp_path, SMALL)
    assert task.train_cache == digits.plan.train_cache
    held = open_prepared(digits.folders.datasets, task.validation_fingerprint or "")
    assert isinstance(held, SubsetDataset)
    rows_V = holdout_rows(digits.train.labels_N, HOLDOUT, digits.train.class_names)
    assert np.array_equal(held.rows_N, rows_V)
    kept = np.delete(np.arange(digits.train.samples), rows_V)
    feed = TrainingFeed(digits.train, digits.views, None, 64, 0, torch.device("cpu"), rows_N=kept)
    for epoch in range(2):
        seen = torch.cat([batch.rows for batch in feed.epoch(epoch)]).tolist()
        assert set(seen) <= set(kept.tolist())
        assert len(set(seen)) == len(seen) >= len(kept) - 1

    result = train_run(task, ignore, never)
    assert result["splits"] == {"train": len(kept), "validation": len(rows_V), "test": digits.test.samples}
    assert result["last"]["validation_agreement"] > 0.5
    assert result["caches"].keys() == {"train", "validation", "test"}
    assert result["best"] == max(
        (line for line in [result["best"], result["last"]]), key=lambda line: line["validation_top1"]
    )


def test_holdout_of_other_data_than_the_run_trains_on_is_refused(digits: Digits, tmp_path: Path) -> None:
    task = task_of(digits, tmp_path, SMALL).model_copy(update={"train_fingerprint": digits.test.fingerprint})
    with pytest.raises(InvalidJob, match="the validation split was cut from data"):
        train_run(task, ignore, never)


@pytest.mark.usefixtures("without_onnx")
def test_early_stopping_keeps_the_best_weights_also_of_a_run_that_was_resumed(digits: Digits, tmp_path: Path) -> None:
    rule = EarlyStopping(metric="nll", patience=2, min_delta=0.05)
    training = SMALL.model_copy(update={"epochs": 40, "early_stopping": rule, "keep": "best"})
    quiet = task_of(digits, tmp_path / "quiet", training)
    epochs: list[Epoch] = []
    result = train_run(quiet, lambda event: epochs.append(event) if isinstance(event, Epoch) else None, never)

    values = [event.metrics["validation_nll"] or 0.0 for event in epochs]
    assert result["stopped_early"]
    assert result["epochs"] == len(values) < 40
    assert result["best_epoch"] == result["selected_epoch"] == 1 + int(np.argmin(values))
    assert (result["selected"], result["best_by"]) == ("best", "validation_nll")
    # What has left the run is what was measured as its best.
    train = digits.train
    network = build_student("cnn_s", 10, in_channels=1, image_side=8).eval()
    network.load_state_dict(weights(tmp_path / "quiet"))
    held = open_prepared(digits.folders.datasets, quiet.validation_fingerprint or "")
    inputs = to_input(
        torch.from_numpy(held.take(slice(None))), student_preprocessing(train, (8, 8)), channels_last=False
    )
    with torch.no_grad():
        nll = torch.nn.functional.cross_entropy(network(inputs), torch.from_numpy(np.asarray(held.labels_N)))
    assert float(nll) == pytest.approx(min(values), rel=1e-4)

    emit, should_stop = stop_after(len(values) - 1)
    with pytest.raises(Stopped):
        train_run(quiet.model_copy(update={"folder": tmp_path / "a1"}), emit, should_stop)
    second = quiet.model_copy(update={"folder": tmp_path / "a2", "earlier": (tmp_path / "a1",)})
    assert train_run(second, ignore, never)["selected_epoch"] == result["selected_epoch"]
    expected, resumed = weights(tmp_path / "quiet"), weights(tmp_path / "a2")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_pipeline_without_a_test_split_measures_on_validation_alone(digits: Digits, tmp_path: Path) -> None:
    job = job_of(digits, test=None, training=SMALL.model_copy(update={"epochs": 1}))
    outcome = run_job(job, digits.folders, tmp_path)
    assert outcome.teacher_accuracy.keys() == {"validation"}
    [result] = outcome.results
    assert "top1" not in result["last"]
    assert result["last"]["validation_top1"] > 0.1
    assert result["teacher"].keys() == {"validation_top1", "views_top1"}
    plan = plan_caches(job, digits.folders, ignore, never, threads=1, device="cpu")
    held = plan.validation_cache.samples if plan.validation_cache else 0
    assert forwards_needed(job, plan) == (digits.train.samples - held) + held
    # Early stopping has ended it before the first epoch, say.
    assert forwards_needed(job, plan, {0: 0}) == held
