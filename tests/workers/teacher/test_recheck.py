"""Recheck of a cache of a sigmoid's logits: what the rounding of a sigmoid's output explains is no difference."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from store import CacheWriter
from tests.support import onnx_models
from tests.support.small_teachers import PLAIN, pictures
from tests.support.store_cases import make_spec
from workers.config.teacher import TeacherSpec
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation.prepare import prepare
from workers.files import file_sha256
from workers.teacher.output_values import to_logits
from workers.teacher.recheck import recheck_rows
from workers.teacher.teacher import Teacher

SAMPLES = 40
Outputs = NDArray[np.float32]


def lower_by(p_NC: Outputs, units: int) -> Outputs:
    """Another provider's sigmoid: less by so many units in the last place."""
    for _ in range(units):
        p_NC = np.nextafter(p_NC, np.float32(0))
    return p_NC


@pytest.mark.parametrize(
    ("lost", "is_ok"),
    [(lambda p_NC: lower_by(p_NC, 2), True), (lambda p_NC: p_NC * np.float32(0.999), False)],
    ids=["two units", "a thousandth"],
)
def test_recheck_of_a_sigmoid_allows_the_rounding_of_its_output(lost: object, is_ok: bool, tmp_path: Path) -> None:
    assert callable(lost)
    labels_N = np.arange(SAMPLES) % 4
    np.savez(tmp_path / "d.npz", train_images=pictures(SAMPLES), train_labels=labels_N)
    dataset = prepare(NpzDataset(path="d.npz"), "train", tmp_path, tmp_path / "datasets")
    (tmp_path / "teachers").mkdir()
    weight_PN = np.random.default_rng(0).normal(0, 2, (192, 4))
    path = onnx_models.save(onnx_models.linear(weight_PN, tail=["Sigmoid"]), tmp_path / "t.onnx")
    spec = TeacherSpec(path=path, sha256=file_sha256(path))
    path.rename(tmp_path / "teachers" / f"{spec.sha256}.onnx")
    teacher = Teacher(tmp_path / "teachers" / f"{spec.sha256}.onnx", PLAIN, threads=1, device="cpu")
    p_NC = teacher.outputs(dataset.take(slice(None)))
    assert ((p_NC > 1 - 1e-6) & (p_NC < 1)).any()
    cache = make_spec(
        teacher_sha256=spec.sha256,
        output_kind="sigmoid",
        dataset_fingerprint=dataset.fingerprint,
        samples=SAMPLES,
        classes=4,
        preprocessing=PLAIN.model_dump(mode="json"),
        dtype="float32",
    )
    writer = CacheWriter(tmp_path / "caches", cache)
    writer.write_block(0, to_logits(lost(p_NC), "sigmoid"))
    writer.finish()
    assert recheck_rows(tmp_path, cache.key, SAMPLES).ok == is_ok
