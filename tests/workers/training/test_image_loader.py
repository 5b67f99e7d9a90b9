"""Pictures that stay files: the same bits as a decoded copy, from the dataset to the trained weights."""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.support.digits import SMALL, Digits
from tests.support.full_disk import on_a_small_disk
from workers.augmentation.draw import draw
from workers.cluster.outcomes import outcome
from workers.config.job import JobSpec
from workers.config.mixing import CutMix, Mixup
from workers.config.operations import RandAugment, SecondView
from workers.config.task import Folders
from workers.config.views import Augmentation, CropFlip, NoAugmentation, ResizedCrop, Views, has_second_view
from workers.data.kinds.folder import FolderDataset
from workers.data.preparation import prepare as preparation
from workers.data.preparation.prepared import Dataset, DecodedDataset, FilesDataset, open_prepared
from workers.errors import BatchOverdue, DiskLow, InvalidDataset, Stopped
from workers.events import DatasetReady, Epoch, Log, ignore
from workers.files import MARGIN_BYTES
from workers.pipeline import run_job, train_supervised
from workers.training.evaluation.evaluation_feed import EvaluationFeed
from workers.training.feed import image_loader as streaming
from workers.training.feed.image_loader import PictureStream, Work, worker_processes, workers_with_room
from workers.training.training_feed import TrainingFeed

# Early, for it is long, and several processes of a busy machine take their time.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
CLASSES, EACH, HEIGHT, WIDTH = ("ant", "bee", "cat"), 9, 20, 24
SAMPLES = len(CLASSES) * EACH
STRONG = RandAugment(magnitude=10)
RECIPES: tuple[Augmentation, ...] = (
    NoAugmentation(),
    CropFlip(pad=3),
    ResizedCrop(size=(12, 10), scale=(0.3, 1.0)),
    CropFlip(mixup=Mixup(probability=0.5), cutmix=CutMix(probability=0.5), second_view=SecondView(rand_augment=STRONG)),
)
# Of which a batch has 288,000 bytes.
LARGE = ResizedCrop(size=(120, 100), scale=(0.3, 1.0))


def write_pictures(folder: Path) -> None:
    """``train`` and ``test`` of three classes, 20 x 24 pixels: PNGs and JPEGs, in colour and in grey."""
    rng = np.random.default_rng(0)
    kinds = itertools.cycle((("png", "RGB"), ("jpg", "RGB"), ("png", "P"), ("jpeg", "L")))
    for split, name in itertools.product(("train", "test"), CLASSES):
        (folder / split / name).mkdir(parents=True)
        for number in range(EACH):
            suffix, mode = next(kinds)
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / split / name / f"{number}é.{suffix}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "pets")
    return tmp_path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[DecodedDataset, FilesDataset]:
    """The training split, decoded and as files, in folders of their own."""
    root = tmp_path_factory.mktemp("both")
    write_pictures(root / "pets")
    return decoded(root, root / "decoded"), files(root, root / "files")


def decoded(root: Path, work_dir: Path, **fields: object) -> DecodedDataset:
    made = preparation.prepare(FolderDataset(path="pets", **fields), "train", root, work_dir)
    assert isinstance(made, DecodedDataset)
    return made


def files(root: Path, work_dir: Path, **fields: object) -> FilesDataset:
    made = preparation.prepare(FolderDataset(path="pets", storage="files", **fields), "train", root, work_dir)
    assert isinstance(made, FilesDataset)
    return made


# ---------------------------------------------------------------------------------------------------------- dataset


