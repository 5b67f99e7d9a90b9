"""Options of training: each computes what torch's or timm's own does, alone, in groups and after a resumption."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.support.digits import SMALL, Digits, weights
from tests.workers.training.test_distributed import ONE_STEP
from tests.workers.training.test_loop_groups import assert_same_run, handle
from workers.config.job import JobSpec
from workers.config.schedules import CosineSchedule, OneCycleSchedule
from workers.config.task import TrainingTask
from workers.config.training import Ema, RmsProp, Sgd, Training
from workers.data.preparation.holdout_spec import Holdout
from workers.errors import InvalidJob
from workers.events import ignore, never
from workers.students.build import build_student
from workers.teacher.plan_checks import check_students
from workers.training import loop
from workers.training.feed.batches import LoadedBatch, count_steps
from workers.training.loop import train_group, train_run
from workers.training.optimization import ema as averages
from workers.training.optimization.micro_batches import part_count
from workers.training.optimization.optimizer import learning_rate, new_optimizer
from workers.training.optimization.parameter_groups import parameter_groups
from workers.training.run import RunState

CPU = torch.device("cpu")
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed (extra timm)")

# Everything at once: what is resumed or grouped is resumed and grouped with all of it.
EVERYTHING = Training(
    epochs=2,
    batch_size=64,
    optimizer=RmsProp(lr=3e-3, momentum=0.9),
    schedule=OneCycleSchedule(),
    ema=Ema(decay=0.9),
    no_decay="norm_and_bias",
    accumulate=2,
    drop_last=True,
)


# -------------------------------------------------------------------------------------------------- the job's document


def test_training_options_that_are_not_set_are_not_in_its_document() -> None:
    """Digests of jobs, runs and checkpoints from before stay."""
    joined_later = {"ema", "no_decay", "accumulate", "drop_last", "drop_path"}
    assert not joined_later & json.loads(Training().model_dump_json()).keys()
    assert joined_later - {"drop_path"} <= json.loads(EVERYTHING.model_dump_json()).keys()
    assert Training.model_validate_json(EVERYTHING.model_dump_json()) == EVERYTHING


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_epochs": 1, "schedule": {"kind": "one_cycle"}}, "one_cycle begins with a rise of its own"),
        ({"accumulate": 65}, "accumulate is 65, actors 1 and batch_size 64"),
        ({"accumulate": 17, "actors": 4}, "accumulate is 17, actors 4 and batch_size 64"),
        ({"ema": {"decay": 1.0}}, "less than 1"),
        ({"schedule": {"kind": "one_cycle", "three_phase": True, "pct_start": 0.6}}, "at most 0.5"),
    ],
)
def test_training_options_that_do_not_go_together_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training.model_validate(options)


def test_job_refuses_accumulation_for_a_loss_of_the_whole_batch_by_name(digits: Digits) -> None:
    fields = dict(digits.job("dist"))
    with pytest.raises(ValueError, match="loss 'dist' of method 'dist' compares the samples"):
        JobSpec.model_validate(fields | {"training": Training(accumulate=2)})
    JobSpec.model_validate(dict(digits.job("kd")) | {"training": Training(accumulate=2)})


def test_job_refuses_drop_path_for_a_student_without_it_by_name(digits: Digits) -> None:
    with pytest.raises(ValueError, match="student 'cnn_s' has none"):
        JobSpec.model_validate(dict(digits.job("kd")) | {"training": Training(drop_path=0.1)})


# ---------------------------------------------------------------------------------------------------------- torch's own


@pytest.mark.parametrize(
    "options",
    [{}, {"anneal": "linear", "div_factor": 10.0}, {"three_phase": True, "pct_start": 0.4}, {"pct_start": 0.05}],
)
def test_one_cycle_is_torchs(options: dict[str, object]) -> None:
    schedule = OneCycleSchedule.model_validate(options)
    epochs, steps = 4, 13
    training = Training(epochs=epochs, optimizer=Sgd(lr=0.3), schedule=schedule)
    named = {"anneal": "anneal_strategy"}
    plain = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        plain,
        max_lr=0.3,
        total_steps=epochs * steps,
        cycle_momentum=False,
        **{named.get(name, name): value for name, value in schedule.model_dump(exclude={"kind"}).items()},
    )
    for step in range(epochs * steps):
        assert learning_rate(training, step, steps) == pytest.approx(plain.param_groups[0]["lr"], rel=1e-12), step
        plain.step()
        if step + 1 < epochs * steps:
            theirs.step()


def test_warm_up_is_torchs_linear_one() -> None:
    training = Training(epochs=4, optimizer=Sgd(lr=0.3), schedule=CosineSchedule(final=1.0), warmup_epochs=2)
    plain = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.LinearLR(plain, start_factor=1 / 20, total_iters=19)
    for step in range(40):
        assert learning_rate(training, step, 10) == pytest.approx(plain.param_groups[0]["lr"], rel=1e-12), step
        plain.step()
        theirs.step()


def test_learning_rate_of_restarts_is_that_of_a_run_of_those_epochs_alone_from_their_own_rate() -> None:
    one, two = CosineSchedule(final=0.1), OneCycleSchedule(div_factor=10)
    restarts = [
        {"after_epochs": 3, "learning_rate": 0.02, "schedule": one.model_dump()},
        {"after_epochs": 7, "learning_rate": 0.5, "schedule": two.model_dump()},
    ]
    training = Training.model_validate({"epochs": 9, "warmup_epochs": 1.5, "restarts": restarts})
    alone = [Training(epochs=3, warmup_epochs=1.5)]
    alone += [
        Training(epochs=4, optimizer=Sgd(lr=0.02), schedule=one),
        Training(epochs=2, optimizer=Sgd(lr=0.5), schedule=two),
    ]
    expected = [learning_rate(each, step, 4) for each in alone for step in range(each.epochs * 4)]
    assert [learning_rate(training, step, 4) for step in range(36)] == expected
    assert "restarts" not in Training().model_dump()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"epochs": 7}, "below epochs, 7"),
        ({"epochs": 9, "after": (3, 3)}, r"after \[3, 3\] epochs"),
        ({"epochs": 9, "warmup_epochs": 3}, "the first restart, after 3"),
    ],
)
def test_training_refuses_restarts_that_do_not_part_its_epochs(options: dict[str, Any], word: str) -> None:
    schedule = {"kind": "cosine"}
    after = options.pop("after", (3, 7))
    restarts = [{"after_epochs": epochs, "learning_rate": 0.1, "schedule": schedule} for epochs in after]
    with pytest.raises(ValidationError, match=word):
        Training.model_validate({**options, "restarts": restarts})


@pytest.mark.parametrize("waits", [True, False])
def test_rmsprop_makes_no_update_from_what_is_not_finite(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, where the flag is read, and as on a GPU, where it is not."""
    torch.manual_seed(0)
    network = nn.Linear(8, 4)
    choice = Training(optimizer=RmsProp(lr=0.1, momentum=0.9, centered=True, weight_decay=0.1))
    optimizer = new_optimizer(choice, [*network.parameters()], CPU)
    monkeypatch.setattr(optimizer, "reads_flag", waits)
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]  # it is looked up by name
    network(torch.randn(5, 8)).square().mean().backward()
    before = [p.detach().clone() for p in network.parameters()]
    optimizer.step()
    after = [p.detach().clone() for p in network.parameters()]
    assert not any(map(torch.equal, before, after))
    assert network.weight.grad is not None
    network.weight.grad[0, 0] = torch.nan
    network.weight.grad[0, 1] = torch.inf
    network.weight.grad[0, 2] = 1e38
    optimizer.found_inf.fill_(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    assert all(map(torch.equal, after, network.parameters()))


def test_rmsprop_computes_the_same_whether_it_reads_the_flag_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(8, 4), nn.Linear(8, 4)
    theirs.load_state_dict(ours.state_dict())
    choice = Training(optimizer=RmsProp(lr=0.01, momentum=0.9))
    optimizers = [new_optimizer(choice, [*network.parameters()], CPU) for network in (ours, theirs)]
    monkeypatch.setattr(optimizers[1], "reads_flag", False)
    for step in range(5):
        inputs = torch.randn(5, 8)
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
            optimizer.zero_grad()
            network(inputs).square().mean().backward()
            optimizer.step()
        assert all(map(torch.equal, ours.parameters(), theirs.parameters())), step


# ----------------------------------------------------------------------------------------------------------- timm's own


@needs_timm
@pytest.mark.parametrize("student", ["resnet8", "torchvision/convnext_tiny", "timm/vit_tiny_patch16_224"])
def test_parameter_groups_are_timms(student: str) -> None:
    from timm.optim import param_groups_weight_decay

    network = build_student(student, 10)
    own = set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else ()
    theirs = param_groups_weight_decay(network, weight_decay=0.05, no_weight_decay_list=own)
    learned = {"0": nn.Parameter(torch.zeros(()))}
    ours = parameter_groups(Training(no_decay="norm_and_bias"), network, learned)
    spared, decayed = ([id(p) for p in group["params"]] for group in ours)  # type: ignore[call-overload,index,union-attr]
    assert spared == [*(id(p) for p in theirs[0]["params"]), id(learned["0"])]
    assert decayed == [id(p) for p in theirs[1]["params"]]
    assert [group.get("weight_decay") for group in ours] == [0.0, None]  # type: ignore[union-attr]


@needs_timm
def test_ema_is_timms() -> None:
    from timm.utils import ModelEmaV3

    torch.manual_seed(0)
    network = build_student("resnet8", 10).train()
    theirs = ModelEmaV3(network, decay=0.9)
    # As a run does, whose counters lie elsewhere while it trains.
    ours = averages.MovingAverage(network, 0.9)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        ours.update()
        theirs.update(network)
    expected = theirs.module.state_dict()
    state = ours.state()
    assert {name for name, value in expected.items() if value.is_floating_point()} == state.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    network.eval()
    x_BKHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.forward(x_BKHW), theirs.module.eval()(x_BKHW), rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------------- runs


def seen_after_each_step(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Weights of a run as it begins, and after each of its steps."""
    compute, seen = loop.compute_step, list[dict[str, Tensor]]()

    def note(run_state: RunState) -> None:
        seen.append({name: value.detach().clone() for name, value in run_state.network.state_dict().items()})

    def step(run_state: RunState, loaded: LoadedBatch) -> None:
        if not seen:
            note(run_state)
        compute(run_state, loaded)
        note(run_state)

    monkeypatch.setattr(loop, "compute_step", step)
    return seen


@pytest.mark.usefixtures("without_onnx")
@pytest.mark.parametrize("export", ["ema", "trained"])
def test_run_leaves_the_average_or_the_trained_weights_as_the_job_says(
    export: str, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_after_each_step(monkeypatch)
    training = SMALL.model_copy(update={"ema": Ema(decay=0.8, export=export)})  # type: ignore[arg-type]  # of a list
    result = train_run(digits.order("kd", tmp_path, training), ignore, never)
    average = {name: value.double() for name, value in seen[0].items()}
    for state in seen[1:]:
        average = {name: 0.8 * average[name] + 0.2 * value for name, value in state.items()}
    left = weights(tmp_path)
    for name, value in left.items():
        if not value.is_floating_point():
            continue
        expected = average[name].float() if export == "ema" else seen[-1][name]
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    last, evaluation = result["last"], result["evaluation"]
    assert isinstance(last, dict)
    assert isinstance(evaluation, dict)
    assert result["weights"] == export
    assert last["top1"] != last["ema_top1"]
    prefix = "ema_" if export == "ema" else ""
    for metric in ("top1", "nll", "agreement"):
        assert evaluation["test"][metric] == pytest.approx(last[prefix + metric], rel=1e-6), metric


def order_of(digits: Digits, method: str, folder: Path, earlier: tuple[Path, ...] = ()) -> TrainingTask:
    return digits.order(method, folder, EVERYTHING, earlier).model_copy(update={"checkpoint_s": 1e-6})


@pytest.mark.usefixtures("without_onnx")
def test_runs_with_all_options_end_with_the_same_bits_resumed_and_in_a_group(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.training.loop._SAVING_SHARE", float("inf"))
    alone = train_run(digits.order("ctkd", tmp_path / "alone", EVERYTHING), ignore, never)
    steps = digits.train.samples // EVERYTHING.batch_size
    # In the middle of the second epoch.
    list(train_group([handle(order_of(digits, "ctkd", tmp_path / "1"), steps=steps + 5)]))
    orders = [order_of(digits, "ctkd", tmp_path / "2", (tmp_path / "1",)), order_of(digits, "kd", tmp_path / "kd")]
    ended = dict(train_group([handle(order) for order in orders]))
    assert isinstance(ended[0], dict), ended[0]
    assert_same_run(alone, ended[0], tmp_path / "alone", tmp_path / "2")
    lines = [json.loads(line) for line in (tmp_path / "2/artifacts/metrics.jsonl").read_text().splitlines()]
    assert all("ema_top1" in line for line in lines)


@pytest.fixture
def without_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student whose rows do not see each other, so that parts of a batch make its very gradient."""

    def build(_: str, classes: int, **__: object) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, classes))

    monkeypatch.setattr("workers.training.setting.build_student", build)


