"""Processes on the fake CUDA device."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.fake_cuda.build import RUNTIME
from workers.garbage import collection_paused

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 800


class FakeFailed(AssertionError):
    """What was called on the fake device has raised; says what the process said."""


@dataclass(frozen=True)
class FakeCuda:
    """The fake CUDA device.

    Attributes:
        libraries: the folder that ``build`` has filled.
    """

    libraries: Path

    def environment(self, **settings: str) -> dict[str, str]:
        """This process's environment, for processes on the fake device.

        Args:
            settings: more variables; of the fake's own, with what they are otherwise: ``FAKE_CUDA_DEVICES`` (1),
                ``FAKE_CUDA_MEMORY_MIB`` of each device (144384; an allocation beyond it fails), ``FAKE_CUDA_DRIVER``
                (the runtime's version, 13020 for 13.2; one of an earlier major version is too old, 0 is none).
        """
        # conftest hides a real machine's devices.
        inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        return {
            **inherited,
            "LD_PRELOAD": str(self.libraries / RUNTIME),
            "LD_LIBRARY_PATH": str(self.libraries),
            "RETORT_GPUS": settings.get("FAKE_CUDA_DEVICES", "1"),
            **settings,
        }

    def call(self, function: Callable[..., dict[str, Any]], *arguments: object, **settings: str) -> dict[str, Any]:
        """Call a module's function in a process on the fake device.

        Args:
            function: takes JSON and returns JSON.
            settings: of ``environment``.

        Raises:
            FakeFailed: it has raised, or was ended.
        """
        with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
            name = f"{function.__module__}:{function.__qualname__}"
            done = subprocess.run(
                [sys.executable, "-m", __name__, name, json.dumps(arguments), answer.name],
                env=self.environment(**settings),
                cwd=_ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
            if done.returncode:
                raise FakeFailed(f"{name} ended with {done.returncode}:\n{done.stdout[-6000:]}")
            result: dict[str, Any] = json.load(answer)
            return result


def main() -> int:
    """``python -m tests.fake_cuda.processes MODULE:FUNCTION ARGUMENTS ANSWER``, as ``FakeCuda.call`` starts it."""
    name, arguments, answer = sys.argv[1:]
    module, _, function = name.partition(":")
    with collection_paused():
        called = getattr(import_module(module), function)
    result = called(*json.loads(arguments))
    Path(answer).write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
