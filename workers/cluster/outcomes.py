"""Outcome of work on the cluster, as text from its process, and the share of the machine that it holds. Without Ray.

An exception class that cannot be pickled kills an actor's reply, so errors cross processes as text.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal, ParamSpec

from pydantic import BaseModel, ConfigDict, model_validator

from store import StoreError
from workers.disk_errors import disk_error
from workers.errors import (
    BatchOverdue,
    CheckpointLost,
    Paused,
    PeerLost,
    SessionLost,
    Stopped,
    UserError,
    WorkerError,
)
from workers.texts import storable

Given = ParamSpec("Given")
Numbered = tuple[int, dict[str, Any]]
_log = logging.getLogger("workers")


class WorkFailed(WorkerError):
    """Error of a worker, as text from its process."""

    def __init__(self, outcome: "TaskOutcome") -> None:
        self.outcome = outcome
        super().__init__(f"{outcome.error_type}: {outcome.message}")


class Share(BaseModel):
    """Share of the machine that one process holds, or has asked for.

    Attributes:
        cpus: cores.
        gpu: of one GPU, 0 to 1.
        gpu_id: Ray's name of that GPU; None without one, and while the process has not started and said so.
    """

    model_config = ConfigDict(frozen=True)

    cpus: float
    gpu: float = 0.0
    gpu_id: str | None = None


class TaskOutcome(BaseModel):
    """Outcome of work on the cluster.

    Attributes:
        kind: ``done``; ``failed``: it raised; ``stopped``: it was asked to; ``paused``: it was asked to, and left a
            checkpoint of the very step; ``vanished``: its process is gone.
        value: what it returned, if done.
        error_type, message: of the exception, if failed; how its process died, if vanished.
        is_node_fault: whether it vanished by no fault of its own, see ``deaths.Death``.
        disk: the name of the disk's error behind that exception, if there is one: see ``disk_errors``.
    """

    kind: Literal["done", "failed", "stopped", "paused", "vanished"]
    value: dict[str, Any] | None = None
    error_type: str | None = None
    message: str | None = None
    is_node_fault: bool = False
    disk: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, fields: Any) -> Any:  # noqa: ANN401  # whatever it is made of
        # A message may quote the name of a file, which need not be UTF-8.
        return storable(fields)


def with_outcome(work: Callable[Given, dict[str, Any]]) -> Callable[Given, TaskOutcome]:
    """Decorate work so that it returns its outcome, also of an error."""

    @functools.wraps(work)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> TaskOutcome:
        try:
            return outcome(work(*args, **kwargs))
        except Exception as error:
            return outcome(error)

    return run


def outcome(how: dict[str, Any] | Exception) -> TaskOutcome:
    """Outcome of a result, or of an exception, as text."""
    match how:
        case dict():
            return TaskOutcome(kind="done", value=how)
        case Stopped():
            return TaskOutcome(kind="stopped", message=str(how))
        case Paused():
            return TaskOutcome(kind="paused", message=str(how))
        case WorkFailed():
            return how.outcome
    fields = {"error_type": type(how).__name__, "disk": disk_error(how)}
    match how:
        case PeerLost() | CheckpointLost() | BatchOverdue() | SessionLost():
            return TaskOutcome(kind="vanished", message=str(how), **fields)
        case UserError() | StoreError():
            return TaskOutcome(kind="failed", message=str(how), **fields)
    # An unexpected error: the log gets its traceback and the job one line of it.
    _log.error("work failed", exc_info=how)
    return TaskOutcome(kind="failed", message=str(how) or repr(how), **fields)
