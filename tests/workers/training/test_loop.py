"""Training on cached logits: it learns, it resumes to the same bits, it stops before a bad update."""

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.digits import SMALL, Digits, weights
from tests.support.full_disk import on_a_small_disk
from workers.augmentation.apply import to_input
from workers.config.schedules import CosineSchedule, StepSchedule
from workers.config.task import TeacherAccuracy, TrainingTask
from workers.config.teacher import Preprocessing
from workers.config.training import Sgd, Training
from workers.errors import NotFinite, Paused, Stopped
from workers.events import Epoch, Finished, Log, Step, ignore, never
from workers.methods.catalog import parse_method
from workers.methods.combined import PRESETS
from workers.run_files import CHECKPOINT
from workers.students.build import build_student
from workers.teacher.teacher import Teacher
from workers.training.checkpoints.checkpoint import load_checkpoint
from workers.training.feed.batches import _MOST_AT_ONCE, epoch_order
from workers.training.loop import train_group, train_run
from workers.training.not_finite import check_gradient
from workers.training.optimization.optimizer import learning_rate
from workers.training.run_handle import RunHandle
from workers.training.training_feed import TrainingFeed


def stop_after(epochs: int) -> tuple[Callable[[object], None], Callable[[], bool]]:
    """(emit, should_stop): stops in the epoch that follows ``epochs`` finished ones."""
    seen: list[Epoch] = []

    def emit(event: object) -> None:
        if isinstance(event, Epoch):
            seen.append(event)

    return emit, lambda: len(seen) >= epochs


# ------------------------------------------------------------------------------------------ learning


def test_a_student_learns_from_the_cache_and_leaves_everything(digits: Digits, tmp_path: Path) -> None:
    events: list[object] = []
    order = digits.order("kd", tmp_path, SMALL.model_copy(update={"epochs": 4}))
    result = train_run(order, events.append, never)

    assert result["last"]["top1"] > 0.8
    assert result["last"]["agreement"] > 0.8
    assert result["last"]["kl_to_teacher"] >= 0
    assert result["last"]["student_temperature_mean"] == pytest.approx(4.0)
    assert result["last"]["student_temperature_std"] == pytest.approx(0.0, abs=1e-6)
    assert result["selected"] == "last"
    # Without a validation split nothing chooses.
    assert (result["best"], result["best_epoch"]) == (None, None)
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} == {
        "student.safetensors",
        "student.onnx",
        "model.zip",
        "bundle.json",
        "config.json",
        "events.out.tfevents.retort",
        "metrics.jsonl",
        "evaluation.json",
        "temperatures.json",
        "logits.safetensors",
        "result.json",
    }
    assert json.loads((tmp_path / "artifacts/result.json").read_text()) == result
    assert [e.epoch for e in events if isinstance(e, Epoch)] == [1, 2, 3, 4]
    assert isinstance(events[-1], Finished)


def test_the_exported_student_can_be_a_teacher(digits: Digits, tmp_path: Path) -> None:
    result = train_run(digits.order("ce", tmp_path), ignore, never)
    config = json.loads((tmp_path / "artifacts/config.json").read_text())
    preprocessing = digits.preprocessing.model_validate(config["preprocessing"])
    teacher = Teacher(tmp_path / "artifacts/student.onnx", preprocessing, None, threads=1, device="cpu")
    predicted = teacher.logits(np.asarray(digits.test.images_NHWC)).argmax(axis=1)
    assert (predicted == digits.test.labels_N).mean() == pytest.approx(result["last"]["top1"], abs=0.004)
    assert result["onnx_max_abs_difference"] < 1e-3


@pytest.mark.usefixtures("without_onnx")
@pytest.mark.parametrize("method", ["dtkd", "ctkd", "mlld"])
def test_a_run_that_vanishes_resumes_to_the_same_bits(method: str, digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"epochs": 4})
    quiet = digits.order(method, tmp_path / "quiet", training)
    undisturbed = train_run(quiet, ignore, never)

    emit, should_stop = stop_after(2)
    first = digits.order(method, tmp_path / "a1", training)
    with pytest.raises(Stopped, match="epoch 3"):
        train_run(first, emit, should_stop)
    assert not (tmp_path / "a1/artifacts").exists()
    second = digits.order(method, tmp_path / "a2", training, earlier=(tmp_path / "a1",))
    events: list[object] = []
    # What is told of the teacher is no part of what a checkpoint is of.
    changes = {"told_epoch": 2, "teacher_accuracy": TeacherAccuracy(test=0.9, views=0.8)}
    resumed_result = train_run(second.model_copy(update=changes), events.append, never)

    clocks = {"images_per_s", "seconds"}
    assert {k: v for k, v in resumed_result["last"].items() if k not in clocks} == {
        k: v for k, v in undisturbed["last"].items() if k not in clocks
    }
    # Of all epochs, those before it vanished included.
    for name in ("temperatures.json", "evaluation.json", "logits.safetensors"):
        assert (tmp_path / "a2/artifacts" / name).read_bytes() == (tmp_path / "quiet/artifacts" / name).read_bytes()
    assert [e.epoch for e in events if isinstance(e, Epoch)] == [3, 4]
    expected, resumed = weights(tmp_path / "quiet"), weights(tmp_path / "a2")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


