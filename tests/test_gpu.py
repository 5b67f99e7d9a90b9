"""What only a CUDA device can show: the teacher there, the data resident there, the same losses, a run to its end."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.digits import SMALL, Digits
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
    np.testing.assert_allclose(teacher.logits(pictures), digits.teacher().logits(pictures), atol=1e-3, rtol=1e-3)


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
