"""First weights of students: found and hashed while the client waits, so that the job names their content."""

from collections.abc import Sequence

from service.api.dependencies import Context
from service.api.job_checks import CheckedJob, student_size
from service.db.models import RunRecord
from service.db.states import State
from service.db.student_file_record import StudentFileRecord
from service.errors import InvalidRequest
from workers.config.initial_weights import FileWeights, RunWeights, UploadedWeights
from workers.config.job import Plan, StudentSpec
from workers.config.task import Folders
from workers.config.weights_file import check_digest, describe_weights, find_weights
from workers.errors import InvalidJob, InvalidStudentFile
from workers.run_files import WEIGHTS
from workers.student_files.fit import can_check, check_fit, check_program_fit
from workers.students.catalog import OWN, PREFIX, plain_name
from workers.students.program import is_uploaded, read_program
from workers.students.weight_fit import Fit

# Pixels a side, where only decoding tells how large the pictures are.
_ANY_SIDE = 224
_RGB = 3


def with_known_weights(plan: Plan, context: Context) -> Plan:
    """The plan whose students name the SHA-256 of the weights that they begin with.

    Whether the tensors are the student's is checked when the job starts, before the teacher is run; of files by
    ``check_weights`` as well.

    Raises:
        InvalidRequest: there is no such run or upload, or the run was of another student or has not succeeded.
        InvalidJob: there is no such file, or it has another digest than the job gives.
    """
    students = known_students(plan.students, context)
    added = tuple(
        block.model_copy(update={"students": known_students(block.students, context, f"#/added/{place}/students")})
        for place, block in enumerate(plan.added)
    )
    is_same = (students, added) == (plan.students, plan.added)
    return plan if is_same else plan.model_copy(update={"students": students, "added": added})


def known_students(
    students: Sequence[StudentSpec], context: Context, place: str = "#/students"
) -> tuple[StudentSpec, ...]:
    """Students that name the SHA-256 of the weights that they begin with; raises what ``with_known_weights`` raises.

    Args:
        place: where the request has them.
    """
    folders = _folders(context)
    return tuple(
        _with_weights(student, f"{place}/{number}/init", context, folders) for number, student in enumerate(students)
    )


def _folders(context: Context) -> Folders:
    return Folders(data_dir=context.settings.data_dir, data_root=context.settings.data_root)


def _with_weights(student: StudentSpec, pointer: str, context: Context, folders: Folders) -> StudentSpec:
    if is_uploaded(student.name):
        student = _with_program(student, pointer.removesuffix("/init"), context)
    init = student.init
    if init == "random":
        return student
    known: RunWeights | FileWeights | UploadedWeights
    if isinstance(init, FileWeights):
        known = init.model_copy(update={"sha256": check_digest(init, find_weights(init, student.name, folders))})
    elif isinstance(init, UploadedWeights):
        known = _of_upload(init, pointer, context)
        find_weights(known, student.name, folders)
    else:
        known = _of_run(init, student, pointer, context)
        find_weights(known, student.name, folders)
    return student.model_copy(update={"init": known})


def _with_program(student: StudentSpec, pointer: str, context: Context) -> StudentSpec:
    """The student with the digest of its program, as the database has it."""
    file = _uploaded(plain_name(student.name), "program", pointer, context)
    if student.program not in (None, file.sha256):
        raise InvalidJob(f"the program {student.name!r} has SHA-256 {file.sha256}, expected {student.program}")
    if not context.settings.student_file_path(file.sha256).is_file():
        raise InvalidJob(f"the file of student {student.name!r} is gone: upload it again")
    return student.model_copy(update={"program": file.sha256})


