"""Whole jobs, without HTTP and Ray, on pictures without labels, and on pictures of which some have one."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from tests.support.digits import SMALL, Digits
from workers.config.draft import JobDraft
from workers.config.task import Folders
from workers.data.kinds.npz import NpzDataset
from workers.errors import InvalidDataset, InvalidJob
from workers.events import Log, PreflightChecked, never
from workers.files import file_sha256
from workers.pipeline import JobOutcome, run_job, train_supervised
from workers.students.build import build_student
from workers.teacher.plan_caches import plan_caches


def written(digits: Digits, path: Path, labels_N: np.ndarray | None, *, test_labels: bool = True) -> None:
    """An npz of the digits with these training labels."""
    arrays = {"train_images": digits.train.take(slice(None)), "test_images": digits.test.take(slice(None))}
    arrays |= {} if labels_N is None else {"train_labels": labels_N}
    arrays |= {"test_labels": np.asarray(digits.test.labels_N)} if test_labels else {}
    np.savez(path, **arrays)


def trained(digits: Digits, tmp_path: Path, *methods: object, **changes: object) -> tuple[JobOutcome, list[object]]:
    events: list[object] = []
    job = {
        "dataset": {"kind": "npz", "path": "digits.npz"},
        "views": {"augmentation": {"recipe": "crop_flip", "pad": 1, "flip": False}, "count": 2},
        "students": ["cnn_s"],
        "methods": methods,
        "training": {"epochs": 2, "batch_size": 64, "optimizer": {"kind": "adamw", "lr": 3e-3}, "device": "cpu"},
        "export": {"model": False},
        "teacher": digits.teacher_spec.model_dump(mode="json"),
    }
    folders = Folders(data_dir=tmp_path / "data", data_root=tmp_path)
    outcome = run_job(JobDraft.model_validate({**job, **changes}).job(), folders, tmp_path / "out", events.append)
    return outcome, events


def last(outcome: JobOutcome, place: int = 0) -> dict[str, float | None]:
    line = outcome.results[place]["last"]
    assert isinstance(line, dict)
    return line


@pytest.mark.usefixtures("without_onnx")
def test_job_without_any_label_distils_and_measures_agreement_and_kl(digits: Digits, tmp_path: Path) -> None:
    written(digits, tmp_path / "digits.npz", None, test_labels=False)
    with pytest.raises(InvalidJob, match=r"method 'ce': it learns from labels alone.*method 'dkd': its distillation"):
        trained(digits, tmp_path, "ce", "kd", "dkd")
    outcome, events = trained(digits, tmp_path, "kd", "lskd", validation={"holdout": 0.1})
    checked = next(event for event in events if isinstance(event, PreflightChecked))
    assert (checked.accuracy, checked.labelled) == (None, 0)
    assert checked.entropy is not None
    warnings = [event.message for event in events if isinstance(event, Log) and event.level == "warning"]
    assert any("the cross-entropy of 'kd', 'lskd' is left out" in warning for warning in warnings)
    assert any('are taken for classes "0" to "9"' in warning for warning in warnings)
    assert outcome.teacher_accuracy == {}
    assert outcome.teacher_views_accuracy is None
    for place in range(2):
        line = last(outcome, place)
        assert [line[name] for name in ("top1", "nll", "train_ce", "train_accuracy")] == [None] * 4
        assert line["agreement"] is not None
        assert line["agreement"] > 0.5
        assert line["kl_to_teacher"] is not None
        assert line["validation_agreement"] is not None
    result = outcome.results[0]
    assert result["calibration"] is None
    evaluation = result["evaluation"]
    assert isinstance(evaluation, dict)
    assert (evaluation["test"]["top1"], evaluation["test"]["labelled"], evaluation["test"]["confusion"]) == (
        None,
        0,
        None,
    )
    config = json.loads((tmp_path / "out" / "run-0" / "artifacts" / "config.json").read_text())
    assert config["class_names"] == [str(label) for label in range(10)]


def test_first_weights_fit_as_many_classes_as_the_teacher_has_where_nothing_names_them(
    digits: Digits, tmp_path: Path
) -> None:
    written(digits, tmp_path / "digits.npz", None, test_labels=False)
    save_file(build_student("cnn_s", 10, in_channels=1).state_dict(), tmp_path / "begun.safetensors")
    init = {"weights": "begun.safetensors", "sha256": file_sha256(tmp_path / "begun.safetensors")}
    document = {
        "dataset": {"kind": "npz", "path": "digits.npz"},
        "test": None,
        "validation": {"holdout": 0.1},
        "students": [{"name": "cnn_s", "init": init}],
        "methods": ["kd"],
        "teacher": digits.teacher_spec.model_dump(mode="json"),
    }
    job, events = JobDraft.model_validate(document).job(), list[object]()
    folders = Folders(data_dir=tmp_path / "data", data_root=tmp_path)
    plan_caches(job, folders, events.append, never, threads=1, device="cpu")
    assert any(isinstance(event, Log) and "student 'cnn_s' begins with the" in event.message for event in events)


def test_job_with_labels_for_some_rows_learns_from_both(digits: Digits, tmp_path: Path) -> None:
    labels_N = np.array(digits.train.labels_N)
    labels_N[np.arange(len(labels_N)) % 20 > 0] = -1
    written(digits, tmp_path / "digits.npz", labels_N)
    with pytest.raises(InvalidJob, match=r"method 'dkd': .* only \d+ of 1,4\d\d pictures of the training split has"):
        trained(digits, tmp_path, "dkd")
    outcome, events = trained(digits, tmp_path, "ce", "kd")
    checked = next(event for event in events if isinstance(event, PreflightChecked))
    assert checked.labelled is not None
    assert checked.labelled > 0
    assert checked.accuracy is not None
    assert outcome.teacher_views_accuracy is not None
    assert outcome.teacher_views_accuracy > 0.4
    few, both = (last(outcome, place) for place in range(2))
    assert few["train_ce"] is not None
    assert both["train_ce"] is not None
    assert (both["top1"] or 0.0) > (few["top1"] or 0.0) + 0.05


def test_supervised_model_is_refused_without_labels_before_it_is_trained(digits: Digits, tmp_path: Path) -> None:
    written(digits, tmp_path / "digits.npz", np.asarray(digits.train.labels_N), test_labels=False)
    dataset, work, out = NpzDataset(path="digits.npz"), tmp_path / "data", tmp_path / "out"
    with pytest.raises(InvalidDataset, match="no picture of the test split has a label"):
        train_supervised(dataset, "cnn_s", SMALL, data_root=tmp_path, work_dir=work, out_dir=out)
    assert not out.exists()
