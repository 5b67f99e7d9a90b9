"""First weights of a run: an earlier run's, or a file's; checked before the teacher is run, taken once, and said."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.digits import SMALL, Digits, weights
from tests.workers.training.test_training_options import seen_after_each_step
from workers.config.initial_weights import FileWeights, InitialWeights, RunWeights
from workers.config.job import JobSpec, StudentSpec
from workers.config.task import TrainingTask
from workers.config.training import Ema, Training
from workers.config.weights_file import find_weights
from workers.errors import InvalidJob, Stopped
from workers.events import Event, Log, ignore, never
from workers.files import file_sha256
from workers.students.build import build_student
from workers.teacher.plan_checks import check_initial_weights
from workers.training.loop import train_run

pytestmark = pytest.mark.usefixtures("without_onnx")


@pytest.fixture
def weights_file(digits: Digits) -> str:
    """Path below the data root of a student's weights for 7 classes."""
    torch.manual_seed(9)
    folder = digits.folders.data_root / "begun"
    folder.mkdir(exist_ok=True)
    save_file(build_student("cnn_s", 7, in_channels=1).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "cnn_s"}))
    return "begun/model.safetensors"


def job_of(digits: Digits, init: InitialWeights, training: Training = SMALL) -> JobSpec:
    student = StudentSpec(name="cnn_s", init=init)
    return digits.job("kd", training=training).model_copy(update={"students": (student,)})


def task_of(digits: Digits, init: InitialWeights, folder: Path, *, training: Training = SMALL) -> TrainingTask:
    job = job_of(digits, init, training)
    return digits.plan.task_of_run(job, job.runs()[0], digits.folders, folder, threads=1)


def logged(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Log)]