@pytest.mark.usefixtures("without_onnx")
def test_run_goes_on_in_the_precision_that_auto_was_when_it_began(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version may choose another one."""
    emit, should_stop = stop_after(1)
    with monkeypatch.context() as earlier:
        earlier.setattr("workers.training.run.choose_precision", lambda *_, **__: ("bfloat16", "it was said"))
        with pytest.raises(Stopped):
            train_run(digits.order("kd", tmp_path / "a1"), emit, should_stop)
    events: list[object] = []
    task = digits.order("kd", tmp_path / "a2", earlier=(tmp_path / "a1",))
    result = train_run(task, events.append, never)
    assert result["environment"]["precision"] == "bfloat16"
    assert "trains in bfloat16: the run has begun in it" in [e.message for e in events if isinstance(e, Log)]


@pytest.mark.usefixtures("without_onnx")
def test_checkpoints_of_earlier_attempts_go_as_soon_as_there_is_a_later_one(digits: Digits, tmp_path: Path) -> None:
    """And not before: until its own is there, an attempt that is lost leaves the next one what it had itself."""
    folders = [tmp_path / name for name in ("retried", "a1", "a2")]
    emit, should_stop = stop_after(1)
    with pytest.raises(Stopped):
        train_run(digits.order("ce", folders[0]), emit, should_stop)
    with pytest.raises(Stopped):
        train_run(digits.order("ce", folders[1], earlier=(folders[0],)), ignore, lambda: True)
    assert [(folder / CHECKPOINT).is_file() for folder in folders] == [True, False, False]
    events: list[object] = []
    train_run(digits.order("ce", folders[2], earlier=tuple(folders[:2])), events.append, never)
    assert any(isinstance(e, Log) and e.message.startswith("resumed after epoch 1") for e in events)
    assert [(folder / CHECKPOINT).is_file() for folder in folders] == [False, False, True]


@pytest.mark.usefixtures("without_onnx")
def test_a_run_that_is_paused_at_any_step_of_some_made_at_once_ends_with_the_same_bits(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are made several at once and metrics added up several steps later; neither shows, wherever it stops."""
    training = SMALL.model_copy(update={"epochs": 1, "batch_size": 32})
    at_once = _MOST_AT_ONCE
    with monkeypatch.context() as one_by_one:
        one_by_one.setattr("workers.training.feed.batches._MOST_AT_ONCE", 1)
        one_by_one.setattr("workers.training.metrics.epoch_sums._PENDING_STEPS", 1)
        undisturbed = train_run(digits.order("dtkd", tmp_path / "quiet", training), ignore, never)
    assert at_once == TrainingFeed(digits.train, digits.views, None, 32, 0, torch.device("cpu")).batches_at_once > 1

    folders: list[Path] = []
    # After so many steps of its own each attempt is paused; together they cross places within and between the groups.
    for number, steps in enumerate((1, at_once - 2, at_once, at_once + 1, 10**9)):
        order = digits.order("dtkd", tmp_path / str(number), training, earlier=tuple(folders))
        folders.append(order.folder)
        asked = itertools.count()
        handle = RunHandle(order, ignore, never, lambda asked=asked, steps=steps: next(asked) >= steps)
        [(_, how)] = train_group([handle])
        assert isinstance(how, Paused if steps < 10**9 else dict), how
    assert isinstance(how, dict)
    clocks = {"images_per_s", "seconds"}
    left, right = ({k: v for k, v in of["last"].items() if k not in clocks} for of in (how, undisturbed))
    assert left == right
    expected, resumed = weights(tmp_path / "quiet"), weights(folders[-1])
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    histograms = [(folder / "artifacts/temperatures.json").read_text() for folder in (tmp_path / "quiet", folders[-1])]
    assert histograms[0] == histograms[1]


@pytest.mark.usefixtures("without_onnx")
def test_a_checkpoint_of_another_run_is_not_taken_up(digits: Digits, tmp_path: Path) -> None:
    emit, should_stop = stop_after(1)
    with pytest.raises(Stopped):
        train_run(digits.order("kd", tmp_path / "a1"), emit, should_stop)
    told: list[Log] = []
    assert load_checkpoint([tmp_path / "a1"], "another identity", told.append) is None
    assert "1 checkpoints are passed over" in told[0].message
    events: list[object] = []
    train_run(digits.order("ce", tmp_path / "a2", earlier=(tmp_path / "a1",)), events.append, never)
    assert next(e.epoch for e in events if isinstance(e, Epoch)) == 1


@pytest.mark.usefixtures("without_onnx")
@pytest.mark.parametrize("damage", [lambda content: content[:1000], lambda _: b"hello\n", lambda _: b""])
def test_a_torn_checkpoint_is_passed_over(damage: Callable[[bytes], bytes], digits: Digits, tmp_path: Path) -> None:
    emit, should_stop = stop_after(1)
    with pytest.raises(Stopped):
        train_run(digits.order("kd", tmp_path / "a1"), emit, should_stop)
    checkpoint = tmp_path / "a1/checkpoint.pt"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    train_run(digits.order("kd", tmp_path / "a2", earlier=(tmp_path / "a1",)), ignore, never)
    train_run(digits.order("kd", tmp_path / "quiet"), ignore, never)
    torn, quiet = weights(tmp_path / "a2"), weights(tmp_path / "quiet")
    assert all(torch.equal(torn[name], quiet[name]) for name in quiet)


@pytest.mark.usefixtures("without_onnx")
@pytest.mark.parametrize("method", sorted(set(PRESETS) - {"custom"}))
def test_every_preset_trains(method: str, digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"epochs": 1})
    result = train_run(digits.order(method, tmp_path, training), ignore, never)
    assert math.isfinite(result["last"]["train_loss"])
    # Of the presets, these alone have no temperature: no teacher, or logits that are matched as they are.
    temperature = result["last"]["teacher_temperature_mean"]
    assert (temperature is None) == (method == "ce")


