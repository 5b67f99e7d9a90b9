"""A teacher of more than 2 GiB through the service for real: uploaded, run, checked again, backed up, deleted."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.cli import main
from service.settings import Settings
from store import CacheReader
from tests.support.processes import Processes, job_of, running_service
from tests.support.service_helpers import PREPROCESSING, check_whole
from workers.data.preparation.prepared import open_prepared
from workers.onnx.checks.check import FILE_MAX_BYTES
from workers.onnx.checks.large_file import find_layout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TILES, HIDDEN, CLASSES = 64, 144_000, 10
WEIGHT_BYTES = 64 * TILES * HIDDEN * 4  # 2.2 GiB
PIECE = 1 << 18  # values that are not zero, at the begin of each 64 MiB, and at the end
API_MEMORY_MAX = 1 << 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of a picture times one large matrix, times a small one; the large one lies beside it in a sparse file."""
    folder = tmp_path_factory.mktemp("model")
    generator = np.random.default_rng(0)
    with (folder / "weights.bin").open("wb") as file:
        for start in (*range(0, WEIGHT_BYTES, 64 << 20), WEIGHT_BYTES - 4 * PIECE):
            file.seek(start)
            file.write(generator.normal(size=PIECE).astype(np.float32).tobytes())
        assert file.tell() == WEIGHT_BYTES > FILE_MAX_BYTES
    large = TensorProto(name="large", data_type=TensorProto.FLOAT, dims=[64 * TILES, HIDDEN])
    large.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": "0", "length": str(WEIGHT_BYTES)}.items():
        large.external_data.add(key=key, value=value)
    small = generator.normal(size=(HIDDEN, CLASSES)).astype(np.float32) / 100
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Tile", ["flat", "repeats"], ["wide"]),
        helper.make_node("MatMul", ["wide", "large"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "small"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [large, numpy_helper.from_array(small, "small"), numpy_helper.from_array(np.array([1, TILES]), "repeats")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return folder / "m.onnx"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    folder = tmp_path_factory.mktemp("large")
    with running_service(folder / "data", log_dir=folder, TEACHER_MAX_BYTES=str(8 << 30)) as processes:
        yield processes


def by_hand(model: Path, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The logits that ONNX Runtime alone gives for a picture each."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = (images_NHWC / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    x_NCHW = x.transpose(0, 3, 1, 2).astype(np.float32)
    return np.concatenate([session.run(None, {"x": picture[None]})[0] for picture in x_NCHW])


def peak_bytes(pid: int) -> int:
    """Most memory that a process has had at once."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def test_large_teacher_from_its_upload_to_its_deletion(
    service: Processes, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, data_dir = service.client, service.data_dir
    made = client.upload_teacher(
        model, preprocessing=PREPROCESSING.model_dump(mode="json"), data=model.with_name("weights.bin")
    )
    path = data_dir / "teachers" / f"{made['sha256']}.onnx"
    assert made["size_bytes"] == path.stat().st_size > WEIGHT_BYTES
    assert made["smoke_run"] == "passed"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    layout = find_layout(path)
    assert layout is not None
    # The small matrix came in the graph, and lies beside it like the large one.
    assert layout.data_bytes == WEIGHT_BYTES + 4 * HIDDEN * CLASSES
    assert peak_bytes(service.pid("api")) < API_MEMORY_MAX

    body = {**job_of(made["id"], "kd", epochs=1), "dataset": {"kind": "digits", "train_per_class": 5}}
    # Its weights were drawn at random.
    job = client.submit({**body, "views": {"count": 1}, "cache": {"dtype": "float32"}, "accept_teacher": True})
    job.wait()
    ended = client.job(job["id"])
    assert ended["state"] == "succeeded", (ended["error"], service.logs())
    for key in ended["caches"].values():
        reader = CacheReader.from_key(data_dir / "caches", key)
        images_NHWC = open_prepared(data_dir / "datasets", reader.spec.dataset_fingerprint).take(slice(None))
        cached_NC, expected_NC = reader.logits(0)[:10], by_hand(model, np.asarray(images_NHWC[:10]))
        assert np.abs(expected_NC).max() > 1
        np.testing.assert_allclose(cached_NC, expected_NC, rtol=1e-4, atol=1e-4)

    shown = ["--json", "cache", "--data-dir", str(data_dir), "verify", ended["caches"]["test"], "--recompute", "5"]
    assert main(shown) == 0
    assert json.loads(capsys.readouterr().out)["recompute"]["ok"]
    assert main(["backup", str(tmp_path / "b"), "--data-dir", str(data_dir)]) == 0
    assert (tmp_path / "b" / "teachers" / path.name).stat().st_size == made["size_bytes"]
    assert main(["restore", str(tmp_path / "b"), "--data-dir", str(tmp_path / "restored")]) == 0
    check_whole(Settings(data_dir=tmp_path / "restored"))

    assert client.preview_deletion("teachers", made["id"])["frees_bytes"] == made["size_bytes"]
    client.delete_teacher(made["id"])
    assert not path.exists()
