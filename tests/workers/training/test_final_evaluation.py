"""Final evaluation: figures of the weights that leave a run, its logits, and the temperature fitted on validation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.support.digits import SMALL, Digits
from workers.augmentation.apply import to_input
from workers.config.task import TrainingTask
from workers.config.training import AdamW, Training
from workers.data.preparation.holdout_spec import Holdout
from workers.errors import InvalidJob
from workers.events import ignore, never
from workers.measures import measure
from workers.methods.combined import PRESETS
from workers.pipeline import run_job
from workers.run_files import ARTIFACTS
from workers.teacher.build_caches import build_caches
from workers.teacher.plan_caches import plan_caches
from workers.training.evaluation.calibration import fit_temperature
from workers.training.loop import train_group, train_run
from workers.training.run_handle import RunHandle

HOLDOUT = Holdout(holdout=0.2, seed=1)
Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Left:
    """What a run has left."""

    result: dict[str, Any]
    folder: Path

    def json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / ARTIFACTS / name).read_text())
        return found

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / ARTIFACTS / "logits.safetensors")


def task_of(digits: Digits, method: str, folder: Path, training: Training) -> TrainingTask:
    job = digits.job(method, training=training).model_copy(update={"validation": HOLDOUT})
    plan = plan_caches(job, digits.folders, ignore, never, threads=1, device="cpu")
    build_caches(plan, digits.folders, ignore, never, threads=1, device="cpu")
    return plan.task_of_run(job, job.runs()[0], digits.folders, folder, threads=1)


@pytest.fixture(scope="module")
def left(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """A student of ``normkd``, whose probabilities mean nothing as they come, with a calibrated output."""
    folder = tmp_path_factory.mktemp("left") / "run"
    training = SMALL.model_copy(update={"epochs": 4, "calibrated_output": True})
    return Left(train_run(task_of(digits, "normkd", folder, training), ignore, never), folder)


# ---------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_is_of_the_logits_that_are_kept(split: str, left: Left) -> None:
    logits_NC, labels_N = left.tensors[split].float(), left.tensors[f"{split}_labels"]
    assert left.tensors[split].dtype == torch.float16
    found, last = left.result["evaluation"][split], left.result["last"]
    prefix = "validation_" if split == "validation" else ""
    for name, metric in (("top1", "top1"), ("top5", "top5"), ("nll", "nll"), ("ece", "ece"), ("kl", "kl_to_teacher")):
        assert found[name] == last[f"{prefix}{metric}"]
    assert found["agreement"] == last[f"{prefix}agreement"] > 0.5
    assert found["rows"] == len(labels_N) == left.result["splits"][split]
    hits_N = logits_NC.argmax(dim=1) == labels_N
    # A tie that float16 has made moves a row.
    assert float(hits_N.double().mean()) == pytest.approx(found["top1"], abs=0.004)
    assert float(F.cross_entropy(logits_NC, labels_N)) == pytest.approx(found["nll"], rel=1e-3)
    per_class = [float(hits_N[labels_N == label].double().mean()) for label in range(10)]
    assert found["per_class"] == pytest.approx(per_class, abs=0.04)
    confusion_CC = np.array(found["confusion"])
    assert confusion_CC.sum(axis=1).tolist() == torch.bincount(labels_N, minlength=10).tolist()
    assert np.trace(confusion_CC) == round(found["top1"] * found["rows"])


def test_labels_that_are_kept_are_the_splits_in_its_order(digits: Digits, left: Left) -> None:
    assert np.array_equal(left.tensors["test_labels"].numpy(), digits.test.labels_N)


def test_evaluation_json_has_what_result_json_leaves_out(left: Left) -> None:
    whole = left.json("evaluation.json")
    assert whole["calibration"] == left.result["calibration"]
    for split, found in whole["splits"].items():
        bounded = left.result["evaluation"][split]
        assert {name: found[name] for name in ("top1", "nll", "ece", "per_class")} == {
            name: bounded[name] for name in ("top1", "nll", "ece", "per_class")
        }
        matrix_CC = np.zeros((10, 10), np.int64)
        for label, predicted, rows in found["confusion_cells"]:
            matrix_CC[label, predicted] = rows
        assert matrix_CC.tolist() == bounded["confusion"]
        assert sum(found["reliability"]["rows"]) == sum(found["calibrated"]["reliability"]["rows"]) == bounded["rows"]


# ------------------------------------------------------------------------------------------------------- calibration


def test_calibration_is_fitted_on_validation_and_told_on_test(left: Left) -> None:
    found = left.result["calibration"]
    assert left.json("config.json")["temperature"] == found["temperature"]
    assert (found["split"], found["fit"]) == ("validation", "interior")
    logits_NC, labels_N = left.tensors["validation"], left.tensors["validation_labels"]
    assert fit_temperature(logits_NC, labels_N).temperature == pytest.approx(found["temperature"], rel=1e-3)
    for figures, split in ((found, "validation"), (found["test"], "test")):
        before = left.result["evaluation"][split]
        assert (figures["nll"]["before"], figures["ece"]["before"]) == (before["nll"], before["ece"])
        after = measure(left.tensors[split].float() / found["temperature"], left.tensors[f"{split}_labels"])
        assert figures["nll"]["after"] == pytest.approx(after.nll, rel=1e-2)
        assert figures["ece"]["after"] == pytest.approx(after.ece, abs=0.01)
        assert figures["nll"]["after"] < figures["nll"]["before"] / 2
        assert figures["ece"]["after"] < figures["ece"]["before"] / 4


def test_calibrated_output_of_the_onnx_file_is_softmax_at_the_fitted_temperature(digits: Digits, left: Left) -> None:
    session = onnxruntime.InferenceSession(left.folder / ARTIFACTS / "student.onnx")
    assert [output.name for output in session.get_outputs()] == ["logits", "probabilities"]
    preprocessing = digits.preprocessing.model_validate(left.json("config.json")["preprocessing"])
    pictures = torch.from_numpy(np.asarray(digits.test.take(slice(64))))
    inputs = to_input(pictures, preprocessing, channels_last=False).numpy()
    logits_BC, probabilities_BC = session.run(None, {"images": inputs})
    temperature = left.result["calibration"]["temperature"]
    expected_BC = (torch.from_numpy(logits_BC) / temperature).softmax(dim=1)
    torch.testing.assert_close(torch.from_numpy(probabilities_BC), expected_BC, rtol=1e-5, atol=1e-6)
    # Kept are the logits less the row's largest.
    kept_BC, below_BC = left.tensors["test"][:64].float(), torch.from_numpy(logits_BC)
    below_BC = below_BC - below_BC.amax(dim=1, keepdim=True)
    torch.testing.assert_close(below_BC, kept_BC, rtol=1e-2, atol=1e-3)


@pytest.mark.usefixtures("without_onnx")
def test_run_without_a_validation_split_has_no_temperature(digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"epochs": 1, "keep_logits": False})
    found = Left(train_run(digits.order("kd", tmp_path, training), ignore, never), tmp_path)
    assert found.result["calibration"] is None
    assert found.json("config.json")["temperature"] is None
    assert found.result["evaluation"].keys() == {"test"}
    assert "calibrated" not in found.json("evaluation.json")["splits"]["test"]
    # It was asked not to keep them.
    assert not (tmp_path / ARTIFACTS / "logits.safetensors").exists()


def test_calibrated_output_without_a_validation_split_is_refused_before_training(
    digits: Digits, tmp_path: Path
) -> None:
    training = SMALL.model_copy(update={"calibrated_output": True})
    with pytest.raises(InvalidJob, match=r"training.calibrated_output needs a validation split"):
        train_run(digits.order("kd", tmp_path, training), ignore, never)
    with pytest.raises(InvalidJob, match=r"training.calibrated_output needs a validation split"):
        digits.job("kd", training=training).splits(("train", "test"))


# ---------------------------------------------------------------------------------------------- the weights that leave


@pytest.mark.usefixtures("without_onnx")
def test_evaluation_is_of_the_best_epoch_where_its_weights_leave(digits: Digits, tmp_path: Path) -> None:
    # So large a learning rate that later epochs are worse.
    training = SMALL.model_copy(update={"epochs": 3, "keep": "best", "optimizer": AdamW(lr=0.05)})
    task = task_of(digits, "ce", tmp_path, training)
    result = train_run(task, ignore, never)
    assert result["evaluation"]["validation"]["top1"] == result["best"]["validation_top1"]
    assert result["evaluation"]["test"]["nll"] == result["best"]["nll"]


@pytest.mark.usefixtures("without_onnx")
def test_evaluation_of_a_run_that_another_process_exports_is_that_of_training(digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"epochs": 1})
    whole = task_of(digits, "kd", tmp_path / "whole", training)
    expected = train_run(whole, ignore, never)
    parted = whole.model_copy(update={"folder": tmp_path / "parted"})
    train_run(parted.model_copy(update={"stage": "train"}), ignore, never)
    result = train_run(parted.model_copy(update={"stage": "export"}), ignore, never)
    assert (result["evaluation"], result["calibration"]) == (expected["evaluation"], expected["calibration"])
    for name in ("evaluation.json", "logits.safetensors", "temperatures.json"):
        left_there = [(folder / ARTIFACTS / name).read_bytes() for folder in (tmp_path / "whole", tmp_path / "parted")]
        assert left_there[0] == left_there[1]


# ------------------------------------------------------------------------------------------------------------ presets


@pytest.mark.usefixtures("without_onnx")
def test_students_whose_probabilities_mean_nothing_are_calibrated_by_a_scalar(digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"epochs": 6})
    tasks = [task_of(digits, method, tmp_path / method, training) for method in ("atkd", "normkd")]
    ended = dict(train_group([RunHandle(task, ignore, never) for task in tasks]))
    for how in ended.values():
        assert isinstance(how, dict)
        ece: Figures = how["calibration"]["test"]["ece"]
        assert ece["before"] > 0.3
        assert ece["after"] <= 0.03


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("without_onnx")
def test_students_of_all_presets_are_calibrated_on_digits(digits: Digits, tmp_path: Path) -> None:
    job = digits.job(*sorted(set(PRESETS) - {"custom"}), training=SMALL.model_copy(update={"epochs": 30}))
    outcome = run_job(job.model_copy(update={"validation": HOLDOUT}), digits.folders, tmp_path)
    calibrated: dict[str, Figures] = {
        result["method"]: result["calibration"]["test"]["ece"] for result in outcome.results
    }
    assert {method: ece for method, ece in calibrated.items() if ece["after"] > 0.03} == {}
