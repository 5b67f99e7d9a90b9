"""Preflight of a teacher on a job's data, once for every pairing of teacher, data and views.

Its records are reports as JSON, named by the digest of what they depend on. Each job decides for itself whether it
insists on a teacher that is doubted, whatever was recorded.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from workers.config.task import Folders
from workers.config.teacher import TeacherSpec
from workers.config.views import NoAugmentation, Views
from workers.data.prepared import Dataset
from workers.errors import Stopped
from workers.events import Emit, Log, PreflightChecked, ShouldStop
from workers.files import replacing
from workers.teacher.forwards import ForwardCounter
from workers.teacher.preflight.report import PreflightReport, ViewsReport
from workers.teacher.preflight.views import check_views
from workers.teacher.sessions import Device
from workers.teacher.teacher import Teacher

Report = TypeVar("Report", bound=BaseModel)

# Preflights, of several jobs, that share the machine's memory.
_SESSIONS = 2


def warn(warnings: Iterable[str], emit: Emit) -> None:
    """Emit each sentence as a warning."""
    for warning in warnings:
        emit(Log(level="warning", message=warning))


def run_recorded_preflight(
    teacher: TeacherSpec,
    dataset: Dataset,
    folders: Folders,
    emit: Emit,
    *,
    threads: int,
    device: Device,
    accept: bool,
    views: Views,
    should_stop: ShouldStop,
    forwards_in: Path | None,
) -> tuple[PreflightReport, int]:
    """Run the preflight on a labelled slice and on views of it, once for every pairing of teacher and data.

    Args:
        accept: whether the job insists on a teacher that is doubted; each job for itself, whatever was recorded.
        views: the training views as the teacher sees them; without augmentation plain pictures alone are tried.
        should_stop: asked after every batch.
        forwards_in: see ``InferenceTask.forwards``.

    Returns:
        The report on plain pictures, and the number of forward passes that both took now: 0 when the
        same teacher, preprocessing, data and views were tried before (the reports are then read back).

    Raises:
        ContractViolation: they do not belong together; see ``Teacher.run_preflight``.
        Stopped: ``should_stop`` said so; the next job tries anew.
    """

    @functools.cache
    def session() -> Teacher:
        return Teacher(
            teacher.path,
            teacher.preprocessing,
            teacher.output,
            reading=teacher,
            threads=threads,
            device=device,
            dataset=dataset,
            on_forward=_counted(forwards_in, should_stop),
            sessions=_SESSIONS,
        )

    identity = {
        "teacher": teacher.model_dump(mode="json", exclude={"path"}),
        "dataset": dataset.fingerprint,
        "class_names": dataset.class_names,
    }
    record = _record_path(folders, identity)
    report, forwards = _read_record(record, PreflightReport), 0
    if report is None:
        report = session().run_preflight(dataset, accept=accept)
        forwards = report.forwards
        _write_record(record, report)
    report.enforce(accept)
    on_views = None
    if not isinstance(views.augmentation, NoAugmentation):
        record = _record_path(folders, {**identity, "views": views.model_dump(mode="json")})
        on_views = _read_record(record, ViewsReport)
        if on_views is None:
            on_views = check_views(session(), dataset, views, report)
            forwards += on_views.forwards
            _write_record(record, on_views)
    if forwards:
        warn(session().warnings, emit)
    warn((*report.accepted, *report.warnings, *(on_views.warnings if on_views else ())), emit)
    if forwards:
        emit(_checked(report, on_views, forwards, session()))
    return report, forwards


def _counted(forwards_in: Path | None, should_stop: ShouldStop) -> Callable[[int], None]:
    """Count what the teacher is run on, and raise Stopped when the job is to stop: a function of a number of rows."""
    counter = None if forwards_in is None else ForwardCounter(forwards_in)

    def count(rows: int) -> None:
        if counter is not None:
            counter.add(rows)
        if should_stop():
            raise Stopped("stopped while the teacher was tried on the data")

    return count


def _checked(
    report: PreflightReport, on_views: ViewsReport | None, forwards: int, session: Teacher
) -> PreflightChecked:
    return PreflightChecked(
        rows=report.rows,
        forwards=forwards,
        accuracy=report.accuracy,
        views_accuracy=on_views.accuracy if on_views else None,
        chance=report.chance,
        labelled=report.labelled,
        entropy=None if report.without_labels is None else report.without_labels.entropy,
        agreement=None if report.without_labels is None else report.without_labels.agreement,
        output_kind=report.output_kind,
        provider=session.provider,
        provider_reason=session.provider_reason,
    )


def _record_path(folders: Folders, identity: Mapping[str, object]) -> Path:
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return folders.contracts / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def _read_record(record: Path, kind: type[Report]) -> Report | None:
    """The report of an earlier preflight; one that an older version wrote in another shape is as good as none."""
    try:
        return kind.model_validate_json(record.read_text())
    except (FileNotFoundError, ValidationError):
        return None


def _write_record(record: Path, report: BaseModel) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    with replacing(record, "a contract report") as file:
        file.write(report.model_dump_json(indent=2).encode())
