"""The training loop on the fake CUDA device: data that does not fit there, graphs that cannot be trusted, memory."""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fake_cuda.counts import counting, read_counts
from tests.fake_cuda.processes import FakeCuda
from tests.support.digits import Digits
from workers.config.job import StudentSpec
from workers.config.mixing import CutMix, Mixup
from workers.config.task import TrainingTask
from workers.config.teacher import TeacherSpec
from workers.config.views import ResizedCrop, Views
from workers.errors import DeviceUnavailable
from workers.events import Event, never
from workers.methods.catalog import parse_method
from workers.precision import choose_precision
from workers.students.build import build_student
from workers.teacher.sessions import Device
from workers.teacher.teacher import Teacher
from workers.training import loop
from workers.training.artifacts.onnx_export import Exported
from workers.training.checkpoints.host_copy import to_host
from workers.training.cuda_graphs.batch_graph import BatchGraph
from workers.training.cuda_graphs.step_graph import StepGraph
from workers.training.feed import on_device
from workers.training.feed.batches import BatchInputs, LoadedBatch
from workers.training.feed.prefetch import prefetch
from workers.training.run import RunState
from workers.training.run_handle import RunHandle

pytestmark = pytest.mark.fake_cuda

WARM_STEPS = 12
MIXED = ResizedCrop(size=(10, 12), mixup=Mixup(probability=0.5), cutmix=CutMix(probability=0.5))


def _run(orders: Sequence[TrainingTask], steps: int | None = None) -> tuple[list[Any], list[str]]:
    """How a group ended, and what it logged; stopped when its first run asks for the step after so many."""
    asked, said = 0, list[str]()

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return steps is not None and asked > steps

    def emit(event: Event) -> None:
        if event.type == "log":
            said.append(event.message)

    first, *others = orders
    handles = [RunHandle(first, emit, should_stop), *(RunHandle(order, emit, never) for order in others)]
    with pytest.MonkeyPatch.context() as patched:
        # It is of the student on the CPU, and takes longer than all the steps.
        patched.setattr("workers.training.result.export_onnx", lambda *_: Exported(0.0, None))
        ended = sorted(loop.train_group(handles), key=lambda end: end[0])
    return [how for _, how in ended], said


def _in_steady_steps(order: TrainingTask) -> dict[str, int]:
    """What the steps of an epoch do once they are warm."""
    seen, steps = [], 0
    made = StepGraph.step

    def step(self: StepGraph, *arguments: Any) -> None:  # noqa: ANN401  # whatever the step takes
        nonlocal steps
        steps += 1
        if steps > WARM_STEPS:
            seen.append(read_counts())
        made(self, *arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StepGraph, "step", step)
        [how], _ = _run([order], WARM_STEPS + 5)
    assert type(how).__name__ == "Stopped", how
    between = seen[-1] - seen[0]
    return {
        "synchronisations": between.synchronisations,
        "blocking_copies": between.blocking_copies,
        # The thread that copies ahead may be a copy ahead of the first count, or behind at the last.
        "copies_to_device": round(between.copies_to_device / (len(seen) - 1)),
        "graphs": between.graph_launches // (len(seen) - 1),
    }


def _data_that_does_not_fit(order: TrainingTask) -> dict[str, int]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(on_device, "fits", lambda *_: False)
        return _in_steady_steps(order)


def _second_view_mapped(order: TrainingTask) -> dict[str, int]:
    """Pictures and the first view's logits fit on the device, the second's no more."""
    answers = iter([True, True, False])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(on_device, "fits", lambda *_: next(answers, True))
        return _in_steady_steps(order)


def _prefetch_of_a_bad_item() -> list[object]:
    """What arrives of items of which the third cannot be gathered."""
    has_failed = threading.Event()

    def gather(item: int) -> tuple[Tensor, ...]:
        if item == 2:
            has_failed.set()
            raise OSError("the disk is gone")
        return (torch.full((3,), float(item)),)

    arrived: list[object] = []
    try:
        for (tensor,) in prefetch(gather, range(5), torch.device("cuda", 0)):
            # Until the thread has come to the bad one, which is to be told in its turn all the same.
            has_failed.wait(10)
            arrived.append(tensor.cpu().tolist())
    except OSError as error:
        arrived.append(str(error))
    return arrived


