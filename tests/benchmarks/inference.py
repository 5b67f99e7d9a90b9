"""The inference stage beside ONNX Runtime alone: ``python -m tests.benchmarks.inference [--json FILE] [--quick]``.

Four loops infer the same number of pictures with ResNet-56 at 32 x 32, the service's batch size and the same threads.
They take turns within one process, each of two blocks of 2048 pictures. The service's blocks have up to 4096, so that
commits are half as often:

- bare: ONNX Runtime as it comes, on batches that lie ready in memory as its input. The logits are dropped.
- stage: ``infer_blocks``. Mapped pictures become views (crop_flip, padded by 4), are preprocessed and inferred in a
  confined process, as a job's are; statistics are computed, blocks written, synchronised with the disk and committed.
  The last block of a turn has nothing to hide behind, and the turn waits for it.
- no commits: the same, but a block is dropped where its statistics would be computed and it would be written.
- in series: the stage's work, one thing after another. The second table says what each took.

stage / bare is what the service keeps of the runtime's rate. Where inference has every core it cannot reach 1, for the
rest of the work takes processor time, too. The teacher is the one in ``shared/data`` beside the checkout, or else the
same network with random weights. Blocks are written to the disk of ``TMPDIR``.

Shapes: B batch, C classes; x_BKHW the teacher's input, z_BC logits.
"""

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from pydantic import JsonValue

from store import CacheSpec, CacheWriter
from store.documents import BlockRecord
from tests.benchmarks.bench import EITHER, Options, Timing, options, show, write
from tests.conftest import SHARED
from workers.augmentation.apply import make_views
from workers.config.teacher import Preprocessing, TeacherSpec
from workers.config.views import CropFlip
from workers.data.kinds.npz import NpzDataset
from workers.data.preparation.prepare import prepare
from workers.data.preparation.prepared import Dataset
from workers.students.build import build_student
from workers.teacher.inference import infer_blocks, inference_batch
from workers.teacher.sessions import Device
from workers.teacher.teacher import Teacher
from workers.training.artifacts.onnx_export import Student, export_onnx

BAR = 0.95
BLOCKS_PER_TURN = 2
BLOCK_ROWS, ROUNDS = 2048, 7
QUICK_BLOCK_ROWS, QUICK_ROUNDS = 256, 3

PUBLISHED = SHARED / "data" / "resnet56-cifar10.onnx"
CLASSES, SIDE = 10, 32
RECIPE = CropFlip(pad=4)
PREPROCESSING = Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))

LOOPS = ("bare", "stage", "no commits", "in series")
PARTS = ("augmentation", "preprocessing", "inference", "statistics and commit")


@dataclass
class Spent:
    """Seconds by the clock, and of all cores together; one entry per turn."""

    clock: Timing = field(default_factory=Timing)
    cores: Timing = field(default_factory=Timing)

    def begin_turn(self) -> None:
        self.clock.seconds.append(0.0)
        self.cores.seconds.append(0.0)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Add what the body takes to the turn."""
        clock, cores = time.perf_counter(), processor_s()
        yield
        self.clock.seconds[-1] += time.perf_counter() - clock
        self.cores.seconds[-1] += processor_s() - cores


def processor_s() -> float:
    """Seconds of processor time of this process and of its children: the teacher runs in one of them."""
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        # A thread may end while it is looked at.
        with suppress(FileNotFoundError):
            for child in (task / "children").read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        teacher: its file's name.
        rows: pictures of a turn.
        loops: by name; the n-th turns of all loops follow each other.
        parts: of the loop in series, by name.
    """

    teacher: str
    batch: int
    threads: int
    rows: int
    loops: Mapping[str, Spent]
    parts: Mapping[str, Spent]

    def rate(self, loop: str) -> float:
        """Pictures per second."""
        return self.rows / self.loops[loop].clock.median_s

    def ratio(self, loop: str) -> float:
        """Of the loop's rate to the bare one's, turn by turn."""
        return median(self._ratios(loop))

    def spread(self, loop: str) -> float:
        """Half of the interquartile range of the ratio."""
        low, _, high = quantiles(self._ratios(loop), n=4, method="inclusive")
        return (high - low) / 2

    def _ratios(self, loop: str) -> list[float]:
        bare, this = (self.loops[name].clock.seconds for name in ("bare", loop))
        return [a / b for a, b in zip(bare, this, strict=True)]


