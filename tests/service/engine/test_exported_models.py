"""Models of timm, exported for training and uploaded: each trains two steps through HTTP, and leaves its files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
from torch import nn

from tests.support.digits import Digits
from tests.support.exported_programs import exported
from tests.support.processes import Processes, job_of

pytest_plugins = ["tests.support.service_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SIDE = 32


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10, in_chans=1, drop_path_rate=0.2, **options)


# All with stochastic depth; attention with dropout, windows, batch normalisation, tensors that are made of sizes.
MODELS = {
    "vit": _timm("vit_tiny_patch16_224", img_size=SIDE, patch_size=8, depth=2, attn_drop_rate=0.1, proj_drop_rate=0.1),
    "swin": _timm("swin_tiny_patch4_window7_224", img_size=SIDE, window_size=4, depths=(1, 1, 2, 1)),
    "convnext": _timm("convnext_atto"),
    "mobilenet": _timm("mobilenetv3_small_100"),
    "edgenext": _timm("edgenext_xx_small"),
}


def test_exported_models_of_timm_are_uploaded_and_trained_over_http(
    service: Processes, teacher_id: str, digits: Digits, tmp_path: Path
) -> None:
    students = {}
    for name, make in MODELS.items():
        path = exported(make().train(), tmp_path / f"{name}.pt2", side=SIDE)
        students[service.client.upload_student_file(path)["student"]] = name
    body = job_of(teacher_id, "kd", epochs=1, batch_size=10) | {
        "students": list(students),
        "dataset": {"kind": "digits", "train_per_class": 2},
        "views": {"augmentation": {"recipe": "resized_crop", "size": [SIDE, SIDE]}, "count": 1},
    }
    job = service.client.submit(body)
    job.wait(timeout_s=1200)
    states = {students[run["student"]]: (run["state"], run["error"]) for run in service.client.runs(job.id)}
    assert states == dict.fromkeys(MODELS, ("succeeded", None))
    for run in service.client.runs(job.id):
        [line] = service.client.metrics(run["id"])
        assert 0 < line["train_loss"] < 100
        left = {file["name"] for file in service.client.artifacts(run["id"])}
        assert {"student.safetensors", "student.onnx", "model.zip"} <= left, students[run["student"]]
