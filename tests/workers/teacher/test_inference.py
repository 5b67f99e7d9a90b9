"""The inference stage: what is committed is what the teacher says of each view, whoever asks and whatever happens.

Legend: N samples, classes.
"""

import contextlib
import multiprocessing
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from store import CacheReader, CacheSpec, CacheWriter, Catalog, NotStorable
from store.documents import BlockRecord
from tests.support import cuda_session, onnx_models
from tests.support.store_cases import tree
from workers.augmentation.apply import make_views
from workers.config.teacher import Preprocessing, TeacherSpec
from workers.config.views import Augmentation, CropFlip, NoAugmentation, ResizedCrop
from workers.data.preparation.prepared import DecodedDataset
from workers.errors import InvalidTeacher, Stopped
from workers.events import InferenceProgress, Log
from workers.teacher import inference, inference_counter
from workers.teacher.inference import infer_blocks, inference_batch
from workers.teacher.teacher import Teacher

SAMPLES = 9000  # three blocks of a view: 4096, 4096, 808
CLASSES = 4
PLAIN = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)


def random_dataset() -> DecodedDataset:
    rng = np.random.default_rng(0)
    return DecodedDataset(
        images_NHWC=rng.integers(0, 256, (SAMPLES, 8, 8, 3), dtype=np.uint8),
        labels_N=rng.integers(0, CLASSES, SAMPLES),
        class_names=("a", "b", "c", "d"),
        fingerprint="d" * 64,
        split="train",
        path=Path("."),
        channel_mean=(0.5,) * 3,
        channel_std=(0.25,) * 3,
    )


@pytest.fixture(scope="module")
def dataset() -> DecodedDataset:
    return random_dataset()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    path = onnx_models.save(onnx_models.random_linear(CLASSES), tmp_path_factory.mktemp("teacher") / "teacher.onnx")
    return Teacher(path, PLAIN, threads=1, device="cpu")


def cache(root: Path, recipe: Augmentation | None = None, views: int = 1, **fields: object) -> CacheWriter:
    spec = {
        "teacher_sha256": "e" * 64,
        "teacher_output": "logits",
        "output_kind": "logits",
        "dataset_fingerprint": "d" * 64,
        "split": "train",
        "samples": SAMPLES,
        "classes": CLASSES,
        "preprocessing": PLAIN.model_dump(mode="json"),
        "augmentation": (recipe or NoAugmentation()).model_dump(mode="json"),
        "augmentation_seed": 11,
        "views": views,
        "dtype": "float32",
    }
    return CacheWriter(root, CacheSpec(**{**spec, **fields}))


def logits_of(writer: CacheWriter) -> NDArray[np.float32]:
    """[views, N, classes] of a cache that is finished here."""
    writer.finish()
    reader = CacheReader(writer.root, writer.spec)
    return np.stack([reader.logits(view) for view in range(writer.spec.views)])


def live_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("retort-")]


# ------------------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("recipe", [NoAugmentation(), CropFlip(pad=2), ResizedCrop(scale=(0.4, 1.0))])
def test_a_row_is_the_teachers_answer_to_that_view_of_that_sample(
    recipe: Augmentation, teacher: Teacher, dataset: DecodedDataset, tmp_path: Path
) -> None:
    views = 1 if isinstance(recipe, NoAugmentation) else 2
    writer = cache(tmp_path, recipe, views)
    rows = infer_blocks(teacher, dataset, writer, writer.pending_blocks())
    assert rows == views * SAMPLES
    kept = logits_of(writer)
    sample = np.array([0, 1, 4095, 4096, 8999])
    for view in range(views):
        pictures = make_views(torch.from_numpy(dataset.images_NHWC[sample]), recipe, 11, view, sample)
        np.testing.assert_allclose(kept[view, sample], teacher.logits(pictures), rtol=1e-5, atol=1e-6)
    if views == 2:
        assert np.abs(kept[0] - kept[1]).max() > 0.1


