"""What only a CUDA device can show: the teacher, batches and losses as on a CPU, runs to their end or to a bad step."""

import contextlib
import itertools
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor

from tests.support import onnx_models
from tests.support.digits import SMALL, Digits, weights
from tests.support.evaluation_logits import evaluation_logits, relative_difference
from workers.config.task import TrainingTask
from workers.config.teacher import Preprocessing
from workers.config.training import Sgd
from workers.errors import NotFinite, OutOfMemory, Paused
from workers.events import ignore, never
from workers.methods.catalog import parse_method
from workers.methods.combined import PRESETS
from workers.objective.objective import objective
from workers.objective.statistics import batch_as_cache, row_statistics
from workers.objective.view import View
from workers.run_files import CHECKPOINT
from workers.teacher.teacher import Teacher
from workers.training.feed.batches import LoadedBatch, epoch_order
from workers.training.loop import train_group, train_run
from workers.training.not_finite import ComputeStep, check_every, explain_not_finite
from workers.training.run import RunState
from workers.training.run_handle import RunHandle
from workers.training.training_feed import TrainingFeed

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
ON_CUDA = SMALL.model_copy(update={"device": "cuda"})


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
    with pytest.raises(OutOfMemory, match="larger RETORT_GPU_SHARE"):
        Teacher(path, Preprocessing(), device="cuda", memory_fraction=fraction / 256).run(input_, 256)


@pytest.mark.parametrize("fits", [True, False], ids=["resident", "mapped"])
def test_training_feed_gives_the_batches_of_the_cpu(
    fits: bool, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fits:
        monkeypatch.setattr("workers.training.feed.on_device.fits", lambda *_: False)
    here, there = (
        TrainingFeed(digits.train, digits.views, digits.train_reader(), 64, 3, device, views_per_step=2)
        for device in (torch.device("cpu"), CUDA)
    )
    with contextlib.closing(there):
        for epoch in (0, 1):
            for near, far in zip(here.epoch(epoch), there.epoch(epoch), strict=True):
                check_same(far.labels, near.labels)
                for near_view, far_view in zip(near.views, far.views, strict=True):
                    check_same(far_view.images, near_view.images)
                    check_same(far_view.teacher_logits, near_view.teacher_logits)
                    assert near_view.teacher_statistics is not None
                    assert far_view.teacher_statistics is not None
                    for name, values in near_view.teacher_statistics.items():
                        check_same(far_view.teacher_statistics[name], values)


def check_same(there: Tensor | None, here: Tensor | None) -> None:
    """To the last bit, the first on the GPU."""
    assert there is not None
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=0)


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"custom"}))
def test_a_methods_loss_and_gradient_are_those_of_the_cpu(preset: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(32, 100, generator=generator) for _ in range(2))
    labels = torch.randint(100, (32,), generator=generator)
    outcomes = []
    for device in ("cpu", "cuda"):
        z = student.detach().to(device).requires_grad_()
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
            cache_statistics=batch_as_cache(method.cache_statistics, cached),
        )
        torch.autograd.backward(outcome.total)
        assert z.grad is not None
        outcomes.append((outcome.total.detach().cpu(), z.grad.cpu()))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_run_trains_on_cuda(precision: str, digits: Digits, tmp_path: Path) -> None:
    training = ON_CUDA.model_copy(update={"epochs": 4, "precision": precision})
    result = train_run(digits.order("kd", tmp_path, training), ignore, never)
    assert (result["environment"]["device"], result["environment"]["precision"]) == ("cuda", precision)
    assert result["last"]["top1"] > 0.8


def test_evaluation_is_in_float32_where_training_is_in_tf32(digits: Digits, tmp_path: Path) -> None:
    """TensorFloat-32 rounds each product to one part in 2,000."""
    training = ON_CUDA.model_copy(update={"precision": "tf32"})
    evaluated, exported = evaluation_logits(digits.order("kd", tmp_path, training))
    assert relative_difference(evaluated, exported) <= 1e-4


