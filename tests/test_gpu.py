"""What only a CUDA device can show: the teacher there, the data resident there, the same losses, a run to its end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper

from tests import onnx_models
from tests.digits import SMALL, Digits
from workers.config import Preprocessing
from workers.errors import OutOfMemory
from workers.events import ignore, never
from workers.feed import TrainingFeed
from workers.live import row_statistics
from workers.methods import PRESETS, parse_method
from workers.objective import View, objective
from workers.teacher import Teacher
from workers.train import train_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def test_the_teacher_runs_on_cuda_and_says_what_it_says_on_the_cpu(digits: Digits) -> None:
    pictures = np.asarray(digits.test.images_NHWC)
    path, preprocessing = digits.teacher_spec.path, digits.preprocessing
    teacher = Teacher(path, preprocessing, None, threads=1, device="cuda")
    assert teacher.provider == "CUDAExecutionProvider"
    assert teacher.warnings == ()
    np.testing.assert_allclose(teacher.logits(pictures), digits.teacher().logits(pictures), atol=1e-3, rtol=1e-3)


def convolution(tmp_path: Path, dtype: type = np.float32) -> Path:
    """A convolution with 64 channels at 128 x 128, so 4 MiB a picture in float32, their means and a linear layer."""
    rng = np.random.default_rng(0)
    constants = {
        "kernel": rng.normal(size=(64, 3, 3, 3)).astype(dtype) / 5,
        "weight": rng.normal(size=(64, 10)).astype(dtype) / 8,
        "axes": np.array([2, 3]),
    }
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["z"], pads=[1] * 4),
        helper.make_node("Relu", ["z"], ["positive"]),
        helper.make_node("ReduceMean", ["positive", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weight"], ["logits"]),
    ]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    image = onnx_models.image(("batch", 3, 128, 128), element)
    output = helper.make_tensor_value_info("logits", element, ("batch", 10))
    return onnx_models.save(onnx_models.model(nodes, [image], [output], constants, opset=18), tmp_path / "teacher.onnx")


def test_a_float32_teacher_has_no_tf32_and_a_half_precision_one_its_tensor_cores(tmp_path: Path) -> None:
    """TF32 would be apart by some 1e-3 of the largest output, rounding in float32 by 1e-6."""
    exact = Teacher(convolution(tmp_path), Preprocessing(), device="cuda")
    assert (exact.provenance["tf32"], exact.warnings) == (False, ())
    assert exact.provenance["device"] == torch.cuda.get_device_name()
    images = np.random.default_rng(1).integers(0, 256, (32, 128, 128, 3), dtype=np.uint8)
    there = Teacher(convolution(tmp_path), Preprocessing(), device="cpu").logits(images)
    assert np.abs(exact.logits(images) - there).max() < 1e-4 * np.abs(there).max()
    half = Teacher(convolution(tmp_path, np.float16), Preprocessing(), device="cuda")
    assert (half.provenance["tf32"], half.warnings) == (True, ())
    assert np.abs(half.logits(images) - there).max() < 2e-2 * np.abs(there).max()


def test_a_teacher_halves_its_batch_within_its_share_of_the_memory(tmp_path: Path) -> None:
    """256 pictures take two GiB; a quarter of one is allowed."""
    path = convolution(tmp_path)
    fraction = (256 << 20) / torch.cuda.get_device_properties(0).total_memory
    small = Teacher(path, Preprocessing(), device="cuda", memory_fraction=fraction)
    images = np.random.default_rng(2).integers(0, 256, (256, 128, 128, 3), dtype=np.uint8)
    input_ = small.preprocess(images)
    logits = small.run(input_, 256)
    assert small.rows_max in (8, 16, 32, 64)
    assert small.run(input_, 256).tobytes() == logits.tobytes()
    whole = Teacher(path, Preprocessing(), device="cuda").run(input_, 256)
    np.testing.assert_allclose(logits, whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(OutOfMemory, match="larger share"):
        Teacher(path, Preprocessing(), device="cuda", memory_fraction=fraction / 256).run(input_, 256)


def test_resident_batches_are_the_mapped_ones(digits: Digits) -> None:
    feeds = [
        TrainingFeed(digits.train, digits.views, digits.train_reader(), 64, 3, torch.device(device), views_per_step=2)
        for device in ("cpu", "cuda")
    ]
    for epoch in (0, 1):
        for here, there in zip(*(feed.epoch(epoch) for feed in feeds), strict=True):
            assert torch.equal(here.labels, there.labels.cpu())
            for near, far in zip(here.views, there.views, strict=True):
                assert far.images.is_cuda
                assert torch.equal(near.images, far.images.cpu())
                assert near.teacher_logits is not None
                assert far.teacher_logits is not None
                assert torch.equal(near.teacher_logits, far.teacher_logits.cpu())
                assert near.teacher_statistics is not None
                assert far.teacher_statistics is not None
                for name, values in near.teacher_statistics.items():
                    assert torch.equal(values, far.teacher_statistics[name].cpu())


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"custom"}))
def test_a_methods_loss_and_gradient_are_those_of_the_cpu(preset: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(32, 100, generator=generator) for _ in range(2))
    labels = torch.randint(100, (32,), generator=generator)
    outcomes = []
    for device in ("cpu", "cuda"):
        z = student.to(device).requires_grad_()
        cached = teacher.to(device)
        method = parse_method(preset).expand()
        outcome = objective(
            method,
            z,
            labels.to(device),
            epoch=1000,
            teacher_logits_BC=cached,
            teacher_statistics=row_statistics(cached),
            second=View(z.flip(0), cached.flip(0), row_statistics(cached.flip(0))),
            learned={name: torch.tensor(theta, device=device) for name, theta in method.learned.items()},
        )
        torch.autograd.backward(outcome.total)
        assert z.grad is not None
        outcomes.append((outcome.total.detach().cpu(), z.grad.cpu()))
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_trains_on_cuda(precision: str, digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"epochs": 4, "device": "cuda", "precision": precision})
    result = train_run(digits.order("kd", tmp_path, training), ignore, never)
    assert result["environment"]["device"] == "cuda"
    assert result["last"]["top1"] > 0.8
