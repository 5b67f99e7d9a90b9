"""The parts of ``tests.benchmarks.gpu``: what each measures, and its bars.

A part yields findings one by one, so that those before a failure are kept. Shapes: B batch, C classes; x_BKHW pictures,
y_B labels, z_BC logits.
"""

import contextlib
import gc
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, nan
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from tests.benchmarks.bench import synchronize
from tests.benchmarks.epoch import cross_entropy, hand_written, network
from tests.benchmarks.inference import PREPROCESSING, find_teacher
from tests.benchmarks.inference import SIDE as TEACHER_SIDE
from tests.benchmarks.training import CLASSES, SAMPLES, SIDE, WARM_UP_STEPS, seconds_of_step, train_steps, write_data
from tests.fake_cuda.counts import is_fake
from tests.support.digits import weights
from tests.support.evaluation_logits import evaluation_logits, relative_difference
from workers.augmentation.apply import to_input
from workers.config.job import RunSpec, StudentSpec
from workers.config.task import TrainingTask
from workers.config.training import Sgd, Training
from workers.data.preparation.prepared import open_prepared
from workers.devices import new_stream
from workers.errors import first_line
from workers.events import Emit, Log, ignore, never
from workers.methods.catalog import parse_method
from workers.precision import Precision, choose_precision, float32_as
from workers.teacher.teacher import Teacher
from workers.training import loop
from workers.training.feed.batches import student_preprocessing
from workers.training.run import RunState

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = WARM_UP_STEPS["cuda"]
STEPS, QUICK_STEPS = 200, 10
PROCESS_TIMEOUT_S, TESTS_TIMEOUT_S = 90.0, 150.0
MiB = 1 << 20


class CannotRun(Exception):
    """A part has nothing to run on here; says what it lacks."""


@dataclass(frozen=True)
class Finding:
    """One figure, with the bar that it is held to, if there is one.

    Attributes:
        is_exact: a count or a number of bytes, which the fake device has right, too; no time and no computed value.
    """

    what: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    is_exact: bool = False

    @property
    def holds(self) -> bool | None:
        """None without a bar."""
        if self.at_most is None and self.at_least is None:
            return None
        is_low = self.at_most is None or self.value <= self.at_most
        return is_low and (self.at_least is None or self.value >= self.at_least)


Findings = Iterator[Finding]


@dataclass(frozen=True)
class Case:
    """A run whose steps are timed."""

    student: str
    method: str = "kd"
    precision: str = "auto"
    cuda_graph: str = "auto"
    batch: int = 64

    @property
    def title(self) -> str:
        asked = "" if self.precision == "auto" else f" {self.precision}"
        return f"{self.student} {self.method}{asked} B={self.batch}, graph {self.cuda_graph}"


@dataclass(frozen=True)
class StepTime:
    """Of a case.

    Attributes:
        precision: that the run has trained in.
        graph: ``replayed``, or why its step was not.
    """

    seconds: float
    precision: Precision
    graph: str


class Bench:
    """What the parts share: data, orders of runs, times that several of them use."""

    def __init__(self, folder: Path, device: torch.device, *, quick: bool) -> None:
        self.folder, self.device, self.quick = folder, device, quick
        self.is_fake = is_fake()
        self._runs = 0
        self._times: dict[Case, StepTime] = {}

    @cached_property
    def data(self) -> TrainingTask:
        """Of CIFAR's size."""
        return self.write("cifar", *((2_000, 200) if self.quick else (SAMPLES, 10_000)), SIDE)

    def write(self, name: str, samples: int, test_samples: int, side: int) -> TrainingTask:
        folder = self.folder / name
        folder.mkdir()
        return write_data(folder, 1, samples=samples, test_samples=test_samples, side=side)

    def order(self, case: Case, data: TrainingTask | None = None, **changed: object) -> TrainingTask:
        """A run with a folder of its own; ``changed`` are fields of ``Training``, or ``memory_fraction``."""
        data, self._runs = data or self.data, self._runs + 1
        share = changed.pop("memory_fraction", 1.0)
        training = {
            "device": self.device.type,
            "precision": case.precision,
            "cuda_graph": case.cuda_graph,
            "batch_size": case.batch,
            # No method diverges by it, whatever the labels are.
            "optimizer": Sgd(lr=1e-3),
            **changed,
        }
        run = RunSpec(
            index=self._runs, student=StudentSpec(name=case.student), method=parse_method(case.method), seed=0
        )
        folder = self.folder / f"run-{self._runs}"
        update = {"run": run, "training": Training(**training), "folder": folder, "memory_fraction": share}
        return data.model_copy(update=update)

    def steps(self, order: TrainingTask) -> int:
        """How many are timed: so many that they lie within an epoch."""
        samples = open_prepared(order.folders.datasets, order.train_fingerprint).samples
        within = samples // order.training.batch_size - WARM_UP - 1
        return max(min(QUICK_STEPS if self.quick else STEPS, within), 1)

    def seconds(self, orders: Sequence[TrainingTask], emit: Emit = ignore) -> float:
        """Of a step of these runs in one group."""
        return seconds_of_step(orders, WARM_UP, self.steps(orders[0]), emit=emit)

    def time(self, case: Case) -> StepTime:
        """Measured once."""
        if case not in self._times:
            told: list[str] = []
            seconds = self.seconds(
                [self.order(case)], lambda event: told.append(event.message) if isinstance(event, Log) else None
            )
            self._times[case] = StepTime(seconds, *_became_of(told))
        return self._times[case]

    def clear(self) -> None:
        """Give memory back that a part has left in torch's caches, and what an error still refers to."""
        gc.collect()
        torch.cuda.empty_cache()


