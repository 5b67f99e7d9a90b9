"""What pictures without labels are worth: ``python -m tests.benchmarks.unlabelled [--json FILE] [--quick]``.

CIFAR-10 JPEGs and a published ResNet-20 as teacher. So many pictures of each class have a label, the rest of the
training pictures have none. Compared are cross-entropy and distillation on the labelled pictures alone, distillation
on all with cross-entropy on the labelled ones, and distillation on all without a label. All take the same number of
optimizer steps, of batches as large as there are pictures for, on views of ``crop_flip``; ``ce`` sees a fresh view in
every epoch. All runs go through ``workers.pipeline.run_job``.

Top-1 is of the last epoch on a labelled test split.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import torch

from tests.benchmarks.bench import Options, show, write
from tests.benchmarks.views import CLASSES, PICTURES, first_pictures, told, write_picture
from tests.conftest import SHARED
from workers.config.job import JobSpec, StudentSpec
from workers.config.schedules import CosineSchedule
from workers.config.task import Folders
from workers.config.teacher import Preprocessing, TeacherSpec
from workers.config.training import Sgd, Training
from workers.config.views import CropFlip, Views
from workers.data.kinds.folder import UNLABELLED, FolderDataset
from workers.events import ignore, never
from workers.methods.catalog import parse_method
from workers.pipeline import run_job

# Of each labelled picture where it is trained on alone: an epoch of a hundred pictures would be spent on evaluation.
COPIES = 20
TEACHER = SHARED / "data" / "resnet20-cifar10.onnx"


@dataclass(frozen=True)
class Sizes:
    """What is trained.

    Attributes:
        labels: pictures of each class that have a label.
        pictures, test_pictures: of the two splits, as many of each class.
        epochs: over all training pictures; those over the labelled ones alone, of which the dataset has ``COPIES`` with
            views of their own, are so many more as make equal steps.
    """

    labels: int
    pictures: int
    test_pictures: int
    epochs: int
    batch_size: int
    lr: float
    student: str
    views: int
    seeds: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return self.epochs * -(-self.pictures // self.batch_size)


@dataclass(frozen=True)
class Case:
    """A line of the table.

    Attributes:
        folder: the dataset.
        pictures, labels: that it trains on.
    """

    name: str
    method: str
    folder: str
    pictures: int
    labels: int


def cases(sizes: Sizes) -> tuple[Case, ...]:
    """The lines of the table, the baseline first."""
    few = sizes.labels * CLASSES
    return (
        Case("ce, labelled pictures alone", "ce", "labelled", few, few),
        Case("kd, all pictures, labels for some", "kd", "mixed", sizes.pictures, few),
        Case("kd, all pictures, no label", "kd", "plain", sizes.pictures, 0),
        Case("kd, labelled pictures alone", "kd", "labelled", few, few),
    )


def unpack(folder: Path, sizes: Sizes) -> None:
    """Write the first pictures of each class of both splits as three datasets."""
    for name, number, content in first_pictures(sizes.pictures, sizes.test_pictures):
        unnamed = Path("train") / f"{name.parent.name}-{name.name}"
        if name.parts[0] == "test":
            targets = [Path(dataset) / name for dataset in ("labelled", "plain", "mixed")]
        elif number < sizes.labels:
            copies = [Path("labelled") / name.parent / f"{copy}-{unnamed.name}" for copy in range(COPIES)]
            targets = [*copies, Path("mixed") / name, Path("plain") / unnamed]
        else:
            targets = [Path("plain") / unnamed, Path("mixed/train") / UNLABELLED / unnamed.name]
        for target in targets:
            write_picture(folder / target, content)


def train(folder: Path, sizes: Sizes, case: Case, threads: int) -> list[float]:
    """Top-1 of a case, a seed an item."""
    shown = case.pictures * (COPIES if case.folder == "labelled" else 1)
    batch_size = min(sizes.batch_size, shown)
    epochs = max(1, round(sizes.steps / -(-shown // batch_size)))
    job = JobSpec(
        dataset=FolderDataset(path=case.folder),
        views=Views(augmentation=CropFlip(pad=4), count=sizes.views, fresh=True),
        students=(StudentSpec(name=sizes.student),),
        methods=(parse_method(case.method),),
        seeds=sizes.seeds,
        training=Training(
            epochs=epochs,
            batch_size=batch_size,
            optimizer=Sgd(lr=sizes.lr),
            schedule=CosineSchedule(),
            warmup_epochs=epochs / 10,
            device="cpu",
        ),
        teacher=TeacherSpec(path=TEACHER, preprocessing=Preprocessing(size=(32, 32))),
    )
    folders = Folders(data_dir=folder / "data", data_root=folder)
    outcome = run_job(job, folders, folder / case.folder / case.method, ignore, never, threads=threads)
    lines = [result["last"] for result in outcome.results]
    return [float(line["top1"]) for line in lines if isinstance(line, dict)]


def report(sizes: Sizes, reached: dict[Case, list[float]]) -> None:
    """A row for each case: top-1, and points above the first."""
    baseline = next(iter(reached.values()))
    rows = [
        [case.name, f"{case.labels:,}", f"{case.pictures:,}", told(top1), f"{100 * (mean(top1) - mean(baseline)):+.1f}"]
        for case, top1 in reached.items()
    ]
    print(
        f"Top-1 in % on {sizes.test_pictures:,} pictures after {sizes.steps:,} steps of up to {sizes.batch_size} "
        f"pictures, {sizes.student}, {len(sizes.seeds)} seed{'s' if len(sizes.seeds) > 1 else ''}"
    )
    show(["trained", "labels>", "pictures>", "top-1>", "less the first>"], rows)


def main() -> None:
    """Train and report."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--quick", action="store_true", help="200 pictures, 1 epoch, one seed: to see that it runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default %(default)s)")
    parser.add_argument("--labels", type=int, default=10, help="of each class (default %(default)s)")
    parser.add_argument("--pictures", type=int, default=10_000, help="to train on (default %(default)s)")
    parser.add_argument("--test-pictures", type=int, default=2000, help="(default %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="over all pictures (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="(default %(default)s)")
    parser.add_argument("--lr", type=float, default=0.1, help="of SGD, with a cosine (default %(default)s)")
    parser.add_argument("--student", default="cnn_s", help="(default %(default)s)")
    parser.add_argument("--views", type=int, default=2, help="that are cached (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default %(default)s)")
    given = parser.parse_args()
    if given.quick:
        given.labels, given.pictures, given.test_pictures, given.epochs, given.seeds = 2, 200, 100, 1, [0]
    sizes = Sizes(
        labels=given.labels,
        pictures=given.pictures,
        test_pictures=given.test_pictures,
        epochs=given.epochs,
        batch_size=given.batch_size,
        lr=given.lr,
        student=given.student,
        views=given.views,
        seeds=tuple(given.seeds),
    )
    if not PICTURES.is_file():
        sys.exit(f"This trains on {PICTURES.name}, which is not in {PICTURES.parent}")
    reached: dict[Case, list[float]] = {}
    with TemporaryDirectory() as temporary:
        unpack(Path(temporary), sizes)
        for case in cases(sizes):
            reached[case] = train(Path(temporary), sizes, case, given.threads)
            print(f"{case.name}: {told(reached[case])}", flush=True)
    report(sizes, reached)
    figures = [{**vars(case), "top1": top1} for case, top1 in reached.items()]
    write(
        Options(given.json, given.quick, torch.device("cpu")),
        {"benchmark": "unlabelled", "sizes": vars(sizes), "figures": figures},
    )


if __name__ == "__main__":
    main()
