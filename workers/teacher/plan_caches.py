"""Cache plan of a job: its data, the preflight of its teacher, and the specifications of its caches.

1. ``prepare_data``: the splits are decoded once and mapped; a holdout is cut from the training split.
2. The teacher is tried on noise in a confined process (``smoke_run``), unless it was before, then on a labelled slice
   and on views of it (``run_recorded_preflight``), once for every pairing of teacher, data and views. Its records are
   reports as JSON, named by the digest of what they depend on. Each job decides for itself whether it insists on a
   teacher that is doubted, whatever was recorded.
3. That settles the specifications, and so the keys.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from workers.config.cache import check_encoding
from workers.config.dataset import DatasetSpec, thumbnail_warnings
from workers.config.job import JobSpec
from workers.config.labels import check_labels, class_warnings, label_warnings
from workers.config.task import Folders
from workers.config.teacher import TeacherSpec
from workers.config.views import NoAugmentation, Views
from workers.data.bad_picture_reports import Refusals
from workers.data.decoded import KnownSplit
from workers.data.discovery import examine
from workers.data.holdout import hold_out
from workers.data.holdout_spec import Holdout
from workers.data.prepare import prepare
from workers.data.prepared import Dataset
from workers.data.row_digests import overlap_warnings
from workers.errors import Stopped
from workers.events import Emit, Log, PreflightChecked, ShouldStop, Split, Stage
from workers.files import replacing
from workers.teacher.cache_plan import CachePlan, EncodingCheck, KnownTeacher, cache_specs, views_of_teacher
from workers.teacher.forwards import ForwardCounter
from workers.teacher.plan_checks import check_levels, check_networks, identify, smoke_run
from workers.teacher.preflight.report import PreflightReport, ViewsReport
from workers.teacher.preflight.views import check_views
from workers.teacher.sessions import Device
from workers.teacher.teacher import Teacher

Report = TypeVar("Report", bound=BaseModel)

# Preflights, of several jobs, that share the machine's memory.
_SESSIONS = 2


def plan_caches(
    job: JobSpec,
    folders: Folders,
    emit: Emit,
    should_stop: ShouldStop,
    *,
    threads: int,
    device: Device = "auto",
    forwards_in: Path | None = None,
) -> CachePlan:
    """Prepare the data, run the teacher's preflight on it, and settle the specifications of the caches.

    The encoding is for the training split alone: the other caches are small, and results are measured on them.

    Args:
        forwards_in: see ``InferenceTask.forwards``.

    Raises:
        ContractViolation: the teacher and the data do not belong together, or a method needs logits and the teacher
            gives log-probabilities; none if the job accepts the teacher.
    """
    _warn(job.warnings, emit)
    source = examine(job.dataset, folders.data_root)
    splits = job.splits(source.splits)
    _warn(source.notes, emit)
    check_labels(job, source.samples, source.labelled_samples)
    _warn(label_warnings(job, source.samples, source.labelled_samples), emit)
    data = prepare_data(job.dataset, folders, emit, should_stop, splits=splits, holdout=job.validation)
    _warn(overlap_warnings(data), emit)
    if "test" not in data:
        _warn(['nothing is measured on a test split: the job says `"test": null`'], emit)
    train = data["train"]
    if train.class_names:
        check_networks(job, train, folders, emit)
    teacher = identify(job.teacher)
    smoke_run(teacher, train, folders, emit)
    size = teacher.preprocessing.size
    _warn(thumbnail_warnings(job.dataset, size), emit)
    seen = views_of_teacher(job, teacher.preprocessing, train.height, train.width)
    report, rows = run_recorded_preflight(
        teacher,
        train,
        folders,
        emit,
        threads=threads,
        device=device,
        accept=job.accept_teacher,
        views=seen,
        should_stop=should_stop,
        forwards_in=forwards_in,
    )
    if not train.class_names:  # the teacher has told their number
        check_networks(job, train.numbered(report.classes), folders, emit)
    check_levels(job, report, emit)
    check_encoding(job.cache.encoding, report.classes)
    _warn(class_warnings(source.classes or len(train.class_names), report.classes), emit)
    # The output's name is part of a cache's identity; from here on it is always given.
    teacher = teacher.model_copy(update={"output": report.output})
    known = KnownTeacher(
        sha256=str(teacher.sha256),
        output=report.output,
        output_kind=report.output_kind,
        classes=report.classes,
        preprocessing=teacher.preprocessing,
        columns=report.columns,
        inputs=teacher.input_values,
    )
    facts = {
        split: KnownSplit(found.fingerprint, len(found.labels_N), found.height, found.width)
        for split, found in data.items()
    }
    caches = cache_specs(job, known, facts)
    methods = tuple(method for method in job.methods if method.expand().needs_teacher)
    check = EncodingCheck(methods=methods, epochs=job.training.epochs, allow_lossy=job.cache.allow_lossy)
    return CachePlan(
        teacher=teacher,
        train_cache=caches["train"],
        test_cache=caches.get("test"),
        validation_cache=caches.get("validation"),
        evaluates=job.evaluate,
        contract_forwards=rows,
        guard=check if caches["train"].is_lossy and not job.evaluate else None,
    )


def prepare_data(
    spec: DatasetSpec,
    folders: Folders,
    emit: Emit,
    should_stop: ShouldStop,
    *,
    splits: Collection[Split] = ("train", "test"),
    holdout: Holdout | None = None,
) -> dict[Split, Dataset]:
    """Prepare these splits of a dataset: decoded on the first call, mapped on every later one.

    Args:
        splits: to prepare.
        holdout: the validation split is cut from the training split.

    Raises:
        InvalidDataset: a split cannot be used; the message is of all that cannot.
    """
    emit(Stage(stage="preparing"))
    found: dict[Split, Dataset] = {}
    refusals = Refusals()
    for split in splits:
        with refusals.collecting():
            if split != "validation" or holdout is None:
                data_root, work_dir = folders.data_root, folders.datasets
                found[split] = prepare(spec, split, data_root, work_dir, emit=emit, should_stop=should_stop)
            elif "train" in found:
                found[split] = hold_out(found["train"], holdout, folders.datasets, emit)
    refusals.check(folders.datasets, spec)
    return found


def _warn(warnings: Iterable[str], emit: Emit) -> None:
    for warning in warnings:
        emit(Log(level="warning", message=warning))


# ------------------------------------------------------------------------------------------------------ the preflight


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
        _warn(session().warnings, emit)
    _warn((*report.accepted, *report.warnings, *(on_views.warnings if on_views else ())), emit)
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