@pytest.mark.parametrize("image_size", [None, (9, 31)])
def test_files_are_the_same_data_set_as_their_decoded_copy(root: Path, image_size: tuple[int, int] | None) -> None:
    copy = decoded(root, root / "a", image_size=image_size)
    listed = files(root, root / "b", image_size=image_size)
    assert listed.fingerprint == copy.fingerprint
    assert listed.picture_shape == copy.picture_shape == (*(image_size or (HEIGHT, WIDTH)), 3)
    assert (listed.class_names, listed.classes, listed.samples) == (CLASSES, 3, SAMPLES)
    assert (listed.channel_mean, listed.channel_std) == (copy.channel_mean, copy.channel_std)
    np.testing.assert_array_equal(listed.labels_N, copy.labels_N)
    rows = np.array([26, 0, 13, 13, 5])
    for wanted in (slice(None), slice(3, 17), slice(20, 100), slice(0, 0), rows):
        np.testing.assert_array_equal(listed.take(wanted), copy.images_NHWC[wanted])
    for threads in (1, 3):
        np.testing.assert_array_equal(listed.files.take(rows, threads), copy.images_NHWC[rows])


def test_no_decoded_copy_is_kept_of_files(root: Path) -> None:
    listed = files(root, root / "work")
    kept = sum(path.stat().st_size for path in (root / "work").rglob("*") if path.is_file())
    assert kept < SAMPLES * HEIGHT * WIDTH * 3 / 4
    lists = {"labels.npy", "names.npy", "files.npy", "row_digests.npy", "sample_ids.bin"}
    assert {path.name for path in listed.path.iterdir()} == {"meta.json", *lists}


def test_only_what_is_kept_needs_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = MARGIN_BYTES + SAMPLES * HEIGHT * WIDTH
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    with pytest.raises(DiskLow, match="storage 'files', which keeps no decoded copy"):
        decoded(root, root / "work")
    assert files(root, root / "work").samples == SAMPLES


def readies(root: Path, storage: str) -> bool:
    """Prepares in one folder; whether an earlier call had done the work."""
    events: list[object] = []
    spec = FolderDataset(path="pets", storage=storage)
    preparation.prepare(spec, "train", root, root / "work", events.append)
    return next(event.reused for event in events if isinstance(event, DatasetReady))


def test_a_list_of_files_is_remembered_until_one_of_them_changes(root: Path) -> None:
    assert [readies(root, "files"), readies(root, "files")] == [False, True]
    picture = root / "pets/train/bee/0é.jpg"
    os.utime(picture, ns=(0, 0))
    assert [readies(root, "files"), readies(root, "files")] == [False, True]
    assert files(root, root / "work").take(slice(None)).shape[0] == SAMPLES


def test_times_that_come_back_do_not_bring_back_an_overwritten_list(root: Path) -> None:
    picture = next((root / "pets/train/bee").iterdir())
    times = (picture.stat().st_atime_ns, picture.stat().st_mtime_ns)
    files(root, root / "work")
    os.utime(picture, ns=(0, 0))
    files(root, root / "work")
    os.utime(picture, ns=times)
    assert files(root, root / "work").take(slice(None)).shape[0] == SAMPLES


def test_a_decoded_copy_serves_whoever_asks_for_files(root: Path) -> None:
    assert [readies(root, "decoded"), readies(root, "files")] == [False, True]
    assert not list((root / "work").glob("*.files"))


def test_a_list_of_files_does_not_serve_whoever_asks_for_a_copy(root: Path) -> None:
    assert [readies(root, "files"), readies(root, "decoded")] == [False, False]
    fingerprint = decoded(root, root / "work").fingerprint
    copy = open_prepared(root / "work", fingerprint)
    assert isinstance(copy, DecodedDataset)
    shutil.rmtree(copy.path)
    assert isinstance(open_prepared(root / "work", fingerprint), FilesDataset)


def test_the_same_pictures_elsewhere_get_a_list_of_their_own(root: Path) -> None:
    first = files(root, root / "work")
    shutil.copytree(root / "pets", root / "copy")
    spec = FolderDataset(path="copy", storage="files")
    second = preparation.prepare(spec, "train", root, root / "work")
    shutil.rmtree(root / "pets")
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(
        second.take(slice(None)), open_prepared(root / "work", first.fingerprint).take(slice(None))
    )


