"""Dataset kinds: the registry is complete, and a kind that is registered is found everywhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from workers.data.dataset_kind import DatasetKind
from workers.data.kinds import registry
from workers.data.kinds.registry import KINDS, built_in_kinds, kind_classes

ROOT = Path(__file__).resolve().parents[2]


def test_a_registered_kind_is_found_everywhere() -> None:
    """In a process of its own, where it is registered before the description of a job is made of the registry."""
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.support.stripes"]
    done = subprocess.run([*line, "tests/support/stripes_walk.py"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout


def test_every_kind_in_the_folder_is_registered() -> None:
    folder = Path(registry.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "encoded", "registry"}
    assert files == {cls.__module__.rpartition(".")[2] for cls in kind_classes()}


@pytest.mark.parametrize("cls", kind_classes(), ids=lambda cls: cls.__name__)
def test_a_kind_documents_every_field(cls: type[DatasetKind]) -> None:
    assert set(cls.options) == set(cls.model_fields) - {"kind"}
    assert all(option.help.endswith(".") for option in cls.options.values())
    unset = {name for name, field in cls.model_fields.items() if not field.is_required() and field.default is None}
    assert {name for name, option in cls.options.items() if option.unset} == unset


def test_the_registry_has_every_value_of_kind() -> None:
    by_schema = [
        kind
        for cls in kind_classes()
        for schema in [cls.model_json_schema()["properties"]["kind"]]
        for kind in schema.get("enum", [schema.get("const")])
    ]
    assert list(KINDS) == by_schema
    assert built_in_kinds() == ("digits",)


def test_kinds_load_neither_numpy_nor_decoders() -> None:
    """The command line lists them in its help."""
    heavy = {"numpy", "PIL", "torch", "simplejpeg", "store", "workers.events"}
    code = f"import sys, {registry.__name__}; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not done.stdout.strip()