def test_the_same_batch_size_gives_the_same_bytes_and_another_one_rounding(
    teacher: Teacher, dataset: DecodedDataset, tmp_path: Path
) -> None:
    kept = {}
    for name, batch_size in (("a", 100), ("b", 100), ("c", 333)):
        writer = cache(tmp_path / name, CropFlip(pad=2))
        infer_blocks(teacher, dataset, writer, writer.pending_blocks(), batch_size=batch_size)
        kept[name] = logits_of(writer)
    assert kept["a"].tobytes() == kept["b"].tobytes()
    np.testing.assert_allclose(kept["a"], kept["c"], rtol=1e-5, atol=1e-6)


def test_blocks_may_be_shared_out_in_any_order(teacher: Teacher, dataset: DecodedDataset, tmp_path: Path) -> None:
    whole = cache(tmp_path / "whole", CropFlip(pad=2))
    infer_blocks(teacher, dataset, whole, [0, 1, 2])
    shared = cache(tmp_path / "shared", CropFlip(pad=2))
    assert infer_blocks(teacher, dataset, shared, [2, 0]) == 808 + 4096
    assert shared.pending_blocks() == [1]
    assert infer_blocks(teacher, dataset, cache(tmp_path / "shared", CropFlip(pad=2)), [1]) == 4096
    assert logits_of(shared).tobytes() == logits_of(whole).tobytes()


@pytest.mark.parametrize("load_threads", [2, 5])
def test_infer_blocks_keeps_the_same_bytes_for_any_number_of_load_threads(
    load_threads: int, teacher: Teacher, dataset: DecodedDataset, tmp_path: Path
) -> None:
    alone, shared = (cache(tmp_path / name, CropFlip(pad=2)) for name in ("alone", "shared"))
    infer_blocks(teacher, dataset, alone, [0, 1, 2], batch_size=64)
    infer_blocks(teacher, dataset, shared, [0, 1, 2], batch_size=64, load_threads=load_threads)
    assert tree(shared.path) == tree(alone.path)


@pytest.mark.parametrize(
    ("size", "block_rows", "rows"),
    [
        ((32, 32), 4096, 256),
        ((224, 224), 4096, 64),
        ((299, 299), 4096, 32),
        ((3000, 2500), 4096, 1),
        ((32, 32), 64, 64),
    ],
)
def test_inference_batch_is_a_power_of_two_that_divides_a_block(
    size: tuple[int, int], block_rows: int, rows: int, dataset: DecodedDataset
) -> None:
    given = TeacherSpec(path=Path("teacher.onnx"), preprocessing=PLAIN.model_copy(update={"size": size}))
    plain = NoAugmentation()
    assert inference_batch(given, dataset, block_rows, plain) == rows
    as_they_are = given.model_copy(update={"preprocessing": PLAIN})
    assert inference_batch(as_they_are, dataset, block_rows, plain) == min(256, block_rows)


def test_inference_batch_is_small_where_the_pictures_or_their_views_are_large(dataset: DecodedDataset) -> None:
    """They are there as bytes, also where the teacher takes few pixels: 256 of 4,096 px would be 12.9 GB."""
    large = replace(dataset, images_NHWC=np.broadcast_to(np.uint8(0), (SAMPLES, 4096, 4096, 3)))
    given = TeacherSpec(path=Path("teacher.onnx"), preprocessing=PLAIN.model_copy(update={"size": (32, 32)}))
    assert inference_batch(given, large, 4096, NoAugmentation()) == 1
    assert inference_batch(given, dataset, 4096, ResizedCrop(size=(1024, 1024))) == 16