def test_files_pickle_as_their_path(both: tuple[DecodedDataset, FilesDataset]) -> None:
    for thing in (both[1], both[1].files):
        assert len(pickle.dumps(thing)) < 1000
    again = pickle.loads(pickle.dumps(both[1]))
    np.testing.assert_array_equal(again.take(slice(5)), both[1].take(slice(5)))
    assert pickle.loads(pickle.dumps(both[1].files)).path(7) == both[1].files.path(7)


def test_a_damaged_list_is_not_opened(root: Path) -> None:
    listed = files(root, root / "work")
    with (listed.path / "names.npy").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InvalidDataset, match=r"cannot be used .*prepare it again"):
        open_prepared(root / "work", listed.fingerprint)
    assert files(root, root / "work").take(slice(None)).shape[0] == SAMPLES


# ------------------------------------------------------------------------------------------ pictures that have changed


def damage(picture: Path, how: str) -> None:
    """Changes or removes a file; ``damaged`` keeps size and time, as a failing disk would."""
    status = picture.stat()
    match how:
        case "removed":
            picture.unlink()
        case "longer":
            picture.write_bytes(picture.read_bytes() + b"x")
            os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "touched":
            os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        case "damaged":
            picture.write_bytes(b"x" * status.st_size)
            os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))


DAMAGES = {
    "removed": "cannot be read any more",
    "longer": "has changed since the dataset was prepared",
    "touched": "has changed since the dataset was prepared",
    "damaged": "cannot be read as a picture",
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_picture_that_has_changed_is_refused_by_name(root: Path, how: str, threads: int) -> None:
    listed = files(root, root / "work")
    picture = listed.files.path(11)
    damage(picture, how)
    assert len(listed.files.take(np.delete(np.arange(SAMPLES), 11), threads)) == SAMPLES - 1
    with pytest.raises(InvalidDataset, match=rf"bee/{picture.name} {DAMAGES[how]}"):
        listed.files.take(slice(None), threads)


def test_a_picture_of_another_size_is_refused_even_if_its_file_looks_the_same(root: Path) -> None:
    listed = files(root, root / "work")
    picture = listed.files.path(0)
    status = picture.stat()
    Image.new("RGB", (4, 4)).save(picture)
    content = picture.read_bytes()
    assert len(content) < status.st_size
    picture.write_bytes(content + bytes(status.st_size - len(content)))  # decoders stop at the end of the picture
    os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InvalidDataset, match=r"ant/0é\.png is \(4, 4, 3\), not \(20, 24, 3\)"):
        listed.take(slice(1))


# ---------------------------------------------------------------------------------------------------------- batches


def plan(recipe: Augmentation) -> Views:
    count = 1 if isinstance(recipe, NoAugmentation) else 4 if has_second_view(recipe) else 3
    return Views(augmentation=recipe, count=count, seed=5)


def feed(
    dataset: Dataset,
    recipe: Augmentation,
    per_step: int = 1,
    threads: int = 1,
    device: torch.device = CPU,
    emit: Callable[[Log], None] = ignore,
) -> TrainingFeed:
    return TrainingFeed(
        dataset,
        plan(recipe),
        None,
        8,
        seed=3,
        device=device,
        views_per_step=per_step,
        threads=threads,
        emit=emit,
    )


def bytes_of(batches: Iterator) -> list[list[bytes]]:
    """Rows, labels and each view's pictures of every batch."""
    return [
        [tensor.numpy().tobytes() for tensor in (batch.rows, batch.labels, *(seen.images for seen in batch.views))]
        for batch in batches
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=["none", "crop_flip", "resized_crop", "mixed"])
@pytest.mark.parametrize("per_step", [1, 2])
def test_batches_are_those_of_the_decoded_copy(
    both: tuple[DecodedDataset, FilesDataset], recipe: Augmentation, per_step: int
) -> None:
    with contextlib.closing(feed(both[1], recipe, per_step)) as streaming:
        resident = feed(both[0], recipe, per_step)
        for epoch, first_step in ((0, 0), (1, 0), (2, 2), (3, 4)):
            expected = bytes_of(resident.epoch(epoch, first_step))
            assert [len(batch) for batch in expected] == [2 + per_step] * (4 - first_step)
            assert bytes_of(streaming.epoch(epoch, first_step)) == expected


