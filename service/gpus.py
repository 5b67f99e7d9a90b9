"""Do the GPUs work that are promised to runs? Tried in processes of their own; this one loads no torch and no CUDA.

The engine asks when it starts, and again when work has ended because its GPU does not work; it writes the answer into
its row of the database, where health, readiness and the doctor read it.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

PROBE_S = 95.0
RETRY_S = 60.0
STARTING = "the engine is starting: it has not counted and tried its GPUs yet"
_POLL_S = 0.1
_ROOT = Path(__file__).resolve().parents[1]


def probe_command(*what: str) -> tuple[list[str], dict[str, str]]:
    """Command line and environment that try one of the engine's packages, see ``workers.tools.probe``."""
    path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    return [sys.executable, "-m", "workers.tools.probe", *what], {**os.environ, "PYTHONPATH": path}


class GpuReport(BaseModel):
    """Report of a trial of the GPUs.

    Attributes:
        promised: GPUs that the scheduler hands out.
        names: of those that CUDA shows.
        memory_bytes: of the smallest of them.
        failure: why not all that are promised work; None if they do.
        is_tried: whether that is known; not while the engine starts.
    """

    model_config = ConfigDict(frozen=True)

    promised: int
    names: tuple[str, ...] = ()
    memory_bytes: int | None = None
    failure: str | None = None
    is_tried: bool = True

    @property
    def reason(self) -> str | None:
        """Reason why this engine cannot use its GPUs, for health and readiness."""
        if not self.is_tried:
            return STARTING
        if self.failure is None:
            return None
        subject = "a GPU is" if self.promised == 1 else f"{self.promised} GPUs are"
        what = "none works" if not self.names else "not all of them work"
        return (
            f"{subject} promised to runs and {what}: {self.failure}. Their work fails instead of taking the CPU; "
            "`retort doctor` says more, RETORT_GPUS=0 chooses the CPU"
        )

    @classmethod
    def of_probe(cls, promised: int, told: Mapping[str, Any]) -> Self:
        """From what ``workers.tools.probe gpus`` has said."""
        names, failure = tuple(told["names"][:promised]), told["failure"]
        if failure is None and len(names) < promised:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            limit = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
            failure = f"CUDA shows {len(names)} of them{limit}"
        return cls(promised=promised, names=names, memory_bytes=told["memory_bytes"], failure=failure)


def gpu_reason(stored: object) -> str | None:
    """``GpuReport.reason`` of what an engine has stored; None for an engine that has stored nothing (yet)."""
    if stored is None:
        return None
    try:
        return GpuReport.model_validate(stored).reason
    except ValidationError:
        return None


class GpuWatch:
    """Tries the GPUs of an engine, one process at a time.

    Args:
        promised: how many the scheduler hands out; with none of them nothing is ever tried.

    Attributes:
        report: the newest one; None until the first one is there.
    """

    def __init__(self, promised: int) -> None:
        self.report = None if promised else GpuReport(promised=0)
        self._promised = promised
        self._process: subprocess.Popen[str] | None = None
        self._begun_s = 0.0

    def begin(self) -> None:
        """Try them, unless that is being done."""
        if not self._promised or self._process is not None:
            return
        line, environment = probe_command("gpus", str(self._promised))
        self._begun_s = time.monotonic()
        self._process = subprocess.Popen(
            line,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def begin_again(self) -> None:
        """Try them again, a while after it was found that they do not work: a driver can be mended meanwhile."""
        is_broken = self.report is not None and self.report.reason is not None
        if is_broken and time.monotonic() - self._begun_s > RETRY_S:
            self.begin()

    def poll(self) -> GpuReport | None:
        """A new report, once; hardly waits."""
        process = self._process
        if process is None:
            return None
        try:
            # What it has said until now is kept for the next call. Without any time it would not look.
            out, err = process.communicate(timeout=0.01)
        except subprocess.TimeoutExpired:
            if time.monotonic() - self._begun_s < PROBE_S:
                return None
            self.close()
            self.report = GpuReport(promised=self._promised, failure=f"trying them took longer than {PROBE_S:g} s")
            return self.report
        self._process = None
        if process.returncode:
            last = next((text.strip() for text in reversed(err.splitlines()) if text.strip()), "nothing")
            failure = f"trying them ended with status {process.returncode}, and said: {last}"
            self.report = GpuReport(promised=self._promised, failure=failure)
        else:
            self.report = GpuReport.of_probe(self._promised, json.loads(out.splitlines()[-1]))
        return self.report

    def wait(self, ending: threading.Event) -> GpuReport | None:
        """The report of the attempt that is under way; None if there is none, or once ``ending`` is set."""
        while self._process is not None:
            if (report := self.poll()) is not None:
                return report
            if ending.wait(_POLL_S):
                return None
        return None

    def close(self) -> None:
        """End the attempt that is under way."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
