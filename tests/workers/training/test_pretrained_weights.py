"""Pretrained weights of a local folder, as timm and torchvision have them: taken by a student, the head aside."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.digits import SMALL, Digits
from tests.workers.training.test_initial_weights import logged
from tests.workers.training.test_training_options import seen_after_each_step
from workers.config.initial_weights import FileWeights
from workers.config.job import StudentSpec
from workers.config.task import Folders
from workers.config.weights_file import find_weights
from workers.errors import InvalidJob
from workers.events import Event, ignore, never
from workers.files import file_sha256
from workers.students.build import build_student
from workers.students.weights import fit_weights, load_weights
from workers.teacher.plan_checks import check_initial_weights
from workers.training.loop import train_run

pytestmark = pytest.mark.usefixtures("without_onnx")
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed (extra timm)")


@needs_timm
def test_timm_folder_gives_a_timm_student_its_weights_for_training(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``timm.create_model("local-dir:...", pretrained=True)`` loads, but for the head of 7 classes."""
    import timm

    folder = digits.folders.data_root / "test_resnet.ours"
    torch.manual_seed(4)
    timm.models.save_for_hf(
        timm.create_model("test_resnet", num_classes=7, in_chans=1), folder, safe_serialization=True
    )
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    init = FileWeights(weights=folder.name, sha256=file_sha256(folder / "model.safetensors"))
    student = StudentSpec(name="timm/test_resnet", init=init)
    training = SMALL.model_copy(update={"epochs": 1})
    job = digits.job("kd", training=training).model_copy(update={"students": (student,)})
    events = list[Event]()
    check_initial_weights(job, digits.train, digits.folders, events.append)
    [said] = logged(events)
    assert re.search(r"the classifier head has another size .* fc.weight \[7, \d+\] -> \[10, \d+\]", said)
    seen = seen_after_each_step(monkeypatch)
    train_run(digits.plan.task_of_run(job, job.runs()[0], digits.folders, tmp_path, threads=1), ignore, never)
    body = [name for name in theirs if not name.startswith("fc.") and "num_batches" not in name]
    assert body
    assert all(torch.equal(seen[0][name], theirs[name]) for name in body)


@needs_timm
def test_timm_folder_is_refused_for_another_architecture(tmp_path: Path) -> None:
    import timm

    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=7), tmp_path / "root" / "begun")
    folders = Folders(data_dir=tmp_path, data_root=tmp_path / "root")
    with pytest.raises(InvalidJob, match="are of architecture 'test_resnet', and the student is 'timm/resnet18'"):
        find_weights(FileWeights(weights="begun"), "timm/resnet18", folders)


@pytest.mark.parametrize(("name", "head"), [("shufflenet_v2_x0_5", "fc"), ("mobilenet_v2", "classifier.1")])
def test_torchvision_state_dict_gives_a_torchvision_student_its_weights(name: str, head: str, tmp_path: Path) -> None:
    """As ``save_file(model.state_dict(), ...)`` leaves one of ImageNet's 1,000 classes."""
    import torchvision

    torch.manual_seed(4)
    theirs = torchvision.models.get_model(name, weights=None).state_dict()
    (tmp_path / "root").mkdir()
    save_file(theirs, tmp_path / "root" / "imagenet.safetensors")
    folders = Folders(data_dir=tmp_path, data_root=tmp_path / "root")
    path = find_weights(FileWeights(weights="imagenet.safetensors"), f"torchvision/{name}", folders)
    network, larger = (build_student(f"torchvision/{name}", classes, 3, 64) for classes in (10, 11))
    fit = fit_weights(path, network, larger)
    assert fit.head == (f"{head}.bias", f"{head}.weight")
    load_weights(path, network, fit)
    state = network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in theirs.items() if key in fit.taken)
    assert len(fit.taken) == sum("num_batches" not in key for key in theirs) - 2
