"""How many views ce and kd need: ``python -m tests.benchmarks.views [--json FILE] [--quick]``.

CIFAR-10 JPEGs and a published ResNet-56 as teacher. For each V both methods train on V views of ``crop_flip`` for the
same epochs, from the same seeds: epoch e on view e mod V. ``fresh`` is a view for every epoch: V = epochs, cached for
kd as well. All runs of a V go through ``workers.pipeline.run_job``, in groups of one seed.

Top-1 is of the last epoch on the test split. Of the differences, which are paired by seed, the 95 % t interval is told.
"""

import argparse
import math
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import torch
from scipy import stats

from tests.benchmarks.bench import Options, show, write
from tests.conftest import SHARED
from workers.config.job import JobSpec, StudentSpec
from workers.config.schedules import CosineSchedule
from workers.config.task import Folders
from workers.config.teacher import Preprocessing, TeacherSpec
from workers.config.training import Sgd, Training
from workers.config.views import CropFlip, Views
from workers.data.kinds.folder import FolderDataset
from workers.events import ignore, never
from workers.methods.catalog import parse_method
from workers.pipeline import run_job

PICTURES = SHARED / "data" / "cifar10-jpeg.tar.xz"
TEACHER = SHARED / "data" / "resnet56-cifar10.onnx"
METHODS = ("ce", "kd")
CLASSES = 10


@dataclass(frozen=True)
class Sizes:
    """What is trained.

    Attributes:
        pictures, test_pictures: of the two splits, as many of each class.
        views: the V to compare; one as large as ``epochs`` is ``fresh``.
    """

    pictures: int
    test_pictures: int
    epochs: int
    batch_size: int
    lr: float
    student: str
    views: tuple[int, ...]
    seeds: tuple[int, ...]

    def name(self, views: int) -> str:
        return "fresh" if views >= self.epochs else str(views)


def first_pictures(pictures: int, test_pictures: int) -> Iterator[tuple[Path, int, bytes]]:
    """Name (``SPLIT/CLASS/FILE``), number in its class from 0, and content of the first pictures of each class."""
    wanted = {"train": pictures // CLASSES, "test": test_pictures // CLASSES}
    found: Counter[Path] = Counter()
    with tarfile.open(PICTURES) as archive:
        for member in archive:
            name = Path(member.name)
            if name.suffix != ".jpg" or found[name.parent] >= wanted.get(name.parts[0], 0):
                continue
            file = archive.extractfile(member)
            assert file is not None
            yield name, found[name.parent], file.read()
            found[name.parent] += 1


def write_picture(path: Path, content: bytes) -> None:
    """Write a picture, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def unpack(folder: Path, sizes: Sizes) -> None:
    """Write the first pictures of each class of both splits."""
    for name, _, content in first_pictures(sizes.pictures, sizes.test_pictures):
        write_picture(folder / name, content)


def train(folder: Path, sizes: Sizes, views: int, threads: int) -> dict[str, list[float]]:
    """Top-1 of each method, a seed an item."""
    job = JobSpec(
        dataset=FolderDataset(path="cifar10"),
        views=Views(augmentation=CropFlip(pad=4), count=views),
        students=(StudentSpec(name=sizes.student),),
        methods=tuple(map(parse_method, METHODS)),
        seeds=sizes.seeds,
        training=Training(
            epochs=sizes.epochs,
            batch_size=sizes.batch_size,
            optimizer=Sgd(lr=sizes.lr),
            schedule=CosineSchedule(),
            warmup_epochs=sizes.epochs / 10,
            device="cpu",
        ),
        teacher=TeacherSpec(path=TEACHER, preprocessing=Preprocessing(size=(32, 32))),
    )
    folders = Folders(data_dir=folder / "data", data_root=folder)
    outcome = run_job(job, folders, folder / f"views-{views}", ignore, never, threads=threads)
    reached: dict[str, list[float]] = {method: [] for method in METHODS}
    for result in outcome.results:
        last = result["last"]
        assert isinstance(last, dict)
        assert result["views_seen"] == min(views, sizes.epochs)
        reached[str(result["method"])].append(float(last["top1"]))
    return reached


def told(values: list[float], *, signed: bool = False) -> str:
    """Mean and half of its 95 % t interval, in points."""
    text = f"{100 * mean(values):{'+' if signed else ''}.1f}"
    if len(values) < 2:
        return text
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return f"{text} ±{100 * half:.1f}"


def report(sizes: Sizes, reached: dict[int, dict[str, list[float]]]) -> None:
    """A row for each V: top-1 of ce and kd, and kd less ce."""
    rows = []
    for views, by_method in reached.items():
        gains = [kd - ce for ce, kd in zip(*(by_method[method] for method in METHODS), strict=True)]
        rows.append([sizes.name(views), *(told(by_method[method]) for method in METHODS), told(gains, signed=True)])
    seeds = f"{len(sizes.seeds)} seeds" if len(sizes.seeds) > 1 else "1 seed"
    print(
        f"Top-1 in % on {sizes.test_pictures:,} pictures after {sizes.epochs} epochs on {sizes.pictures:,}, "
        f"{sizes.student}, {seeds}, ± half of a 95 % t interval"
    )
    show(["V", *(f"{method}>" for method in METHODS), "kd - ce, by seed>"], rows)


def main() -> None:
    """Train and report."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--quick", action="store_true", help="200 pictures, 2 epochs, one seed: to see that it runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default %(default)s)")
    parser.add_argument("--pictures", type=int, default=4000, help="to train on (default %(default)s)")
    parser.add_argument("--test-pictures", type=int, default=5000, help="(default %(default)s)")
    parser.add_argument("--epochs", type=int, default=24, help="(default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="(default %(default)s)")
    parser.add_argument("--lr", type=float, default=0.2, help="of SGD, with a cosine (default %(default)s)")
    parser.add_argument("--student", default="resnet8", help="(default %(default)s)")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 3, 10], help="V beside fresh (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default %(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep pictures, caches and students there")
    given = parser.parse_args()
    if given.quick:
        given.pictures, given.test_pictures, given.epochs, given.views, given.seeds = 200, 100, 2, [1], [0]
    sizes = Sizes(
        pictures=given.pictures,
        test_pictures=given.test_pictures,
        epochs=given.epochs,
        batch_size=given.batch_size,
        lr=given.lr,
        student=given.student,
        views=(*(views for views in given.views if views < given.epochs), given.epochs),
        seeds=tuple(given.seeds),
    )
    if not PICTURES.is_file():
        sys.exit(f"This trains on {PICTURES.name}, which is not in {PICTURES.parent}")
    with TemporaryDirectory() as temporary:
        folder = given.work or Path(temporary)
        unpack(folder / "cifar10", sizes)
        reached = {}
        for views in sizes.views:
            reached[views] = train(folder, sizes, views, given.threads)
            print(
                f"V {sizes.name(views)}: {', '.join(f'{m} {told(v)}' for m, v in reached[views].items())}", flush=True
            )
    report(sizes, reached)
    figures = [{"views": views, "name": sizes.name(views), "top1": by_method} for views, by_method in reached.items()]
    write(
        Options(given.json, given.quick, torch.device("cpu")),
        {"benchmark": "views", "sizes": vars(sizes), "figures": figures},
    )


if __name__ == "__main__":
    main()
