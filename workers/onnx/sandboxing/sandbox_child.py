"""Child of the sandbox: a fresh interpreter that confines itself and then calls a function."""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workers.onnx.sandboxing.confinement import Bounds, confine, die_with_parent

ROOT = Path(__file__).resolve().parents[3]
# Paths that Python, NumPy and ONNX Runtime read besides Python's own folders: libraries, and what the processor can do.
_SYSTEM_FILES = ("/lib", "/lib64", "/usr/lib", "/etc/ld.so.cache", "/proc/cpuinfo", "/sys/devices/system")
# Paths that CUDA reads besides: which devices there are, how memory is laid out, and the driver's own settings. Of
# other processes Landlock shows nothing but their names.
_GPU_FILES = ("/proc", "/sys", "/dev/null", "/dev/zero", "/dev/urandom", "/usr/local", "/usr/share/nvidia", "/opt")


def child(request_json: str) -> None:
    """Confine this process, call the function and write the answer; then the child ends."""
    request = json.loads(request_json)
    answers = _prepare(request)
    answer: dict[str, Any] = {"missing": _confine(request)}
    try:
        answer["value"] = _imported(request["target"])(**request["arguments"])
    except MemoryError:
        pass
    except Exception as error:
        answer["raised"] = f"{type(error).__name__}: {error}"
    with os.fdopen(answers, "wb") as stream:
        stream.write(json.dumps(answer).encode())


def server(request_json: str) -> None:
    """Confine this process and have the function answer requests; then the child ends."""
    request = json.loads(request_json)
    answers = _prepare(request)
    _answer_requests(request, answers, _confine(request))


def free_server(request_json: str) -> None:
    """Serve requests as ``server`` does, without confinement."""
    request = json.loads(request_json)
    _answer_requests(request, _prepare(request), ["confinement (it was started without)"])


def _answer_requests(request: Mapping[str, Any], answers: int, missing: list[str]) -> None:
    with os.fdopen(0, "rb", closefd=False) as requests, os.fdopen(answers, "wb") as stream:
        _imported(request["target"])(requests, stream, missing, **request["arguments"])


def _imported(target: str) -> Callable[..., Any]:
    module, function = target.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _prepare(request: Mapping[str, Any]) -> int:
    """Tie this process to its parent; returns the descriptor for its answers."""
    die_with_parent(request["parent"])
    # Where the machine has no memory left, the kernel ends this process before any of the service's.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # Libraries print to the standard output, too; theirs goes nowhere.
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return answers


def _confine(request: Mapping[str, Any]) -> list[str]:
    """Confine this process; returns the missing parts of the confinement."""
    bounds = Bounds(*request["bounds"])
    folders = [Path(name) for name in (*sys.path, sys.prefix, sys.base_prefix) if Path(name) != ROOT]
    libraries = [Path(name) for name in os.environ.get("LD_LIBRARY_PATH", "").split(":") if name]
    own = [ROOT / package for package in ("store", "workers")]
    system = [Path(name) for name in (*_SYSTEM_FILES, *(_GPU_FILES if bounds.gpu else ()))]
    return confine(bounds, [*own, *folders, *libraries, *system, *map(Path, request["readable"])])