def _memory_of_a_run_that_ended(orders: Sequence[TrainingTask]) -> list[list[int | bool]]:
    """Mebibytes reserved before and after the first of two replayed runs was stopped, and whether its graph is kept."""
    seen: list[list[int | bool]] = []
    steps = 0
    step, first = StepGraph.step, dict[str, StepGraph]()

    def noting(self: StepGraph, number: int, loaded: LoadedBatch) -> None:
        nonlocal steps
        if self.place == 0:
            first["of"] = self
        else:
            steps += 1
            if steps in (WARM_STEPS, WARM_STEPS + 8):
                seen.append([torch.cuda.memory_reserved() >> 20, first["of"]._graph is not None])
        step(self, number, loaded)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StepGraph, "step", noting)
        _run(orders, WARM_STEPS + 2)
    return seen


def _with_compute_step(
    orders: Sequence[TrainingTask], change: Callable[[RunState], None]
) -> tuple[list[Any], list[str]]:
    """Runs in which something happens before each step that is computed, or recorded."""
    compute = loop.compute_step

    def changed(run_state: RunState, loaded: LoadedBatch) -> None:
        change(run_state)
        compute(run_state, loaded)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "compute_step", changed)
        return _run(orders)


def _streams_of_steps(tasks: Sequence[TrainingTask]) -> dict[str, Any]:
    """Which runs of a group have a stream of their own once their steps are replayed; the last one draws numbers."""
    streams: dict[int, set[int]] = defaultdict(set)
    load, step = BatchGraph.load, StepGraph.step

    def loading(self: BatchGraph, inputs: BatchInputs) -> LoadedBatch:
        streams[-1].add(torch.cuda.current_stream().cuda_stream)
        return load(self, inputs)

    def stepping(self: StepGraph, number: int, loaded: LoadedBatch) -> None:
        streams[self.place].add(torch.cuda.current_stream().cuda_stream)
        step(self, number, loaded)

    def draw(run_state: RunState) -> None:
        if run_state.place == len(tasks) - 1:
            torch.empty(1, device="cuda").uniform_()

    with pytest.MonkeyPatch.context() as patched, counting() as counts:
        patched.setattr(BatchGraph, "load", loading)
        patched.setattr(StepGraph, "step", stepping)
        ended, _ = _with_compute_step(tasks, draw)
    [shared] = streams.pop(-1)
    own = {place: seen - {shared} for place, seen in sorted(streams.items()) if seen != {shared}}
    return {
        "precisions": [how["environment"]["precision"] for how in ended],
        "graphs": [how["environment"]["cuda_graph"] for how in ended],
        "own": list(own),
        "different": len({stream for seen in own.values() for stream in seen}) == sum(map(len, own.values())),
        # What is not replayed is made on the group's stream.
        "all": all(shared in seen for seen in streams.values()),
        "cudnn_batch_norm": sum(count for name, count in counts.captured.items() if "cudnnBatchNorm" in name),
    }


def _a_replay_that_differs(order: TrainingTask) -> list[str]:
    def spoil(run_state: RunState) -> None:
        # What is copied from the host is made before a replay, and is no part of it.
        if not torch.cuda.is_current_stream_capturing():
            with torch.no_grad():
                # Of one dimension: others would be laid out anew, by a kernel.
                bias = next(weight for weight in run_state.weights if weight.ndim == 1)
                bias.copy_(torch.full(bias.shape, float(run_state.sums.steps)))

    [how], said = _with_compute_step([order], spoil)
    return [how["environment"]["cuda_graph"], *said]


def _a_step_that_waits(order: TrainingTask) -> list[str]:
    [how], said = _with_compute_step([order], lambda _: torch.cuda.synchronize())
    return [how["environment"]["cuda_graph"], *said]