@pytest.mark.usefixtures("without_onnx", "without_batch_norm")
@pytest.mark.parametrize("method", ["kd", "ctkd"])
def test_accumulated_gradient_is_that_of_the_whole_batch(method: str, digits: Digits, tmp_path: Path) -> None:
    """To rounding, of batches of 200 rows in 7 parts, and of a last one that is smaller; so are the metrics."""
    training = ONE_STEP.model_copy(update={"batch_size": 200, "optimizer": Sgd(lr=0.05, momentum=0.0)})
    results = {}
    for parts in (1, 7):
        order = digits.order(method, tmp_path / str(parts), training.model_copy(update={"accumulate": parts}))
        results[parts] = train_run(order, ignore, never)["last"]
    one, several = weights(tmp_path / "1"), weights(tmp_path / "7")
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, rtol=1e-4, atol=1e-6)
    for metric in ("train_loss", "train_ce", "train_accuracy", "student_temperature_mean", "top1", "nll"):
        assert results[7][metric] == pytest.approx(results[1][metric], rel=1e-4), metric  # type: ignore[index]


@pytest.mark.usefixtures("without_onnx")
def test_a_bad_sample_is_named_where_the_gradient_is_accumulated(digits: Digits, tmp_path: Path) -> None:
    tops_N = digits.train_reader().statistics(0)["max"]
    row, limit = int(tops_N.argmax()), float(sorted(tops_N)[-2:][0] + sorted(tops_N)[-1]) / 2
    policy = {"kind": "expression", "temperature": f"where(max > {limit}, 0, 4)"}
    method = {"preset": "custom", "terms": [{"policy": policy}]}
    training = SMALL.model_copy(update={"accumulate": 4})
    with pytest.raises(ArithmeticError, match=rf"\(sample {row} of the training split\)"):
        train_run(digits.order(method, tmp_path, training), ignore, never)