def test_test_pictures_are_those_of_the_decoded_copy(both: tuple[DecodedDataset, FilesDataset]) -> None:
    of_copy, of_files = (bytes_of(EvaluationFeed(one, (15, 15), None, 8, CPU).batches()) for one in both)
    assert of_files == of_copy
    assert len(of_copy) == 4


def test_worker_processes_make_the_same_batches_and_end(both: tuple[DecodedDataset, FilesDataset]) -> None:
    """Two epochs of the same workers, the first left in the middle, in a thread, as a training run is."""
    recipe = RECIPES[2]
    resident = feed(both[0], recipe, 2)
    seen: dict[str, object] = {}

    def run() -> None:
        # Three threads are two workers and the loop, but no more than there are cores.
        streaming = feed(both[1], recipe, 2, threads=3)
        state = torch.get_rng_state()
        seen["left"] = bytes_of(itertools.islice(streaming.epoch(0), 2))
        seen["workers"] = {child.pid for child in multiprocessing.active_children()}
        abandoned = streaming.epoch(1, 2)
        seen["resumed"] = bytes_of(abandoned)
        abandoned = streaming.epoch(2)
        next(abandoned)
        seen["kept"] = {child.pid for child in multiprocessing.active_children()}
        seen["drawn"] = not torch.equal(state, torch.get_rng_state())
        streaming.close()
        streaming.close()
        seen["leaked"] = multiprocessing.active_children()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen["left"] == bytes_of(itertools.islice(resident.epoch(0), 2))
    assert seen["resumed"] == bytes_of(resident.epoch(1, 2))
    assert len(seen["workers"]) == worker_processes(3) > 0
    assert seen["kept"] == seen["workers"]
    assert seen["leaked"] == []
    assert not seen["drawn"], "the run's own random numbers were used"


@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_of_a_worker_keeps_its_class_and_its_words(root: Path, processes: int) -> None:
    listed = files(root, root / "work")
    picture = listed.files.path(11)
    damage(picture, "longer")
    stream = PictureStream(listed.files, (RECIPES[1],), processes, CPU)
    with contextlib.closing(stream):
        batches = stream.batches(work(listed, RECIPES[1]))
        assert next(batches)[0].shape == (8, HEIGHT, WIDTH, 3)
        assert len(multiprocessing.active_children()) == processes
        with pytest.raises(InvalidDataset, match=r"has changed since .*Submit the job again$") as caught:
            next(batches)
        assert str(caught.value).startswith(f"{picture.relative_to(listed.files._root)} has changed")
        # The workers are as good as before.
        assert next(stream.batches(work(listed, RECIPES[1])))[0].shape == (8, HEIGHT, WIDTH, 3)
    assert multiprocessing.active_children() == []
    with pytest.raises(RuntimeError, match="is closed"):
        stream.batches(())


def work(listed: FilesDataset, recipe: Augmentation) -> list[Work]:
    rows = np.arange(SAMPLES)
    drawn = draw(recipe, 0, 0, rows, HEIGHT, WIDTH)
    return [(rows[start : start + 8], (drawn[start : start + 8],)) for start in range(0, SAMPLES, 8)]


