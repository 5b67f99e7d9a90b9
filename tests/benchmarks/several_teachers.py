"""What a combination of teachers is worth: ``python -m tests.benchmarks.several_teachers [--json FILE] [--quick]``.

The published ResNet-56 and ResNet-20 of CIFAR-10 are evaluated on JPEGs of the test split, each alone and combined in
either space and by every kind of weights, by jobs that train nothing (``"evaluate": true``). The second and every later
job reads the caches of the first ones: the teachers are run once on every picture.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tests.benchmarks.bench import Options, show, write
from tests.benchmarks.views import CLASSES, PICTURES, Sizes, unpack
from tests.conftest import SHARED
from workers.config.combination import Combination, WeightedTeacher
from workers.config.job import JobSpec
from workers.config.task import Folders
from workers.config.teacher import Preprocessing
from workers.config.training import Training
from workers.data.kinds.folder import FolderDataset
from workers.events import ignore, never
from workers.pipeline import run_job

NETWORKS = ("resnet56", "resnet20")
# Of the training split, which nothing is trained on: the preflight looks at some.
TRAINING_PICTURES = 500
COMBINATIONS: tuple[dict[str, Any], ...] = (
    {"space": "logits"},
    {"space": "probabilities"},
    {"space": "logits", "weights": "confidence"},
    {"space": "probabilities", "weights": "confidence"},
    {"space": "logits", "weights": {"expression": "1 / std"}},
)


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes:
        top1, nll, ece: on the test split.
        forwards: pictures that a teacher was run on for it, the preflight included.
    """

    name: str
    top1: float
    nll: float
    ece: float
    forwards: int


def teacher(network: str) -> WeightedTeacher:
    """One of the published networks."""
    path = SHARED / "data" / f"{network}-cifar10.onnx"
    return WeightedTeacher(path=path, preprocessing=Preprocessing(size=(32, 32)), name=network)


def evaluate(folder: Path, name: str, combination: dict[str, Any] | None, networks: tuple[str, ...]) -> Figure:
    """Evaluate one network, or several as one."""
    members = tuple(teacher(network) for network in networks)
    chosen: dict[str, Any] = {"teacher": members[0].alone}
    if combination is not None:
        chosen = {"teachers": members, "combine": Combination.model_validate(combination)}
    job = JobSpec(dataset=FolderDataset(path="cifar10"), evaluate=True, training=Training(device="cpu"), **{**chosen})
    folders = Folders(data_dir=folder / "data", data_root=folder)
    outcome = run_job(job, folders, folder / "out", ignore, never, threads=torch.get_num_threads())
    found: Any = outcome.teacher_metrics["test"]
    return Figure(name, found["top1"], found["nll"], found["ece"], outcome.teacher_forwards)


def figures_of(folder: Path, test_pictures: int) -> list[Figure]:
    """Unpack so many test pictures, and evaluate every network and every combination on them."""
    sizes = Sizes(TRAINING_PICTURES, test_pictures, 1, 1, lr=0.1, student="", views=(1,), seeds=())
    unpack(folder / "cifar10", sizes)
    alone = [evaluate(folder, network, None, (network,)) for network in NETWORKS]
    return alone + [evaluate(folder, _name(each), each, NETWORKS) for each in COMBINATIONS]


def _name(combination: dict[str, Any]) -> str:
    weights = combination.get("weights", "fixed")
    shown = f"expression {weights['expression']}" if isinstance(weights, dict) else weights
    return f"both, {combination['space']}, {shown}"


def main() -> None:
    """Evaluate and report."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--quick", action="store_true", help="100 test pictures: to see that it runs")
    parser.add_argument("--test-pictures", type=int, default=2000, help="(default %(default)s)")
    given = parser.parse_args()
    if not PICTURES.is_file():
        sys.exit(f"This evaluates on {PICTURES.name}, which is not in {PICTURES.parent}")
    test_pictures = 10 * CLASSES if given.quick else given.test_pictures
    with TemporaryDirectory() as temporary:
        figures = figures_of(Path(temporary), test_pictures)
    rows = [
        [each.name, f"{100 * each.top1:.2f}", f"{each.nll:.4f}", f"{each.ece:.4f}", f"{each.forwards:,}"]
        for each in figures
    ]
    show(["teacher", "top-1 %>", "NLL>", "ECE>", "forwards>"], rows)
    write(
        Options(given.json, given.quick, torch.device("cpu")),
        {"benchmark": "several_teachers", "test_pictures": test_pictures, "figures": [vars(each) for each in figures]},
    )


if __name__ == "__main__":
    main()