# -------------------------------------------------------------------------------------------------------- what is timed


class ForgetfulWriter(CacheWriter):
    """Takes blocks and keeps none."""

    def write_block(
        self,
        block: int,
        logits_NC: npt.NDArray[np.float32],
        labels_N: npt.NDArray[np.integer] | None = None,
        *,
        origin: Mapping[str, JsonValue] | None = None,
    ) -> BlockRecord:
        return BlockRecord(rows=len(logits_NC), files={})


class Loops:
    """What takes turns, over one cache whose blocks are views of ``rows`` pictures.

    Attributes:
        turns: by name; at most ``rounds`` of each can be made.
        parts: of the loop in series.
    """

    def __init__(self, folder: Path, path: Path, dataset: Dataset, rows: int, rounds: int, device: str) -> None:
        threads = torch.get_num_threads()
        self._dataset = dataset
        place: Device = "cuda" if device == "cuda" else "cpu"
        self._teacher = Teacher(path, PREPROCESSING, threads=threads, device=place, sessions=1)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        # In full float32, as the teacher: ONNX Runtime's default on CUDA is to compute something less exact.
        options = {"use_tf32": "0"} if device == "cuda" else {}
        self._session = onnxruntime.InferenceSession(path, settings, providers=[(self._teacher.provider, options)])
        self._spec = CacheSpec(
            teacher_sha256="0" * 64,
            teacher_output="logits",
            output_kind="logits",
            dataset_fingerprint=dataset.fingerprint,
            split="train",
            samples=rows,
            classes=CLASSES,
            preprocessing=PREPROCESSING.model_dump(mode="json"),
            augmentation=RECIPE.model_dump(mode="json"),
            augmentation_seed=0,
            views=2 * rounds * BLOCKS_PER_TURN,
            dtype="float16",
        )
        teacher = TeacherSpec(path=path, preprocessing=PREPROCESSING)
        self.batch = inference_batch(teacher, dataset, self._spec.block_rows, RECIPE)
        self._writer = CacheWriter(folder, self._spec)
        self._forgetful = ForgetfulWriter(folder, self._spec)
        self._blocks = iter(range(self._spec.blocks))  # a block is written once
        batches = [(view, batch) for view in range(BLOCKS_PER_TURN) for batch in self._batches(view)]
        self._ready = [self._teacher.preprocess(self._pictures(view, batch)) for view, batch in batches]
        self.turns: dict[str, Callable[[], None]] = {
            "bare": self._bare,
            "stage": lambda: self._stage(self._writer, self._next_blocks()),
            "no commits": lambda: self._stage(self._forgetful, range(BLOCKS_PER_TURN)),
            "in series": self._in_series,
        }
        self.parts = {name: Spent() for name in PARTS}

    def _bare(self) -> None:
        name = self._session.get_inputs()[0].name
        for x_BKHW in self._ready:
            self._session.run(None, {name: x_BKHW})

    def _stage(self, writer: CacheWriter, blocks: Iterable[int]) -> None:
        infer_blocks(self._teacher, self._dataset, writer, blocks, batch_size=self.batch)

    def _in_series(self) -> None:
        augmentation, preprocessing, inference, commit = self.parts.values()
        for part in self.parts.values():
            part.begin_turn()
        for block in self._next_blocks():
            logits: list[npt.NDArray[np.float32]] = []
            for batch in self._batches(block):
                with augmentation.measured():
                    pictures = self._pictures(block, batch)
                with preprocessing.measured():
                    x_BKHW = self._teacher.preprocess(pictures)
                with inference.measured():
                    logits.append(self._teacher.run(x_BKHW))
            with commit.measured():
                self._writer.write_block(block, np.concatenate(logits))

    def _next_blocks(self) -> Iterable[int]:
        return islice(self._blocks, BLOCKS_PER_TURN)

    def _batches(self, block: int) -> list[range]:
        _, start, stop = self._spec.block_range(block)
        return [range(first, min(first + self.batch, stop)) for first in range(start, stop, self.batch)]

    def _pictures(self, view: int, samples: range) -> torch.Tensor:
        """Views of neighbours, uint8 [B, H, W, K]."""
        pictures = torch.from_numpy(self._dataset.take(slice(samples.start, samples.stop)))
        return make_views(pictures, RECIPE, self._spec.augmentation_seed, view, np.array(samples))


