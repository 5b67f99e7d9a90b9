"""``make test`` on a machine with a GPU: the tests do not see it, unless those that need it are asked for."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import selects_gpu
from tests.fake_cuda.processes import FakeCuda

ROOT = Path(__file__).parents[2]

# The runtime itself, for torch takes seconds to import. A machine's devices are hidden from children, too.
SEES = """
import ctypes, subprocess, sys, pytest

COUNT = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).cudaGetDeviceCount(ctypes.byref(n)); print(n.value)"

{mark}
def test_devices():
    here = ctypes.c_int()
    ctypes.CDLL(None).cudaGetDeviceCount(ctypes.byref(here))
    there = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True).stdout
    assert (here.value, int(there)) == ({expected}, {expected})
"""


@pytest.mark.fake_cuda
@pytest.mark.parametrize(
    ("mark", "options", "expected"), [("", [], 0), ("@pytest.mark.gpu", ["-m", "gpu"], 2)], ids=["make test", "-m gpu"]
)
def test_conftest_hides_a_machines_devices_unless_the_gpu_tests_are_asked_for(
    mark: str, options: list[str], expected: int, fake_cuda: FakeCuda, tmp_path: Path
) -> None:
    text = SEES.format(mark=mark, expected=expected)
    done = pytest_of(text, tmp_path, *options, environment=fake_cuda.environment(FAKE_CUDA_DEVICES="2"))
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_conftest_skips_the_gpu_tests_with_a_reason_where_there_is_no_gpu(tmp_path: Path) -> None:
    text = SEES.format(mark="@pytest.mark.gpu", expected=1)
    done = pytest_of(text, tmp_path, "-m", "gpu", environment={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("SKIPPED .* torch sees no CUDA device", done.stdout)


def pytest_of(
    text: str, folder: Path, *options: str, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run pytest on a file with this text, with the repository's settings and conftest."""
    path = folder / "test_sees.py"
    path.write_text(text)
    config = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-p", "tests.conftest"]
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *config, *options, str(path)]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("marks", "selects"),
    [
        ("", False),
        ("slow", False),
        ("not slow and not gpu", False),
        ("not (slow or gpu)", False),
        ("gpu", True),
        ("gpu and slow", True),
        ("slow or gpu", True),
        ("gpu and not slow", True),
    ],
)
def test_selects_gpu_reads_the_expression_of_marks(marks: str, selects: bool) -> None:
    assert selects_gpu(marks) == selects