def state_after(order: TrainingTask, steps: int) -> dict[str, Any]:
    """What the checkpoint of a run holds that is paused after so many steps."""
    asked = itertools.count()
    [(_, how)] = train_group([RunHandle(order, ignore, never, lambda: next(asked) == steps)])
    assert isinstance(how, Paused), how
    return torch.load(order.folder / CHECKPOINT, weights_only=True)


def test_step_graph_gives_the_weights_of_eager_steps(digits: Digits, tmp_path: Path) -> None:
    """Over the end of an epoch, whose last batch is smaller."""
    training = ON_CUDA.model_copy(update={"optimizer": Sgd(lr=0.05), "precision": "float32"})
    states = {
        cuda_graph: state_after(
            digits.order("kd", tmp_path / cuda_graph, training.model_copy(update={"cuda_graph": cuda_graph})), steps=30
        )
        for cuda_graph in ("on", "off")
    }
    assert states["on"]["environment"]["cuda_graph"] == "on"
    assert states["off"]["environment"]["cuda_graph"] == "off: the job asks for none"
    for name, eager in states["off"]["network"].items():
        torch.testing.assert_close(states["on"]["network"][name], eager, rtol=1e-3, atol=1e-4)


def test_runs_of_a_group_leave_the_weights_of_runs_alone(digits: Digits, tmp_path: Path) -> None:
    """Each replays its steps on a stream of its own, beside the others, once both were recorded."""
    training = ON_CUDA.model_copy(update={"epochs": 4, "precision": "bfloat16", "cuda_graph": "on"})

    def tasks(folder: str) -> list[TrainingTask]:
        methods = ("ce", "kd", "dtkd", "normkd", "rld", "dkd")
        return [digits.order(method, tmp_path / folder / method, training) for method in methods]

    together, apart = tasks("together"), tasks("apart")
    ends = dict(train_group([RunHandle(task, ignore, never) for task in together]))
    assert not [end for end in ends.values() if isinstance(end, Exception)], ends
    for mine, alone in zip(together, apart, strict=True):
        train_run(alone, ignore, never)
        for name, weight in weights(alone.folder).items():
            torch.testing.assert_close(weights(mine.folder)[name], weight, rtol=1e-3, atol=1e-4)


def test_a_bad_step_is_named_later_and_leaves_the_weights_before_it(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops_N = digits.train_reader().statistics(0)["max"]
    row, limit = int(tops_N.argmax()), float(np.sort(tops_N)[-2:].mean())
    training = ON_CUDA.model_copy(update={"batch_size": 16})

    def bad_step(seed: int) -> int:
        return int(np.flatnonzero(epoch_order(len(tops_N), seed, 0) == row)[0]) // training.batch_size

    seed = next(seed for seed in itertools.count() if 10 < bad_step(seed) < check_every(CUDA) - 10)
    policy = {"kind": "expression", "temperature": f"where(max > {limit}, 0, 4)"}
    order = digits.order({"preset": "custom", "terms": [{"policy": policy}]}, tmp_path / "bad", training)
    order = order.model_copy(update={"run": order.run.model_copy(update={"seed": seed})})
    found: dict[int, dict[str, Tensor]] = {}

    def explain(compute: ComputeStep, run_state: RunState, step: int, loaded: LoadedBatch) -> NotFinite:
        found[run_state.sums.steps] = {name: p.detach().cpu() for name, p in run_state.network.named_parameters()}
        return explain_not_finite(compute, run_state, step, loaded)

    monkeypatch.setattr("workers.training.group.explain_not_finite", explain)
    # An event reads the flag, too.
    monkeypatch.setattr("workers.training.metrics.step_reports.INTERVAL_S", inf)
    with pytest.raises(
        NotFinite, match=rf"epoch 1, step {bad_step(seed) + 1}, .*\(sample {row} of the training split\)"
    ):
        train_run(order, ignore, never)
    before = state_after(order.model_copy(update={"folder": tmp_path / "good"}), bad_step(seed))["network"]
    assert list(found) == [check_every(CUDA)]
    for name, values in found[check_every(CUDA)].items():
        torch.testing.assert_close(values, before[name], rtol=1e-3, atol=1e-4)