def _a_run_without_memory(orders: Sequence[TrainingTask]) -> dict[str, Any]:
    """Mebibytes that a failed run's batch of a gibibyte has left behind, as the other run finds them."""
    held: dict[str, int] = {}

    def ask_for_too_much(run_state: RunState) -> None:
        if (run_state.place, run_state.sums.steps) == (0, 2):
            held["before"] = torch.cuda.memory_reserved()
            batch = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
            torch.empty(1 << 40, dtype=torch.uint8, device="cuda")
            del batch
        if (run_state.place, run_state.sums.steps) == (1, 4):
            held["after"] = torch.cuda.memory_reserved()

    ended, _ = _with_compute_step(orders, ask_for_too_much)
    return {
        "error": type(ended[0]).__name__,
        "other": ended[1]["student"],
        "held_mib": (held["after"] - held["before"]) >> 20,
    }


def _copies_of_many_tensors() -> dict[str, int]:
    network = build_student("resnet8", 10).to("cuda", memory_format=torch.channels_last)
    with counting() as counts:
        to_host([*network.state_dict().values(), torch.ones(2)])
    return {"copies_to_host": counts.copies_to_host}


def _precisions() -> dict[str, str]:
    device = torch.device("cuda", 0)
    asked = (("resnet8", 64), ("resnet8", 512), ("wrn_40_2", 64))
    return {
        f"{name} {batch}": choose_precision("auto", device, build_student(name, 100).to(device), batch, (3, 32, 32))[0]
        for name, batch in asked
    }


def _teachers(spec_json: str) -> dict[str, list[str]]:
    """A teacher on a GPU on which ONNX Runtime's CUDA provider does not start, as on the fake device."""
    spec = TeacherSpec.model_validate_json(spec_json)
    devices: tuple[Device, ...] = ("cuda", "auto")
    answer = {}
    for device in devices:
        try:
            teacher = Teacher(spec.path, spec.preprocessing, device=device)
            answer[device] = [teacher.provider, teacher.provider_reason]
        except DeviceUnavailable as error:
            answer[device] = [type(error).__name__, str(error)]
    return answer


def cases(order_json: str, folder: str, teacher_json: str) -> dict[str, Any]:
    """All of them in one process, which takes its time to start."""
    base = TrainingTask.model_validate_json(order_json)

    def order(name: str, method: str = "kd", student: str = "cnn_s", **changes: object) -> TrainingTask:
        made = base.model_copy(update={"folder": Path(folder) / name, "has_gpu_share": True, **changes})
        run = made.run.model_copy(update={"method": parse_method(method), "student": StudentSpec(name=student)})
        return made.model_copy(update={"run": run})

    resized = {
        "views": Views(augmentation=ResizedCrop(size=(10, 12)), count=1),
        "train_cache": None,
        "test_cache": None,
    }
    return {
        "mapped": _data_that_does_not_fit(order("mapped")),
        "resident": _in_steady_steps(order("resident")),
        "second view mapped": _second_view_mapped(order("second", "mlld")),
        "bad item": _prefetch_of_a_bad_item(),
        "ended": _memory_of_a_run_that_ended([order("large", student="resnet8"), order("small", "ce")]),
        "resized": _in_steady_steps(order("resized", "ce", **resized)),
        "mixed": _in_steady_steps(order("mixed", "ce", **resized | {"views": Views(augmentation=MIXED, count=2)})),
        "side by side": {
            precision: _streams_of_steps(
                [
                    order(f"{precision}-{number}", "kd", "resnet8", training=base.training.model_copy(update=asked))
                    for number in range(3)
                ]
            )
            for precision, asked in (
                ("bfloat16", {"precision": "auto", "epochs": 2}),
                ("float32", {"precision": "float32", "epochs": 2}),
            )
        },
        "differs": _a_replay_that_differs(order("differs")),
        "waits": _a_step_that_waits(order("waits")),
        "memory": _a_run_without_memory([order("hungry"), order("modest", "ce")]),
        "copies": _copies_of_many_tensors(),
        "precisions": _precisions(),
        "teachers": _teachers(teacher_json),
    }


