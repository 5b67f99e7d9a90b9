"""Routes that say what a deletion would free: GET, so that asking a service of an earlier version deletes nothing."""

from fastapi import APIRouter

from service.api.auth import READ
from service.api.dependencies import Ctx
from service.api.problems import responses
from service.api.routes.caches import Key, why_in_use
from service.api.schemas.deletions import Deletion
from service.db.deletions.deletion_preview import DeletionPreview, DeletionPreviews

router = APIRouter(responses=responses(401, 403, 404, 422, 500, 503), dependencies=[READ])


@router.get(
    "/jobs/{job_id}/deletion", operation_id="preview_job_deletion", summary="What deleting a job frees", tags=["jobs"]
)
def preview_job(job_id: str, ctx: Ctx) -> Deletion:
    """Bytes of the files of its runs, or why it is refused now. Its caches stay."""
    return _show(job_id, DeletionPreviews(ctx.database, ctx.settings).job(job_id))


@router.get(
    "/runs/{run_id}/deletion", operation_id="preview_run_deletion", summary="What deleting a run frees", tags=["runs"]
)
def preview_run(run_id: str, ctx: Ctx) -> Deletion:
    """Bytes of its files, or why it is refused now."""
    return _show(run_id, DeletionPreviews(ctx.database, ctx.settings).run(run_id))


@router.get(
    "/datasets/{dataset_id}/deletion",
    operation_id="preview_dataset_deletion",
    summary="What deleting a dataset frees",
    tags=["datasets"],
)
def preview_dataset(dataset_id: str, ctx: Ctx) -> Deletion:
    """Bytes of what it was decoded to, unless another name or job has that, or why it is refused now."""
    return _show(dataset_id, DeletionPreviews(ctx.database, ctx.settings).dataset(dataset_id))


@router.get(
    "/teachers/{teacher_id}/deletion",
    operation_id="preview_teacher_deletion",
    summary="What deleting a teacher frees",
    tags=["teachers"],
)
def preview_teacher(teacher_id: str, ctx: Ctx) -> Deletion:
    """Bytes of its file, unless another teacher has the same, or why it is refused now."""
    return _show(teacher_id, DeletionPreviews(ctx.database, ctx.settings).teacher(teacher_id))


@router.get(
    "/student-files/{student_file_id}/deletion",
    operation_id="preview_student_file_deletion",
    summary="What deleting a file of a student frees",
    tags=["student-files"],
)
def preview_student_file(student_file_id: str, ctx: Ctx) -> Deletion:
    """Bytes of the file, or why it is refused now."""
    return _show(student_file_id, DeletionPreviews(ctx.database, ctx.settings).student_file(student_file_id))


@router.get(
    "/caches/{key}/deletion",
    operation_id="preview_cache_deletion",
    summary="What deleting a cache frees",
    tags=["caches"],
)
def preview_cache(key: Key, ctx: Ctx) -> Deletion:
    """Bytes of its files, or why it is refused now."""
    entry, used = ctx.catalog.get(key), why_in_use(key, ctx)
    if used is not None:
        return _show(key, DeletionPreview(0, used))
    if entry.pinned:
        return _show(key, DeletionPreview(0, f"cache {key} is pinned: unpin it first, then delete it"))
    return _show(key, DeletionPreview(entry.size_bytes))


def _show(id: str, preview: DeletionPreview) -> Deletion:
    return Deletion(id=id, frees_bytes=preview.frees_bytes, refused=preview.refused)
