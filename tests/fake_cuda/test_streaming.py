"""Pictures that stay files on the fake CUDA device: who decodes them, where batches lie, how they get to the device."""

import contextlib
import itertools
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fake_cuda.counts import counting
from tests.fake_cuda.processes import FakeCuda
from tests.workers.training.test_image_loader import RECIPES, Stuck, damage, feed, files, work, write_pictures
from workers.errors import InvalidDataset, Stopped
from workers.training.feed.image_loader import PictureStream

pytestmark = pytest.mark.fake_cuda


def _left_over() -> dict[str, int]:
    """What a stream has started and not ended."""
    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in threads:
        # Those of queues end by themselves soon after the queue.
        thread.join(10)
    alive = sum(thread.is_alive() for thread in threads)
    return {"processes": len(multiprocessing.active_children()), "threads": alive}


def _streamed(root: str) -> dict[str, Any]:
    """A stream that is asked for no worker, as with one thread: an epoch, another that is left, an error, the end."""
    device, recipe = torch.device("cuda:0"), RECIPES[2]
    torch.cuda.synchronize(device)
    listed = files(Path(root), Path(root) / "work")
    stream = PictureStream(listed.files, (recipe,), 0, device)
    batches = stream.batches(work(listed, recipe))
    first = next(batches)
    with counting() as counts:
        pictures = [images for (images,) in [first, *batches]]
        there = [images.to(device, non_blocking=True) for images in pictures]
    next(stream.batches(work(listed, recipe)))
    answer = {
        "workers": len(multiprocessing.active_children()),
        "pinned": [images.is_pinned() for images in pictures],
        "copies": [counts.copies_to_device, counts.blocking_copies, counts.synchronisations],
        "arrived": all(torch.equal(a.cpu(), b) for a, b in zip(there, pictures, strict=True)),
    }
    damage(listed.files.path(11), "longer")
    try:
        list(stream.batches(work(listed, recipe)))
    except InvalidDataset as error:
        answer["error"] = str(error).rsplit(". ", 1)[-1]
    next(stream.batches(work(listed, recipe)))
    stream.close()
    return {**answer, "left over": _left_over()}


def _fed(root: str) -> dict[str, Any]:
    """A run with one thread that is closed in the middle of its second epoch."""
    listed = files(Path(root), Path(root) / "work")
    feeding = feed(listed, RECIPES[1], threads=1, device=torch.device("cuda:0"))
    shapes = [list(images.shape) for batch in feeding.epoch(0) for images in (batch.views[0].images,)]
    next(itertools.islice(feeding.epoch(1), 1, None))
    workers = len(multiprocessing.active_children())
    feeding.close()
    return {"shapes": shapes, "workers": workers, "left over": _left_over()}


def _left_waiting(root: str) -> dict[str, Any]:
    """A run that somebody stops while it waits for a picture that never comes."""
    listed = files(Path(root), Path(root) / "work")
    feeding = feed(listed, RECIPES[1], threads=1, device=torch.device("cuda:0"))

    def waiting() -> None:
        if stuck.is_read():
            raise Stopped("while it waited")

    with contextlib.closing(Stuck(listed.files.path(13))) as stuck:
        try:
            steps = sum(1 for _ in feeding.inputs(0, waiting=waiting))
        except Stopped:
            steps = -1
        feeding.close()
    return {"steps": steps, "left over": _left_over()}


def _both(root: str) -> dict[str, Any]:
    return {"stream": _streamed(root), "feed": _fed(root), "waiting": _left_waiting(root)}


@pytest.fixture(scope="module")
def seen(fake_cuda: FakeCuda, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pinned")
    write_pictures(folder / "pets")
    return fake_cuda.call(_both, str(folder))


def test_picture_stream_for_a_gpu_decodes_elsewhere_and_copies_without_waiting(seen: dict[str, Any]) -> None:
    assert seen["stream"] == {
        "workers": 1,
        "pinned": [True] * 4,
        "copies": [4, 0, 0],
        "arrived": True,
        "error": "Submit the job again",
        "left over": {"processes": 0, "threads": 0},
    }


def test_training_feed_on_a_gpu_has_a_decoding_worker_with_one_thread(seen: dict[str, Any]) -> None:
    assert seen["feed"] == {
        "shapes": [[8, 20, 24, 3]] * 3 + [[3, 20, 24, 3]],
        "workers": 1,
        "left over": {"processes": 0, "threads": 0},
    }


def test_training_feed_on_a_gpu_is_left_while_it_waits_for_a_picture(seen: dict[str, Any]) -> None:
    assert seen["waiting"] == {"steps": -1, "left over": {"processes": 0, "threads": 0}}
