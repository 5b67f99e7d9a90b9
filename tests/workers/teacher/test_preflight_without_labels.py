"""Preflight on pictures without labels, or with few: what a teacher is judged by, and which are refused."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support import onnx_models
from tests.support.small_teachers import labelled, teacher
from tests.workers.teacher.test_preflight import COLOURS, coloured, sees_colour
from workers.config.views import CropFlip, Views
from workers.data.preparation.prepared import DecodedDataset
from workers.errors import ContractViolation
from workers.teacher.preflight.rows import slice_rows
from workers.teacher.preflight.views import check_views


def without_labels(count: int = 300, names: tuple[str, ...] = COLOURS) -> DecodedDataset:
    data = coloured(count)
    return labelled(data.images_NHWC, np.full(count, -1), names)


def of_weights(weight_PN: np.ndarray, tail: tuple[str, ...] = ()) -> onnx.ModelProto:
    return onnx_models.linear(weight_PN, tail=list(tail))


@pytest.mark.parametrize("tail", [(), ("Softmax",), ("LogSoftmax",)])
def test_preflight_without_labels_reports_entropy_agreement_and_the_classes_taken(
    tail: tuple[str, ...], tmp_path: Path
) -> None:
    session = teacher(sees_colour(tail=list(tail)), tmp_path)
    report = session.run_preflight(without_labels(names=()), rows=100)
    assert (report.accuracy, report.chance, report.classes, report.labelled) == (None, None, 3, 0)
    judged = report.without_labels
    assert judged is not None
    assert report.forwards == 1 + 100 + 4 + 64 + judged.forwards
    assert judged.classes_taken == 3
    assert judged.largest_share == pytest.approx(1 / 3, abs=0.1)
    assert judged.agreement > 0.9 > judged.chance
    assert 0 < judged.entropy < 0.9 * math.log(3)
    [said] = [warning for warning in report.warnings if warning.startswith("no training picture has a label")]
    assert "cannot be checked" in said
    assert report.refusals == ()


@pytest.mark.parametrize(
    ("weight_PN", "message"),
    [
        (np.zeros((192, 3)), "gives the same outputs for each of 100 pictures"),
        (np.tile([0.0, 0.1, 0.0], (192, 1)), "takes each of 100 pictures for class 'green'"),
        (np.random.default_rng(0).normal(0, 1e-3, (192, 3)), "are nearly uniform"),
        (
            np.random.default_rng(0).choice([-1.0, 1.0], (192, 3)) * np.random.default_rng(1).normal(0, 1, (192, 1)),
            "for the same class when they are moved",
        ),
    ],
)
def test_preflight_without_labels_refuses_answers_that_do_not_depend_on_the_picture(
    weight_PN: np.ndarray, message: str, tmp_path: Path
) -> None:
    data = without_labels(100)
    if "moved" in message:
        # Noise of which each pixel says something else: no two views have anything in common.
        noise = np.random.default_rng(2).integers(0, 256, data.images_NHWC.shape, dtype=np.uint8)
        data = labelled(noise, data.labels_N, COLOURS)
    with pytest.raises(ContractViolation, match=message) as caught:
        teacher(of_weights(weight_PN), tmp_path).run_preflight(data, rows=100)
    assert '"accept_teacher": true' in str(caught.value)
    assert teacher(of_weights(weight_PN), tmp_path).run_preflight(data, rows=100, accept=True).refusals


def test_preflight_with_few_labels_judges_by_the_labelled_pictures(tmp_path: Path) -> None:
    data = coloured(300)
    labels_N = np.where(np.arange(300) % 10 == 0, data.labels_N, -1)
    few = labelled(data.images_NHWC, labels_N, COLOURS)
    report = teacher(sees_colour(), tmp_path).run_preflight(few, rows=100)
    assert (report.rows, report.labelled, report.accuracy, report.without_labels) == (100, 30, 1.0, None)
    with pytest.raises(ContractViolation, match="The label order seems to differ"):
        teacher(sees_colour((0, 1, 2)), tmp_path).run_preflight(few, rows=100)


def test_preflight_with_a_handful_of_labels_warns_and_judges_by_the_answers_as_well(tmp_path: Path) -> None:
    data = coloured(300)
    labels_N = np.full(300, -1)
    labels_N[7] = (data.labels_N[7] + 1) % 3
    one = labelled(data.images_NHWC, labels_N, COLOURS)
    report = teacher(sees_colour(), tmp_path).run_preflight(one, rows=100)
    assert (report.labelled, report.accuracy, report.refusals) == (1, 0.0, ())
    assert report.without_labels is not None
    said = " ".join(report.warnings)
    assert "right on 0 of 1 labelled pictures" in said
    assert "only 1 training pictures have a label" in said
    with pytest.raises(ContractViolation, match="gives the same outputs for each of 100 pictures"):
        teacher(of_weights(np.zeros((192, 3))), tmp_path).run_preflight(one, rows=100)


def test_slice_has_every_labelled_row_it_has_room_for_and_then_others() -> None:
    labels_N = np.where(np.arange(1000) % 50 == 0, np.arange(1000) % 2, -1)
    index_R = slice_rows(labels_N, 2, 100)
    assert len(index_R) == len(set(index_R)) == 100
    assert (labels_N[index_R] >= 0).sum() == 20


def test_check_of_views_without_labels_compares_them_with_the_plain_pictures(tmp_path: Path) -> None:
    session, data = teacher(sees_colour(), tmp_path), without_labels()
    plain = session.run_preflight(data, rows=64)
    near = check_views(session, data, Views(augmentation=CropFlip(pad=1, flip=False), count=2), plain, rows=64)
    assert (near.accuracy, near.rows, near.forwards, near.warnings) == (None, 64, 128, ())
    assert near.agreement is not None
    assert near.agreement > 0.9
    far = check_views(session, data, Views(augmentation=CropFlip(pad=64, flip=False), count=2), plain, rows=64)
    assert "training views for the class of the picture as it is" in far.warnings[0]
