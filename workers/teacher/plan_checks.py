"""Checks of a job's teacher and students before anything long is begun: they refuse, warn, and change nothing."""

import time
from collections.abc import Iterable
from pathlib import Path

from workers.config.full_batch import check_full_batch
from workers.config.job import JobSpec
from workers.config.task import Folders
from workers.config.teacher import TeacherSpec
from workers.config.views import output_size
from workers.config.weights_file import check_digest, describe_weights, find_program, find_weights
from workers.data.preparation.holdout_rows import holdout_rows
from workers.data.preparation.prepared import Dataset
from workers.errors import ContractViolation, InvalidJob, InvalidStudentFile, InvalidTeacher
from workers.events import Emit, Log
from workers.files import file_sha256
from workers.methods.method import Method
from workers.onnx.checks.byte_input import check_bytes
from workers.onnx.checks.check import check_onnx
from workers.onnx.checks.teacher_graph import check_picture
from workers.onnx.sessions import smoke_test
from workers.student_files.programs import try_program
from workers.students.catalog import STUDENTS, check_batch_size, check_image_side, is_known_by_size
from workers.students.program import read_program

# Of the process that tries an uploaded program.
TRIAL_S = 120.0
_OWN_WEIGHTS = (
    "; it begins with the weights that were uploaded with it, so seeds change the order of pictures and dropout"
)


def check_networks(job: JobSpec, train: Dataset, folders: Folders, emit: Emit) -> None:
    """Refuse students and first weights that do not fit a training split whose number of classes is known.

    Raises:
        InvalidJob: as ``check_students`` and ``check_initial_weights``.
    """
    check_students(job, train, folders, emit)
    check_initial_weights(job, train, folders, emit)


def check_students(job: JobSpec, train: Dataset, folders: Folders, emit: Emit) -> None:
    """Refuse students that cannot take the pictures or the batches: known now, and cheaper than after the inference."""
    size = output_size(job.views.augmentation, train.height, train.width)
    rows = job.training.batch_size // job.training.accumulate
    if job.training.drop_last and not job.evaluate:
        held = 0 if job.validation is None else len(holdout_rows(train.labels_N, job.validation, train.class_names))
        check_full_batch(train.samples - held, job.training.batch_size)
    for student in job.all_students:
        check_image_side(student.name, min(size))
        check_batch_size(student.name, rows)
        if is_known_by_size(STUDENTS[student.name]):
            continue
        program = find_program(student, folders)
        if program is not None:
            told = _try_upload(student.name, program, train, size, rows=rows)
            emit(Log(message=told + (_OWN_WEIGHTS if student.init == "random" else "")))
            continue
        # Imported here: torch's networks, and only for those that have to be tried.
        from workers.students.trial import try_student

        told = try_student(
            student.name, train.classes, train.channels, size, batch=rows, drop_path=job.training.drop_path
        )
        emit(Log(message=told))


def _try_upload(name: str, program: Path, train: Dataset, size: tuple[int, int], *, rows: int) -> str:
    """Try an uploaded program on a job's pictures, in a confined process; a sentence on it. Raises InvalidJob."""
    read = read_program(program)
    read.check_input(name, train.classes, train.channels, min(size))
    try:
        count = try_program(program, timeout_s=TRIAL_S, pictures=(rows, train.channels, *size))
    except InvalidStudentFile as error:
        raise InvalidJob(f"student {name!r} cannot be trained on these pictures: {error}") from error
    note = read.mode_note()
    told = f"student {name!r} has {count:,} parameters for {train.classes} classes"
    return f"{told}; it {note}" if note else told


def check_initial_weights(job: JobSpec, train: Dataset, folders: Folders, emit: Emit) -> None:
    """Refuse files of first weights that are not of their student, and say which tensors they give.

    Weights that a job has named by their digest were there when it was posted. Where they are gone or others since, it
    warns: runs with a checkpoint do without them, and ``take_initial_weights`` refuses the rest.

    Raises:
        InvalidJob: as ``find_weights``, ``check_digest``, ``fit_weights`` and ``load_weights``.
    """
    # Imported here: torch's networks, and only for jobs that name weights.
    from workers.students.build import build_student
    from workers.students.weights import fit_weights, load_weights

    side = min(output_size(job.views.augmentation, train.height, train.width))
    for student in job.all_students:
        init = student.init
        if init == "random":
            continue
        try:
            path = find_weights(init, student.name, folders)
            check_digest(init, path)
        except InvalidJob as error:
            if init.sha256 is None:
                raise
            emit(Log(level="warning", message=f"{error}. Runs that have a checkpoint go on, the others will fail"))
            continue
        program = find_program(student, folders)
        # A program keeps its classes.
        classes = [train.classes, train.classes + (program is None)]
        network, larger = (
            build_student(student.name, count, train.channels, side, program=program) for count in classes
        )
        fit = fit_weights(path, network, larger)
        # Of the values, which no header tells: before the teacher is run.
        load_weights(path, network, fit)
        emit(Log(message=f"student {student.name!r} begins with the {describe_weights(init, fit.summary)}"))


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


def smoke_run(teacher: TeacherSpec, dataset: Dataset, folders: Folders, emit: Emit) -> None:
    """Run a teacher that was never run before in a confined process. Raises InvalidTeacher."""
    if smoke_test.has_passed(folders.smoke, teacher):
        return
    started = time.monotonic()
    wanted = teacher.preprocessing
    graph = check_onnx(teacher.path, teacher.output, teacher.input_values)
    check_bytes(graph, wanted)
    check_picture(graph, channels=wanted.channel_count, size=wanted.size, layout=wanted.layout)
    smoke_test.smoke_run(teacher.path, graph, wanted, (dataset.height, dataset.width))
    smoke_test.remember(folders.smoke, teacher)
    emit(Log(message=f"the teacher has passed its smoke run in {time.monotonic() - started:.1f} s"))


_EXPORT_LOGITS = (
    "Export the logits, or name the output that holds them in the teacher's `output`, or leave these methods out."
)
_COMBINE_LOGITS = "Combine in the space logits, or leave these methods out."


def check_levels(job: JobSpec, emit: Emit, *, is_normalised: bool) -> None:
    """Refuse methods that need logits where students get log-probabilities, unless the job accepts the teacher.

    Args:
        is_normalised: a teacher's outputs are log-probabilities.

    Raises:
        ContractViolation: naming the methods.
    """
    methods = [method.expand() for method in job.all_methods]
    refusal = None
    if job.combine is not None and job.combine.space == "probabilities":
        refusal = _level_refusal(methods, "teachers' combined rows", _COMBINE_LOGITS)
    elif is_normalised:
        refusal = _level_refusal(methods, "teacher's outputs", _EXPORT_LOGITS)
    if refusal is None:
        return
    if not job.accept_teacher:
        raise ContractViolation(f'{refusal} `"accept_teacher": true` in the job trains them all the same')
    emit(Log(level="warning", message=f"{refusal} They are trained, for the job says accept_teacher"))


def _level_refusal(methods: Iterable[Method], what: str, way_out: str) -> str | None:
    """Explain why these methods must not train on log-probabilities; None if a shift of the logits changes none."""
    readers = {method.name: method.level_readers for method in methods if method.level_readers}
    if not readers:
        return None
    listed = ", ".join(f"{name!r} ({' and '.join(found)})" for name, found in readers.items())
    return (
        f"The {what} are log-probabilities, and {listed} depend on the size of the logits, which a softmax "
        f"takes away: policy 'dtkd' would make every sample plain KD, say. {way_out}"
    )