def _uploaded(id: str, kind: str, pointer: str, context: Context) -> StudentFileRecord:
    """Row of an uploaded file. Raises InvalidRequest: there is none, or it is of another kind."""
    try:
        file = context.queries.get(StudentFileRecord, id)
    except LookupError as error:
        raise InvalidRequest(f"{error}: upload it with POST /v1/student-files", pointer) from error
    if file.kind != kind:
        way = f'"uploaded/{id}" names it as a student' if kind == "weights" else '"init" of a student names it'
        raise InvalidRequest(f"student file {id} is of the kind {file.kind}, not {kind}: {way}", pointer)
    return file


def _of_upload(init: UploadedWeights, pointer: str, context: Context) -> UploadedWeights:
    """Digest of uploaded weights, as the database has it."""
    file = _uploaded(init.upload, "weights", pointer, context)
    if init.sha256 not in (None, file.sha256):
        raise InvalidJob(f"the upload {init.upload} has SHA-256 {file.sha256}, expected {init.sha256}")
    return init.model_copy(update={"sha256": file.sha256})


def check_weights(job: CheckedJob, context: Context) -> list[str]:
    """Compare weights of files with their students, by name, shape and dtype; a sentence on each, and on programs.

    Nothing is compared where the number of classes is not known yet, or this machine has no torch: the job does it when
    it starts.

    Raises:
        InvalidJob: they are not the student's; naming the tensors.
    """
    classes, size = job.source.classes, student_size(job.plan)
    notes = []
    for student in job.plan.all_students:
        if student.program is None:
            continue
        program = read_program(context.settings.student_file_path(student.program))
        if classes and size is not None:
            program.check_input(student.name, classes, program.shape[0] or _RGB, min(size))
        if note := program.mode_note():
            notes.append(f"student {student.name!r} {note}")
    for student in job.plan.all_students:
        fit = _checked_fit(student, classes, size, context)
        if fit is not None and not isinstance(student.init, str):
            notes.append(f"student {student.name!r} begins with the {describe_weights(student.init, fit.summary)}")
    return notes


def _checked_fit(
    student: StudentSpec, classes: int | None, size: tuple[int, int] | None, context: Context
) -> Fit | None:
    """Fit of a file of weights to its student; None where there is none, or where it cannot be known yet.

    Raises:
        InvalidJob: it does not.
    """
    init, settings = student.init, context.settings
    if not isinstance(init, UploadedWeights | FileWeights):
        return None
    path = find_weights(init, student.name, _folders(context))
    try:
        if student.program is not None:
            return check_program_fit(path, settings.student_file_path(student.program))
        if not classes or not can_check():
            return None
        side = _ANY_SIDE if size is None else min(size)
        return check_fit(path, student.name, classes, side, timeout_s=settings.inspect_timeout_s)
    except (InvalidJob, InvalidStudentFile) as error:
        if size is None and student.program is None and (student.name not in OWN or student.name.startswith(PREFIX)):
            # Their shapes may be those of another size.
            return None
        what = f"upload {init.upload}" if isinstance(init, UploadedWeights) else f"weights {init.weights!r}"
        raise InvalidJob(f"student {student.name!r} cannot begin with the {what}: {error}") from error


def _of_run(init: RunWeights, student: StudentSpec, pointer: str, context: Context) -> RunWeights:
    """Path and digest of a run's weights, as the database has them."""
    try:
        run = context.queries.get(RunRecord, init.run)
    except LookupError as error:
        raise InvalidRequest(f"{error}: name a run of this service, or a file of weights", pointer) from error
    if run.student != student.name:
        raise InvalidRequest(
            f"run {init.run} has trained {run.student!r}, and the student is {student.name!r}", pointer
        )
    left = next((file for file in context.queries.artifacts(init.run) if file.name == WEIGHTS), None)
    if run.state is not State.SUCCEEDED or left is None:
        raise InvalidRequest(f"run {init.run} is {run.state} and has left no weights: name one that has", pointer)
    if init.sha256 not in (None, left.sha256):
        raise InvalidJob(f"the weights of run {init.run} have SHA-256 {left.sha256}, expected {init.sha256}")
    return init.model_copy(update={"sha256": left.sha256, "file": left.path})