def _became_of(told: Sequence[str]) -> tuple[Precision, str]:
    """Precision and graph of a run, by what its log says."""
    text = "\n".join(told)
    precision = re.search(r"^trains in (float32|tf32|bfloat16):", text, re.MULTILINE)
    refused = re.search(r"^trains without a CUDA graph, in \w+: (.*)", text, re.MULTILINE)
    assert precision is not None, text
    replayed = "replayed" if "steps are replayed" in text else "not replayed"
    return precision[1], refused[1] if refused else replayed


# --------------------------------------------------------------------------------------------------------------- steps

STEP_CASES = (
    *(Case("resnet8", method) for method in ("kd", "ce", "dkd", "dtkd", "normkd", "rld", "mlld", "lud")),
    *(Case(student) for student in ("resnet20", "wrn_40_2", "vgg8", "mobilenet_v2")),
    *(Case(student, precision="bfloat16") for student in ("resnet8", "resnet20")),
    Case("wrn_40_2", precision="float32"),
    Case("resnet8", batch=512),
)


def steps(bench: Bench) -> Findings:
    """A step by student, method and precision; launched piece by piece, and replayed."""
    for asked in STEP_CASES[:1] if bench.quick else STEP_CASES:
        for case in (replace(asked, cuda_graph=cuda_graph) for cuda_graph in ("off", "auto")):
            try:
                found = bench.time(case)
            except Exception as error:
                # The other cases shall be timed all the same.
                yield Finding(case.title, nan, "ms", note=f"{type(error).__name__}: {first_line(error)}")
                continue
            rate = f"{case.batch / found.seconds:,.0f} images/s"
            yield Finding(
                case.title,
                1e3 * found.seconds,
                "ms",
                note=f"{rate} in {found.precision}, {found.graph}",
            )


GRAPH_BARS = {"resnet8": 3.0, "resnet20": 3.0, "wrn_40_2": None}


def graph(bench: Bench) -> Findings:
    """What the replay of a recorded step saves."""
    for student, least in list(GRAPH_BARS.items())[: 1 if bench.quick else None]:
        eager, replayed = (bench.time(Case(student, cuda_graph=cuda_graph)) for cuda_graph in ("off", "auto"))
        ratio = eager.seconds / replayed.seconds
        yield Finding(f"{student}, eager / graph", ratio, at_least=least, note=replayed.graph)


MOST_ADDED = {"resnet8": 1.5, "resnet20": 1.25, "wrn_40_2": 1.25}
"""By launches: kd may make 45 more than the bare loop, which makes 86 for resnet8 and 194 for resnet20."""


def floor(bench: Bench) -> Findings:
    """A run's step beside that of a loop without trimmings (``tests.benchmarks.epoch``), in the same precision."""
    for student, most in list(MOST_ADDED.items())[: 1 if bench.quick else None]:
        for cuda_graph in ("off", "auto"):
            found = bench.time(Case(student, cuda_graph=cuda_graph))
            bare = _bare_step(bench, student, found.precision, is_graph=cuda_graph == "auto")
            yield Finding(
                f"{student}, graph {cuda_graph}, cache / floor",
                found.seconds / bare,
                at_most=most,
                note=f"the floor is {1e3 * bare:.3f} ms in {found.precision}",
            )


