"""Cache plan of a job: its data, the checks of its teacher, and the specifications of its caches.

1. ``prepare_data``: the splits are decoded once and mapped; a holdout is cut from the training split.
2. The teacher is tried on noise in a confined process (``smoke_test``), unless it was before, then on a labelled slice
   and on views of it (``recorded_preflight``), unless this very pairing was tried before.
3. That settles the specifications, and so the keys.
"""

import time
from collections.abc import Collection, Iterable
from pathlib import Path

from workers.config.cache import check_encoding
from workers.config.dataset import DatasetSpec, thumbnail_warnings
from workers.config.job import JobSpec
from workers.config.task import Folders
from workers.config.teacher import TeacherSpec
from workers.config.views import output_size
from workers.data.decoded import KnownSplit
from workers.data.discovery import examine
from workers.data.holdout import hold_out
from workers.data.holdout_spec import Holdout
from workers.data.prepare import prepare
from workers.data.prepared import Dataset
from workers.errors import ContractViolation, InvalidTeacher
from workers.events import DatasetReady, Emit, Log, ShouldStop, Split, Stage
from workers.files import file_sha256
from workers.methods.method import Method
from workers.onnx import smoke_test
from workers.onnx.check import check_onnx
from workers.onnx.teacher_graph import check_picture
from workers.students import check_batch_size, check_image_side
from workers.teacher.cache_plan import CachePlan, EncodingCheck
from workers.teacher.cache_specs import KnownTeacher, cache_specs, views_of_teacher
from workers.teacher.recorded_preflight import run_recorded_preflight
from workers.teacher.sessions import Device


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
    """
    emit(Stage(stage="preparing"))
    found: dict[Split, Dataset] = {}
    for split in splits:
        if split == "validation" and holdout is not None:
            found[split] = hold_out(found["train"], holdout, folders.datasets)
            emit(
                DatasetReady(
                    split=split,
                    fingerprint=found[split].fingerprint,
                    samples=found[split].samples,
                    classes=found[split].classes,
                    reused=True,
                )
            )
        else:
            found[split] = prepare(spec, split, folders.data_root, folders.datasets, emit=emit, should_stop=should_stop)
    return found


def identify(teacher: TeacherSpec) -> TeacherSpec:
    """Return the same teacher with its digest filled in.

    Raises:
        InvalidTeacher: the file is not there, or not the one whose digest was given.
    """
    if not teacher.path.is_file():
        raise InvalidTeacher(f"teacher file {str(teacher.path)!r} does not exist: upload it again")
    digest = file_sha256(teacher.path)
    if teacher.sha256 not in (None, digest):
        raise InvalidTeacher(
            f"teacher file {str(teacher.path)!r} has SHA-256 {digest}, expected {teacher.sha256}: "
            "it was changed after it was uploaded; upload it again"
        )
    return teacher.model_copy(update={"sha256": digest})


def _smoke_run(teacher: TeacherSpec, dataset: Dataset, folders: Folders, emit: Emit) -> None:
    """Run a teacher that was never run before in a confined process. Raises InvalidTeacher."""
    if smoke_test.has_passed(folders.smoke, teacher):
        return
    started = time.monotonic()
    wanted = teacher.preprocessing
    graph = check_onnx(teacher.path, teacher.output)
    check_picture(graph, channels=wanted.channel_count, size=wanted.size, layout=wanted.layout)
    smoke_test.smoke_run(teacher.path, graph, wanted, (dataset.height, dataset.width))
    smoke_test.remember(folders.smoke, teacher)
    emit(Log(message=f"the teacher has passed its smoke run in {time.monotonic() - started:.1f} s"))


def level_refusal(methods: Iterable[Method]) -> str | None:
    """Explain why these methods must not train on log-probabilities; None if a shift of the logits changes none."""
    readers = {method.name: method.level_readers for method in methods if method.level_readers}
    if not readers:
        return None
    listed = ", ".join(f"{name!r} ({' and '.join(found)})" for name, found in readers.items())
    return (
        f"The teacher's outputs are log-probabilities, and {listed} depend on the size of the logits, which a softmax "
        "takes away: policy 'dtkd' would make every sample plain KD, say. Export the logits, or name the output that "
        "holds them in the teacher's `output`, or leave these methods out."
    )


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
    for warning in job.warnings:
        emit(Log(level="warning", message=warning))
    splits = job.splits(examine(job.dataset, folders.data_root).splits)
    data = prepare_data(job.dataset, folders, emit, should_stop, splits=splits, holdout=job.validation)
    train = data["train"]
    if "test" not in data:
        emit(Log(level="warning", message='nothing is measured on a test split: the job says `"test": null`'))
    for student in job.students:
        # Known now, and cheaper to hear now than after the inference.
        check_image_side(student.name, min(output_size(job.views.augmentation, train.height, train.width)))
        check_batch_size(student.name, job.training.batch_size)
    teacher = identify(job.teacher)
    _smoke_run(teacher, train, folders, emit)
    size = teacher.preprocessing.size
    for warning in thumbnail_warnings(job.dataset, size):
        emit(Log(level="warning", message=warning))
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

    refusal = level_refusal(method.expand() for method in job.methods) if report.normalised else None
    if refusal is not None and not job.accept_teacher:
        raise ContractViolation(f'{refusal} `"accept_teacher": true` in the job trains them all the same')
    if refusal is not None:
        emit(Log(level="warning", message=f"{refusal} They are trained, for the job says accept_teacher"))

    methods = [method for method in job.methods if method.expand().needs_teacher]
    check_encoding(job.cache.encoding, report.classes)

    # The output's name is part of a cache's identity; from here on it is always given.
    teacher = teacher.model_copy(update={"output": report.output})
    known = KnownTeacher(
        sha256=str(teacher.sha256),
        output=report.output,
        output_kind=report.output_kind,
        classes=report.classes,
        preprocessing=teacher.preprocessing,
    )
    facts = {
        split: KnownSplit(found.fingerprint, len(found.labels_N), found.height, found.width)
        for split, found in data.items()
    }
    caches = cache_specs(job, known, facts)
    train_cache = caches["train"]

    check = EncodingCheck(methods=tuple(methods), epochs=job.training.epochs, allow_lossy=job.cache.allow_lossy)
    return CachePlan(
        teacher=teacher,
        train_cache=train_cache,
        test_cache=caches.get("test"),
        validation_cache=caches.get("validation"),
        evaluates=job.evaluate,
        contract_forwards=rows,
        guard=check if train_cache.is_lossy and not job.evaluate else None,
    )
