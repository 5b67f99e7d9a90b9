"""Addresses of trackers: ``mlflow:http://127.0.0.1:5000``, a sink's name and where its tracker is."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from service.errors import ServiceError
from service.trackers.sinks.base import Sink
from service.trackers.sinks.registry import SINKS


class BadTracker(ServiceError, ValueError):
    """An address names no tracker that can be used here."""


@dataclass(frozen=True)
class TrackerAddress:
    """Which sink, and its target; ``str`` gives the text back that was parsed."""

    sink: str
    target: str

    def __str__(self) -> str:
        return f"{self.sink}:{self.target}"

    @property
    def slug(self) -> str:
        """A name for files: the sink's, and a digest of the target."""
        return f"{self.sink}-{hashlib.sha256(self.target.encode()).hexdigest()[:12]}"

    def open(self, project: str, scratch: Path) -> Sink:
        """Import the tracker's package and make the sink.

        Raises:
            BadTracker: the package is not installed.
        """
        self.check_installed()
        return SINKS[self.sink](self.target, project, scratch)

    def check_installed(self) -> None:
        """Look for the tracker's package without importing it.

        Raises:
            BadTracker: it is not installed.
        """
        kind = SINKS[self.sink]
        if not _is_there(kind.package):
            raise BadTracker(
                f"the tracker {self.sink} needs the package {kind.distribution}, which is not installed here: "
                f"pip install 'retort[{self.sink}]'"
            )


def parse_address(text: str) -> TrackerAddress:
    """Read one address.

    Raises:
        BadTracker: no sink of this name, or a target that it does not take.
    """
    sink, _, target = text.partition(":")
    if sink not in SINKS:
        raise BadTracker(
            f"{_without_password(text)!r} names no tracker: it has to be NAME:TARGET with a name out of "
            f"{', '.join(SINKS)}, such as mlflow:http://127.0.0.1:5000"
        )
    if "://" in target and "@" in urlsplit(target).netloc:
        raise BadTracker(
            f"the address of {sink} holds a user or password, which the list of processes would show: leave it out and "
            f"set the tracker's own variables (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, WANDB_API_KEY)"
        )
    if not SINKS[sink].check_target(target):
        raise BadTracker(f"{target!r} is no target of {sink}: it takes {SINKS[sink].help}")
    return TrackerAddress(sink, target)


def parse_addresses(text: str | None) -> Sequence[TrackerAddress]:
    """Read addresses that are separated by spaces, as in ``RETORT_TRACKERS``.

    Raises:
        BadTracker: one of them cannot be used, or stands there twice.
    """
    addresses = [parse_address(part) for part in (text or "").split()]
    for address in addresses:
        if addresses.count(address) > 1:
            raise BadTracker(f"{address} stands in RETORT_TRACKERS twice: each job would be told twice, name it once")
    return addresses


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        # An import hook may say so in this way.
        return False


def _without_password(text: str) -> str:
    return text if "@" not in text else f"{text.partition(':')[0]}:..."
