"""Versions of ONNX files: which IR version and opset can be read here, and the refusal of a newer file.

A file states two numbers: its IR version (the format of the file, which onnx writes at its own newest unless told
otherwise) and its opset (the operators' definitions). onnx and ONNX Runtime each read files up to their own newest, and
ONNX Runtime follows onnx by some months. Light: the API process loads this file.
"""

import functools
import importlib.util

import onnx
from pydantic import BaseModel, ConfigDict

from workers.errors import InvalidTeacher, WorkerError
from workers.onnx.sandboxing import sandbox

RUNTIME_BYTES = 4 << 30  # of address space, for ONNX Runtime without a file


class Versions(BaseModel):
    """Versions of the newest file that a program reads.

    Attributes:
        program: its name and version, for a message.
        ir: IR version.
        opset: of the standard operators.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    program: str
    ir: int
    opset: int


ONNX = Versions(program=f"onnx {onnx.__version__}", ir=onnx.IR_VERSION, opset=onnx.defs.onnx_opset_version())


class TooNew(InvalidTeacher):
    """A file's IR version or opset is above what can be read here.

    Attributes:
        ir: IR version of the file.
        opset: of the standard operators, of the file.
    """

    def __init__(self, ir: int, opset: int, accepted: Versions) -> None:
        self.ir, self.opset, self.accepted = ir, opset, accepted
        steps = []
        if opset > accepted.opset:
            steps.append(
                f"export it again with torch.onnx.export(..., opset_version={accepted.opset}) or a lower one, or "
                f"convert it: onnx.version_converter.convert_version(onnx.load(path), {accepted.opset})"
            )
        if ir > accepted.ir:
            steps.append(
                f"save it with a lower IR version: model = onnx.load(path); model.ir_version = {accepted.ir}; "
                "onnx.save(model, path)"
            )
        super().__init__(
            f"the file has IR version {ir} and opset {opset}, {accepted.program} here takes IR version {accepted.ir} "
            f"and opset {accepted.opset} at most. To use it, {'; and '.join(steps)}"
        )

    def __reduce__(self) -> tuple[type["TooNew"], tuple[int, int, Versions]]:
        return type(self), (self.ir, self.opset, self.accepted)


def check_versions(ir: int, opset: int, accepted: Versions) -> None:
    """Refuse a file that is too new.

    Args:
        ir: IR version of the file.
        opset: of the standard operators, of the file.

    Raises:
        TooNew: saying what the file has, what is taken here and how to make it so.
    """
    if ir > accepted.ir or opset > accepted.opset:
        raise TooNew(ir, opset, accepted)


def is_runtime_installed() -> bool:
    """Whether ONNX Runtime is installed here; it is not imported."""
    return importlib.util.find_spec("onnxruntime") is not None


@functools.cache
def runtime_versions() -> Versions:
    """Versions of the newest file that the ONNX Runtime installed here takes, asked in a child process: a second, once.

    Raises:
        WorkerError: the child gave no answer.
    """
    outcome = sandbox.call(
        "workers.onnx.sessions.session:answer_versions", {}, memory_bytes=RUNTIME_BYTES, timeout_s=60
    )
    if outcome.breach is not None:
        raise WorkerError(f"asking ONNX Runtime which versions it takes {outcome.breach}")
    return Versions.model_validate(outcome.value)