def test_infer_blocks_loads_whole_batches_of_a_teacher_that_fixes_them(
    dataset: DecodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """808 rows are nine calls of 100, and not eleven of which every third is mostly padding."""
    path = onnx_models.save(onnx_models.random_linear(CLASSES, batch=100), tmp_path / "teacher.onnx")
    fixed = Teacher(path, PLAIN, threads=1, device="cpu")
    calls = []
    run = fixed._session.run
    monkeypatch.setattr(fixed._session, "run", lambda *args: calls.append(len(args[0])) or run(*args))
    infer_blocks(fixed, dataset, cache(tmp_path), [2], batch_size=256)
    assert calls == [100] * 9


def test_a_teacher_made_for_another_output_kind_or_other_columns_is_refused(
    teacher: Teacher, dataset: DecodedDataset, tmp_path: Path
) -> None:
    other = cache(tmp_path, columns=tuple(reversed(range(CLASSES))))
    with pytest.raises(ValueError, match="the teacher was made for None"):
        infer_blocks(teacher, dataset, other, [0])
    writer = cache(tmp_path, output_kind="log_probabilities")
    with pytest.raises(ValueError, match="the cache holds log_probabilities, the teacher was made for logits"):
        infer_blocks(teacher, dataset, writer, [0])


# --------------------------------------------------------------------------------------------------------- provenance


def test_infer_blocks_tells_in_the_provenance_where_the_blocks_of_a_cache_were_inferred(
    teacher: Teacher, dataset: DecodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was begun on the CPU and ended on a GPU names both, and from the first block on."""
    writer = cache(tmp_path / "caches")
    infer_blocks(teacher, dataset, writer, [0])
    catalog = Catalog(writer.root)
    assert catalog.get(writer.spec.key).provenance == {"computed_on": [teacher.provenance]}
    assert teacher.provenance["provider"] == "CPUExecutionProvider"
    cuda_session.install(monkeypatch)
    path = onnx_models.save(onnx_models.random_linear(CLASSES), tmp_path / "teacher.onnx")
    on_cuda = Teacher(path, PLAIN, threads=1, device="cuda")
    infer_blocks(on_cuda, dataset, writer, [1, 2])
    writer.finish({"seconds": 2.0})
    provenance = CacheReader(writer.root, writer.spec).provenance
    assert provenance == catalog.get(writer.spec.key).provenance
    assert provenance["seconds"] == 2.0
    origins = {origin["provider"]: origin for origin in provenance["computed_on"]}
    assert origins == {session.provider: session.provenance for session in (teacher, on_cuda)}


# -------------------------------------------------------------------------------------------------------------- memory


def test_infer_blocks_tells_once_that_batches_are_halved_and_keeps_what_the_cpu_says(
    teacher: Teacher, dataset: DecodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = cuda_session.install(monkeypatch)
    path = onnx_models.save(onnx_models.random_linear(CLASSES), tmp_path / "teacher.onnx")
    on_cuda = Teacher(path, PLAIN, threads=1, device="cuda")
    double.calls.clear()
    double.rows_max = 100
    told: list[object] = []
    halved, whole = (cache(tmp_path / name, CropFlip(pad=2)) for name in ("halved", "whole"))
    infer_blocks(on_cuda, dataset, halved, [0, 1, 2], told.append)
    infer_blocks(teacher, dataset, whole, [0, 1, 2])
    assert double.calls[:3] == [256, 128, 64]
    assert set(double.calls[2:]) == {64}
    (warning,) = [event for event in told if isinstance(event, Log)]
    assert warning.level == "warning"
    assert "Double H200 does not hold 256 pictures at once: it goes on with 64" in warning.message
    np.testing.assert_allclose(logits_of(halved), logits_of(whole), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- many processes


class TellingWriter(CacheWriter):
    """Tells what it has committed itself; a block that another process was faster with is not told."""

    told: Connection

    def _write_and_commit(self, block: int, logits_NC: NDArray[np.float32]) -> BlockRecord:
        record = super()._write_and_commit(block, logits_NC)
        self.told.send(block)
        return record


def infer_all(root: Path, spec: CacheSpec, teacher: Path, seed: int, start: Barrier, told: Connection) -> None:
    """A process: all blocks of the cache, in an order of its own."""
    session = Teacher(teacher, PLAIN, threads=1, device="cpu")
    writer = TellingWriter(root, spec)
    writer.told = told
    blocks = random.Random(seed).sample(range(spec.blocks), spec.blocks)
    start.wait()
    infer_blocks(session, random_dataset(), writer, blocks)


def test_processes_that_infer_one_cache_at_once_commit_every_block_once_although_one_is_killed(
    dataset: DecodedDataset, tmp_path: Path
) -> None:
    path = onnx_models.save(onnx_models.random_linear(CLASSES), tmp_path / "teacher.onnx")
    alone, shared = (cache(tmp_path / name, CropFlip(pad=2), views=8) for name in ("alone", "shared"))
    infer_blocks(Teacher(path, PLAIN, threads=1, device="cpu"), dataset, alone, alone.pending_blocks())
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    processes, told = [], []
    for seed in range(3):
        listener, speaker = context.Pipe(duplex=False)
        arguments = (shared.root, shared.spec, path, seed, start, speaker)
        processes.append(context.Process(target=infer_all, args=arguments))
        processes[-1].start()
        speaker.close()
        told.append(listener)
    committed = [told[0].recv(), told[0].recv()]
    processes[0].kill()  # in the middle of its third block, or of inferring it
    for listener, process in zip(told, processes, strict=True):
        with contextlib.suppress(EOFError):
            while True:
                committed.append(listener.recv())
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0]
    # The killed one may have died after a commit and before telling of it.
    assert len(committed) == len(set(committed)) >= shared.spec.blocks - 1
    assert shared.pending_blocks() == []
    for writer in (alone, shared):
        writer.finish()
    assert tree(shared.path) == tree(alone.path)


# ------------------------------------------------------------------------------------------------- stopping, failing


def test_stopping_keeps_whole_blocks_and_the_rest_is_done_later(
    teacher: Teacher, dataset: DecodedDataset, tmp_path: Path
) -> None:
    asked = 0

    def after_five_thousand_rows() -> bool:
        nonlocal asked
        asked += 1
        return asked > 6

    writer = cache(tmp_path / "stopped")
    with pytest.raises(Stopped, match="after 5096 rows"):
        infer_blocks(
            teacher,
            dataset,
            writer,
            writer.pending_blocks(),
            should_stop=after_five_thousand_rows,
            batch_size=1000,
            load_threads=2,
        )
    assert live_threads() == []
    assert writer.pending_blocks() == [1, 2]
    rows = infer_blocks(teacher, dataset, writer, writer.pending_blocks(), batch_size=1000)
    assert rows == SAMPLES - 4096
    whole = cache(tmp_path / "whole")
    infer_blocks(teacher, dataset, whole, whole.pending_blocks(), batch_size=1000)
    assert logits_of(writer).tobytes() == logits_of(whole).tobytes()


@pytest.mark.parametrize("load_threads", [1, 3])
def test_a_failure_of_the_loading_thread_ends_the_call(
    load_threads: int, dataset: DecodedDataset, tmp_path: Path
) -> None:
    path = onnx_models.save(onnx_models.random_linear(CLASSES), tmp_path / "teacher.onnx")
    wrong_size = Teacher(path, PLAIN, threads=1, device="cpu")
    wrong = DecodedDataset(**{**vars(dataset), "images_NHWC": np.zeros((SAMPLES, 9, 9, 3), np.uint8)})
    writer = cache(tmp_path / "caches")
    with pytest.raises(InvalidTeacher, match="are 9x9 pixels"):
        infer_blocks(wrong_size, wrong, writer, writer.pending_blocks(), load_threads=load_threads)
    assert live_threads() == []
    assert writer.pending_blocks() == [0, 1, 2]


def test_a_failure_of_the_writing_thread_ends_the_call_before_the_rest_is_inferred(
    dataset: DecodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample 3 of block 0 has infinite logits; ten more blocks of views wait behind it."""
    path = onnx_models.save(onnx_models.linear(np.full((192, CLASSES), 1.0), tail=["Sqrt"]), tmp_path / "teacher.onnx")
    negative = PLAIN.model_copy(update={"mean": (0.001,) * 3})
    session = Teacher(path, negative, threads=1, device="cpu")
    images = dataset.images_NHWC | 1
    images[3] = 0  # below zero after the mean: its square root is NaN
    broken = DecodedDataset(**{**vars(dataset), "images_NHWC": images})
    writer = cache(tmp_path / "caches", CropFlip(pad=0), views=4)
    told: list[InferenceProgress] = []
    monkeypatch.setattr(inference_counter, "PROGRESS_INTERVAL_S", 0.0)
    asked = []
    with pytest.raises(NotStorable, match="sample 3 of view 0"):
        infer_blocks(session, broken, writer, writer.pending_blocks(), told.append, lambda: bool(asked.append(1)), 512)
    assert live_threads() == []
    assert len(asked) < 60  # of the 72 batches
    assert 0 in writer.pending_blocks()


# ---------------------------------------------------------------------------------------------------------- progress


def test_progress_counts_what_is_committed_and_what_was_before(
    teacher: Teacher, dataset: DecodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_counter, "PROGRESS_INTERVAL_S", 0.0)
    writer = cache(tmp_path)
    infer_blocks(teacher, dataset, writer, [1])
    told: list[InferenceProgress] = []
    infer_blocks(teacher, dataset, writer, writer.pending_blocks(), told.append, batch_size=500)
    done = [event.rows_done for event in told]
    assert done == sorted(done)
    assert set(done) <= {4096, 8192, 9000}
    assert done[0] == 4096
    assert done[-1] == 9000
    assert {(event.cache, event.split, event.rows_total) for event in told} == {(writer.spec.key, "train", SAMPLES)}
    assert all(event.rows_per_s > 0 for event in told)
    assert told[0].eta_s > 0
    assert told[-1].eta_s == 0


def test_progress_is_told_at_the_end_and_else_at_most_every_quarter_second(
    teacher: Teacher, dataset: DecodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.arange(0, 100, 0.1))  # a tenth of a second passes from one look to the next
    monkeypatch.setattr(inference_counter, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    told: list[InferenceProgress] = []
    writer = cache(tmp_path)
    infer_blocks(teacher, dataset, writer, [0], told.append, batch_size=100)
    assert len(told) == 41 // 3 + 1
    assert told[-1].rows_done == 4096


# ----------------------------------------------------------------------------------------------------------- overlap


def behind(function: Callable[..., object], opened: threading.Event) -> Callable[..., object]:
    def waiting(*args: object, **named: object) -> object:
        assert opened.wait(20), "the other thread did not go ahead"
        return function(*args, **named)

    return waiting


def test_the_next_batch_is_loaded_while_one_is_inferred(
    teacher: Teacher, dataset: DecodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = threading.Event()
    loads = []

    def load(*args: object) -> object:
        loads.append(args)
        if len(loads) == 2:
            second.set()
        return original(*args)

    original = teacher.preprocess_views
    monkeypatch.setattr(teacher, "preprocess_views", load)
    monkeypatch.setattr(teacher, "run", behind(teacher.run, second))
    assert infer_blocks(teacher, dataset, cache(tmp_path), [2], batch_size=200) == 808


def test_load_threads_work_at_once_each_on_one_core_and_only_so_far_ahead(
    teacher: Teacher, dataset: DecodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3, timeout=20)
    loads: list[int] = []
    begun_at_first_run: list[int] = []

    def load(*args: object) -> NDArray[np.floating]:
        loads.append(torch.get_num_threads())
        if len(loads) <= 3:
            together.wait()
        return preprocess(*args)

    def infer(*args: object) -> NDArray[np.float32]:
        begun_at_first_run.append(len(loads))
        return run(*args)

    preprocess, run = teacher.preprocess_views, teacher.run
    monkeypatch.setattr(teacher, "preprocess_views", load)
    monkeypatch.setattr(teacher, "run", infer)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        infer_blocks(teacher, dataset, cache(tmp_path), [0], batch_size=64, load_threads=3)
        later = threading.Thread(target=lambda: loads.append(torch.get_num_threads()))
        later.start()
        later.join()
    finally:
        torch.set_num_threads(before)
    assert loads == [1] * 64 + [2]
    assert begun_at_first_run[0] <= inference.AHEAD + 3 + 1
    assert live_threads() == []


def test_a_block_is_written_while_the_next_one_is_inferred(
    teacher: Teacher, dataset: DecodedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = cache(tmp_path)
    next_block = threading.Event()
    rows = 0

    def run(input_: NDArray[np.floating], call_rows: int) -> NDArray[np.float32]:
        nonlocal rows
        rows += len(input_)
        if rows > 4096:
            next_block.set()
        return original(input_, call_rows)

    original = teacher.run
    monkeypatch.setattr(teacher, "run", run)
    monkeypatch.setattr(writer, "write_block", behind(writer.write_block, next_block))
    assert infer_blocks(teacher, dataset, writer, [0, 1]) == 8192
    assert writer.pending_blocks() == [2]