def test_small_shared_memory_costs_workers_and_loses_no_batch(both: tuple[DecodedDataset, FilesDataset]) -> None:
    from tests.support.small_shared_memory import digest

    listed = both[1]
    found = on_a_small_disk("200k", Path("/dev/shm"), listed.path, module="tests.support.small_shared_memory")
    with contextlib.closing(feed(listed, LARGE)) as feeding:
        of_epoch = digest(tuple(seen.images for seen in batch.views) for batch in feeding.epoch(0))
    with contextlib.closing(PictureStream(listed.files, (LARGE,), 0, CPU)) as stream:
        in_order = digest(stream.batches(work(listed, LARGE)))
    assert found["made"] == [of_epoch, in_order, in_order]
    assert found["workers"] == [0, 1]
    too_small, no_room = found["warnings"]
    assert "1 would have up to 2,200,576 bytes in /dev/shm, where 204,800 are free" in too_small
    assert "a batch found no room in /dev/shm" in no_room
    assert all("shm_size" in warning for warning in found["warnings"])
    assert "No space left on device" in found["refused"]


def test_as_many_workers_as_shared_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_free_bytes", lambda: (1 << 20) + 7 * 1000)
    assert workers_with_room(2, 1000) == (2, None)
    fitting, why = workers_with_room(3, 1000)
    assert fitting == 2
    assert why is not None
    assert why.startswith("2 of 3 worker processes decode the pictures: 3 would have up to 1,056,576 bytes in /dev/shm")


class Stuck:
    """A picture whose server does not answer: it is opened, and then not a byte comes."""

    def __init__(self, picture: Path) -> None:
        picture.unlink()
        os.mkfifo(picture)
        self._picture = picture
        self._writer: int | None = None

    def is_read(self) -> bool:
        """Whether somebody has begun to."""
        if self._writer is None:
            with contextlib.suppress(OSError):
                self._writer = os.open(self._picture, os.O_WRONLY | os.O_NONBLOCK)
        return self._writer is not None

    def close(self) -> None:
        if self._writer is not None:
            os.close(self._writer)


def test_a_run_that_waits_for_pictures_hears_that_it_is_to_stop(root: Path) -> None:
    stuck: list[Stuck] = []

    def emit(event: object) -> None:
        # The first word of training; the pictures have been read before.
        if isinstance(event, Log) and not stuck:
            stuck.append(Stuck(root / "pets/train/bee/3é.png"))

    training = SMALL.model_copy(update={"epochs": 2, "batch_size": 8})
    with pytest.raises(Stopped, match="stopped in epoch 1"):
        train_supervised(
            FolderDataset(path="pets", storage="files"),
            "cnn_s",
            training,
            data_root=root,
            work_dir=root / "work",
            out_dir=root / "out",
            threads=2,
            emit=emit,
            should_stop=lambda: any(one.is_read() for one in stuck),
        )
    assert multiprocessing.active_children() == []
    stuck[0].close()


def test_an_epoch_after_one_that_was_left_while_it_waited_is_heard_as_well(root: Path) -> None:
    """Runs of a group that are ahead go on where the others were stopped, and are stopped in turn."""
    listed = files(root, root / "work")

    class Heard(Exception):
        pass

    def waiting() -> None:
        raise Heard

    with (
        contextlib.closing(Stuck(listed.files.path(11))),
        contextlib.closing(PictureStream(listed.files, (RECIPES[1],), 1, CPU)) as stream,
    ):
        for _ in range(2):
            with pytest.raises(Heard):
                list(stream.batches(work(listed, RECIPES[1]), waiting))


def test_a_batch_that_never_comes_has_the_run_start_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = files(root, root / "work")
    monkeypatch.setattr(streaming, "OVERDUE_S", 0.001)
    waits = []
    with (
        contextlib.closing(Stuck(listed.files.path(11))) as stuck,
        contextlib.closing(PictureStream(listed.files, (RECIPES[1],), 1, CPU)) as stream,
    ):
        batches = stream.batches(work(listed, RECIPES[1]), lambda: waits.append(stuck.is_read()))
        with pytest.raises(BatchOverdue, match="does the file system of the dataset answer") as caught:
            list(batches)
    assert waits
    assert outcome(caught.value).kind == "vanished"