@pytest.fixture(scope="module")
def seen(fake_cuda: FakeCuda, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("loop")
    order, teacher = digits.order("kd", folder), digits.teacher_spec
    given = (order.model_dump_json(), str(folder), teacher.model_dump_json())
    return fake_cuda.call(cases, *given, FAKE_CUDA_MEMORY_MIB="8000")


def test_prefetch_brings_data_that_does_not_fit_without_a_blocking_copy(seen: dict[str, Any]) -> None:
    # Pictures and logits of a step; the rest went there with the epoch.
    assert seen["mapped"] == {"synchronisations": 0, "blocking_copies": 0, "copies_to_device": 2, "graphs": 2}


def test_training_feed_takes_each_views_logits_from_where_they_are(seen: dict[str, Any]) -> None:
    assert seen["second view mapped"] == {
        "synchronisations": 0,
        "blocking_copies": 0,
        "copies_to_device": 1,
        "graphs": 2,
    }


def test_prefetch_raises_an_error_at_its_items_turn(seen: dict[str, Any]) -> None:
    assert seen["bad item"] == [[0.0] * 3, [1.0] * 3, "the disk is gone"]


def test_train_group_frees_what_was_recorded_of_a_run_that_has_ended(seen: dict[str, Any]) -> None:
    (before, had_graph), (after, has_graph) = seen["ended"]
    assert after < before
    # Whoever still refers to the run, its error or the loop.
    assert (had_graph, has_graph) == (True, False)


def test_step_streams_are_those_of_runs_whose_replays_may_overlap(seen: dict[str, Any]) -> None:
    """Not of one that draws random numbers, nor where cuDNN's batch normalisation would wait for the others' blocks."""
    found = seen["side by side"]
    assert found["bfloat16"] == {
        "precisions": ["bfloat16"] * 3,
        "graphs": ["on"] * 3,
        "own": [0, 1],
        "different": True,
        "all": True,
        "cudnn_batch_norm": 0,
    }
    assert found["float32"]["graphs"] == ["on"] * 3
    assert found["float32"]["own"] == []
    # The fake would tell the rule above that it is no longer needed.
    assert found["float32"]["cudnn_batch_norm"] > 0


@pytest.mark.parametrize("case", ["resident", "resized", "mixed"])
def test_training_steps_on_resident_data_copy_nothing(seen: dict[str, Any], case: str) -> None:
    assert seen[case] == {"synchronisations": 0, "blocking_copies": 0, "copies_to_device": 0, "graphs": 2}


def test_step_graph_that_gives_other_weights_is_not_used(seen: dict[str, Any]) -> None:
    environment, *said = seen["differs"]
    assert environment.startswith("off: the weights of a replayed step differ from an eager one's by")
    assert f"trains without a CUDA graph, in bfloat16: {environment.removeprefix('off: ')}" in said


def test_step_graph_of_a_step_that_waits_is_not_recorded_and_the_run_goes_on(seen: dict[str, Any]) -> None:
    environment, *said = seen["waits"]
    assert environment.startswith("off: the step cannot be recorded: ")
    # What the step did, and not what the end of a failed recording says.
    assert "operation not permitted when stream is capturing" in environment
    assert any(message.startswith("trains without a CUDA graph") for message in said)


def test_train_group_frees_the_memory_of_a_run_that_had_too_little(seen: dict[str, Any]) -> None:
    memory = seen["memory"]
    assert (memory["error"], memory["other"]) == ("OutOfMemoryError", "cnn_s")
    # Of 1,024; the other run has allocated some of its own meanwhile.
    assert memory["held_mib"] < 100


def test_to_host_copies_once_for_each_dtype(seen: dict[str, Any]) -> None:
    assert seen["copies"] == {"copies_to_host": 2}


def test_choose_precision_counts_operations(seen: dict[str, Any]) -> None:
    assert seen["precisions"] == {"resnet8 64": "float32", "resnet8 512": "bfloat16", "wrn_40_2 64": "bfloat16"}


def test_teacher_on_a_promised_gpu_without_a_provider_is_refused_and_not_moved_to_the_cpu(seen: dict[str, Any]) -> None:
    error, message = seen["teachers"]["cuda"]
    assert error == "DeviceUnavailable"
    assert "CUDNN" in message
    provider, reason = seen["teachers"]["auto"]
    assert provider == "CPUExecutionProvider"
    assert "CUDNN" in reason
