"""The int8 form of a student: what it is measured on, what is refused, what is left."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.digits import Digits
from workers.config.export import Int8
from workers.errors import Stopped
from workers.teacher.teacher import Teacher
from workers.training.artifacts import int8
from workers.training.artifacts.int8 import Int8Inputs, calibration_rows, leave_int8


@pytest.fixture
def folder(digits: Digits, tmp_path: Path) -> Path:
    """A folder with the digits' teacher as its student: it was exported as every student is."""
    shutil.copy(digits.teacher_spec.path, tmp_path / "student.onnx")
    return tmp_path


def inputs(digits: Digits, heed: Callable[[], None] = lambda: None) -> Int8Inputs:
    return Int8Inputs(digits.preprocessing, {"validation": digits.train, "test": digits.test}, 1, heed)


def test_leave_int8_measures_both_files_on_every_picture(digits: Digits, folder: Path) -> None:
    told = leave_int8(folder, Int8(), inputs(digits))
    path = folder / "student.int8.onnx"
    assert told["kept"] is True
    assert told["refused"] is None
    assert told["bytes"] == path.stat().st_size < told["bytes_float"] / 2  # type: ignore[operator]  # ints, as JSON
    assert told["calibration_pictures"] == 512
    float_, int8_ = (
        Teacher(each, digits.preprocessing, "logits", threads=1, device="cpu").logits(digits.test.images_NHWC).argmax(1)
        for each in (folder / "student.onnx", path)
    )
    labels = digits.test.labels_N
    assert told["test"] == {
        "top1": pytest.approx((int8_ == labels).mean()),
        "top1_float": pytest.approx((float_ == labels).mean()),
        "agreement": pytest.approx((int8_ == float_).mean()),
        "rows": len(labels),
    }
    assert told["validation"]["rows"] == len(digits.train.labels_N)  # type: ignore[index]  # JSON


def test_leave_int8_measures_labelled_pictures_where_few_are(
    digits: Digits, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "_MEASURED_ROWS", 4)
    labels_N = np.full(len(digits.train.labels_N), -1)
    labels_N[1:3] = digits.train.labels_N[1:3]
    given = inputs(digits)
    few = replace(given, splits={"validation": replace(digits.train, labels_N=labels_N)})
    told = leave_int8(folder, Int8(max_drop=1.0), few)
    assert told["validation"]["rows"] == 2  # type: ignore[index]  # JSON
    assert "top1_float" in told["validation"]  # type: ignore[operator]  # JSON


def test_leave_int8_refuses_one_that_loses_more_than_max_drop(
    digits: Digits, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"top1": 0.90, "top1_float": 0.92, "agreement": 0.95, "rows": 100}
    monkeypatch.setattr(int8, "_compare", lambda *_: measured)
    told = leave_int8(folder, Int8(max_drop=0.02), inputs(digits))
    assert told["kept"] is True, "exactly max_drop is allowed"
    told = leave_int8(folder, Int8(max_drop=0.0199), inputs(digits))
    assert told["kept"] is False
    assert told["refused"] == (
        "top-1 on the validation split falls by 0.0200, from 0.9200 to 0.9000; max_drop is 0.0199: raise it, or use "
        "the float file"
    )
    assert told["validation"] == measured
    assert [path.name for path in folder.iterdir()] == ["student.onnx"]


def test_leave_int8_tells_why_a_student_cannot_be_quantised(
    digits: Digits, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise int8.QuantizationFailed("ONNX Runtime cannot quantise it")

    monkeypatch.setattr(int8, "quantize", fail)
    told = leave_int8(folder, Int8(), inputs(digits))
    assert (told["kept"], told["refused"]) == (False, "ONNX Runtime cannot quantise it")
    assert "validation" not in told


def test_leave_int8_heeds_between_batches(digits: Digits, folder: Path) -> None:
    heard = 0

    def heed() -> None:
        nonlocal heard
        heard += 1
        if heard == 12:
            raise Stopped("during its measurement")

    with pytest.raises(Stopped):
        leave_int8(folder, Int8(), inputs(digits, heed))
    assert heard == 12


@pytest.mark.parametrize(("samples", "wanted", "count"), [(10, 512, 10), (1000, 512, 512), (1, 1, 1), (7, 3, 3)])
def test_calibration_rows_are_distinct_and_spread(samples: int, wanted: int, count: int) -> None:
    rows_N = calibration_rows(samples, wanted)
    assert len(set(rows_N.tolist())) == len(rows_N) == count
    assert rows_N[0] == 0
    assert samples - rows_N[-1] <= -(-samples // count)
    assert np.all(np.diff(rows_N) >= 1)
