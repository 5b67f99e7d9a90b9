"""Routes of runs: state, metrics, artifacts. Posting a job makes them."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.auth import READ
from service.api.dependencies import Context, Ctx, Whole, document, ends
from service.api.file_downloads import download
from service.api.problems import responses
from service.api.schemas.base import Page
from service.api.schemas.costs import Eta
from service.api.schemas.runs import Artifact, ErrorInfo, Run, SetAside
from service.db.models import ArtifactRecord, JobRecord, RunRecord
from service.db.states import State
from service.errors import NotFound

router = APIRouter(prefix="/runs", tags=["runs"], responses=responses(401, 403, 404, 422, 500, 503))

_EXPECTED = frozenset({State.QUEUED, State.RUNNING, State.LOST})


def eta_of(row: JobRecord | RunRecord) -> Eta | None:
    """Expected end of a job or run; None where the engine has none, or it does not go on."""
    return Eta.model_validate(row.eta) if row.eta and row.state in _EXPECTED else None


def show(row: RunRecord) -> Run:
    """Document of a run's row."""
    return Run(
        id=row.id,
        job_id=row.job_id,
        index=row.index,
        name=row.name,
        student=row.student,
        method=row.method,
        method_spec=row.method_spec,
        seed=row.seed,
        state=row.state,
        attempt=row.attempt,
        epoch=row.epoch,
        epochs=row.epochs,
        progress=row.progress,
        metrics=row.metrics,
        result=row.result,
        waits_for=row.waits_for,
        error=ErrorInfo.model_validate(row.error) if row.error else None,
        set_aside=SetAside.model_validate(row.set_aside) if row.set_aside else None,
        retry_of=row.retry_of,
        eta=eta_of(row),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


@router.get("/{run_id}", operation_id="get_run", summary="One run", dependencies=[READ], response_model=Run)
def get_run(run_id: str, ctx: Ctx) -> Response:
    """State, progress, the metrics of its last epoch, and in the end its result."""
    return document(show(ctx.queries.get(RunRecord, run_id)))


@router.get(
    "/{run_id}/metrics", operation_id="list_metrics", summary="Metrics of every epoch", dependencies=[READ, Whole]
)
def list_metrics(run_id: str, ctx: Ctx) -> Page[dict[str, Any]]:
    """One object per finished epoch, in order. Not paged."""
    epochs = ctx.queries.metrics(run_id)
    return Page(data=epochs, **ends(epochs, lambda metrics: metrics["epoch"]))


@router.get(
    "/{run_id}/artifacts",
    operation_id="list_artifacts",
    summary="Files that a run has left",
    dependencies=[READ, Whole],
)
def list_artifacts(run_id: str, ctx: Ctx) -> Page[Artifact]:
    """By name, with size and SHA-256. Not paged."""
    files = ctx.queries.artifacts(run_id)
    return Page(data=[_show_artifact(file) for file in files], **ends(files, lambda file: file.name))


def _show_artifact(file: ArtifactRecord) -> Artifact:
    return Artifact(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256, media_type=file.media_type)


@router.get(
    "/{run_id}/artifacts/{name}",
    operation_id="download_artifact",
    summary="Download a file",
    dependencies=[READ],
    response_class=Response,
    responses={
        200: {
            "description": "The file; its ETag is its SHA-256",
            "content": {"*/*": {}},
        },
        206: {"description": "The part that Range has asked for"},
        304: {"description": "If-None-Match names the present ETag"},
        **responses(416),
    },
)
def download_artifact(run_id: str, name: str, request: Request, ctx: Ctx) -> Response:
    """Serves Range, If-Range and If-None-Match; Repr-Digest carries the SHA-256 of the whole file."""
    file = next((file for file in ctx.queries.artifacts(run_id) if file.name == name), None)
    if file is None:
        raise NotFound("artifact", f"{run_id}/{name}")
    return download(path_of(file, ctx), request, name=name, sha256=file.sha256, media_type=file.media_type)


def path_of(file: ArtifactRecord, ctx: Context) -> Path:
    """Path of an artifact. Raises NotFound if it is gone, or if its row points out of the data directory."""
    root = ctx.settings.data_dir.resolve()
    path = (root / file.path).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise NotFound("file for artifact", f"{file.run_id}/{file.name}")
    return path
