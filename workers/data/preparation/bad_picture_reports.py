"""Reports of bad pictures: all of a split that was decoded last, by name and reason, beside the notes of its source.

``sources/<source key>.<split>.bad.jsonl``: a line that describes the rest, then a line ``[name, reason]`` for each
picture. Light: the API process reads them.
"""

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from workers.data.dataset_kind import SPLITS, DatasetKind
from workers.data.decoding.bad_pictures import BadPicture
from workers.data.preparation.decoded import REPORT_SUFFIX, SOURCES
from workers.errors import InvalidDataset
from workers.events import Emit, Log
from workers.files import replacing
from workers.texts import storable

if TYPE_CHECKING:
    from workers.events import Split

# Of pictures in one event of a log, and of those in all its events: more are in the report alone.
_EVENT_PICTURES, _LOGGED_MAX = 20, 1000


class NamedReason(NamedTuple):
    """A bad picture as a client sees it: its sample id, and the reason in words that follow it in a sentence."""

    name: str
    reason: str


class BadPictureReport(NamedTuple):
    """Bad pictures of a split.

    Attributes:
        pictures: of the split, bad ones included.
        left_out: whether the dataset was taken without them; else it was refused.
        bad: how many.
        path: the file that lists them.
    """

    split: "Split"
    pictures: int
    left_out: bool
    bad: int
    path: Path

    def listed(self) -> Generator[NamedReason, None, None]:
        """Every bad picture, in the order of samples, read line by line."""
        with self.path.open() as file:
            next(file)
            for line in file:
                name, reason = storable(json.loads(line))
                yield NamedReason(name, reason)


def write_report(
    pointer: Path, spec: DatasetKind, split: "Split", bad: Sequence[BadPicture], *, pictures: int, left_out: bool
) -> BadPictureReport | None:
    """Write the report of a split, or remove that of an earlier decoding if no picture is bad.

    Args:
        pointer: the note of the split's source.
        pictures: of the split, bad ones included.
        left_out: whether the dataset was taken without them; else it was refused.
    """
    path = pointer.with_suffix(REPORT_SUFFIX)
    for earlier in _reports(path.parent, spec):
        if earlier.split == split and earlier.path != path:
            earlier.path.unlink(missing_ok=True)
    if not bad:
        path.unlink(missing_ok=True)
        return None
    report = BadPictureReport(split, pictures, left_out=left_out, bad=len(bad), path=path)
    described = {"spec": spec.content_description(), **report._asdict(), "path": None}
    with replacing(path, "a report of bad pictures") as file:
        for line in (described, *([each.name, each.reason] for each in bad)):
            file.write(json.dumps(line).encode() + b"\n")
    return report


def read_reports(work_dir: Path, spec: DatasetKind) -> list[BadPictureReport]:
    """Reports of the splits of a dataset that had bad pictures when they were decoded last."""
    found = {report.split: report for report in _reports(work_dir / SOURCES, spec)}
    return [found[split] for split in SPLITS if split in found]


def log_report(report: BadPictureReport, emit: Emit) -> None:
    """Log how many pictures are bad, and which: the first 1,000."""
    done = "were left out" if report.left_out else "cannot be used"
    counts = f"{report.bad:,} of {report.pictures:,} pictures of {report.split} are bad and {done}"
    emit(Log(level="warning", message=counts))
    with contextlib.closing(report.listed()) as listed:
        for first in range(0, min(report.bad, _LOGGED_MAX), _EVENT_PICTURES):
            some = [f"{each.name} {each.reason}" for each, _ in zip(listed, range(_EVENT_PICTURES), strict=False)]
            emit(Log(level="warning", message=f"bad pictures of {report.split} from {first + 1:,}: {'; '.join(some)}"))
    if report.bad > _LOGGED_MAX:
        more = report.bad - _LOGGED_MAX
        emit(Log(level="warning", message=f"and {more:,} more: the dataset's report of bad pictures lists all"))


def log_left_out(work_dir: Path, spec: DatasetKind, split: "Split", emit: Emit) -> None:
    """Log the pictures that a split is used without."""
    for report in read_reports(work_dir, spec):
        if report.split == split:
            log_report(report, emit)


class Refusals:
    """Refusals of the splits of a dataset, all said at once."""

    def __init__(self) -> None:
        self._errors: list[InvalidDataset] = []

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep an InvalidDataset for later, so that the other splits are looked at, too."""
        try:
            yield
        except InvalidDataset as error:
            self._errors.append(error)

    def check(self, work_dir: Path, spec: DatasetKind) -> None:
        """Raise InvalidDataset if there are any, of all."""
        if not self._errors:
            return
        bad = not spec.leaves_out and any(not report.left_out for report in read_reports(work_dir, spec))
        advice = (
            '. The log lists the bad ones; `"on_bad_picture": "skip"` leaves those out that are damaged' if bad else ""
        )
        raise InvalidDataset("; ".join(dict.fromkeys(map(str, self._errors))) + advice) from self._errors[0]


def _reports(folder: Path, spec: DatasetKind) -> Iterator[BadPictureReport]:
    """Reports of this description, the oldest first."""
    wanted = spec.content_description()
    found: list[tuple[int, Path, dict[str, Any]]] = []
    for path in folder.glob(f"*{REPORT_SUFFIX}"):
        # One that another process removes meanwhile hides none of the others.
        with contextlib.suppress(FileNotFoundError), path.open() as file:
            found.append((path.stat().st_mtime_ns, path, json.loads(file.readline())))
    for _, path, described in sorted(found, key=lambda each: each[:2]):
        if described.pop("spec") == wanted:
            yield BadPictureReport(**{**described, "path": path})
