"""Several runs trained on the same batches, and runs that are killed anywhere: the bits of a run alone, in peace."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.digits import SMALL, Digits, weights
from workers.config.job import StudentSpec
from workers.config.task import TrainingTask
from workers.errors import InvalidJob, NotFinite, Stopped
from workers.events import Epoch, Log, ignore, never
from workers.objective import statistics
from workers.run_files import CHECKPOINT
from workers.students.build import build_student
from workers.training.loop import train_group, train_run
from workers.training.run_handle import RunHandle

pytestmark = pytest.mark.usefixtures("without_onnx")

CLOCKS = {"images_per_s", "seconds"}


def assert_same_run(left: Mapping[str, object], right: Mapping[str, object], *folders: Path) -> None:
    """The same metrics but for clocks, and the same weights to the last bit."""
    lines = [{name: value for name, value in result["last"].items() if name not in CLOCKS} for result in (left, right)]
    assert lines[0] == lines[1]
    one, other = (weights(folder) for folder in folders)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def handle(order: TrainingTask, steps: int | None = None) -> RunHandle:
    """A run that nobody listens to; with ``steps`` it is stopped when it asks for the next one."""
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return steps is not None and asked > steps

    return RunHandle(order, ignore, should_stop)


def student(order: TrainingTask, name: str) -> TrainingTask:
    return order.model_copy(update={"run": order.run.model_copy(update={"student": StudentSpec(name=name)})})


def test_a_group_ends_with_the_bits_of_runs_apart(digits: Digits, tmp_path: Path) -> None:
    """Methods with one view, two views and no teacher, a learned temperature, another student."""

    def orders(place: str) -> list[TrainingTask]:
        methods = ("mlld", "ce", "ctkd")
        each = [digits.order(method, tmp_path / place / method) for method in methods]
        return [*each, student(digits.order("dtkd", tmp_path / place / "cnn_m"), "cnn_m")]

    together = dict(train_group([handle(order) for order in orders("together")]))
    assert sorted(together) == [0, 1, 2, 3]
    for place, (alone, grouped) in enumerate(zip(orders("apart"), orders("together"), strict=True)):
        result = together[place]
        assert isinstance(result, dict), result
        assert_same_run(train_run(alone, ignore, never), result, alone.folder, grouped.folder)


def test_one_member_that_fails_or_is_stopped_leaves_the_others_alone(digits: Digits, tmp_path: Path) -> None:
    diverging = {
        "preset": "custom",
        "terms": [{"policy": {"kind": "expression", "temperature": "3 - 2 * epoch"}, "loss": {"kind": "kl"}}],
    }
    handles = [
        handle(digits.order(diverging, tmp_path / "bad")),
        handle(digits.order("dtkd", tmp_path / "stopped"), steps=5),
        handle(digits.order("kd", tmp_path / "good")),
    ]
    ended = dict(train_group(handles))
    assert isinstance(ended[0], NotFinite)
    assert isinstance(ended[1], Stopped)
    alone = train_run(digits.order("kd", tmp_path / "alone"), ignore, never)
    assert isinstance(ended[2], dict)
    assert_same_run(alone, ended[2], tmp_path / "alone", tmp_path / "good")
    assert not (tmp_path / "stopped/artifacts").exists()


@pytest.fixture
def a_checkpoint_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes to write one."""
    monkeypatch.setattr("workers.training.loop._SAVING_SHARE", math.inf)