def _bare_step(bench: Bench, student: str, precision: Precision, *, is_graph: bool) -> float:
    """Seconds of a step of the bare loop."""
    x_BKHW = torch.randn(64, 3, SIDE, SIDE, device=bench.device).contiguous(memory_format=torch.channels_last)
    y_B = torch.randint(CLASSES, (64,), device=bench.device)
    # On the training stream, as a run's step; what is recorded may not run on the default one.
    synchronize(bench.device)
    with torch.cuda.stream(new_stream(bench.device)), float32_as("float32"):
        step = hand_written(network(student, bench.device), [(x_BKHW, y_B)], cross_entropy, precision)
        for _ in range(WARM_UP):
            step()
        if is_graph:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded, stream=torch.cuda.current_stream()):
                step()
            step = recorded.replay
        return _seconds_of_call(step, bench)


def _seconds_of_call(call: Callable[[], object], bench: Bench) -> float:
    calls = QUICK_STEPS if bench.quick else STEPS
    call()
    synchronize(bench.device)
    started = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(bench.device)
    return (time.perf_counter() - started) / calls


# --------------------------------------------------------------------------------------------------------------- syncs

# After the replays that are compared, before the flag is read: no more steps than ``check_every``.
STEADY_FROM, STEADY_TO = 10, 30


def syncs(bench: Bench) -> Findings:
    """Synchronisations of a steady step, and where."""
    for cuda_graph in ("off", "auto"):
        where = _synchronisations(bench.order(Case("resnet8", cuda_graph=cuda_graph)))
        count = sum(where.values()) / (STEADY_TO - STEADY_FROM)
        places = ", ".join(f"{place} ({times})" for place, times in where.most_common(5))
        yield Finding(
            f"resnet8 kd, graph {cuda_graph}: a step synchronises", count, at_most=0, note=places, is_exact=True
        )


