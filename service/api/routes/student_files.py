"""Routes of uploaded files of students: upload, list, delete.

An upload is streamed to disk and inspected in a confined process, then kept by its digest.
"""

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from service.api.auth import ADMIN, READ, WRITE
from service.api.bodies.multipart import TEXT_MAX_BYTES, Upload, receive
from service.api.bodies.upload_files import place, upload_name
from service.api.dependencies import INSPECTIONS_MAX, PAGE_DEFAULT, After, Context, Ctx, InName, Limit, page
from service.api.problems import responses
from service.api.schemas.base import Page
from service.api.schemas.student_files import StudentFile, StudentFileUpload
from service.db.ids import new_id
from service.db.student_file_record import StudentFileRecord
from service.db.student_files import StudentFiles
from service.errors import InvalidRequest
from workers.student_files.inspection import inspect_weights

router = APIRouter(prefix="/student-files", tags=["student-files"], responses=responses(401, 403, 500, 503))

_INSPECTIONS = anyio.CapacityLimiter(INSPECTIONS_MAX)


def show(row: StudentFileRecord) -> StudentFile:
    """Document of a file's row."""
    return StudentFile.model_validate(row, from_attributes=True)


@router.post(
    "",
    operation_id="create_student_file",
    summary="Upload weights of a student",
    dependencies=[WRITE],
    status_code=201,
    responses={
        200: {"model": StudentFile, "description": "It was uploaded before"},
        **responses(400, 408, 413, 422, 507),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": StudentFileUpload.model_json_schema()}},
        }
    },
)
async def create_student_file(request: Request, ctx: Ctx, response: Response) -> StudentFile:
    """A safetensors file as the form field `file`, beside `name`; no pickle is taken.

    Its header and values are checked before it is kept; whether its tensors are a student's, when a job names it as
    `{"init": {"upload": ID}}`. The same bytes are the same file.
    """
    settings = ctx.settings
    await anyio.to_thread.run_sync(ctx.check_disk, int(request.headers.get("content-length", "0")))
    upload = receive(
        request,
        settings.student_files_dir,
        text_fields={"name": TEXT_MAX_BYTES},
        file_max_bytes=settings.student_file_max_bytes,
        check_room=ctx.check_disk,
    )
    async with upload as received, ctx.inspections.held(request.state.name):
        row, is_new = await anyio.to_thread.run_sync(_register, received, ctx, limiter=_INSPECTIONS)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/student-files/{row.id}"
    return show(row)


def _register(upload: Upload, ctx: Context) -> tuple[StudentFileRecord, bool]:
    if upload.data is not None:
        raise InvalidRequest("the field `data` is of teachers: weights are one file, the field `file`", "#/data")
    name = upload_name(upload.fields.get("name"), upload.sha256)
    weights = inspect_weights(upload.path, ctx.settings.inspect_timeout_s)
    row = StudentFileRecord(
        id=new_id("stf"),
        name=name,
        sha256=upload.sha256,
        size_bytes=upload.size_bytes,
        tensors=weights.tensors,
        parameters=weights.values,
        dtypes=weights.dtypes,
    )
    return StudentFiles(ctx.database, ctx.settings).add(row, lambda path: place(upload.path, path))


@router.get(
    "",
    operation_id="list_student_files",
    summary="List files of students",
    dependencies=[READ],
    response_model=Page[StudentFile],
    responses=responses(422),
)
def list_student_files(ctx: Ctx, name: InName = None, after: After = None, limit: Limit = PAGE_DEFAULT) -> Response:
    """Newest first."""
    rows, has_more = ctx.queries.page(StudentFileRecord, after, limit, name)
    return page(rows, has_more, show, lambda row: row.id)


@router.get(
    "/{student_file_id}",
    operation_id="get_student_file",
    summary="One file of a student",
    dependencies=[READ],
    responses=responses(404, 422),
)
def get_student_file(student_file_id: str, ctx: Ctx) -> StudentFile:
    """By its id."""
    return show(ctx.queries.get(StudentFileRecord, student_file_id))


@router.delete(
    "/{student_file_id}",
    operation_id="delete_student_file",
    summary="Delete a file of a student",
    dependencies=[ADMIN],
    status_code=204,
    responses=responses(404, 409, 422),
)
def delete_student_file(student_file_id: str, ctx: Ctx) -> None:
    """Refused while a job that has not ended needs it. The results of its jobs stay."""
    StudentFiles(ctx.database, ctx.settings).delete(student_file_id)
