"""One student in several real processes (gloo): the update of a single process with the whole batch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.digits import SMALL, Digits, weights
from tests.support.replica_gradient import gradients
from tests.workers.training.test_loop_groups import train_in_a_process
from workers.config.schedules import StepSchedule
from workers.config.task import TrainingTask
from workers.config.training import Ema, Sgd, Training
from workers.errors import InvalidJob
from workers.events import ignore, never
from workers.run_files import CHECKPOINT
from workers.students.build import build_student
from workers.training.loop import train_run
from workers.training.optimization.distributed import Replicas, WholeBatchNorm1d, WholeBatchNorm2d

# Early, for it is long, and several processes of a busy machine take their time.
pytestmark = pytest.mark.timeout(600)

# One step of plain descent, so that what the weights have moved by is the gradient.
ONE_STEP = Training(
    epochs=1,
    batch_size=2000,
    optimizer=Sgd(lr=1.0, momentum=0.0, weight_decay=0.0),
    schedule=StepSchedule(milestones=()),
)


def train_in_processes(*orders: TrainingTask) -> list["subprocess.Popen[bytes]"]:
    """Runs that are trained one after the other, each in all of the processes."""
    for order in orders:
        order.folder.mkdir(parents=True)
    ranks = range(orders[0].training.actors)
    return [train_in_a_process(*([order.model_copy(update={"rank": rank})] for order in orders)) for rank in ranks]


def assert_same_but_for_rounding(folder: Path, expected: Path) -> None:
    """Weights after one step of plain descent, statistics of batch normalisation, learned temperatures, metrics."""
    torch.manual_seed(0)
    start = build_student("cnn_s", 10, in_channels=1, image_side=8).state_dict()
    one, several = weights(expected), weights(folder)
    assert one.keys() == several.keys() == start.keys()
    for name in one:
        moved = (one[name] - start[name]).double().norm()
        apart = (one[name] - several[name]).double().norm()
        # In float32; that it is rounding alone is shown in float64 below.
        assert apart <= 5e-3 * moved, f"{name}: {apart / moved:.2g} of the step"
    states = [torch.load(each / CHECKPOINT, weights_only=True) for each in (expected, folder)]
    for name, parameter in states[0]["learned"].items():
        torch.testing.assert_close(states[1]["learned"][name], parameter, rtol=1e-4, atol=1e-6)
    lines = [state["metrics"][-1] for state in states]
    assert lines[0].keys() == lines[1].keys()
    for name in lines[0].keys() - {"images_per_s", "seconds"}:
        assert lines[1][name] == pytest.approx(lines[0][name], rel=2e-3, abs=2e-3), name


@pytest.mark.usefixtures("without_onnx")
def test_the_step_is_that_of_one_process(digits: Digits, tmp_path: Path) -> None:
    """With two views; with a learned temperature, which nobody may sum; with a last batch of two rows for three.

    And in four parts, with averaged weights.
    """
    rest = ONE_STEP.model_copy(
        update={"batch_size": 720, "optimizer": ONE_STEP.optimizer.model_copy(update={"lr": 0.05})}
    )
    in_parts = ONE_STEP.model_copy(update={"accumulate": 4, "ema": Ema(decay=0.5)})
    cases = {"mlld": ONE_STEP, "ctkd": ONE_STEP, "kd": rest, "normkd": in_parts}
    together = [
        digits.order(method, tmp_path / "together" / method, training.model_copy(update={"actors": 3}))
        for method, training in cases.items()
    ]
    processes = train_in_processes(*together)
    alone = [digits.order(method, tmp_path / "alone" / method, training) for method, training in cases.items()]
    for order in alone:
        train_run(order, ignore, never)
    assert [process.wait() for process in processes] == [0, 0, 0]
    for order, expected in zip(together, alone, strict=True):
        assert_same_but_for_rounding(order.folder, expected.folder)


def test_the_gradient_in_float64_is_that_of_one_process(tmp_path: Path) -> None:
    """Of losses of each sample (kd) and of the whole batch (dist, mlkd), of 32 rows shared unequally."""
    ranks = 3
    command = [sys.executable, "-m", "tests.support.replica_gradient"]
    processes = [subprocess.Popen([*command, str(rank), str(ranks), str(tmp_path)]) for rank in range(ranks)]
    assert [process.wait() for process in processes] == [0] * ranks
    alone = gradients(Replicas(0, 1, tmp_path, torch.device("cpu")))
    together = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert together.keys() == alone.keys()
    assert len(alone) > 60
    for name, gradient in alone.items():
        assert gradient.norm() > 0, name
        assert (gradient - together[name]).norm() <= 1e-9 * gradient.norm(), name


def test_batch_normalisation_that_cannot_be_made_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = Replicas(0, 1, tmp_path, torch.device("cpu"))
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    replicas.normalise_whole_batches(network)
    monkeypatch.setattr(replicas, "count", 2)
    with pytest.raises(InvalidJob, match=r"'1' is a BatchNorm3d, .* train it in one process"):
        replicas.normalise_whole_batches(network)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_is_lost_ends_the_others_and_the_run_resumes(digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"actors": 2, "epochs": 5})
    first = digits.order("kd", tmp_path / "a1", training)
    processes = train_in_processes(first)
    while not (first.folder / CHECKPOINT).exists():
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGKILL)
    assert [process.wait() for process in processes] == [1, -signal.SIGKILL]
    kept = torch.load(first.folder / CHECKPOINT, weights_only=True)["epoch"]
    assert 1 <= kept < 5
    second = digits.order("kd", tmp_path / "a2", training, earlier=(first.folder,))
    assert [process.wait() for process in train_in_processes(second)] == [0, 0]
    assert torch.load(second.folder / CHECKPOINT, weights_only=True)["epoch"] == 5
    assert (second.folder / "artifacts/student.onnx").is_file()


@pytest.mark.parametrize(
    ("kinds", "sizes"),
    [
        ((torch.nn.BatchNorm2d, WholeBatchNorm2d), (4, 3, 5, 5)),
        ((torch.nn.BatchNorm1d, WholeBatchNorm1d), (4, 3)),
        ((torch.nn.BatchNorm1d, WholeBatchNorm1d), (4, 3, 5)),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalisation_with_and_without_weights_is_torchs(
    affine: bool, kinds: tuple[Any, Any], sizes: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one process's part, which is the whole batch here."""
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_: None)
    x = torch.randn(sizes, generator=torch.Generator().manual_seed(0)).requires_grad_()
    results = []
    for kind in kinds:
        norm = kind(3, affine=affine).train()
        y = norm(x)
        [gradient] = torch.autograd.grad(y.pow(3).sum(), x)
        results.append((y, gradient, norm.running_mean, norm.running_var))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
