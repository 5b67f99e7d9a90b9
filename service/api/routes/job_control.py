"""Routes that control jobs and runs: cancel, pause, resume, retry, pin, delete."""

from typing import Any

from fastapi import APIRouter, Response

from service.api.auth import ADMIN, WRITE, Who
from service.api.dependencies import Context, Ctx
from service.api.job_documents import show_one
from service.api.problems import responses
from service.api.routes import runs
from service.api.schemas.jobs import Job
from service.api.schemas.runs import Run
from service.db.models import JobRecord

router = APIRouter(responses=responses(401, 403, 404, 422, 500, 503))

_RETRIED: dict[int | str, dict[str, Any]] = {
    200: {"model": Job, "description": "It was retried before"},
    **responses(409, 507),
}


# -------------------------------------------------------------------------------------------------------------- jobs


@router.post(
    "/jobs/{job_id}/cancel", operation_id="cancel_job", summary="Cancel a job", dependencies=[WRITE], tags=["jobs"]
)
def cancel_job(job_id: str, ctx: Ctx) -> Job:
    """Runs that have not begun are cancelled now, the others within a batch. What has ended stays as it is."""
    return show_one(ctx.job_control.cancel_job(job_id), ctx.queries)


@router.post(
    "/jobs/{job_id}/pause",
    operation_id="pause_job",
    summary="Pause a job",
    dependencies=[WRITE],
    tags=["jobs"],
    responses=responses(409),
)
def pause_job(job_id: str, ctx: Ctx) -> Job:
    """Runs that train save a checkpoint and stop within a batch. Refused once it has ended or is being cancelled."""
    return show_one(ctx.job_control.pause_job(job_id), ctx.queries)


@router.post(
    "/jobs/{job_id}/resume",
    operation_id="resume_job",
    summary="Resume a job",
    dependencies=[WRITE],
    tags=["jobs"],
    responses=responses(409),
)
def resume_job(job_id: str, ctx: Ctx) -> Job:
    """All its paused runs go on where they stopped, once it is their turn. What is not paused stays as it is."""
    return show_one(ctx.job_control.resume_job(job_id), ctx.queries)


@router.post(
    "/jobs/{job_id}/retry",
    operation_id="retry_job",
    summary="Retry a job",
    dependencies=[WRITE],
    tags=["jobs"],
    status_code=201,
    responses=_RETRIED,
)
def retry_job(job_id: str, ctx: Ctx, who: Who, response: Response) -> Job:
    """A new job of the runs that failed or were cancelled; they go on from their checkpoints. Each is retried once."""
    made = ctx.queries.retry_job(job_id, ctx.check_disk, who.key_id)
    return _show_retry(made, ctx, response)


@router.post("/jobs/{job_id}/pin", operation_id="pin_job", summary="Pin a job", dependencies=[WRITE], tags=["jobs"])
def pin_job(job_id: str, ctx: Ctx) -> Job:
    """It is not deleted, by request or by age, until it is unpinned. Pinning it again changes nothing."""
    return show_one(ctx.deletion.pin_job(job_id), ctx.queries)


@router.delete(
    "/jobs/{job_id}/pin",
    operation_id="unpin_job",
    summary="Unpin a job",
    dependencies=[WRITE],
    tags=["jobs"],
    status_code=204,
)
def unpin_job(job_id: str, ctx: Ctx) -> None:
    """It may be deleted again. Unpinning it again changes nothing."""
    ctx.deletion.unpin_job(job_id)


@router.delete(
    "/jobs/{job_id}",
    operation_id="delete_job",
    summary="Delete a job",
    dependencies=[ADMIN],
    tags=["jobs"],
    status_code=204,
    responses=responses(409),
)
def delete_job(job_id: str, ctx: Ctx) -> None:
    """With its runs, events and files. Refused until it has ended, while it is pinned, and while a retry needs it.

    Retries of it that have ended keep their metrics. Its caches stay.
    """
    ctx.deletion.delete_job(job_id)


# -------------------------------------------------------------------------------------------------------------- runs


@router.post(
    "/runs/{run_id}/cancel", operation_id="cancel_run", summary="Cancel a run", dependencies=[WRITE], tags=["runs"]
)
def cancel_run(run_id: str, ctx: Ctx) -> Run:
    """It stops within a batch; the job's other runs go on. What has ended stays as it is."""
    return runs.show(ctx.job_control.cancel_run(run_id))


@router.post(
    "/runs/{run_id}/pause",
    operation_id="pause_run",
    summary="Pause a run",
    dependencies=[WRITE],
    tags=["runs"],
    responses=responses(409),
)
def pause_run(run_id: str, ctx: Ctx) -> Run:
    """It saves a checkpoint and stops within a batch; the job's other runs go on."""
    return runs.show(ctx.job_control.pause_run(run_id))


@router.post(
    "/runs/{run_id}/resume",
    operation_id="resume_run",
    summary="Resume a run",
    dependencies=[WRITE],
    tags=["runs"],
    responses=responses(409),
)
def resume_run(run_id: str, ctx: Ctx) -> Run:
    """It goes on where it stopped; if its job is paused that goes on, too, but none of its other runs."""
    return runs.show(ctx.job_control.resume_run(run_id))


@router.post(
    "/runs/{run_id}/retry",
    operation_id="retry_run",
    summary="Retry a run",
    dependencies=[WRITE],
    tags=["runs"],
    status_code=201,
    responses=_RETRIED,
)
def retry_run(run_id: str, ctx: Ctx, who: Who, response: Response) -> Job:
    """A new job of this one run, which failed or was cancelled; it goes on from its checkpoint. Once for each run."""
    made = ctx.queries.retry_run(run_id, ctx.check_disk, who.key_id)
    return _show_retry(made, ctx, response)


@router.delete(
    "/runs/{run_id}",
    operation_id="delete_run",
    summary="Delete a run",
    dependencies=[ADMIN],
    tags=["runs"],
    status_code=204,
    responses=responses(409),
)
def delete_run(run_id: str, ctx: Ctx) -> None:
    """With its events and files; the job's other runs stay. Refused as the deletion of its job is."""
    ctx.deletion.delete_run(run_id)


def _show_retry(made: tuple[JobRecord, bool], ctx: Context, response: Response) -> Job:
    row, is_new = made
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return show_one(row, ctx.queries)
