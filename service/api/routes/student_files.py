"""Routes of uploaded files of students: upload, list, delete.

An upload is streamed to disk and inspected in a confined process, then kept by its digest.
"""

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from service.api.auth import ADMIN, READ, WRITE
from service.api.bodies.multipart import TEXT_MAX_BYTES, Upload
from service.api.bodies.upload_files import place, upload_name
from service.api.bodies.upload_sizes import student_file_limit
from service.api.dependencies import INSPECTIONS_MAX, PAGE_DEFAULT, After, Context, Ctx, InName, Limit, page
from service.api.problems import responses
from service.api.schemas.base import Page
from service.api.schemas.student_files import StudentFile, StudentFileUpload
from service.api.uploads import receive_in_turn
from service.db.deletions.student_files import StudentFiles
from service.db.ids import new_id
from service.db.student_file_record import StudentFileRecord
from service.errors import InvalidRequest
from workers.onnx.uploads.packing import PackedFile
from workers.student_files.fit import can_check
from workers.student_files.inspection import inspect_weights
from workers.student_files.programs import convert_program, may_be_program, try_program
from workers.students.program import PREFIX

router = APIRouter(prefix="/student-files", tags=["student-files"], responses=responses(401, 403, 500, 503))

_INSPECTIONS = anyio.CapacityLimiter(INSPECTIONS_MAX)


def show(row: StudentFileRecord) -> StudentFile:
    """Document of a file's row."""
    program = row.program or {}
    return StudentFile(
        id=row.id,
        kind=row.kind,
        name=row.name,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        tensors=row.tensors,
        parameters=row.parameters,
        dtypes=row.dtypes,
        student=PREFIX + row.id if row.kind == "program" else None,
        shape=program.get("shape"),
        classes=program.get("classes"),
        created_at=row.created_at,
    )


@router.post(
    "",
    operation_id="create_student_file",
    summary="Upload weights or a program of a student",
    dependencies=[WRITE],
    status_code=201,
    responses={
        200: {"model": StudentFile, "description": "It was uploaded before"},
        **responses(400, 408, 409, 413, 422, 507),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": StudentFileUpload.model_json_schema()}},
        }
    },
)
async def create_student_file(request: Request, ctx: Ctx, response: Response) -> StudentFile:
    """A safetensors file or a torch.export program (.pt2) as the form field `file`, beside `name`; no pickle is opened.

    Weights: header and values are checked before they are kept; whether the tensors are a student's, when a job names
    them as `{"init": {"upload": ID}}`. A program becomes the student `uploaded/ID`: its graph, of operators from a
    list, and its tensors are written anew, and it is trained for a step in a confined process if torch is there. The
    same bytes are the same file.
    """
    settings = ctx.settings
    upload = receive_in_turn(
        request,
        ctx,
        settings.student_files_dir,
        text_fields={"name": TEXT_MAX_BYTES},
        limit=student_file_limit(settings),
    )
    async with upload as received:
        row, is_new = await anyio.to_thread.run_sync(_register, received, ctx, limiter=_INSPECTIONS)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/student-files/{row.id}"
    return show(row)


def _register(upload: Upload, ctx: Context) -> tuple[StudentFileRecord, bool]:
    if upload.data is not None:
        raise InvalidRequest("the field `data` is of teachers: weights are one file, the field `file`", "#/data")
    files = StudentFiles(ctx.database, ctx.settings)
    name = upload_name(upload.fields.get("name"), upload.sha256)
    timeout_s, program = ctx.settings.inspect_timeout_s, None
    if may_be_program(upload.path):
        bytes_max = ctx.settings.student_file_max_bytes
        file, weights, program = convert_program(
            upload.path, bytes_max=bytes_max, timeout_s=timeout_s, check_room=ctx.check_disk
        )
        if can_check() and not files.has(file.sha256):
            try_program(upload.path, timeout_s=timeout_s)
    else:
        weights = inspect_weights(upload.path, timeout_s)
        file = PackedFile(upload.sha256, upload.size_bytes)
    row = StudentFileRecord(
        id=new_id("stf"),
        kind="weights" if program is None else "program",
        name=name,
        sha256=file.sha256,
        size_bytes=file.size_bytes,
        tensors=weights.tensors,
        parameters=weights.values,
        dtypes=weights.dtypes,
        program=None if program is None else program.model_dump(mode="json"),
    )
    return files.add(row, lambda path: place(upload.path, path))


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
