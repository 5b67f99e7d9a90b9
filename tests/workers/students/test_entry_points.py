"""Students of another package: found by its entry point, built by name, and refused by name where it is broken."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

CATALOG = """
from workers.students.student_info import Network, StudentInfo

STUDENTS = (
    StudentInfo(
        name="mine/tiles",
        family="Tiles",
        summary="a linear layer on averages",
        paper="this package",
        parameters_100=4900,
        min_side=8,
        batch_norm=False,
        torchvision=False,
        network=Network("mine_networks", "Tiles", {"size": 4}),
    ),
)
"""
NETWORKS = """
from torch import nn

class Tiles(nn.Sequential):
    def __init__(self, classes, in_channels, size):
        super().__init__(nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.Linear(in_channels * size**2, classes))
"""
USE = """
import sys
from workers.config.job import Plan
from workers.students.catalog import describe

plan = Plan.model_validate({"dataset": {"kind": "digits"}, "students": ["mine/tiles"], "methods": ["ce"]})
names = [entry["name"] for entry in describe()]
light = "torch" not in sys.modules
from workers.students.trial import try_student

print(names.count("mine/tiles"), light, try_student("mine/tiles", 100, 3, (32, 32), batch=64, drop_path=None))
"""


def package(folder: Path, catalog: str, name: str = "mine") -> None:
    """An installed package with the entry point NAME."""
    (folder / "mine_catalog.py").write_text(catalog)
    (folder / "mine_package").mkdir()
    (folder / "mine_package" / "networks.py").write_text(NETWORKS)
    told = folder / "mine-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(f"[retort.students]\n{name} = mine_catalog:STUDENTS\n")


def use(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{folder}"}
    return subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, env=environment, check=False)


def test_students_of_another_package_are_listed_and_built(tmp_path: Path) -> None:
    package(tmp_path, CATALOG.replace('"mine_networks"', '"mine_package.networks"'))
    done = use(tmp_path)
    assert done.stdout == "1 True student 'mine/tiles' has 4,900 parameters for 100 classes\n", done.stderr


@pytest.mark.parametrize(
    ("catalog", "name", "message"),
    [
        ("STUDENTS = 1 / 0", "mine", "cannot be loaded: division by zero"),
        ("STUDENTS = ['resnet8']", "mine", "gives 'str': it is to be a sequence of StudentInfo"),
        (CATALOG, "yours", "gives a student 'mine/tiles': its name is to begin with 'yours/'"),
        (CATALOG, "mine", "'mine/tiles' is to have a Network whose module is named in full"),
        (CATALOG, "timm", "this prefix is taken"),
    ],
)
def test_students_of_a_broken_package_are_refused_by_name(
    catalog: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.errors import InvalidJob
    from workers.students.entry_points import students_of_packages

    package(tmp_path, catalog, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_catalog", raising=False)
    with pytest.raises(InvalidJob, match="entry point '") as caught:
        list(students_of_packages())
    assert message in str(caught.value)
