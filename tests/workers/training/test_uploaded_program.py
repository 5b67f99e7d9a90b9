"""Runs whose student is an uploaded program: trained as the network that was exported, or refused."""

import copy
from pathlib import Path

import pytest
import torch

from tests.support.digits import SMALL, Digits, weights
from tests.support.exported_programs import Drawing, Tiny, exported
from tests.workers.training.test_loop import stop_after
from workers.config.job import JobSpec, StudentSpec
from workers.config.task import TrainingTask
from workers.errors import InvalidJob, Stopped
from workers.events import Event, Log, ignore, never
from workers.student_files.programs import convert_program
from workers.teacher.plan_checks import check_networks
from workers.training.loop import train_run

NAME = "uploaded/stf_01m7yt5knp2b4d7r46qbv3d8r3"


def uploaded(digits: Digits, network: torch.nn.Module) -> StudentSpec:
    """The student of a network that is exported and converted as an upload is."""
    folder = digits.folders.student_files
    folder.mkdir(exist_ok=True)
    path = exported(network, folder / "incoming")
    file, _, _ = convert_program(path, bytes_max=1 << 24, timeout_s=60, check_room=lambda _: None)
    path.rename(folder / f"{file.sha256}.safetensors")
    return StudentSpec(name=NAME, program=file.sha256)


def job_of(digits: Digits, student: StudentSpec, seed: int = 0) -> JobSpec:
    job = digits.job("kd", training=SMALL)
    return job.model_copy(update={"students": (student,), "seeds": (seed,)})


def task_of(digits: Digits, job: JobSpec, folder: Path) -> TrainingTask:
    return digits.plan.task_of_run(job, job.runs()[0], digits.folders, folder, threads=1)


def test_uploaded_program_is_trained_to_the_bits_of_the_network_that_was_exported(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout and batch normalisation in training, and without them in evaluation."""
    torch.manual_seed(5)
    network = Tiny()
    job = job_of(digits, uploaded(digits, network))
    events = list[Event]()
    check_networks(job, digits.train, digits.folders, events.append)
    said = [event.message for event in events if isinstance(event, Log)]
    assert (
        f"student {NAME!r} has 178 parameters for 10 classes; it begins with the weights that were uploaded" in said[0]
    )
    train_run(task_of(digits, job, tmp_path / "uploaded"), ignore, never)
    monkeypatch.setattr("workers.training.setting.build_student", lambda *_, **__: copy.deepcopy(network))
    train_run(task_of(digits, job, tmp_path / "itself"), ignore, never)
    left, expected = weights(tmp_path / "uploaded"), weights(tmp_path / "itself")
    assert left.keys() == expected.keys() == network.state_dict().keys()
    assert all(torch.equal(left[name], expected[name]) for name in expected)
    assert not torch.equal(left["body.1.running_mean"], network.state_dict()["body.1.running_mean"])
    assert (tmp_path / "uploaded/artifacts/student.onnx").is_file()


def test_run_of_a_program_with_stochastic_depth_resumes_to_the_same_bits(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With attention that has dropout, as the exported network itself ends."""
    network = Drawing(lambda x: x * x.new_empty((x.shape[0], 1)).bernoulli_(0.6).div_(0.6), rate=0.3)
    job = job_of(digits, uploaded(digits, network.train()))
    train_run(task_of(digits, job, tmp_path / "quiet"), ignore, never)
    emit, should_stop = stop_after(1)
    with pytest.raises(Stopped, match="epoch 2"):
        train_run(task_of(digits, job, tmp_path / "a1"), emit, should_stop)
    second = task_of(digits, job, tmp_path / "a2").model_copy(update={"earlier": (tmp_path / "a1",), "told_epoch": 1})
    train_run(second, ignore, never)
    monkeypatch.setattr("workers.training.setting.build_student", lambda *_, **__: copy.deepcopy(network))
    train_run(task_of(digits, job, tmp_path / "itself"), ignore, never)
    quiet = weights(tmp_path / "quiet")
    for other in (weights(tmp_path / "a2"), weights(tmp_path / "itself")):
        assert all(torch.equal(quiet[name], other[name]) for name in network.state_dict())


def test_uploaded_program_that_is_gone_or_for_other_classes_is_refused(digits: Digits, tmp_path: Path) -> None:
    other = job_of(digits, uploaded(digits, Tiny(classes=7)))
    with pytest.raises(InvalidJob, match="gives 7 logits, and there are 10 classes"):
        check_networks(other, digits.train, digits.folders, ignore)
    gone = job_of(digits, StudentSpec(name=NAME, program="a" * 64))
    with pytest.raises(InvalidJob, match="is gone or damaged: upload it again"):
        train_run(task_of(digits, gone, tmp_path), ignore, never)
    with pytest.raises(InvalidJob, match="the service alone can look up"):
        check_networks(job_of(digits, StudentSpec(name=NAME)), digits.train, digits.folders, ignore)


def test_program_of_a_student_that_is_no_upload_is_refused() -> None:
    with pytest.raises(ValueError, match="program is of uploaded students, and 'cnn_s' is none"):
        StudentSpec(name="cnn_s", program="a" * 64)
