"""Training batches of pictures that stay files: ``python -m tests.benchmarks.streaming [--json FILE] [--quick]``.

Four loops take the batches of an epoch and drop them. They take turns within one process. The first two share their
worker processes, as many as a run with so many threads has, and the third has as many of its own:

- pictures: ``TrainingFeed`` on files, without logits. A ``DataLoader`` whose workers read, decode and augment.
- gathered: the same workers, with a cache of two views; the loop gathers the logits itself from the mapped files.
- sent: a ``DataLoader`` like the first whose workers also gather the logits, and send them with the pictures.
- resident: ``TrainingFeed`` with the same cache on a decoded copy, which is mapped; it has no workers.

gathered / pictures is what the service keeps of the rate that the pictures alone would have. The small pictures are the
JPEGs of CIFAR-10 in ``shared/data`` beside the checkout, or else made up; the large ones are made up, of smooth colours
and noise. All files are in the page cache, and logits are random. With ``--device cuda`` batches end on the GPU.

Shapes: B batch, H x W pixels, K channels, C classes.
"""

import contextlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils import data

from store import CacheReader
from tests.benchmarks.bench import EITHER, Timing, interleaved, options, show, write
from tests.benchmarks.training import write_cache
from tests.conftest import SHARED
from workers.augmentation.apply import apply
from workers.augmentation.draw import draw
from workers.config.views import Augmentation, CropFlip, ResizedCrop, Views
from workers.data.kinds.folder import FolderDataset
from workers.data.preparation.image_files import PictureFiles
from workers.data.preparation.prepare import prepare
from workers.data.preparation.prepared import FilesDataset
from workers.training.feed.batches import epoch_order
from workers.training.feed.image_loader import Work, worker_processes
from workers.training.training_feed import TrainingFeed

BAR = 0.9
ROUNDS, QUICK_ROUNDS = 9, 3
LOOPS = ("pictures", "gathered", "sent", "resident")
PUBLISHED = SHARED / "data" / "cifar10-jpeg.tar.xz"


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        side: height and width of the pictures.
        batches: of an epoch.
    """

    side: int
    batch: int
    batches: int
    classes: int
    augmentation: Augmentation

    @property
    def title(self) -> str:
        return f"{self.side} x {self.side}, B={self.batch}, C={self.classes:,}"


CASES = (
    Case(side=32, batch=128, batches=60, classes=100, augmentation=CropFlip(pad=4)),
    Case(side=32, batch=128, batches=60, classes=1000, augmentation=CropFlip(pad=4)),
    Case(side=224, batch=64, batches=16, classes=1000, augmentation=ResizedCrop()),
)
QUICK_CASE = Case(side=32, batch=32, batches=4, classes=10, augmentation=CropFlip(pad=4))


@dataclass(frozen=True)
class Cell:
    """What was measured of a case: seconds of an epoch, the n-th of each loop in the same round."""

    case: Case
    picture_bytes: float
    epochs: dict[str, Timing]

    def ratios(self, loop: str, to: str = "pictures") -> list[float]:
        """Of the loops' rates, round by round."""
        return [b / a for a, b in zip(self.epochs[loop].seconds, self.epochs[to].seconds, strict=True)]

    def ratio(self, loop: str) -> float:
        return median(self.ratios(loop))

    def rate(self, loop: str) -> float:
        """Batches per second."""
        return self.case.batches / self.epochs[loop].median_s


# -------------------------------------------------------------------------------------------------------- what is timed


def write_pictures(folder: Path, case: Case) -> None:
    """JPEGs in two classes, with the same ones, fewer, for a test split."""
    wanted = case.batch * case.batches
    contents = published(wanted) if case.side == 32 and PUBLISHED.is_file() else made_up(wanted, case.side)
    for number, content in enumerate(contents):
        for split in ("train", "test") if number < 2 else ("train",):
            place = folder / "pictures" / split / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:06}.jpg").write_bytes(content)


def published(wanted: int) -> Iterator[bytes]:
    with tarfile.open(PUBLISHED) as archive:
        for member in archive:
            if member.name.endswith(".jpg") and wanted:
                file = archive.extractfile(member)
                assert file is not None
                yield file.read()
                wanted -= 1
            if not wanted:
                return


def made_up(wanted: int, side: int) -> Iterator[bytes]:
    generator = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        for _ in range(wanted):
            colours = Image.fromarray(generator.integers(0, 256, (7, 7, 3), dtype=np.uint8))
            smooth = np.asarray(colours.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
            noisy = smooth + generator.integers(-12, 13, (side, side, 1), dtype=np.int16)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=85)
            yield path.read_bytes()


class Sending(data.Dataset[tuple[Tensor, Tensor]]):
    """What a worker does that sends logits, too; it maps the cache for itself."""

    def __init__(self, files: PictureFiles, recipe: Augmentation, reader: CacheReader) -> None:
        self._files = files
        self._recipe = recipe
        self._reader = reader

    def __getitem__(self, work: tuple[int, Work]) -> tuple[Tensor, Tensor]:
        view, (rows_B, (drawn,)) = work
        plain = torch.from_numpy(self._files.take(rows_B))
        return apply(plain, self._recipe, drawn), torch.from_numpy(self._reader.gather(view, rows_B))


