"""Checks of runs that are added to a job: those of a new job, with its dataset, teachers and training as they are."""

from collections.abc import Sequence
from dataclasses import replace

from service.api.dependencies import Context
from service.api.initial_weights import known_students
from service.api.job_checks import CheckedJob, check_plan, check_run_count, find_logits, find_teacher
from service.api.job_preview import preview_of
from service.api.schemas.amounts import check_amount
from service.api.schemas.jobs import JobPreview
from service.db.job_teachers import ChosenTeacher, deleted_teacher, members_of
from service.db.models import JobRecord
from service.db.states import State
from service.errors import Conflict, InvalidRequest
from workers.config.draft import with_added
from workers.config.job import Plan
from workers.config.run_block import RunBlock


def check_added(job: JobRecord, block: RunBlock, context: Context) -> CheckedJob:
    """Check a job as it will be with these runs.

    Raises:
        Conflict: it is being cancelled, only evaluates, extends a run, a teacher of it was deleted, or another version
            has stored it.
        InvalidRequest, InvalidJob, InvalidDataset, ContractViolation: as at a new job.
        RunsExist: it has some of them.
    """
    if job.state is State.CANCELLING:
        raise Conflict(f"no runs can be added to {job.id}: it is being cancelled; add them once it has ended")
    plan = read_plan(job)
    if plan.extends is not None:
        raise Conflict(f"no runs can be added to {job.id}: its run goes on from {plan.extends.run}; post a new job")
    if plan.evaluate:
        raise Conflict(f"no runs can be added to {job.id}: it evaluates its teacher and trains nothing; post a new job")
    check_run_count((*plan.blocks, block), context.settings)
    known = known_students(block.students, context)
    whole = with_added(plan, RunBlock(students=known, methods=block.methods, seeds=block.seeds))
    check_amount([method.model_dump(mode="json") for method in whole.all_methods])
    return check_plan(whole, teachers_of(job, context), context.settings)


def added_alone(checked: CheckedJob) -> CheckedJob:
    """The job of the runs alone that were checked last."""
    total, added = len(checked.plan.runs()), checked.plan.added[-1]
    return replace(checked, plan=checked.plan.of_runs(range(total - added.count, total)))


def preview_of_added(checked: CheckedJob, weights: Sequence[str], context: Context) -> JobPreview:
    """Preview of the runs that were checked last: these alone with their cost, and the plan that the job would have.

    Args:
        weights: sentences on their first weights.
    """
    return preview_of(added_alone(checked), weights, context).model_copy(update={"plan": checked.plan})


def read_plan(job: JobRecord) -> Plan:
    """The plan of a job that was stored. Raises Conflict if another version has stored it."""
    try:
        return Plan.model_validate(job.plan)
    except (ValueError, LookupError) as error:
        raise Conflict(f"the plan of {job.id} cannot be read by this version: post a new job") from error


def teachers_of(job: JobRecord, context: Context) -> list[ChosenTeacher]:
    """The teachers of a job that was stored. Raises Conflict if one was deleted, InvalidJob if imported logits were."""
    found = []
    for member in members_of(job.teacher):
        if keys := member.get("caches"):
            found.append(find_logits(keys, member["weight"], context))
            continue
        id = member.get("id", job.teacher_id)
        try:
            found.append(ChosenTeacher(find_teacher(id, context, "#"), member["weight"]))
        except InvalidRequest as error:
            raise deleted_teacher(id, job) from error
    return found