@pytest.mark.usefixtures("without_onnx")
def test_an_epoch_that_nobody_was_told_of_is_told_on_resuming(digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"epochs": 3})
    emit, should_stop = stop_after(2)
    with pytest.raises(Stopped):
        train_run(digits.order("kd", tmp_path / "a1", training), emit, should_stop)
    order = digits.order("kd", tmp_path / "a2", training, earlier=(tmp_path / "a1",))
    events: list[object] = []
    train_run(order.model_copy(update={"told_epoch": 1}), events.append, never)
    assert [e.epoch for e in events if isinstance(e, Epoch)] == [2, 3]


@pytest.mark.usefixtures("without_onnx")
def test_a_learned_temperature_works_against_the_student(digits: Digits, tmp_path: Path) -> None:
    """Its gradient is reversed: it moves to where the loss is larger; without strength it only decays."""
    temperatures = {}
    for name, strength in (("against", 1.0), ("decay", 0.0)):
        method = {"preset": "ctkd", "strength": strength, "reversal_epochs": 1}
        events: list[object] = []
        train_run(digits.order(method, tmp_path / name), events.append, never)
        temperatures[name] = [e.metrics["student_temperature_mean"] for e in events if isinstance(e, Epoch)]
    assert temperatures["decay"][0] == pytest.approx(15.62, abs=0.05)
    assert abs(temperatures["against"][1] - temperatures["decay"][1]) > 0.05


# ------------------------------------------------------------------------------------------ stopping


def test_an_expression_that_fails_names_the_sample_of_the_split(digits: Digits, tmp_path: Path) -> None:
    """Only one picture has the largest maximum, so the row that is named can be known beforehand."""
    tops_N = digits.train_reader().statistics(0)["max"]
    row = int(tops_N.argmax())
    limit = float((np.sort(tops_N)[-1] + np.sort(tops_N)[-2]) / 2)
    policy = {"kind": "expression", "temperature": f"where(max > {limit}, 0, 4)"}
    method = {"preset": "custom", "terms": [{"policy": policy}]}
    with pytest.raises(NotFinite, match=rf"epoch 1, step \d+, .*\(sample {row} of the training split\)"):
        train_run(digits.order(method, tmp_path), ignore, never)


