"""Process that imports logits: it decodes the dataset if need be, and writes the cache. Light: the API starts it.

It is a process of its own, since decoding and writing take memory and minutes, and dies with the one that has started
it. What is half written then is completed when the same logits come again.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from store.errors import DiskFull, QuotaExceeded
from workers.errors import (
    ContractViolation,
    DiskLow,
    InvalidDataset,
    InvalidJob,
    InvalidLogits,
    InvalidTeacher,
    UserError,
    WorkerError,
)
from workers.onnx.sandboxing.sandbox import last_lines
from workers.teacher.imports.request import ImportedCache, ImportTask

# Errors that the process tells, by their names; all others are faults of the service.
_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error
    for error in (
        *(ContractViolation, DiskFull, DiskLow, InvalidDataset, InvalidJob, InvalidLogits, InvalidTeacher),
        *(QuotaExceeded, UserError),
    )
}
_ROOT = Path(__file__).resolve().parents[3]


class ImportAnswer(BaseModel):
    """Answer of the process: what was imported, or the name and message of the error that says why not."""

    model_config = ConfigDict(extra="forbid")

    imported: ImportedCache | None = None
    error: str = ""
    message: str = ""

    @classmethod
    def of_error(cls, error: Exception) -> "ImportAnswer":
        """Answer of an error; the nearest of its classes that is told."""
        names = (base.__name__ for base in type(error).__mro__ if base.__name__ in _ERRORS)
        return cls(error=next(names, type(error).__name__), message=str(error))


def import_in_process(task: ImportTask, timeout_s: float) -> ImportedCache:
    """Import the rows of an upload in a process of its own.

    Raises:
        InvalidLogits, InvalidDataset, ContractViolation, DiskLow, store.StoreError: as ``import_cache``.
        WorkerError: the process took too long, or failed for a reason that is not the upload's.
    """
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "workers.teacher.imports", str(os.getpid())]
    try:
        done = subprocess.run(
            command,
            input=task.model_dump_json().encode(),
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None:
        raise InvalidLogits(
            f"importing took more than {timeout_s:g} s (RETORT_IMPORT_TIMEOUT_S), decoding the dataset included: raise "
            "it, or decode the dataset first: `retort datasets prepare`"
        )
    answer = None
    with contextlib.suppress(ValidationError):
        answer = ImportAnswer.model_validate_json(done.stdout)
    if answer is not None and answer.imported is not None:
        return answer.imported
    if answer is not None and answer.error in _ERRORS:
        raise _ERRORS[answer.error](answer.message)
    told = last_lines(done.stderr) if answer is None else f"{answer.error}: {answer.message}"
    raise WorkerError(f"the process that imports logits failed (exit status {done.returncode}): {told}")