@pytest.mark.parametrize(
    ("rows", "batch_size", "accumulate", "actors", "parts"),
    [
        (64, 64, 1, 1, 1),
        (64, 64, 4, 1, 4),
        (17, 64, 4, 1, 2),
        (16, 64, 4, 1, 1),
        (3, 8, 4, 1, 1),
        (4, 4, 4, 1, 4),
        (5, 64, 16, 4, 1),
    ],
)
def test_part_count_leaves_two_rows_to_batch_normalisation(
    rows: int, batch_size: int, accumulate: int, actors: int, parts: int
) -> None:
    training = Training(batch_size=batch_size, accumulate=accumulate, actors=actors)
    assert part_count(rows, training) == parts


def test_drop_last_leaves_the_smaller_batch_out() -> None:
    assert [count_steps(samples, 64) for samples in (64, 65, 66, 100, 10)] == [1, 1, 2, 2, 1]
    assert [count_steps(samples, 64, drop_last=True) for samples in (64, 66, 128)] == [1, 1, 2]
    with pytest.raises(InvalidJob, match="10 rows are trained on, and batch_size is 64"):
        count_steps(10, 64, drop_last=True)


def test_drop_last_without_a_full_batch_is_refused_before_the_teacher_is_run(digits: Digits) -> None:
    rows = digits.train.samples
    training = SMALL.model_copy(update={"drop_last": True, "batch_size": rows})
    job = digits.job("kd", training=training)
    check_students(job, digits.train, digits.folders, ignore)
    held = job.model_copy(update={"validation": Holdout(holdout=0.1)})
    with pytest.raises(InvalidJob, match=f"rows are trained on, and batch_size is {rows}"):
        check_students(held, digits.train, digits.folders, ignore)