def test_a_loss_that_explodes_stops_before_the_update(digits: Digits, tmp_path: Path) -> None:
    training = SMALL.model_copy(update={"optimizer": Sgd(lr=1e30, momentum=0.0, weight_decay=0.0)})
    with pytest.raises(NotFinite, match=r"epoch 1, step \d+, before the update: .*'kd'"):
        train_run(digits.order("kd", tmp_path, training), ignore, never)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_finite_loss_with_an_infinite_gradient_is_refused() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(())), torch.nn.Parameter(torch.ones(()))]
    loss = parameters[0].sqrt() + parameters[1]
    torch.autograd.backward(loss)
    with pytest.raises(NotFinite, match=r"gradient of method 'kd' is not finite \(norm inf, loss 1\)"):
        check_gradient(parameters, loss, parse_method("kd").expand())


@pytest.mark.usefixtures("without_onnx")
def test_a_gradient_is_clipped_to_the_norm_that_is_asked_for(digits: Digits, tmp_path: Path) -> None:
    """Without momentum an update is as long as learning rate times norm, and an epoch's at most their sum."""
    torch.manual_seed(0)
    start = dict(build_student("cnn_s", 10, in_channels=1, image_side=8).named_parameters())
    moved = {}
    for norm in (1e-3, None):
        training = SMALL.model_copy(
            update={"epochs": 1, "optimizer": Sgd(lr=1.0, momentum=0.0, weight_decay=0.0), "max_gradient_norm": norm}
        )
        train_run(digits.order("ce", tmp_path / str(norm), training), ignore, never)
        end = weights(tmp_path / str(norm))
        squares = [(end[name] - start[name].detach()).square().sum() for name in start]
        moved[norm] = math.sqrt(sum(squares))
    steps = math.ceil(len(digits.train.labels_N) / SMALL.batch_size)
    assert 0 < moved[1e-3] <= 1e-3 * steps
    assert moved[None] > 10 * 1e-3 * steps


def test_metrics_that_are_not_numbers_end_the_run_and_keep_no_checkpoint(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"top1": 0.5, "top5": 1.0, "nll": math.nan, "ece": 0.1, "agreement": None, "kl_to_teacher": None}
    monkeypatch.setattr("workers.training.run.RunState.evaluate", lambda *_: measured)
    with pytest.raises(NotFinite, match=r"nll of method 'kd' is nan after epoch 1"):
        train_run(digits.order("kd", tmp_path), ignore, never)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_full_disk_ends_the_run_in_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    report = on_a_small_disk("300k", tmp_path)
    for kind in ("checkpoint", "artifacts"):
        assert report[kind]["error"] == "DiskLow"
        # What is free is told of the disk as it is left.
        assert re.search(r"ran full while writing a.* \((?!0 bytes)[\d,]+ bytes are free\)", report[kind]["message"])
        assert report[kind]["left"] == []
    assert re.search(r"a checkpoint of [\d,]{7,} bytes", report["checkpoint"]["message"])


def test_stopping_is_seen_at_the_next_batch(digits: Digits, tmp_path: Path) -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    with pytest.raises(Stopped):
        train_run(digits.order("ce", tmp_path), ignore, should_stop)
    assert asked == 3


def test_stopping_is_seen_while_the_artifacts_are_made_and_leaves_none(digits: Digits, tmp_path: Path) -> None:
    emit, should_stop = stop_after(1)
    order = digits.order("ce", tmp_path, SMALL.model_copy(update={"epochs": 1}))
    with pytest.raises(Stopped, match="after its last epoch, 1, before its artifacts were complete"):
        train_run(order, emit, should_stop)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


# ----------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize(
    "name", ["cnn_s", "resnet8", "wrn_16_1", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"]
)
def test_gradients_lie_in_memory_as_their_parameters_do(name: str) -> None:
    """What the fused optimizers take for granted: with another layout they update the wrong weights, in silence."""
    network = build_student(name, 10).to(memory_format=torch.channels_last)
    pictures = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    torch.autograd.backward(network(pictures).square().sum())
    for parameter in network.parameters():
        assert parameter.grad is not None
        beside = torch.empty_like(parameter)
        assert parameter.grad.stride() == parameter.stride() == beside.stride()


