"""A session on CUDA where there is none: it runs on the CPU, holds so many pictures at once, and can be told to err."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from workers.errors import OutOfMemory
from workers.onnx.checks.teacher_graph import FixedInput
from workers.onnx.sessions import session
from workers.onnx.sessions.session import CPU, CUDA_PROVIDER, OnnxSession
from workers.teacher import sessions

MEMORY_BYTES = 1 << 30
NAME = "Double H200"


@dataclass
class CudaDouble:
    """What the device is like, and what was asked of it.

    Attributes:
        rows_max: pictures at once that its memory holds.
        factor: of its outputs to those of the CPU.
        capability: of computation, as CUDA numbers it.
        cpu_operators: that its sessions leave to the CPU.
        calls: pictures of each run on it.
        options: of each of its sessions, as the CUDA provider is given them.
        cpu_sessions: that were opened beside it.
    """

    rows_max: int = 1 << 20
    factor: float = 1.0
    capability: tuple[int, int] = (9, 0)
    cpu_operators: Counter[str] = field(default_factory=Counter)
    calls: list[int] = field(default_factory=list)
    options: list[dict[str, str]] = field(default_factory=list)
    cpu_sessions: int = 0


def install(monkeypatch: pytest.MonkeyPatch) -> CudaDouble:
    """Let teachers find one GPU, of a GiB, with everything that they need to use it."""
    double = CudaDouble()

    class CudaSession(OnnxSession):
        def __init__(
            self,
            path: Path,
            input_name: str,
            output_name: str,
            *,
            fixed: Sequence[FixedInput] = (),
            threads: int | None,
            providers: Sequence[Any] = CPU,
        ) -> None:
            super().__init__(path, input_name, output_name, fixed=fixed, threads=threads)
            if providers is CPU:
                double.cpu_sessions += 1
                return
            double.options.append(providers[0][1])
            self.provider = CUDA_PROVIDER
            self.cpu_operators = double.cpu_operators

        def run(self, input_: NDArray[np.floating], timeout_s: float | None = None) -> NDArray[np.float32]:
            if self.provider != CUDA_PROVIDER:
                return super().run(input_, timeout_s)
            double.calls.append(len(input_))
            if len(input_) > double.rows_max:
                raise OutOfMemory(f"no memory for {len(input_)} pictures at once")
            return super().run(input_, timeout_s) * np.float32(double.factor)

    monkeypatch.setattr(sessions, "OnnxSession", CudaSession)
    see_a_device(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: double.capability)
    return double


def see_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch say that a GPU works."""
    monkeypatch.setattr(sessions, "cuda_failure", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(session, "load_cuda", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: NAME)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=MEMORY_BYTES))