def test_run_begins_with_the_weights_of_a_file_and_says_what_it_takes(
    digits: Digits, tmp_path: Path, weights_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, events = seen_after_each_step(monkeypatch), list[Event]()
    sha256 = file_sha256(digits.folders.data_root / weights_file)
    init = FileWeights(weights=weights_file, sha256=sha256)
    training = SMALL.model_copy(update={"epochs": 1, "ema": Ema(decay=1 - 1e-9)})
    result = train_run(task_of(digits, init, tmp_path, training=training), events.append, never)
    torch.manual_seed(9)
    given = build_student("cnn_s", 7, in_channels=1).state_dict()
    body = [name for name in given if not name.startswith("classifier") and "num_batches" not in name]
    assert all(torch.equal(seen[0][name], given[name]) for name in body)
    assert seen[0]["classifier.weight"].shape == (10, 64)
    # The average begins there as well.
    assert all(torch.allclose(weights(tmp_path)[name], given[name], atol=1e-6) for name in body)
    [said] = [message for message in logged(events) if message.startswith("begins with")]
    assert said.startswith(f"begins with the weights of '{weights_file}' (SHA-256 {sha256[:12]}): ")
    assert "classifier.weight [7, 64] -> [10, 64]" in said
    assert result["init"] == {"weights": weights_file, "sha256": sha256}


def test_run_that_is_resumed_does_not_need_the_file_any_more(digits: Digits, tmp_path: Path, weights_file: str) -> None:
    path = digits.folders.data_root / weights_file
    init = FileWeights(weights=weights_file, sha256=file_sha256(path))
    alone = train_run(task_of(digits, init, tmp_path / "alone"), ignore, never)
    task = task_of(digits, init, tmp_path / "killed").model_copy(update={"checkpoint_s": 1e-6})
    epochs = list[Event]()
    with pytest.raises(Stopped):
        train_run(task, lambda event: epochs.append(event) if event.type == "epoch" else None, lambda: bool(epochs))
    path.unlink()
    resumed = train_run(task, ignore, never)
    assert resumed["last"]["nll"] == alone["last"]["nll"]  # type: ignore[index]
    one, other = weights(tmp_path / "alone"), weights(tmp_path / "killed")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_run_begins_with_the_weights_of_an_earlier_run(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = digits.folders.data_dir / "jobs/job_1/run_1/1"
    train_run(digits.order("kd", first, SMALL.model_copy(update={"epochs": 1})), ignore, never)
    file = first / "artifacts/student.safetensors"
    left = weights(first)
    init = RunWeights(run="run_1", sha256=file_sha256(file), file=str(file.relative_to(digits.folders.data_dir)))
    seen = seen_after_each_step(monkeypatch)
    train_run(task_of(digits, init, tmp_path, training=SMALL.model_copy(update={"epochs": 1})), ignore, never)
    assert all(torch.equal(value, left[name]) for name, value in seen[0].items())


def _other_content(folder: Path) -> None:
    save_file(build_student("cnn_s", 7, in_channels=1).state_dict(), folder / "model.safetensors")


def _as_a_pickle(folder: Path) -> None:
    torch.save({}, folder / "model.pth")


def _other_architecture(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet18.a1_in1k"}))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (_other_content, "begun/model.safetensors", "have SHA-256 .*, expected .*: they have changed since"),
        (_as_a_pickle, "begun/model.pth", "are a pickle, which runs code"),
        (_other_architecture, "begun", "architecture 'resnet18.a1_in1k', and the student is 'cnn_s'"),
        (_no_config, "begun", "has no config.json: name the safetensors file itself"),
        (
            shutil.rmtree,
            "begun/model.safetensors",
            "weights 'begun/model.safetensors' does not exist below the data root",
        ),
        (lambda _: None, "../begun", "is not allowed: give a path relative to the data root"),
    ],
)
def test_weights_that_are_not_the_jobs_any_more_are_warned_of_and_refused_by_the_run(
    change: Callable[[Path], None], given: str, message: str, digits: Digits, weights_file: str, tmp_path: Path
) -> None:
    folder = digits.folders.data_root / "begun"
    init = FileWeights(weights=given, sha256=file_sha256(digits.folders.data_root / weights_file))
    change(folder)
    events = list[Event]()
    # A run that has a checkpoint does without them.
    check_initial_weights(job_of(digits, init), digits.train, digits.folders, events.append)
    [warning] = [event for event in events if isinstance(event, Log)]
    assert warning.level == "warning"
    assert re.search(message, warning.message)
    with pytest.raises(InvalidJob, match=message):
        train_run(task_of(digits, init, tmp_path), ignore, never)


def test_config_of_a_folder_of_weights_is_a_file_below_the_data_root(
    digits: Digits, weights_file: str, tmp_path: Path
) -> None:
    config = digits.folders.data_root / "begun/config.json"
    outside = config.rename(tmp_path / "config.json")
    config.symlink_to(outside)
    with pytest.raises(InvalidJob, match="leads out of the data root"):
        find_weights(FileWeights(weights="begun"), "cnn_s", digits.folders)
    config.unlink()
    # Opening it would wait for a writer for ever.
    os.mkfifo(config)
    with pytest.raises(InvalidJob, match=r"has no config\.json"):
        find_weights(FileWeights(weights="begun"), "cnn_s", digits.folders)
    config.unlink()


def test_weights_that_nobody_has_seen_are_refused_before_the_teacher_is_run(digits: Digits) -> None:
    init = FileWeights(weights="none.safetensors")
    with pytest.raises(InvalidJob, match="does not exist below the data root"):
        check_initial_weights(job_of(digits, init), digits.train, digits.folders, ignore)


def test_weights_of_a_folder_are_its_model_file(digits: Digits, weights_file: str) -> None:
    events = list[Event]()
    init = FileWeights(weights="begun", sha256=file_sha256(digits.folders.data_root / weights_file))
    check_initial_weights(job_of(digits, init), digits.train, digits.folders, events.append)
    [said] = logged(events)
    assert said.startswith("student 'cnn_s' begins with the weights of 'begun'")


def test_weights_of_a_run_need_the_service_and_its_job(digits: Digits) -> None:
    for init, message in (
        (RunWeights(run="run_1"), "which the service alone can look up"),
        (RunWeights(run="run_1", file="jobs/gone"), "are gone: its job was deleted"),
    ):
        with pytest.raises(InvalidJob, match=message):
            check_initial_weights(job_of(digits, init), digits.train, digits.folders, ignore)


def test_students_document_has_no_first_weights_unless_they_are_given() -> None:
    assert StudentSpec.model_validate({"name": "cnn_s"}).model_dump(mode="json") == {"name": "cnn_s"}
    given = {"name": "cnn_s", "init": {"weights": "begun"}}
    assert StudentSpec.model_validate(given).model_dump(mode="json") == given


def test_job_refuses_one_student_with_two_kinds_of_first_weights(digits: Digits) -> None:
    students = ["cnn_s", {"name": "cnn_s", "init": {"weights": "begun"}}]
    with pytest.raises(ValueError, match="students names 'cnn_s' twice, with other first weights"):
        JobSpec.model_validate(dict(digits.job("kd")) | {"students": students})
