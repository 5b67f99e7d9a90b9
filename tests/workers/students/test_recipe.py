"""The recipe "Add a student family" of workers/README.md: one file and one entry of the catalog make a family."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

# What a reader of the recipe would add, and nothing more.
FILE = '''"""Average colours."""

from torch import Tensor, nn


class Averages(nn.Module):
    """A linear layer on the averages of ``size`` x ``size`` tiles."""

    def __init__(self, classes: int, in_channels: int, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.Linear(in_channels * size**2, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
'''
ENTRY = """    _cifar("averages", "Averages", _OWN, 4_900, 0.1, "tiles", Network("averages", "Averages", {"size": 4})),
"""
USE = """
import torch
from tests.repository.documents import students
from workers.config.job import Plan
from workers.students.build import build_student
from workers.students.catalog import check_image_side, describe

plan = Plan.model_validate({"dataset": {"kind": "digits"}, "students": ["averages"], "methods": ["ce"]})
logits = build_student(plan.students[0].name, 100)(torch.zeros(2, 3, 32, 32))
print(list(logits.shape), "averages" in [entry["name"] for entry in describe()], "`averages`" in students())
"""


def test_student_family_is_added_by_following_the_recipe(tmp_path: Path) -> None:
    for layer in ("store", "workers", "service", "tests/repository"):
        shutil.copytree(ROOT / layer, tmp_path / layer, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests/__init__.py").touch()
    catalog = tmp_path / "workers/students/cifar_catalog.py"
    before = '    _cifar(\n        "cnn_s",'
    assert catalog.read_text().count(before) == 1
    catalog.write_text(catalog.read_text().replace(before, ENTRY + before))
    (tmp_path / "workers/students/averages.py").write_text(FILE)
    line = [sys.executable, "-c", USE]
    done = subprocess.run(
        line, capture_output=True, text=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[2, 100] True True\n"