def torchvision_rates(network: nn.Module) -> list[float]:
    from torchvision.ops import StochasticDepth

    return [module.p for module in network.modules() if isinstance(module, StochasticDepth)]


@pytest.mark.parametrize(
    ("student", "own"),
    [
        ("torchvision/efficientnet_b0", lambda rate: {"stochastic_depth_prob": rate}),
        ("torchvision/swin_t", None),
    ],
)
def test_drop_path_is_torchvisions_rate(student: str, own: Callable[[float], dict[str, object]] | None) -> None:
    import torchvision

    found = torchvision_rates(build_student(student, 10, drop_path=0.7))
    if own is None:
        blocks = [2, 2, 6, 2]
        theirs = torchvision.models.SwinTransformer(
            [4, 4], 96, blocks, [3, 6, 12, 24], [7, 7], stochastic_depth_prob=0.7
        )
    else:
        theirs = torchvision.models.get_model(student.split("/")[1], weights=None, **own(0.7))
    assert found == pytest.approx(torchvision_rates(theirs))
    assert max(found) > 0.6
    plain = torchvision_rates(build_student(student, 10))
    assert max(plain) < 0.3


def test_training_task_passes_drop_path_to_the_student(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[object]()

    def build(*_: object, **options: object) -> nn.Module:
        asked.append(options["drop_path"])
        raise InvalidJob("seen")

    monkeypatch.setattr("workers.training.setting.build_student", build)
    job = digits.job("kd", training=SMALL.model_copy(update={"drop_path": 0.3}), student="torchvision/swin_t")
    order = digits.plan.task_of_run(job, job.runs()[0], digits.folders, tmp_path, threads=1)
    with pytest.raises(InvalidJob, match="seen"):
        train_run(order, ignore, never)
    assert asked == [0.3]
