"""Preflight of a job's teacher on its data, run once for every pairing of teacher, data and views, and recorded.

Records are reports as JSON, named by the digest of what they depend on. Each job decides for itself whether it insists
on a teacher that is doubted, whatever was recorded.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from workers.config.task import Folders
from workers.config.teacher import TeacherSpec
from workers.config.views import NoAugmentation, Views
from workers.data.prepared import Dataset
from workers.errors import Stopped
from workers.events import Emit, Log, PreflightChecked, ShouldStop, never
from workers.files import replacing
from workers.teacher.forwards import ForwardCounter
from workers.teacher.preflight.report import PreflightReport, ViewsReport
from workers.teacher.preflight.views import check_views
from workers.teacher.sessions import Device
from workers.teacher.teacher import Teacher

Report = TypeVar("Report", bound=BaseModel)

# Preflights, of several jobs, that share the machine's memory.
_SESSIONS = 2


def run_recorded_preflight(
    teacher: TeacherSpec,
    dataset: Dataset,
    folders: Folders,
    emit: Emit,
    *,
    threads: int,
    device: Device = "auto",
    accept: bool = False,
    views: Views | None = None,
    should_stop: ShouldStop = never,
    forwards_in: Path | None = None,
) -> tuple[PreflightReport, int]:
    """Run the preflight on a labelled slice and on views of it, once for every pairing of teacher and data.

    Args:
        accept: whether the job insists on a teacher that is doubted; each job for itself, whatever was recorded.
        views: the training views as the teacher sees them; None, or no augmentation, tries plain pictures alone.
        should_stop: asked after every batch.
        forwards_in: see ``InferenceTask.forwards``.

    Returns:
        The report on plain pictures, and the number of forward passes that both took now: 0 when the
        same teacher, preprocessing, data and views were tried before (the reports are then read back).

    Raises:
        ContractViolation: they do not belong together; see ``Teacher.run_preflight``.
        Stopped: ``should_stop`` said so; the next job tries anew.
    """
    counter = None if forwards_in is None else ForwardCounter(forwards_in)

    def count(rows: int) -> None:
        if counter is not None:
            counter.add(rows)
        if should_stop():
            raise Stopped("stopped while the teacher was tried on the data")

    identity = {
        "teacher": teacher.model_dump(mode="json", exclude={"path"}),
        "dataset": dataset.fingerprint,
        "class_names": dataset.class_names,
    }
    session = functools.cache(
        lambda: Teacher(
            teacher.path,
            teacher.preprocessing,
            teacher.output,
            threads=threads,
            device=device,
            dataset=dataset,
            on_forward=count,
            sessions=_SESSIONS,
        )
    )
    record = _record_path(folders, identity)
    report, forwards = _read_record(record, PreflightReport), 0
    if report is None:
        report = session().run_preflight(dataset, accept=accept)
        forwards = report.forwards
        _write_record(record, report)
    report.enforce(accept)
    on_views = None
    if views is not None and not isinstance(views.augmentation, NoAugmentation):
        record = _record_path(folders, {**identity, "views": views.model_dump(mode="json")})
        on_views = _read_record(record, ViewsReport)
        if on_views is None:
            on_views = check_views(session(), dataset, views, report)
            forwards += on_views.rows
            _write_record(record, on_views)
    warnings = (*report.accepted, *report.warnings, *(on_views.warnings if on_views else ()))
    for warning in (*(session().warnings if forwards else ()), *warnings):
        emit(Log(level="warning", message=warning))
    if forwards:
        emit(
            PreflightChecked(
                rows=report.rows,
                forwards=forwards,
                accuracy=report.accuracy,
                views_accuracy=on_views.accuracy if on_views else None,
                chance=report.chance,
                output_kind=report.output_kind,
                provider=session().provider,
                provider_reason=session().provider_reason,
            )
        )
    return report, forwards


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
