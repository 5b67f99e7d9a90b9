"""model.zip: what is in it, that others load it without Retort, and that it tells nothing of this machine."""

import json
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support import load_elsewhere
from tests.support.digits import Digits
from workers.config.teacher import Preprocessing
from workers.students.build import build_student
from workers.students.catalog import PREFIX
from workers.students.torchvision_catalog import TIMM, TORCHVISION
from workers.training.artifacts.model_folder import ModelFacts, leave_model, model_config
from workers.training.artifacts.onnx_export import Student, export_onnx
from workers.training.result import state_tensors

Left = tuple[Path, torch.nn.Module, NDArray[np.float32]]

ROOT = Path(__file__).resolve().parents[3]
SIDE, CLASSES = 32, ("cat", "dog | <b>", "ünder")
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed (extra dev)")


def facts(student: str, channels: int = 3, origin: object = None) -> ModelFacts:
    preprocessing = Preprocessing(
        size=(SIDE, SIDE),
        mean=(0.4, 0.5, 0.6)[:channels],
        std=(0.2, 0.3, 0.4)[:channels],
        channels="gray" if channels == 1 else "rgb",
    )
    result = {
        "calibration": {"temperature": 1.5},
        "method": "kd",
        "seed": 0,
        "last": {"top1": 0.75, "nll": 1.5},
        "environment": {"device": "cpu"},
    }
    return ModelFacts(student, CLASSES, preprocessing, origin, result)  # type: ignore[arg-type]  # Origin or None


def left(folder: Path, student: str, channels: int = 3) -> tuple[torch.nn.Module, NDArray[np.float32]]:
    """A student of random weights whose ONNX file and unpacked model.zip lie in the folder; and inputs for it."""
    from safetensors.torch import save_file

    torch.manual_seed(3)
    network = build_student(student, len(CLASSES), channels, SIDE).eval()
    told = facts(student, channels)
    pictures = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, channels), dtype=np.uint8)
    exported = export_onnx(Student(network, told.preprocessing), folder / "student.onnx", pictures)
    save_file(state_tensors(network), folder / "student.safetensors")
    leave_model(folder, told, exported.program)
    with zipfile.ZipFile(folder / "model.zip") as archive:
        archive.extractall(folder)
    inputs = np.random.default_rng(1).standard_normal((5, channels, SIDE, SIDE), dtype=np.float32)
    np.save(folder / "images.npy", inputs)
    return network, inputs


def logits_elsewhere(how: str, folder: Path) -> NDArray[np.float32]:
    """Of ``images.npy``, from a process that has neither Retort nor a way to it."""
    script = Path(load_elsewhere.__file__)
    done = subprocess.run([sys.executable, "-I", script, how, folder], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    logits: NDArray[np.float32] = np.load(folder / "logits.npy", allow_pickle=False)
    return logits


def logits_here(network: torch.nn.Module, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = network(torch.from_numpy(inputs)).numpy()
    return logits


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What is left of a small student; one for all, as an export takes seconds."""
    folder = tmp_path_factory.mktemp("small")
    return folder, *left(folder, "cnn_s")


def test_a_student_is_loaded_by_torch_alone_and_by_onnxruntime_alone(small: Left) -> None:
    folder, network, inputs = small
    names = sorted(path.name for path in (folder / "model").iterdir())
    assert names == ["README.md", "config.json", "model.pt2", "model.safetensors"]
    expected = logits_here(network, inputs)
    np.testing.assert_allclose(logits_elsewhere("torch", folder), expected, atol=1e-5)
    np.testing.assert_allclose(logits_elsewhere("onnxruntime", folder), expected, atol=1e-4)


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels"), [("resnet18", 3), ("resnet18", 1), ("densenet121", 3)])
def test_a_student_whose_network_timm_has_is_loaded_by_timm_alone(tmp_path: Path, name: str, channels: int) -> None:
    network, inputs = left(tmp_path, PREFIX + name, channels)
    assert not (tmp_path / "model" / "model.pt2").exists()
    np.testing.assert_allclose(logits_elsewhere("timm", tmp_path), logits_here(network, inputs), atol=1e-5)


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TIMM))
def test_timm_names_are_networks_that_compute_the_same_from_the_same_weights(name: str) -> None:
    import timm

    side = next(family.min_side for family in TORCHVISION if name in family.sizes)
    ours, theirs = build_student(PREFIX + name, 10, 3, side).eval(), timm.create_model(name, num_classes=10).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, max(side, 64), max(side, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_model_zip_tells_nothing_of_this_machine_and_has_none_of_its_pictures(small: Left) -> None:
    folder, *_ = small
    for path in (folder / "student.onnx", *(folder / "model").iterdir()):
        content = path.read_bytes()
        assert b"site-packages" not in content, path.name
        assert str(ROOT).encode() not in content, path.name
    [images], _ = torch.export.load(folder / "model" / "model.pt2").example_inputs
    assert not images.any()


def test_model_zip_has_the_same_bytes_for_the_same_student(small: Left, tmp_path: Path) -> None:
    left(tmp_path, "cnn_s")
    assert (tmp_path / "model.zip").read_bytes() == (small[0] / "model.zip").read_bytes()


def test_model_config_has_names_and_preprocessing_as_timm_reads_them() -> None:
    config = model_config(facts("torchvision/resnet18", 1))
    assert config["architecture"] == "resnet18"
    assert config["label_names"] == list(CLASSES)
    assert config["model_args"] == {"in_chans": 1}
    pretrained = config["pretrained_cfg"]
    assert isinstance(pretrained, dict)
    assert (pretrained["input_size"], pretrained["mean"]) == ([1, SIDE, SIDE], [0.4])
    assert config["temperature"] == 1.5
    assert "pretrained_cfg" not in model_config(facts("resnet20")), "timm would take it for its own"


def test_model_card_names_teacher_data_method_figures_and_what_is_to_be_filled_in(
    digits: Digits, tmp_path: Path
) -> None:
    job = digits.job({"preset": "kd", "temperature": 3.0}).model_copy(update={"teacher_name": "a|b\n# <b>"})
    task = digits.plan.task_of_run(job, job.runs()[0], digits.folders, tmp_path, threads=1)
    (tmp_path / "student.safetensors").write_bytes(b"weights")
    leave_model(tmp_path, facts("cnn_s", origin=task.origin), None)
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        card = archive.read("model/README.md").decode()
        assert archive.read("model/model.safetensors") == b"weights"
    assert task.origin is not None
    assert task.origin.teacher.sha256 in card
    assert "| teacher | a\\|b # \\<b\\> |" in card
    assert '| dataset | {"kind": "digits"} |' in card
    assert '"temperature": 3.0' in card
    assert "| accuracy | 0.7500 |" in card
    assert card.count("TO BE FILLED IN") == 4
    front = card.split("---\n")[1]
    assert {line.split(":")[0]: json.loads(line.split(": ", 1)[1]) for line in front.splitlines()} == {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "license": "other",
        "license_name": "TO BE FILLED IN",
        "license_link": "TO BE FILLED IN",
        "tags": ["image-classification", "knowledge-distillation", "retort"],
    }
    assert str(digits.folders.data_dir) not in card