KILLED = """
if __name__ == "__main__":
    import multiprocessing, sys
    from pathlib import Path
    from tests.workers.training.test_image_loader import CPU, RECIPES, work
    from workers.data.preparation.prepared import open_prepared
    from workers.training.feed.image_loader import PictureStream

    listed = open_prepared(Path(sys.argv[1]), sys.argv[2])
    stream = PictureStream(listed.files, (RECIPES[0],), 1, CPU)
    next(stream.batches(work(listed, RECIPES[0])))
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    sys.stdin.read()
"""


def test_workers_end_with_a_process_that_is_killed(both: tuple[DecodedDataset, FilesDataset], tmp_path: Path) -> None:
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    command = [sys.executable, str(program), str(both[1].path.parent), both[1].fingerprint]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        (worker,) = map(int, child.stdout.readline().split())
        ended = os.pidfd_open(worker)
        child.send_signal(signal.SIGKILL)
        child.wait()
    try:
        # It looks for its parent every five seconds.
        assert select.select([ended], [], [], 60)[0], f"worker {worker} goes on"
    finally:
        os.close(ended)


# ------------------------------------------------------------------------------------------------------ a whole job


@pytest.fixture(scope="module")
def numbers(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the first digits as PNGs, which the digits' teacher knows."""
    root = tmp_path_factory.mktemp("numbers")
    for split, samples, dataset in (("train", 200, digits.train), ("test", 100, digits.test)):
        for number in range(samples):
            folder = root / "pets" / split / str(dataset.labels_N[number])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(dataset.images_NHWC[number, :, :, 0]).save(folder / f"{number:04}.png")
    return root


def job(digits: Digits, storage: str, method: str = "kd") -> JobSpec:
    training = SMALL.model_copy(update={"epochs": 2, "batch_size": 32})
    dataset = FolderDataset(path="pets", storage=storage)
    return digits.job(method, training=training).model_copy(update={"dataset": dataset})


def weights(folder: Path) -> dict[str, bytes]:
    found = load_file(folder / "run-0/artifacts/student.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in found.items()}


@pytest.mark.usefixtures("without_onnx")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_job_ends_with_the_same_weights_and_uses_the_same_cache(
    digits: Digits, numbers: Path, tmp_path: Path, threads: int
) -> None:
    """Stopped after an epoch, it leaves no worker processes and goes on where it was."""
    elsewhere = Folders(data_dir=tmp_path / "decoded", data_root=numbers)
    expected = run_job(job(digits, "decoded"), elsewhere, tmp_path / "a", threads=threads)
    folders = Folders(data_dir=tmp_path / "files", data_root=numbers)
    epochs: list[object] = []

    def emit(event: object) -> None:
        if isinstance(event, Epoch):
            epochs.append(event)

    with pytest.raises(Stopped, match="stopped in epoch 2"):
        run_job(job(digits, "files"), folders, tmp_path / "b", emit, lambda: bool(epochs), threads=threads)
    assert multiprocessing.active_children() == []
    streamed = run_job(job(digits, "files"), folders, tmp_path / "b", threads=threads)
    assert multiprocessing.active_children() == []
    assert not list(folders.datasets.glob("*/images.npy"))
    assert weights(tmp_path / "b") == weights(tmp_path / "a")
    (a,), (b,) = expected.results, streamed.results
    assert b["caches"] == a["caches"]
    assert {**b["last"], "seconds": 0, "images_per_s": 0} == {**a["last"], "seconds": 0, "images_per_s": 0}
    assert (streamed.teacher_forwards, streamed.teacher_accuracy) == (0, expected.teacher_accuracy)

    again = run_job(job(digits, "decoded"), folders, tmp_path / "c", threads=threads)
    assert again.teacher_forwards == 0
    assert weights(tmp_path / "c") == weights(tmp_path / "a")
