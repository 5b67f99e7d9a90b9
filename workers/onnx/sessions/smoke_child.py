"""Child of a smoke run; see ``workers.onnx.sessions.smoke_test``. Nothing else imports this file.

It loads ONNX Runtime and what that needs, and nothing of the store or of jobs: zarr would load whatever else a machine
has for it (CuPy), which then asks for what a confined process does not get.

Legend: B pictures, H x W pixels, C channels, N classes.
"""

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from workers.errors import InvalidTeacher, WorkerError
from workers.onnx.checks.batch_rules import NO_HINT
from workers.onnx.checks.teacher_graph import FixedInput
from workers.onnx.sessions.session import OnnxSession, versions
from workers.onnx.versions import TooNew, check_versions


class Trial(BaseModel):
    """Trial of a graph on noise.

    Attributes:
        picture: (H, W, C) of one.
        fixed: values of the inputs beside the pictures.
        batch: pictures per call if the graph fixes it.
        runs_alone: one picture per call is all that the graph will be given.
        classes: N if the graph declares it.
        ir_version, opset: of the file.
        batch_hint: what in the graph may make an output depend on the batch; empty if nothing is to be seen.
        tolerance: largest difference between alone and in a batch, relative to the largest output.
        timeout_s: for loading the file and all runs.
        tried: what begins a refusal.
    """

    path: Path
    input_name: str
    output_name: str
    fixed: tuple[FixedInput, ...]
    dtype: str
    picture: tuple[int, int, int]
    batch: int | None
    runs_alone: bool
    classes: int | None
    ir_version: int
    opset: int
    batch_hint: str
    layout: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tolerance: float
    timeout_s: float
    tried: str


def answer(**given: object) -> str | None:
    """Answer of the child: None if all is well, else the fault."""
    trial = Trial.model_validate(given)
    try:
        _try(trial)
    except TooNew as error:
        return str(error)
    except InvalidTeacher as error:
        return f"{trial.tried}{error}"
    except WorkerError as error:
        return f"{trial.tried}it needs too much memory: {error}"
    return None


def _try(trial: Trial) -> None:
    # ONNX Runtime reports it too, amid its own C++, and without the next step.
    check_versions(trial.ir_version, trial.opset, versions())
    deadline_s = time.monotonic() + trial.timeout_s
    session = OnnxSession(trial.path, trial.input_name, trial.output_name, fixed=trial.fixed, threads=1)
    pictures = _noise(trial, trial.batch or 2)

    def run(count: int) -> NDArray[np.float32]:
        output_BN = session.run(pictures[:count], max(0.0, deadline_s - time.monotonic()))
        if trial.classes not in (None, output_BN.shape[1]):
            raise InvalidTeacher(f"it has {output_BN.shape[1]} outputs for a picture, it declares {trial.classes}")
        if not np.isfinite(output_BN).all():
            raise InvalidTeacher("its output is not finite: it cannot be learned from")
        return output_BN

    if trial.batch is not None or trial.runs_alone:
        run(trial.batch or 1)
        return
    alone_BN, beside_BN = run(1), run(2)
    if alone_BN.shape[1] != beside_BN.shape[1]:
        raise InvalidTeacher(
            f"it has {alone_BN.shape[1]} outputs for one picture, {beside_BN.shape[1]} for each of two"
        )
    difference = float(np.abs(alone_BN[0] - beside_BN[0]).max(initial=0))
    allowed = trial.tolerance * float(np.abs(beside_BN).max(initial=0))
    if difference > allowed:
        raise InvalidTeacher(
            f"its output differs by {difference:.3g} from the same picture's beside another, {allowed:.3g} is allowed. "
            f"{trial.batch_hint or NO_HINT}"
        )


def _noise(trial: Trial, count: int) -> NDArray[np.number]:
    """The input for pictures of independent uniform bytes: [B, C, H, W] or [B, H, W, C], as the layout says."""
    bytes_BHWC = np.random.default_rng(0).integers(0, 256, (count, *trial.picture), dtype=np.uint8)
    mean, std = (np.asarray(values, np.float32) for values in (trial.mean, trial.std))
    x_BHWC = (bytes_BHWC * np.float32(trial.scale) - mean) / std
    laid_out = x_BHWC.transpose(0, 3, 1, 2) if trial.layout == "nchw" else x_BHWC
    return np.ascontiguousarray(laid_out, dtype=trial.dtype)
