"""Sink protocol: what an export tells a tracker, in the order of a run's life."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from service.errors import ServiceError


class SinkRefused(ServiceError, ValueError):
    """The tracker refuses what it was told of a run, and would again: the run is left out, the others go on."""


class SinkNotReady(ServiceError, RuntimeError):
    """The tracker takes no run at all until somebody changes something there: all are told again later."""


@dataclass(frozen=True)
class TrackedRun:
    """A run of a job as trackers are told of it.

    Attributes:
        id: ``run_...``; the tracker's own run is found by it, so that a second export updates it.
        job_id: ``job_...``.
        name: of the run, ``student/method/seed``.
        job_name: may be empty, and hold any text.
        parameters: what was asked for, flat: ``training.epochs`` -> ``20``, as text.
        started_at: None if it has not begun.
    """

    id: str
    job_id: str
    name: str
    job_name: str
    parameters: Mapping[str, str]
    started_at: datetime | None


@dataclass(frozen=True)
class RunFile:
    """An artifact of a run, on this disk for as long as the sink is told of it."""

    path: Path
    sha256: str


class Sink(ABC):
    """One tracker. A subclass imports the tracker's package when it is made, and nowhere else.

    Runs may be open at the same time. Whatever is told may be told again after a failure: a sink keeps each fact once.
    Calls may take their time; none is made by the API, the engine or a worker.

    Args:
        target: where the tracker is, as after ``NAME:`` in its address.
        project: the tracker's project or experiment, which collects the runs of all jobs.
        scratch: a folder for what the tracker's package keeps on this disk.

    Attributes:
        package: the module that is imported.
        distribution: what pip installs it from, see the extra of the sink's name in pyproject.toml.
        help: forms of ``target``, for messages and documents.
    """

    package: ClassVar[str]
    distribution: ClassVar[str]
    help: ClassVar[str]

    @classmethod
    @abstractmethod
    def check_target(cls, target: str) -> bool:
        """Whether ``target`` has a form that ``help`` names. Imports nothing."""

    @abstractmethod
    def __init__(self, target: str, project: str, scratch: Path) -> None: ...

    @abstractmethod
    def start(self, run: TrackedRun) -> int:
        """Find the tracker's run, or make it, and tell its parameters.

        Returns:
            The last epoch that the tracker has; 0 for none. Earlier ones are not told again.
        """

    @abstractmethod
    def log_metrics(self, run: TrackedRun, epoch: int, at: datetime, metrics: Mapping[str, float]) -> None:
        """Tell the metrics of an epoch, counted from 1, with the time at which it ended."""

    @abstractmethod
    def log_result(self, run: TrackedRun, result: Mapping[str, str | float], at: datetime) -> None:
        """Tell the flat result.json (``best.top1``, ``environment.device``) of a run that has succeeded."""

    @abstractmethod
    def add_file(self, run: TrackedRun, file: RunFile) -> None:
        """Upload one artifact of a run, or collect it; one that the tracker has with the same digest need not go again.

        A call for each file, because a call that takes too long ends the process, see ``service.trackers.guard``.
        """

    @abstractmethod
    def commit_files(self, run: TrackedRun) -> None:
        """Upload the artifacts that were collected, if any; their files are there until it returns."""

    @abstractmethod
    def end(self, run: TrackedRun, state: str, at: datetime) -> None:
        """Close the run as ``succeeded``, ``failed`` or ``cancelled``."""

    @abstractmethod
    def flush(self) -> None:
        """Return when all that was told is kept, by the tracker or on this disk."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; runs that are open are taken up again by a later ``start``."""


def is_web_address(target: str) -> bool:
    """Whether a target is ``http(s)://HOST...``."""
    scheme, separator, rest = target.partition("://")
    return scheme in ("http", "https") and bool(separator) and bool(rest.strip("/"))


def safe_name(text: str, allowed: str = "._-") -> str:
    """``text`` with an underscore for each character but ASCII letters, digits and those of ``allowed``."""
    return "".join(c if (c.isascii() and c.isalnum()) or c in allowed else "_" for c in text)
