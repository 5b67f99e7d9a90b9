"""What a training step promises where nobody waits for the device: no update from a bad loss, and its sample named."""

import gc
import itertools
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.digits import SMALL, Digits, weights
from tests.support.method_inputs import POLICIES, ordinary
from workers.config.task import TrainingTask
from workers.config.training import Sgd
from workers.errors import InvalidJob, NotFinite, Stopped
from workers.events import ignore, never
from workers.methods.policies.catalog import POLICIES as POLICY_FUNCTIONS
from workers.objective.statistics import LiveBatch, LiveStatistics
from workers.precision import choose_precision, float32_as, tf32_in_force
from workers.students.build import build_student
from workers.training import loop
from workers.training.checkpoints.host_copy import copy_packed
from workers.training.cuda_graphs.batch_graph import BatchGraph
from workers.training.cuda_graphs.cuda_graph import why_no_graph
from workers.training.cuda_graphs.step_graph import _apart
from workers.training.feed.batches import BatchInputs, LoadedBatch, epoch_order
from workers.training.loop import train_group, train_run
from workers.training.not_finite import ComputeStep, explain_not_finite
from workers.training.run import RunState
from workers.training.run_handle import RunHandle
from workers.training.training_feed import TeacherRows

pytestmark = pytest.mark.usefixtures("without_onnx")

CPU = torch.device("cpu")
TRAINING = SMALL.model_copy(update={"optimizer": Sgd(lr=0.01)})


@pytest.fixture
def bad_step(digits: Digits) -> tuple[dict[str, object], int]:
    """A method with a temperature of 0 for one sample of the split, and which one; it is met in the first epoch."""
    tops_N = digits.train_reader().statistics(0)["max"]
    limit = float(np.sort(tops_N)[-2:].mean())
    policy = {"kind": "expression", "temperature": f"where(max > {limit}, 0, 4)"}
    return {"preset": "custom", "terms": [{"policy": policy}]}, int(tops_N.argmax())


def watched(monkeypatch: pytest.MonkeyPatch, every: int) -> list[tuple[int, int, dict[str, Tensor]]]:
    """(bad step, steps made, weights) of runs whose flag is read after so many steps, when one is found out."""
    monkeypatch.setattr("workers.training.group.check_every", lambda _: every)
    explain, seen = explain_not_finite, []

    def explain_and_note(compute: ComputeStep, run_state: RunState, step: int, loaded: LoadedBatch) -> NotFinite:
        kept = {name: value.detach().clone() for name, value in run_state.network.named_parameters()}
        seen.append((step, run_state.sums.steps, kept))
        return explain(compute, run_state, step, loaded)

    monkeypatch.setattr("workers.training.group.explain_not_finite", explain_and_note)
    return seen


def test_a_flag_that_is_read_late_names_the_first_bad_step_and_no_update_was_made_since(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_step: tuple[dict[str, object], int]
) -> None:
    method, row = bad_step
    messages = []
    with monkeypatch.context() as patched:
        at_once = watched(patched, 1)
        with pytest.raises(NotFinite) as raised:
            train_run(digits.order(method, tmp_path / "1", TRAINING), ignore, never)
        messages.append(str(raised.value))
    late = watched(monkeypatch, 10_000)
    with pytest.raises(NotFinite) as raised:
        train_run(digits.order(method, tmp_path / "2", TRAINING), ignore, never)
    messages.append(str(raised.value))

    assert messages[0] == messages[1]
    assert f"(sample {row} of the training split)" in messages[0]
    [(step, made, kept)], [(late_step, late_made, late_kept)] = at_once, late
    assert step == late_step == made - 1
    assert late_made > made, "the sample came in the last batch: nothing was made late"
    assert all(torch.equal(kept[name], late_kept[name]) for name in kept)


