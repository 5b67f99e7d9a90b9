"""Checks of more epochs for a run that has succeeded: the job that goes on from its last checkpoint."""

from pathlib import Path

from service.api.added_runs import read_plan, teachers_of
from service.api.dependencies import Context
from service.api.job_checks import CheckedJob, check_plan
from service.api.schemas.extensions import ExtensionRequest
from service.db.models import JobRecord, RunRecord
from service.db.states import State
from service.errors import Conflict
from workers.config.extension import Extension, check_extension, extended_training
from workers.config.job import Plan
from workers.run_files import CHECKPOINT


def check_extended(run: RunRecord, job: JobRecord, request: ExtensionRequest, context: Context) -> CheckedJob:
    """Check the job of one run that goes on from this one.

    Raises:
        Conflict: the run has not succeeded, was an evaluation or has kept no checkpoint; a teacher of its job was
            deleted, or another version has stored it.
        InvalidJob: no run of as many epochs from the start would end with the same weights.
        InvalidRequest, InvalidDataset, ContractViolation: as at a new job.
    """
    if run.state is not State.SUCCEEDED:
        raise Conflict(f"run {run.id} is {run.state}: only a run that has succeeded can be extended")
    plan = read_plan(job)
    if plan.evaluate:
        raise Conflict(f"run {run.id} is an evaluation and has no epochs")
    spec = plan.runs()[run.index]
    alone = plan.of_run(spec)
    before = alone.training
    epochs = request.epochs
    after = extended_training(before, epochs, schedule=request.schedule, learning_rate=request.learning_rate)
    check_extension(before, after, spec.method, run.epoch)
    extends = Extension(run=run.id, index=run.index, training=before, checkpoint=_checkpoint(run, epochs, context))
    fields = {name: getattr(alone, name) for name in Plan.model_fields}
    longer = Plan.model_validate(fields | {"training": after, "extends": extends})
    return check_plan(longer, teachers_of(job, context), context.settings)


def _checkpoint(run: RunRecord, epochs: int, context: Context) -> str:
    """The last checkpoint of a run, relative to the data directory."""
    folder = context.settings.jobs_dir / run.job_id / run.id
    found = [path for number in range(run.attempt, 0, -1) if (path := folder / f"a{number}" / CHECKPOINT).is_file()]
    if not found:
        raise Conflict(
            f"run {run.id} has kept no checkpoint: runs do with `training.keep_checkpoint`. Post a job of {epochs} "
            "epochs with it, whose caches are there"
        )
    return Path(found[0]).relative_to(context.settings.data_dir).as_posix()