def test_learning_rate_follows_the_papers_steps() -> None:
    training = Training(epochs=240, optimizer=Sgd(lr=0.05), schedule=StepSchedule())
    per_epoch = [learning_rate(training, epoch * 10, 10) for epoch in range(240)]
    assert per_epoch[149] == pytest.approx(0.05)
    assert per_epoch[150] == pytest.approx(0.005)
    assert per_epoch[180] == pytest.approx(0.0005)
    assert per_epoch[210] == pytest.approx(0.00005)


def test_learning_rate_warms_up_and_follows_the_cosine() -> None:
    training = Training(epochs=10, optimizer=Sgd(lr=1.0), schedule=CosineSchedule(final=0.1), warmup_epochs=2)
    rates = [learning_rate(training, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    # A warm-up of a fraction of a step is over at once; it must not overshoot.
    short = training.model_copy(update={"warmup_epochs": 0.01})
    assert learning_rate(short, 0, 5) == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.0)
    assert rates[30] == pytest.approx(0.55)
    assert rates[49] > 0.1
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_an_epochs_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    assert sorted(epoch_order(100, 0, 0)) == list(range(100))
    assert np.array_equal(epoch_order(100, 3, 7), epoch_order(100, 3, 7))
    assert not np.array_equal(epoch_order(100, 3, 7), epoch_order(100, 3, 8))
    assert not np.array_equal(epoch_order(100, 3, 7), epoch_order(100, 4, 7))


@pytest.mark.parametrize("views_per_step", [1, 2])
def test_a_batch_holds_the_views_the_teacher_saw(views_per_step: int, digits: Digits) -> None:
    """Every row's cached logits are what the teacher says of exactly the picture that the student gets."""
    reader = digits.train_reader()
    feed = TrainingFeed(digits.train, digits.views, reader, 64, 5, torch.device("cpu"), views_per_step=views_per_step)
    for epoch in (0, 1, 2):
        _, batch, *_ = feed.epoch(epoch)
        np.testing.assert_array_equal(batch.labels, digits.train.labels_N[batch.rows])
        assert len(batch.views) == views_per_step
        for place, seen in enumerate(batch.views):
            assert seen.teacher_logits is not None
            assert seen.teacher_statistics is not None
            for name, values_N in reader.statistics((epoch + place) % digits.views.count).items():
                np.testing.assert_array_equal(seen.teacher_statistics[name], values_N[batch.rows])
            live = digits.teacher().logits(seen.images)
            np.testing.assert_allclose(seen.teacher_logits.numpy(), live, atol=0.02, rtol=2e-3)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_students_input_is_the_normalised_picture_to_the_last_bit(channels: int, channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 5, 7, channels), dtype=torch.uint8, generator=generator)
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    preprocessing = Preprocessing(mean=mean, std=std, channels="rgb" if channels == 3 else "gray")
    made = to_input(images, preprocessing, channels_last)
    scaled = images.permute(0, 3, 1, 2).float() * preprocessing.scale
    expected = (scaled - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.equal(made, expected)
    assert made.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_the_second_view_is_another_one_and_comes_first_in_the_next_epoch(digits: Digits) -> None:
    feed = TrainingFeed(digits.train, digits.views, None, 4096, 5, torch.device("cpu"), views_per_step=2)
    (now,), (later,) = feed.epoch(0), feed.epoch(1)
    first, second = (seen.images[now.rows.argsort()] for seen in now.views)
    assert not torch.equal(first, second)
    assert torch.equal(later.views[0].images[later.rows.argsort()], second)


def test_a_last_batch_of_one_is_left_out(digits: Digits) -> None:
    samples = len(digits.train.labels_N)
    for size, steps in ((samples - 1, 1), (samples - 2, 2), (samples, 1)):
        feed = TrainingFeed(digits.train, digits.views, None, size, seed=0, device=torch.device("cpu"))
        assert feed.steps == steps == len(list(feed.epoch(0)))


def test_an_order_crosses_processes_as_json(digits: Digits, tmp_path: Path) -> None:
    order = digits.order({"preset": "kd", "temperature": 2.0}, tmp_path)
    assert TrainingTask.model_validate_json(order.model_dump_json()) == order


@pytest.mark.usefixtures("without_onnx")
def test_step_events_tell_progress(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.training.metrics.step_reports.INTERVAL_S", 0.0)
    events: list[object] = []
    train_run(digits.order("ce", tmp_path, SMALL.model_copy(update={"epochs": 1})), events.append, never)
    steps = [event for event in events if isinstance(event, Step)]
    assert [event.step for event in steps] == list(range(1, steps[0].steps + 1))
    assert steps[-1].images_per_s > 0