def test_a_pause_after_a_bad_step_leaves_no_checkpoint(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_step: tuple[dict[str, object], int]
) -> None:
    watched(monkeypatch, 10_000)
    order = digits.order(bad_step[0], tmp_path, TRAINING)
    asked = 0

    def should_pause() -> bool:
        nonlocal asked
        asked += 1
        return asked == -(-digits.train.samples // TRAINING.batch_size)

    [(_, how)] = train_group([RunHandle(order, ignore, never, should_pause)])
    # The bad sample is in the first epoch, and not in its last batch.
    assert isinstance(how, NotFinite)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_run_that_cannot_begin_says_why_and_leaves_the_others_alone(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = iter([InvalidJob("too deep for these pictures"), None])

    def build(*arguments: object, **options: object) -> torch.nn.Module:
        if (error := next(built)) is not None:
            raise error
        return build_student(*arguments, **options)

    monkeypatch.setattr("workers.training.setting.build_student", build)
    orders = [digits.order(method, tmp_path / method) for method in ("kd", "ce")]
    ended = dict(train_group([RunHandle(order, ignore, never) for order in orders]))
    assert "too deep" in str(ended[0])
    assert isinstance(ended[1], dict)


def test_a_run_that_failed_holds_no_memory(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its weights nor what the functions held that raised: on a GPU the others need it."""
    compute, held = loop.compute_step, []

    def step(run_state: RunState, loaded: LoadedBatch) -> None:
        number = run_state.sums.steps
        if run_state.place == 0 and number == 2:
            activations = torch.zeros(1000)
            held.extend([weakref.ref(activations), *map(weakref.ref, [run_state.weights[0].untyped_storage()])])
            raise RuntimeError("out of memory")
        if run_state.place == 1 and number == 4:
            gc.collect()
            held.append(held[0]() is None)
        compute(run_state, loaded)

    monkeypatch.setattr(loop, "compute_step", step)
    kept: list[RunState] = []
    made = loop.new_run_state
    monkeypatch.setattr("workers.training.loop.new_run_state", lambda *a: kept.append(made(*a)) or kept[-1])
    orders = [digits.order(method, tmp_path / method) for method in ("kd", "ce")]
    ended = dict(train_group([RunHandle(order, ignore, never) for order in orders]))
    assert isinstance(ended[0], RuntimeError)
    assert isinstance(ended[1], dict)
    assert held[-1], "the traceback holds what the function held"
    # Even by somebody who still refers to the run.
    assert sum(tensor.numel() for some in kept[0].tensors.values() for tensor in some) == 0


def test_batch_counters_are_those_that_batch_normalisation_would_have_counted(digits: Digits, tmp_path: Path) -> None:
    train_run(digits.order("mlld", tmp_path), ignore, never)
    left = weights(tmp_path)
    counters = {name: value for name, value in left.items() if name.endswith("num_batches_tracked")}
    steps = -(-digits.train.samples // SMALL.batch_size)
    expected = {name for name in build_student("cnn_s", 10, in_channels=1).state_dict() if "num_batches" in name}
    assert counters.keys() == expected
    # A method of two views makes two passes in a step.
    assert {int(value) for value in counters.values()} == {2 * steps * SMALL.epochs}


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_policy_that_says_so_does_not_read_the_epoch(name: str) -> None:
    """A CUDA graph holds what a policy made of the epoch for as long as the policy says that it reads none."""
    policy = POLICIES[name]
    z_s_BC, z_t_BC, y_B = ordinary()
    reads: list[bool] = []

    class Watched(LiveBatch):
        @property
        def epoch(self) -> int:
            reads.append(True)
            return 3

        @epoch.setter
        def epoch(self, value: int) -> None:
            pass

    watched = object.__new__(Watched)
    for field, value in {"z_BC": z_s_BC, "y_B": y_B, "epochs": 9, "parameter": torch.ones(())}.items():
        object.__setattr__(watched, field, value)
    POLICY_FUNCTIONS[policy.kind](LiveStatistics(z_s_BC), LiveStatistics(z_t_BC), policy, watched)
    assert policy.reads_epoch or not reads
    # An expression reads what its text names.
    assert reads or policy.kind not in ("annealed", "learned")


def test_copy_packed_keeps_values_and_strides() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(2, 3, 4, 5, generator=generator)
    tensors = [
        pictures.to(memory_format=torch.channels_last),
        torch.tensor(3.0),
        pictures[:, :, ::2],
        pictures[0, 0].t(),
        torch.randn(0, 3),
    ]
    copied = copy_packed(tensors)
    for copy, tensor in zip(copied, tensors, strict=True):
        assert torch.equal(copy, tensor)
        assert copy.stride() == torch.empty_like(tensor).stride()
    assert len({copy.untyped_storage().data_ptr() for copy in copied}) == 1


@pytest.fixture
def graphs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """CUDA graphs in which work is called again instead of replayed: static batches, seeds and comparisons are real.

    Returns what was recorded, ``batch`` or ``step``.
    """
    recorded: list[str] = []

    class OnCpu:
        def record(self, work: Callable[[], None]) -> object:
            held = [cell.cell_contents for cell in work.__closure__ or ()]
            loader = next((each for each in held if isinstance(each, BatchGraph)), None)
            if loader is None:
                recorded.append("step")
                [loaded] = [each for each in held if isinstance(each, LoadedBatch)]
                # What was known before is a constant of the recording, what it adds is made by every replay.
                constants = [dict(seen.known._values) for seen in loaded.batch.views]

                def step() -> None:
                    for seen, known in zip(loaded.batch.views, constants, strict=True):
                        seen.known._values = dict(known)
                    work()

                return SimpleNamespace(replay=step)
            recorded.append("batch")
            work()
            there = loader._made
            assert there is not None

            def replay() -> None:
                """Make the batch where the first one was made, as a graph does."""
                work()
                assert loader._made is not None
                for old, new in zip(_tensors(there), _tensors(loader._made), strict=True):
                    old.copy_(new)
                loader._made = there

            return SimpleNamespace(replay=replay)

    monkeypatch.setattr("workers.training.cuda_graphs.batch_graph.Recorder", OnCpu)
    monkeypatch.setattr("workers.training.cuda_graphs.step_graph.Recorder", OnCpu)
    monkeypatch.setattr("workers.training.setting.why_no_graph", lambda *_: None)
    # On a GPU, too, a batch is trained on before the next one takes its place.
    monkeypatch.setattr("workers.training.feed.batches._MOST_AT_ONCE", 1)
    return recorded


def _tensors(loaded: LoadedBatch) -> list[Tensor]:
    of_views = [
        tensor
        for seen in loaded.batch.views
        for tensor in (seen.images, seen.teacher_logits, *(seen.teacher_statistics or {}).values())
        if tensor is not None
    ]
    return [loaded.batch.labels, *of_views, *loaded.inputs]


def test_step_graphs_leave_the_weights_of_eager_steps(
    digits: Digits, tmp_path: Path, graphs_on_a_cpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two views, a learned temperature, a warm-up, dropout; runs alone and one that ends while another goes on."""
    monkeypatch.setattr(
        "workers.training.setting.build_student", lambda *a, **o: nn.Sequential(nn.Dropout(0.2), build_student(*a, **o))
    )
    training = SMALL.model_copy(update={"epochs": 3})
    methods = ("mlld", "ctkd", "dkd")

    def orders(place: str, cuda_graph: str) -> list[TrainingTask]:
        chosen = training.model_copy(update={"cuda_graph": cuda_graph})
        return [digits.order(method, tmp_path / place / method, chosen) for method in methods]

    with monkeypatch.context() as eager:
        eager.setattr("workers.training.setting.why_no_graph", lambda *_: "eager")
        expected = dict(train_group([RunHandle(order, ignore, never) for order in orders("eager", "off")]))
    assert graphs_on_a_cpu == []
    stopped = digits.order("kd", tmp_path / "stopped", training)
    asked = itertools.count()
    handles = [RunHandle(order, ignore, never) for order in orders("graphs", "auto")]
    ended = dict(train_group([*handles, RunHandle(stopped, ignore, lambda: next(asked) > 30)]))

    assert isinstance(ended[3], Stopped)
    for place, method in enumerate(methods):
        result = ended[place]
        assert isinstance(result, dict), result
        assert result["environment"]["cuda_graph"] == "on"
        assert isinstance(expected[place], dict)
        clocks = {"images_per_s", "seconds"}
        lines = [{k: v for k, v in how["last"].items() if k not in clocks} for how in (result, expected[place])]
        assert lines[0] == lines[1]
        left, right = weights(tmp_path / "graphs" / method), weights(tmp_path / "eager" / method)
        assert all(torch.equal(left[name], right[name]) for name in right), method


@pytest.mark.parametrize(
    ("method", "recordings"),
    [
        ("kd", ["batch", "step"]),
        ("dkd", ["batch", "step", "step", "step"]),
        ("ctkd", ["batch", "step", "step", "step"]),
    ],
)
def test_step_graph_is_recorded_again_when_the_epoch_changes_the_loss(
    method: str, recordings: list[str], digits: Digits, tmp_path: Path, graphs_on_a_cpu: list[str]
) -> None:
    """dkd warms up over 20 epochs, ctkd's gradient is reversed more in each; kd is the same in all."""
    train_run(digits.order(method, tmp_path, SMALL.model_copy(update={"epochs": 3})), ignore, never)
    assert graphs_on_a_cpu == recordings


def test_loaded_batch_of_a_replay_has_the_rows_of_its_step(
    digits: Digits, tmp_path: Path, graphs_on_a_cpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load, rows = BatchGraph.load, []

    def noting(self: BatchGraph, inputs: BatchInputs) -> LoadedBatch:
        loaded = load(self, inputs)
        rows.append((inputs.rows.tolist(), loaded.batch.rows.tolist(), loaded.recordable))
        return loaded

    monkeypatch.setattr(BatchGraph, "load", noting)
    train_run(digits.order("kd", tmp_path, SMALL.model_copy(update={"epochs": 1})), ignore, never)
    assert any(recordable for _, _, recordable in rows)
    assert all(of_step == of_batch for of_step, of_batch, _ in rows)


@pytest.mark.usefixtures("graphs_on_a_cpu")
def test_cuda_graph_on_fails_where_a_step_cannot_be_replayed(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.training.cuda_graphs.step_graph._apart", lambda *_: math.nan)
    results = {}
    for wanted in ("auto", "on"):
        order = digits.order("kd", tmp_path / wanted, SMALL.model_copy(update={"cuda_graph": wanted, "epochs": 1}))
        [(_, results[wanted])] = train_group([RunHandle(order, ignore, never)])
    assert isinstance(results["auto"], dict)
    assert results["auto"]["environment"]["cuda_graph"].startswith("off: the weights of a replayed step differ")
    assert isinstance(results["on"], InvalidJob)
    assert "training.cuda_graph is 'on', but the weights of a replayed step differ" in str(results["on"])


def test_apart_is_a_share_of_the_change_and_sees_what_is_not_finite() -> None:
    before, eager = [torch.zeros(4), torch.ones(2)], [torch.tensor([3.0, 0.0, 4.0, 0.0]), torch.ones(2)]
    assert _apart(before, eager, [tensor.clone() for tensor in eager]) == 0.0
    assert _apart(before, eager, [torch.tensor([3.0, 0.0, 4.0, 0.5]), torch.ones(2)]) == pytest.approx(0.1)
    assert _apart(before, eager, before) == pytest.approx(1.0)
    spoilt = [eager[0], torch.tensor([1.0, math.nan])]
    assert not _apart(before, eager, spoilt) <= 1.0
    assert _apart(before, spoilt, spoilt) == 0.0


def test_cuda_graph_on_is_refused_where_there_is_none_to_be_had() -> None:
    assert why_no_graph("auto", CPU, actors=1) == "the run trains on cpu"
    assert why_no_graph("off", torch.device("cuda", 0), actors=1) == "the job asks for none"
    assert why_no_graph("auto", torch.device("cuda", 0), actors=1) is None
    with pytest.raises(InvalidJob, match="2 processes train the student"):
        why_no_graph("on", torch.device("cuda", 0), actors=2)
    with pytest.raises(InvalidJob, match="'on', but the run trains on cpu"):
        why_no_graph("on", CPU, actors=1)


def _tf32() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_float32_as_switches_tensor_float_32_and_back() -> None:
    before = _tf32()
    with float32_as("tf32"):
        assert _tf32() == (True, True)
        with float32_as("float32"):
            assert _tf32() == (False, False)
        assert _tf32() == (True, True)
    assert _tf32() == before


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_tf32_is_for_training_alone_and_only_where_a_job_asks_for_it(
    precision: str, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[tuple[bool, bool]]] = {"step": set(), "evaluation": set()}

    def noting(place: str, function: Callable[..., object]) -> Callable[..., object]:
        def noted(*arguments: object) -> object:
            seen[place].add(_tf32())
            return function(*arguments)

        return noted

    monkeypatch.setattr("workers.training.loop.compute_step", noting("step", loop.compute_step))
    for owner, name in ((RunState, "evaluate"), (loop, "evaluate_with_logits")):
        monkeypatch.setattr(owner, name, noting("evaluation", getattr(owner, name)))
    training = SMALL.model_copy(update={"epochs": 1, "precision": precision})
    result = train_run(digits.order("ce", tmp_path, training), ignore, never)
    assert seen == {"step": {(precision == "tf32",) * 2}, "evaluation": {(False, False)}}
    # What was in force: no CPU has TF32, whatever was asked for.
    assert result["environment"]["precision"] == "float32"


def test_choose_precision_is_float32_on_a_cpu_unless_a_job_asks_for_another() -> None:
    network = build_student("resnet8", 10)
    assert choose_precision("auto", CPU, network, 64, (3, 32, 32))[0] == "float32"
    assert choose_precision("bfloat16", CPU, network, 64, (3, 32, 32))[0] == "bfloat16"
    assert choose_precision("tf32", CPU, network, 64, (3, 32, 32))[0] == "float32"


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_choose_precision_takes_bfloat16_for_replayed_steps_where_the_gpu_has_it(
    capability: tuple[int, int], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    network, cuda = build_student("resnet8", 10), torch.device("cuda:0")
    assert choose_precision("auto", cuda, network, 64, (3, 32, 32), is_replayed=True)[0] == chosen


@pytest.mark.parametrize(
    ("asked", "device", "capability", "override", "in_force"),
    [
        (True, "cuda:0", (8, 0), None, True),
        (True, "cuda:0", (9, 0), "1", True),
        (True, "cuda:0", (7, 5), None, False),
        (True, "cuda:0", (9, 0), "0", False),
        (False, "cuda:0", (9, 0), None, False),
        (True, "cpu", (9, 0), None, False),
    ],
)
def test_tf32_in_force_is_what_the_device_does_and_not_what_was_asked_for(
    asked: bool,
    device: str,
    capability: tuple[int, int],
    override: str | None,
    in_force: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if override is None:
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    else:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
    assert tf32_in_force(asked, torch.device(device)) is in_force
    if asked:
        chosen, _ = choose_precision("tf32", torch.device(device), build_student("resnet8", 10), 64, (3, 32, 32))
        assert chosen == ("tf32" if in_force else "float32")


def test_step_refuses_an_infinite_teacher_logit_that_the_method_would_not_miss(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit that has flipped in the file: rows are read without their checksums, and rld drops the teacher's last."""
    row = 5
    logits_NC = digits.train_reader().logits(0)
    place = int(np.argsort(logits_NC[row])[0])
    gather = TeacherRows.gather

    def flipped(self: TeacherRows, start: int, stop: int) -> Tensor:
        logits_BC = gather(self, start, stop)
        order_B = epoch_order(len(logits_NC), 0, 0)[start:stop]
        logits_BC[torch.from_numpy(order_B == row), place] = -math.inf
        return logits_BC

    monkeypatch.setattr(TeacherRows, "gather", flipped)
    with pytest.raises(NotFinite, match=rf"teacher's logits of sample .* of the batch.*\(sample {row} of the"):
        train_run(digits.order("rld", tmp_path, TRAINING), ignore, never)