class Loops:
    """One epoch of each loop, whenever it is called."""

    def __init__(self, folder: Path, case: Case, processes: int, device: torch.device) -> None:
        plan = Views(augmentation=case.augmentation, count=2)
        spec = FolderDataset(path="pictures", storage="files")
        files = prepare(spec, "train", folder, folder / "files")
        assert isinstance(files, FilesDataset)
        copy = prepare(FolderDataset(path="pictures"), "train", folder, folder / "decoded")
        self._case, self._plan, self._files, self._device = case, plan, files, device
        caches = folder / "caches"
        self._reader = CacheReader(caches, write_cache(caches, files, plan, case.classes))
        self._epoch = 0

        def feed(dataset: object, reader: CacheReader | None) -> TrainingFeed:
            # One thread is the loop's.
            return TrainingFeed(dataset, plan, reader, case.batch, 0, device, threads=processes + 1)

        self._feeds = {
            "pictures": feed(files, None),
            "gathered": feed(files, self._reader),
            "resident": feed(copy, self._reader),
        }
        # The very same workers: what differs between two processes would pass for the cost of the logits.
        self._feeds["pictures"]._stream = self._feeds["gathered"]._stream
        self._sampler: list[tuple[int, Work]] = []
        self._sent = data.DataLoader(
            Sending(files.files, case.augmentation, self._reader),
            batch_size=None,
            sampler=self._sampler,
            num_workers=processes,
            persistent_workers=processes > 0,
            multiprocessing_context="spawn" if processes else None,
        )
        self.calls: dict[str, Callable[[], object]] = {
            **{name: partial(self._take, name) for name in self._feeds},
            "sent": self._take_sent,
        }

    def close(self) -> None:
        for feed in self._feeds.values():
            feed.close()
        del self._sent

    def _take(self, name: str) -> None:
        self._epoch += 1
        taken = sum(1 for _ in self._feeds[name].epoch(self._epoch))
        assert taken == self._case.batches

    def _take_sent(self) -> None:
        self._epoch += 1
        view, size = self._epoch % self._plan.count, self._files.height
        order_N: NDArray[np.int64] = epoch_order(self._files.samples, 0, self._epoch)
        drawn = draw(self._case.augmentation, self._plan.seed, view, order_N, size, size)
        parts = [slice(start, start + self._case.batch) for start in range(0, len(order_N), self._case.batch)]
        self._sampler[:] = [(view, (order_N[part], (drawn[part],))) for part in parts]
        labels_N = torch.from_numpy(self._files.labels_N)
        statistics = {name: torch.from_numpy(of_N[order_N]) for name, of_N in self._reader.statistics(view).items()}
        rows_N = torch.from_numpy(order_N)
        for part, sent in zip(parts, self._sent, strict=True):
            beside = (labels_N[rows_N[part]], *(of_N[part] for of_N in statistics.values()))
            _ = [tensor.to(self._device) for tensor in (*sent, *beside)]


def measure(case: Case, processes: int, rounds: int, device: torch.device) -> Cell:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, case)
        sizes = [path.stat().st_size for path in (folder / "pictures/train").rglob("*.jpg")]
        with contextlib.closing(Loops(folder, case, processes, device)) as loops:
            epochs = interleaved(loops.calls, rounds=rounds, device=device)
            return Cell(case, sum(sizes) / len(sizes), epochs)


# --------------------------------------------------------------------------------------------------------- what is told


def row(cell: Cell) -> list[str]:
    ratios = [f"{cell.ratio(loop):.3f} ±{Timing(cell.ratios(loop)).spread_s:.3f}" for loop in LOOPS[1:]]
    return [cell.case.title, *(f"{cell.rate(loop):.1f}" for loop in LOOPS), *ratios]


def verdict(cells: list[Cell]) -> str:
    missed = [f"{cell.case.title} ({cell.ratio('gathered'):.3f})" for cell in cells if cell.ratio("gathered") < BAR]
    return f"gathered is to keep {BAR:g} of pictures: {'missed by ' + '; '.join(missed) if missed else 'all rows hold'}"


def as_json(cell: Cell) -> dict[str, object]:
    """The row's figures; times in seconds."""
    case = cell.case
    return {
        "side": case.side,
        "batch": case.batch,
        "batches": case.batches,
        "classes": case.classes,
        "picture_bytes": cell.picture_bytes,
        "epochs_s": {loop: cell.epochs[loop].seconds for loop in LOOPS},
        "of_pictures": {loop: cell.ratio(loop) for loop in LOOPS},
        "of_pictures_spread": {loop: Timing(cell.ratios(loop)).spread_s for loop in LOOPS},
    }


def main() -> None:
    given = options("Batches of pictures that stay files, with and without cached logits.", devices=EITHER)
    processes = worker_processes(torch.get_num_threads())
    cases, rounds = ((QUICK_CASE,), QUICK_ROUNDS) if given.quick else (CASES, ROUNDS)
    cells = [measure(case, processes, rounds, given.device) for case in cases]
    print(
        f"Batches per second, and of the rate of pictures alone: medians of {rounds} epochs, ± half the interquartile "
        f"range round by round; {processes} worker processes"
    )
    show(["", *(f"{loop}>" for loop in LOOPS), *(f"{loop}/pictures>" for loop in LOOPS[1:])], map(row, cells))
    print(verdict(cells))
    write(given, {"benchmark": "streaming", "processes": processes, "cells": [as_json(cell) for cell in cells]})


if __name__ == "__main__":
    main()
