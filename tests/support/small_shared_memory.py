"""Pictures that stay files where /dev/shm is small; run in a mount namespace of its own, see ``full_disk``.

``python -m tests.support.small_shared_memory /dev/shm LIST`` makes the batches of the pictures in the list LIST: with
as many workers as there is room for, and with one although there is no room.
"""

import contextlib
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from tests.workers.training.test_image_loader import CPU, LARGE, feed, work
from workers.data.preparation.prepared import FilesDataset, open_prepared
from workers.training.feed import image_loader
from workers.training.feed.image_loader import PictureStream


def digest(batches: Iterable[tuple[torch.Tensor, ...]]) -> str:
    """SHA-256 of all pictures."""
    found = hashlib.sha256()
    for pictures in batches:
        for tensor in pictures:
            found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def report(listed: FilesDataset) -> dict[str, object]:
    """How many workers there were, what was said, and what was made."""
    warnings: list[str] = []
    with contextlib.closing(feed(listed, LARGE, threads=2, emit=lambda log: warnings.append(log.message))) as checked:
        made = [digest(tuple(seen.images for seen in batch.views) for batch in checked.epoch(0))]
        workers = [len(multiprocessing.active_children())]
    # Another program may take the room in between.
    image_loader._QUEUES_BYTES = 0
    with contextlib.closing(
        PictureStream(listed.files, (LARGE,), 1, CPU, emit=lambda log: warnings.append(log.message))
    ) as stream:
        made += [digest(stream.batches(work(listed, LARGE))) for _ in range(2)]
        workers.append(len(multiprocessing.active_children()))
    # Or between looking how much is free and taking it.
    image_loader._free_bytes = lambda: 1 << 40
    refused = image_loader._shared([torch.zeros(1 << 20, dtype=torch.uint8)])
    assert isinstance(refused, image_loader._NoRoom)
    return {"made": made, "workers": workers, "warnings": warnings, "refused": refused.reason}


def main() -> None:
    path = Path(sys.argv[2])
    listed = open_prepared(path.parent, path.stem)
    assert isinstance(listed, FilesDataset)
    sys.stdout.write(json.dumps(report(listed)))


if __name__ == "__main__":
    main()