def find_teacher(folder: Path) -> Path:
    """The published file, or one with random weights."""
    if PUBLISHED.is_file():
        return PUBLISHED
    torch.manual_seed(0)
    path = folder / "resnet56-random.onnx"
    student = Student(build_student("resnet56", CLASSES, image_side=SIDE), PREPROCESSING)
    export_onnx(student, path, np.zeros((2, SIDE, SIDE, 3), np.uint8))
    return path


def prepare_pictures(folder: Path) -> Dataset:
    """Random ones, mapped."""
    generator = np.random.default_rng(0)
    arrays: dict[str, npt.NDArray[np.integer]] = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = generator.integers(0, 256, (BLOCK_ROWS, SIDE, SIDE, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(BLOCK_ROWS) % CLASSES
    np.savez(folder / "pictures.npz", allow_pickle=False, **arrays)
    return prepare(NpzDataset(path="pictures.npz"), "train", folder, folder / "datasets")


def measure(given: Options, folder: Path) -> Result:
    """The loops in turns, each round in another order."""
    rows, rounds = (QUICK_BLOCK_ROWS, QUICK_ROUNDS) if given.quick else (BLOCK_ROWS, ROUNDS)
    path, dataset = find_teacher(folder), prepare_pictures(folder)
    loops = Loops(folder / "caches", path, dataset, rows, rounds, given.device.type)
    for call in Loops(folder / "warm", path, dataset, QUICK_BLOCK_ROWS, 1, given.device.type).turns.values():
        call()
    spent = {name: Spent() for name in LOOPS}
    generator, order = random.Random(0), list(LOOPS)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            spent[name].begin_turn()
            with spent[name].measured():
                loops.turns[name]()
    return Result(path.stem, loops.batch, torch.get_num_threads(), rows * BLOCKS_PER_TURN, spent, loops.parts)


# --------------------------------------------------------------------------------------------------------- what is told


def report(result: Result) -> None:
    print(
        f"{result.teacher}, batch {result.batch}, {result.threads} threads, turns of {result.rows} pictures; medians, "
        "± half the interquartile range turn by turn"
    )
    rows = [
        [
            name,
            f"{result.rate(name):.0f}",
            f"{result.ratio(name):.3f} ±{result.spread(name):.3f}",
            f"{1e6 * spent.cores.median_s / result.rows:.0f}",
        ]
        for name, spent in result.loops.items()
    ]
    show(["loop", "pictures/s>", "of bare>", "core µs/picture>"], rows)
    whole = result.loops["in series"].clock.median_s
    parts = [
        [
            name,
            f"{1e6 * spent.clock.median_s / result.rows:.1f}",
            f"{100 * spent.clock.median_s / whole:.2f} %",
            f"{1e6 * spent.cores.median_s / result.rows:.1f}",
        ]
        for name, spent in result.parts.items()
    ]
    show(["in series", "µs/picture>", "share>", "core µs/picture>"], parts)
    print(verdict(result))


def verdict(result: Result) -> str:
    kept = result.ratio("stage")
    return f"The stage is to keep {BAR:g} of the bare rate: {kept:.3f}, {'held' if kept >= BAR else 'missed'}"


def as_json(result: Result) -> dict[str, object]:
    """The figures; times in seconds."""
    return {
        "teacher": result.teacher,
        "batch": result.batch,
        "rows": result.rows,
        "turns": {name: spent.clock.seconds for name, spent in result.loops.items()},
        "core_seconds": {name: spent.cores.seconds for name, spent in result.loops.items()},
        "of_bare": {name: result.ratio(name) for name in result.loops},
        "of_bare_spread": {name: result.spread(name) for name in result.loops},
        "parts": {name: spent.clock.median_s for name, spent in result.parts.items()},
        "parts_core": {name: spent.cores.median_s for name, spent in result.parts.items()},
    }


def main() -> None:
    given = options("The inference stage, with its commits, beside ONNX Runtime alone.", devices=EITHER)
    with TemporaryDirectory() as folder:
        result = measure(given, Path(folder))
    report(result)
    write(given, {"benchmark": "inference", **as_json(result)})


if __name__ == "__main__":
    main()
