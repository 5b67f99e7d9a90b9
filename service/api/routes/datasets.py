"""Routes of named datasets. The files are the operator's, below the data root; none is uploaded, and none deleted."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Response

from service.api.auth import ADMIN, READ, WRITE
from service.api.bodies.json_bodies import JsonRoute, json_body
from service.api.dependencies import PAGE_DEFAULT, After, Ctx, Heavy, InName, Limit, page
from service.api.problems import responses
from service.api.schemas.base import Page
from service.api.schemas.datasets import Dataset, DatasetRequest
from service.db.ids import new_id
from service.db.models import DatasetRecord
from service.db.queries.api_queries import DATASET
from workers.data.preparation.bad_picture_reports import read_reports
from workers.data.preparation.discovery import examine

router = APIRouter(
    prefix="/datasets", tags=["datasets"], responses=responses(401, 403, 500, 503), route_class=JsonRoute
)


def show(row: DatasetRecord, notes: Sequence[str] | None = None, bad_pictures: dict[str, int] | None = None) -> Dataset:
    """Document of a dataset's row, with the notes of its examination where it was examined."""
    return Dataset(
        id=row.id,
        name=row.name,
        spec=DATASET.validate_python(row.spec),
        classes=row.classes,
        samples=row.samples,
        notes=None if notes is None else list(notes),
        bad_pictures=bad_pictures,
        created_at=row.created_at,
    )


@router.post(
    "",
    operation_id="create_dataset",
    summary="Register a dataset",
    status_code=201,
    responses={
        200: {"model": Dataset, "description": "It was registered before"},
        **responses(400, 408, 409, 413, 422),
    },
    dependencies=[WRITE, Heavy],
)
def create_dataset(
    request: Annotated[DatasetRequest, json_body(DatasetRequest)], ctx: Ctx, response: Response
) -> Dataset:
    """Looks at the files without decoding them, and remembers the description under a name."""
    source = examine(request.spec, ctx.settings.data_root, ctx.settings.datasets_dir)
    row, is_new = ctx.queries.add_dataset(
        DatasetRecord(
            id=new_id("ds"),
            name=request.name,
            spec=request.spec.model_dump(mode="json"),
            classes=source.classes or None,
            samples=dict(source.samples),
        )
    )
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/datasets/{row.id}"
    return show(row, (*source.notes, *source.advice))


@router.get(
    "",
    operation_id="list_datasets",
    summary="List datasets",
    dependencies=[READ],
    response_model=Page[Dataset],
    responses=responses(422),
)
def list_datasets(ctx: Ctx, name: InName = None, after: After = None, limit: Limit = PAGE_DEFAULT) -> Response:
    """Newest first."""
    rows, has_more = ctx.queries.page(DatasetRecord, after, limit, name)
    return page(rows, has_more, show, lambda row: row.id)


@router.get(
    "/{dataset_id}",
    operation_id="get_dataset",
    summary="One dataset",
    dependencies=[READ],
    responses=responses(404, 422),
)
def get_dataset(dataset_id: str, ctx: Ctx) -> Dataset:
    """By its id."""
    row = ctx.queries.get(DatasetRecord, dataset_id)
    reports = read_reports(ctx.settings.datasets_dir, DATASET.validate_python(row.spec))
    return show(row, bad_pictures={str(report.split): report.bad for report in reports})


@router.delete(
    "/{dataset_id}",
    operation_id="delete_dataset",
    summary="Delete a dataset",
    dependencies=[ADMIN],
    status_code=204,
    responses=responses(404, 409, 422),
)
def delete_dataset(dataset_id: str, ctx: Ctx) -> None:
    """Its name, and what it was decoded to, unless another name or job has that. The operator's own files stay.

    Refused while a job that has not ended uses it. Jobs that have ended keep their copy of the description.
    """
    ctx.deletion.delete_dataset(dataset_id)