def _synchronisations(order: TrainingTask) -> Counter[str]:
    """How often torch has waited for the device, by file and line."""

    def before_step(number: int) -> bool:
        if number in (STEADY_FROM, STEADY_TO):
            torch.cuda.set_sync_debug_mode("warn" if number == STEADY_FROM else "default")
        return number >= STEADY_TO

    try:
        # An event reads the sums; it comes once in two seconds, and not with every step.
        with (
            warnings.catch_warnings(record=True) as caught,
            patch("workers.training.metrics.step_reports.INTERVAL_S", inf),
        ):
            warnings.simplefilter("always")
            list(loop.train_group([train_steps(order, before_step)]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchronizing CUDA" in str(each.message)
    )


# ------------------------------------------------------------------------------------------------------ group, resident

GROUP_METHODS = ("kd", "dtkd", "normkd", "rld", "dkd", "atkd", "ce", "lud")
GROUP_SIZES = (4, 2, 8)
MOST_TOGETHER, MOST_MAPPED = 0.85, 1.1


def group(bench: Bench) -> Findings:
    """Runs in one process beside the same, one after the other."""
    sizes = GROUP_SIZES[:1] if bench.quick else GROUP_SIZES
    for cuda_graph, size in [("off", 4), *(("auto", size) for size in sizes)]:
        cases = [Case("resnet8", method, cuda_graph=cuda_graph) for method in GROUP_METHODS[:size]]
        together = bench.seconds([bench.order(case) for case in cases])
        apart = sum(bench.time(case).seconds for case in cases)
        yield Finding(
            f"{len(cases)} runs of resnet8, graph {cuda_graph}, together / apart",
            together / apart,
            at_most=MOST_TOGETHER if cuda_graph == "auto" and size >= 4 else None,
            note=f"{1e3 * together:.3f} ms for all",
        )


def resident(bench: Bench) -> Findings:
    """Data that is mapped, and copied to the GPU ahead, beside the same on the GPU."""
    data = bench.write("large", *((600, 200, 64) if bench.quick else (20_000, 200, 64)))
    case = Case("resnet20", batch=32 if bench.quick else 256)
    near = bench.seconds([bench.order(case, data)])
    with patch("workers.training.feed.on_device.fits", lambda *_: False):
        far = bench.seconds([bench.order(case, data)])
    yield Finding(
        f"64 x 64, B={case.batch}, mapped / resident",
        far / near,
        at_most=MOST_MAPPED,
        note=f"{1e3 * near:.2f} ms resident",
    )


# --------------------------------------------------------------------------------------------------------- repeat, oom

END_BARS_S = {"evaluate": 0.15, "save": 0.05, "leave": 3.0}
TIMED: dict[str, tuple[object, str]] = {
    "evaluate": (RunState, "evaluate"),
    "save": (RunState, "save"),
    "leave": (loop, "leave"),
}


def repeat(bench: Bench) -> Findings:
    """Whole runs: what an epoch's end and a run's end take, and how far two of one seed are apart."""
    seconds: dict[str, list[float]] = {name: [] for name in TIMED}
    left = []
    with contextlib.ExitStack() as patches:
        for name, (owner, function) in TIMED.items():
            timed = _timed(getattr(owner, function), seconds[name], bench.device)
            patches.enter_context(patch.object(owner, function, timed))
        for _ in range(2):
            order = bench.order(Case("resnet8", batch=512), epochs=2)
            loop.train_run(order, ignore, never)
            left.append(weights(order.folder))
    for name, most in END_BARS_S.items():
        yield Finding(f"{name}, resnet8", median(seconds[name]), "s", at_most=most)
    apart = max(float((left[0][name].double() - left[1][name].double()).abs().max()) for name in left[0])
    yield Finding("same seed twice, largest difference of a weight", apart, note="equal bits are promised on a CPU")


def _timed(function: Callable[..., object], seconds: list[float], device: torch.device) -> Callable[..., object]:
    """The function, which also appends the seconds that it takes."""

    def timed(*arguments: object, **named: object) -> object:
        synchronize(device)
        started = time.perf_counter()
        result = function(*arguments, **named)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
        return result

    return timed


MEMORY_BYTES = 4096 * MiB
"""Enough for resnet8 at B=512 in float32, too little for resnet32x4."""

MOST_HELD_MIB = 10


def oom(bench: Bench) -> Findings:
    """What a run that ran out of memory still holds while another of its group goes on."""
    share = MEMORY_BYTES / torch.cuda.get_device_properties(bench.device).total_memory
    small, large = (
        bench.order(Case(student, precision="float32", batch=512), memory_fraction=share)
        for student in ("resnet8", "resnet32x4")
    )
    try:
        alone, _ = _memory_after(bench, [small])
        beside, end = _memory_after(bench, [large, small])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
    if not end.startswith("OutOfMemoryError"):
        raise RuntimeError(f"the large run was to run out of {MEMORY_BYTES // MiB} MiB, and ended with {end}")
    yield Finding(
        "held after a member of a group failed", (beside - alone) / MiB, "MiB", at_most=MOST_HELD_MIB, is_exact=True
    )


def _memory_after(bench: Bench, orders: Sequence[TrainingTask]) -> tuple[int, str]:
    """Bytes that are allocated on the device after some steps of the last run; how the first one has ended."""
    bench.clear()
    held: list[int] = []

    def before_step(number: int) -> bool:
        if number == STEADY_FROM:
            held.append(torch.cuda.memory_allocated(bench.device))
        return number >= STEADY_FROM

    members = [train_steps(order, lambda number: number >= STEADY_FROM) for order in orders[:-1]]
    ends = dict(loop.train_group([*members, train_steps(orders[-1], before_step)]))
    # As text: the frames of an error refer to all that the group had on the device.
    return held[0], repr(ends[0])


# -------------------------------------------------------------------------------------------------- float32, precision

MOST_APART, MOST_CHOSEN = 1e-4, 1.1


def float32(bench: Bench) -> Findings:
    """Logits of evaluation, after a run that has trained in TF32, beside those of the exported ONNX file on the CPU."""
    order = bench.order(Case("resnet8", precision="tf32", batch=512), epochs=1)
    evaluated, exported = evaluation_logits(order)
    yield Finding(
        "evaluation against student.onnx on the CPU, largest difference of a logit / largest logit",
        relative_difference(evaluated, exported),
        at_most=MOST_APART,
    )
    student = network("resnet8", bench.device).eval()
    student.load_state_dict(weights(order.folder))
    test, learned_on = (
        open_prepared(order.folders.datasets, of) for of in (order.test_fingerprint, order.train_fingerprint)
    )
    pictures = torch.from_numpy(test.take(slice(None))).to(bench.device)
    inputs = to_input(pictures, student_preprocessing(learned_on, (SIDE, SIDE)), channels_last=True)
    with torch.no_grad(), float32_as("tf32"):
        in_tf32 = student(inputs).cpu().numpy()
    yield Finding("the same in TF32, which it is not to be", relative_difference(in_tf32, exported))


PRECISION_CASES = (
    Case("cnn_s"),
    Case("resnet8", batch=16),
    *(Case(student) for student in ("resnet8", "resnet20", "wrn_40_2", "vgg8", "mobilenet_v2", "resnet32x4")),
    Case("resnet20", batch=512),
)


def precision(bench: Bench) -> Findings:
    """The precision that runs choose, beside the faster one."""
    for case in PRECISION_CASES[:1] if bench.quick else PRECISION_CASES:
        student = network(case.student, bench.device)
        chosen, _ = choose_precision("auto", bench.device, student, case.batch, (3, SIDE, SIDE), is_replayed=True)
        seconds = {name: bench.time(replace(case, precision=name)).seconds for name in ("float32", "bfloat16")}
        yield Finding(
            f"{case.student} B={case.batch}, {chosen} / the faster",
            seconds[chosen] / min(seconds.values()),
            at_most=MOST_CHOSEN,
            note=", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in seconds.items()),
        )


# ---------------------------------------------------------------------------------------------- processes, mps, copies

SHARING = (1, 4, 8, 12)
"""Two is the most that the service chooses by itself, see ``service.engine.capacity``."""


def processes(bench: Bench) -> Findings:
    """Processes that share the GPU, each with its part of the memory: steps per second of all."""
    rates: dict[int, float] = {}
    for count in SHARING[:2] if bench.quick else SHARING:
        rates[count] = _rate(bench, _shares(bench, count))
        yield Finding(
            f"{count} processes of resnet8, of the rate of one",
            rates[count] / rates[1],
            at_least=0.9,
            note=f"{rates[count]:,.0f} steps/s in all",
        )
    best = max(rates, key=rates.__getitem__)
    yield Finding("processes at the highest rate", best, note=f"RETORT_GPU_SHARE={1 / best:.3g} suits such students")


def mps(bench: Bench) -> Findings:
    """The same under NVIDIA's multi-process service."""
    control = "nvidia-cuda-mps-control"
    if shutil.which(control) is None:
        raise CannotRun(f"there is no {control} here")
    one, count = _rate(bench, _shares(bench, 1)), 2 if bench.quick else max(SHARING)
    with TemporaryDirectory() as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        daemon = {**os.environ, **environment}
        started = subprocess.run([control, "-d"], env=daemon, capture_output=True, text=True, check=False)
        if started.returncode:
            raise CannotRun(f"{control} does not start: {(started.stdout + started.stderr).strip()}")
        try:
            rate = _rate(bench, _shares(bench, count), environment)
        finally:
            subprocess.run([control], input="quit\n", text=True, env=daemon, capture_output=True, check=False)
    yield Finding(
        f"{count} processes under MPS, of the rate of one", rate / one, at_least=1.0, note=f"{rate:,.0f} steps/s in all"
    )


def copies(bench: Bench) -> Findings:
    """One student in two processes on two GPUs, which exchange by NCCL."""
    found = torch.cuda.device_count()
    if found < 2:
        raise CannotRun(f"it needs two GPUs, and there is {found}")
    if bench.is_fake:
        raise CannotRun("the fake device has no NCCL")
    case = Case("wrn_40_2", batch=512)
    alone = _rate(bench, [bench.order(case)])
    pair = bench.order(case, actors=2)
    pair.folder.mkdir()
    both = _rate(bench, [pair.model_copy(update={"rank": rank}) for rank in (0, 1)], devices=(0, 1)) / 2
    yield Finding("wrn_40_2 at B=512, two GPUs / one", both / alone, at_least=1.0, note=f"{both:,.1f} steps/s")


def _shares(bench: Bench, count: int) -> list[TrainingTask]:
    return [bench.order(Case("resnet8"), memory_fraction=1 / count) for _ in range(count)]


def _rate(
    bench: Bench,
    orders: Sequence[TrainingTask],
    environment: Mapping[str, str] | None = None,
    devices: Sequence[int] = (),
) -> float:
    """Steps per second of all these runs, each in a process of its own; they begin to count together.

    Args:
        environment: more variables of the processes.
        devices: the GPU of each; all see what this process sees if none is given.

    Raises:
        RuntimeError: a process failed, or took too long.
    """
    running: list[subprocess.Popen[str]] = []
    timer = threading.Timer(PROCESS_TIMEOUT_S, lambda: [process.kill() for process in running])
    log = bench.folder / "processes.log"
    with log.open("w") as errors:
        try:
            for place, order in enumerate(orders):
                settings = {"CUDA_VISIBLE_DEVICES": str(devices[place])} if devices else {}
                running.append(
                    subprocess.Popen(
                        [
                            *(sys.executable, "-m", "tests.benchmarks.gpu_process"),
                            *(order.model_dump_json(), str(WARM_UP), str(bench.steps(order))),
                        ],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=errors,
                        text=True,
                        cwd=ROOT,
                        env={**os.environ, **(environment or {}), **settings},
                    )
                )
            timer.start()
            answers = [_answer(process, log) for process in running]
            assert set(answers) == {"ready"}
            for process in running:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            return sum(1 / float(_answer(process, log)) for process in running)
        finally:
            timer.cancel()
            for process in running:
                process.kill()
                process.communicate()


def _answer(process: "subprocess.Popen[str]", log: Path) -> str:
    assert process.stdout is not None
    answer = process.stdout.readline().strip()
    if not answer:
        raise RuntimeError(f"a process ended, or took more than {PROCESS_TIMEOUT_S:g} s: {log.read_text()[-500:]}")
    return answer


# ---------------------------------------------------------------------------------------------------- inference, tests

ONNX_BATCH, ONNX_REST, ONNX_LARGE = 256, 80, 2048
ONNX_MOST_APART, ONNX_LEAST_RATE, ONNX_LEAST_KEPT = 1e-4, 30_000.0, 0.95


def inference(bench: Bench) -> Findings:
    """ResNet-56 in ONNX Runtime on CUDA: that it runs there, as on the CPU, and at what rate by batch size."""
    path = find_teacher(bench.folder)
    # The session does not open on the fake device; all but that is tried there on the CPU.
    here = Teacher(path, PREPROCESSING, threads=1, device="cpu" if bench.is_fake else "cuda")
    on_cpu = Teacher(path, PREPROCESSING, device="cpu")
    rows = 2 * ONNX_REST if bench.quick else ONNX_LARGE
    pictures = np.random.default_rng(0).integers(0, 256, (rows, TEACHER_SIDE, TEACHER_SIDE, 3), dtype=np.uint8)
    x_BKHW = here.preprocess(pictures)
    yield Finding(
        "CUDA against CPU, largest difference of a logit / largest logit",
        relative_difference(here.run(x_BKHW[:ONNX_BATCH]), on_cpu.run(x_BKHW[:ONNX_BATCH])),
        at_most=ONNX_MOST_APART,
        note=f"{here.provider}: {here.provider_reason}",
    )
    steady = _pictures_per_second(here, x_BKHW, [ONNX_BATCH], bench)
    yield Finding(f"{ONNX_BATCH} at a time", steady, "pictures/s", at_least=ONNX_LEAST_RATE)
    large = _pictures_per_second(here, x_BKHW, [ONNX_LARGE], bench)
    yield Finding(f"{ONNX_LARGE} at a time / {ONNX_BATCH}", large / steady)
    mixed = [ONNX_BATCH] * 15 + [ONNX_REST]
    filled = sum(mixed) / (len(mixed) * ONNX_BATCH)
    for call_rows, least in ((ONNX_BATCH, ONNX_LEAST_KEPT), (None, None)):
        rate = _pictures_per_second(here, x_BKHW, mixed, bench, call_rows)
        yield Finding(
            f"{ONNX_REST} after every 15 of {ONNX_BATCH} / so many rows of {ONNX_BATCH}",
            rate / steady / filled,
            at_least=least,
            note="padded, as the service does" if call_rows else "as they come",
        )


def _pictures_per_second(
    teacher: Teacher, x_BKHW: NDArray[np.floating], sizes: Sequence[int], bench: Bench, call_rows: int | None = None
) -> float:
    """Batches of these sizes in turn; each was run once before."""
    for size in sorted(set(sizes)):
        teacher.run(x_BKHW[:size], call_rows)
    rows, started = 0, time.perf_counter()
    while (now := time.perf_counter()) < started + (0.1 if bench.quick else 3.0) or not rows:
        for size in sizes:
            rows += len(teacher.run(x_BKHW[:size], call_rows))
    return rows / (now - started)


def tests(bench: Bench) -> Findings:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=line", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/end_to_end/test_gpu.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=TESTS_TIMEOUT_S,
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-300:]]
    failed = sum(line.startswith(("FAILED", "ERROR")) for line in done.stdout.splitlines())
    yield Finding("pytest -m gpu, failed", failed or float(done.returncode != 0), at_most=0, note=last[0].strip("= "))