@pytest.fixture
def dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students see every fifth pixel black, another one in each step."""

    def with_dropout(*arguments: object, **options: object) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.2), build_student(*arguments, **options))

    monkeypatch.setattr("workers.training.setting.build_student", with_dropout)


@pytest.mark.usefixtures("a_checkpoint_at_every_step", "dropout")
def test_runs_that_stopped_at_different_places_continue_in_one_group(digits: Digits, tmp_path: Path) -> None:
    """One in the middle of the second epoch, one in the middle of the first, one not at all; all have dropout."""

    def order(method: str, attempt: int) -> TrainingTask:
        earlier = (tmp_path / method / "1",) if attempt == 2 else ()
        made = digits.order(method, tmp_path / method / str(attempt), earlier=earlier)
        return made.model_copy(update={"checkpoint_s": 1e-6})

    steps = -(-digits.train.samples // SMALL.batch_size)
    for method, after in (("kd", steps + 7), ("dtkd", 9)):
        [(_, stopped)] = train_group([handle(order(method, 1), steps=after)])
        assert isinstance(stopped, Stopped)
        assert (tmp_path / method / "1" / CHECKPOINT).exists()
    told: list[object] = []
    methods = ("kd", "dtkd", "ce")
    ended = dict(train_group([RunHandle(order(method, 2), told.append, never) for method in methods]))
    said = [event.message for event in told if isinstance(event, Log) and "resumed" in event.message]
    assert said == ["resumed after epoch 1 of 2 and 7 steps", "resumed after epoch 0 of 2 and 9 steps"]
    for place, method in enumerate(methods):
        result = ended[place]
        assert isinstance(result, dict), result
        alone = train_run(digits.order(method, tmp_path / method / "quiet"), ignore, never)
        assert_same_run(alone, result, tmp_path / method / "quiet", tmp_path / method / "2")


@pytest.mark.usefixtures("a_checkpoint_at_every_step")
def test_a_run_that_waits_for_the_others_stops_when_it_is_asked_to(digits: Digits, tmp_path: Path) -> None:
    """It was resumed from its second epoch, and they are in the first."""
    ahead, behind = (
        digits.order(method, tmp_path / method).model_copy(update={"checkpoint_s": 1e-6}) for method in ("kd", "dtkd")
    )
    steps = -(-digits.train.samples // SMALL.batch_size)
    list(train_group([handle(ahead, steps=steps + 7)]))
    told: list[object] = []
    begun = train_group([handle(ahead, steps=3), RunHandle(behind, told.append, never)])
    place, how = next(begun)
    begun.close()
    assert place == 0
    assert isinstance(how, Stopped)
    assert "in epoch 2 after 7 of" in str(how)
    assert not [event for event in told if isinstance(event, Epoch)]


def test_the_teachers_softmax_is_taken_once_for_all_who_want_it(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []
    original = statistics.tempered

    def counting(log_p_BC: Tensor, tau: float) -> Tensor:
        calls.append(tau)
        return original(log_p_BC, tau)

    # Of the teacher alone: the student's divergence divides its logits itself.
    monkeypatch.setattr(statistics, "tempered", counting)
    training = SMALL.model_copy(update={"epochs": 1})
    orders = [student(digits.order("kd", tmp_path / name, training), name) for name in ("cnn_s", "cnn_m")]
    hotter = digits.order({"preset": "kd", "temperature": 2.0}, tmp_path / "2", training)
    list(train_group([handle(order) for order in [*orders, hotter]]))
    steps = -(-digits.train.samples // SMALL.batch_size)
    assert sorted(calls) == [2.0] * steps + [4.0] * steps


def test_runs_with_other_orders_are_no_group(digits: Digits, tmp_path: Path) -> None:
    order = digits.order("kd", tmp_path / "a")
    other = order.model_copy(update={"run": order.run.model_copy(update={"seed": 1}), "folder": tmp_path / "b"})
    with pytest.raises(InvalidJob, match="train them apart"):
        list(train_group([handle(order), handle(other)]))


def train_in_a_process(*groups: Sequence[TrainingTask]) -> subprocess.Popen[bytes]:
    """Groups that are trained one after the other."""
    texts = [json.dumps([order.model_dump(mode="json") for order in group]) for group in groups]
    return subprocess.Popen([sys.executable, "-m", "tests.support.train_tasks", *texts], start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 25])
@pytest.mark.timeout(1200)
def test_runs_that_are_killed_at_random_moments_end_with_the_same_bits(
    kills: int, digits: Digits, tmp_path: Path
) -> None:
    """SIGKILL, again and again; every attempt but the last is ended by it, wherever it is."""
    training = SMALL.model_copy(update={"epochs": 4 + 4 * kills})
    draw = random.Random(kills)

    def orders(attempt: int | str) -> list[TrainingTask]:
        made = []
        for method in ("kd", "ctkd"):
            folder = tmp_path / method
            earlier = tuple(sorted(folder.glob("a*")))
            order = digits.order(method, folder / f"a{attempt}", training, earlier=earlier)
            made.append(order.model_copy(update={"checkpoint_s": 0.05}))
        return made

    progress = set()
    for attempt in range(kills):
        now = orders(attempt)
        process = train_in_a_process(now)
        # From the first checkpoint on, a moment drawn at random: in a step, a save, an evaluation. An epoch takes a
        # tenth of a second or more, so each attempt gets on by three at most, and four are there for it.
        while process.poll() is None and not all((order.folder / CHECKPOINT).exists() for order in now):
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed: give it more epochs"
        state = torch.load(now[0].folder / CHECKPOINT, weights_only=True)
        progress.add((state["epoch"], state["sums"]["steps"]))
    assert len(progress) == kills
    last = orders("last")
    assert train_in_a_process(last).wait() == 0
    quiets = [
        digits.order(order.folder.parent.name, tmp_path / "quiet" / order.folder.parent.name, training)
        for order in last
    ]
    list(train_group([handle(order) for order in quiets]))
    for order, quiet in zip(last, quiets, strict=True):
        one, other = weights(order.folder), weights(quiet.folder)
        assert all(torch.equal(one[name], other[name]) for name in other)
        assert not [path for path in order.folder.iterdir() if "partial" in path.name]
