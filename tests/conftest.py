"""Fixtures that several test files use: the shared data beside the checkout, and quiet threads."""

import gc
import logging
import os
import re
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from workers.garbage import collection_paused

if TYPE_CHECKING:
    from tests.fake_cuda.processes import FakeCuda
    from tests.support.digits import Digits


# Two cores are shared by everything a test starts; libraries read this when they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every process that a test starts would compile Retort anew, and every worker of xdist all of the tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that runs the tests in the background has them ignore Ctrl-C, nohup the end of the terminal, and what they
# start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long a drawn example takes says how busy the machine is.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def selects_gpu(marks: str) -> bool:
    """Whether ``-m`` asks for tests that need a GPU: it names the mark, and is true of such a test, slow or not."""
    if not re.search(r"\bgpu\b", marks):
        return False
    # The language of -m is Python's, with the names of marks.
    return any(
        eval(marks, {"__builtins__": {}}, defaultdict(bool, gpu=True, slow=slow, fake_cuda=False))
        for slow in (False, True)
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hide a machine's GPUs, unless the tests that need one are asked for: no other test is to move there unseen.

    From this process and from all that it starts, before either loads torch.
    """
    if not selects_gpu(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@cache
def sees_gpu() -> bool:
    """Whether torch sees a CUDA device, in this process."""
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none: ``-m gpu`` names such tests, and does not bring one."""
    if item.get_closest_marker("gpu") is not None and not sees_gpu():
        pytest.skip("torch sees no CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage among the modules and tests that are collected, nor ever after: they stay."""
    with collection_paused():
        collected = yield
    gc.freeze()
    return collected


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that ask for more time first: at the end one core would wait while the other runs the last of them."""

    def is_short(item: pytest.Item) -> bool:
        module = item.getparent(pytest.Module)
        return module is None or module.get_closest_marker("timeout") is None

    items.sort(key=is_short)


@pytest.fixture(autouse=True)
def _no_umask_outlives_its_test() -> Iterator[None]:
    """Opening a service's database in this process makes all files that follow private."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def _no_logging_outlives_its_test() -> Iterator[None]:
    """A command that sets up logging in this process leaves a handler on a stream that pytest has closed, and takes
    warnings down, which it would not do again: pytest has put its own way of showing them back in place meanwhile."""
    before = logging.root.handlers[:]
    yield
    logging.captureWarnings(False)
    for handler in logging.root.handlers[:]:
        if handler not in before:
            logging.root.removeHandler(handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with published teachers and real CIFAR-10; tests that want it skip without it."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data folder beside the checkout")
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> "Digits":
    """Real digits, a teacher trained on them for seconds, and its complete caches; made once for all workers."""
    from tests.support.digits import copied_digits, make_digits

    root = tmp_path_factory.mktemp("digits")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return make_digits(root)
    return copied_digits(tmp_path_factory.getbasetemp().parent / "digits", root)


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process leave no student.onnx: to export it takes four times as long as to train on digits."""
    from workers.training.artifacts.onnx_export import Exported

    monkeypatch.setattr("workers.training.result.export_onnx", lambda *_: Exported(0.0, None))


@pytest.fixture(scope="session")
def fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> "FakeCuda":
    """A CUDA device without a GPU, built once for all workers of the session; skips where it cannot be built."""
    from tests.fake_cuda.build import build, why_not
    from tests.fake_cuda.processes import FakeCuda

    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    base = tmp_path_factory.getbasetemp()
    return FakeCuda(build((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "fake_cuda"))
