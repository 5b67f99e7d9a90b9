"""First weights of students: found and hashed while the client waits, so that the job names their content."""

from collections.abc import Sequence

from service.api.dependencies import Context
from service.db.models import RunRecord
from service.db.states import State
from service.errors import InvalidRequest
from workers.config.initial_weights import FileWeights, RunWeights
from workers.config.job import Plan, StudentSpec
from workers.config.task import Folders
from workers.config.weights_file import check_digest, find_weights
from workers.errors import InvalidJob
from workers.run_files import WEIGHTS


def with_known_weights(plan: Plan, context: Context) -> Plan:
    """The plan whose students name the SHA-256 of the weights that they begin with.

    Whether the tensors are the student's is checked when the job starts, before the teacher is run: it takes torch.

    Raises:
        InvalidRequest: there is no such run, or it was of another student or has not succeeded.
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
    folders = Folders(data_dir=context.settings.data_dir, data_root=context.settings.data_root)
    return tuple(
        _with_weights(student, f"{place}/{number}/init", context, folders) for number, student in enumerate(students)
    )


def _with_weights(student: StudentSpec, pointer: str, context: Context, folders: Folders) -> StudentSpec:
    init = student.init
    if init == "random":
        return student
    known: RunWeights | FileWeights
    if isinstance(init, FileWeights):
        known = init.model_copy(update={"sha256": check_digest(init, find_weights(init, student.name, folders))})
    else:
        known = _of_run(init, student, pointer, context)
        find_weights(known, student.name, folders)
    return student.model_copy(update={"init": known})


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
