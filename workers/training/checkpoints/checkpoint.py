"""Checkpoints of a run: written atomically, and taken up by the run that they were made for alone."""

import contextlib
import errno
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.config.task import TrainingTask
from workers.disk_errors import disk_error
from workers.events import Emit, Log, ignore
from workers.files import replacing
from workers.run_files import CHECKPOINT
from workers.training.checkpoints.host_copy import to_host

# One of another number is not taken up.
_FORMAT = 4


def checkpoint_identity(task: TrainingTask) -> str:
    """Hash what a checkpoint must share with a task to be taken up: all but folders, resources, export and reports."""
    elsewhere = {"folders", "folder", "earlier", "told_epoch", "threads", "checkpoint_s", "rank"}
    elsewhere |= {"has_gpu_share", "memory_fraction", "stage", "teacher_accuracy", "export", "origin", "extends"}
    text = f"{_FORMAT} {task.model_dump_json(exclude=elsewhere)}"
    return hashlib.sha256(text.encode()).hexdigest()


def save_checkpoint(folder: Path, state: Mapping[str, object]) -> None:
    """Replace ``folder/checkpoint.pt`` atomically: a kill at any moment leaves the old or the new.

    Raises:
        DiskLow: no room for it; the old one stays.
    """
    tensors: list[Tensor] = []
    _with_tensors(state, tensors.append)
    on_host = iter(to_host(tensors))
    # By way of memory, because torch's own writer turns a full disk into an internal error.
    content = io.BytesIO()
    torch.save(_with_tensors(state, lambda _: next(on_host)), content)
    buffer = content.getbuffer()
    with replacing(folder / CHECKPOINT, f"a checkpoint of {buffer.nbytes:,} bytes") as file:
        file.write(buffer)


def remove_checkpoints(folders: Sequence[Path]) -> None:
    """Remove the checkpoints of these attempts; a folder may be gone as a whole."""
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            (folder / CHECKPOINT).unlink()


def _with_tensors(value: object, change: Callable[[Tensor], object]) -> object:
    """A copy of nested dictionaries in which ``change`` was called on every tensor, in order."""
    if isinstance(value, Mapping):
        return {key: _with_tensors(part, change) for key, part in value.items()}
    return change(value) if isinstance(value, Tensor) else value


def load_checkpoint(folders: Sequence[Path], identity: str, emit: Emit = ignore) -> dict[str, Any] | None:
    """The checkpoint with the most epochs and steps among the attempts' folders, or None.

    One that cannot be read, or was made for another run (``identity``) or by another version, is passed over: what it
    held is then trained again. Where there are only such, a warning says so.
    """
    farthest: dict[str, Any] | None = None
    passed_over = 0
    for folder in folders:
        path = folder / CHECKPOINT
        if not path.is_file():
            continue
        passed_over += 1
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            if _is_of_the_machine(error):
                # The file may be whole: what it holds is not to be trained again, and the file then removed for what
                # was trained instead, because a disk stutters or memory is short.
                raise
            # A damaged file makes torch raise whatever its parts raise: KeyError, UnpicklingError, EOFError ...
            continue
        if state.get("identity") == identity and (farthest is None or _place(state) > _place(farthest)):
            farthest = state
    if farthest is None and passed_over:
        why = "damaged, or made by another version or for another run"
        emit(Log(level="warning", message=f"{passed_over} checkpoints are passed over ({why}): trained from epoch 1"))
    return farthest


def _is_of_the_machine(error: Exception) -> bool:
    """Whether a file could not be read although it may be whole."""
    if isinstance(error, OSError):
        # EINVAL is what seeking in a damaged file comes to; one that is gone holds nothing.
        return error.errno not in {None, errno.EINVAL, errno.ENOENT}
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or disk_error(error) is not None


def _place(state: Mapping[str, Any]) -> tuple[int, int]:
    return state["epoch"], state["sums"]["steps"]
