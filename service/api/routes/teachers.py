"""Routes of teachers: upload, list, delete.

An upload is streamed to disk, inspected and tried in confined processes, then kept.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from service.api.auth import ADMIN, READ, WRITE
from service.api.bodies.json_bodies import parse_json
from service.api.bodies.multipart import TEXT_MAX_BYTES, Upload, incoming_file
from service.api.bodies.teacher_fields import CLASS_FIELDS, reading_of
from service.api.bodies.upload_files import place, upload_name
from service.api.bodies.upload_sizes import teacher_limit
from service.api.dependencies import INSPECTIONS_MAX, PAGE_DEFAULT, After, Context, Ctx, InName, Limit, page
from service.api.job_checks import classes_of
from service.api.problems import responses
from service.api.schemas.base import Page
from service.api.schemas.teachers import Teacher, TeacherUpload, Value
from service.api.uploads import receive_in_turn
from service.db.ids import new_id
from service.db.models import TeacherRecord
from service.db.queries.api_queries import digest_of
from service.errors import InvalidRequest, MalformedBody
from service.settings import Settings
from workers.config.published_preprocessing import NAMED
from workers.config.teacher import Preprocessing, TeacherReading, TeacherSpec
from workers.errors import UnknownName
from workers.onnx import versions
from workers.onnx.checks.byte_input import check_bytes, fitted_to_input
from workers.onnx.checks.teacher_graph import check_picture
from workers.onnx.sessions import smoke_test
from workers.onnx.uploads.inspection import inspect_in_subprocess
from workers.onnx.uploads.packing import PackedFile, is_archive, pack
from workers.teacher.class_columns import check_names

router = APIRouter(prefix="/teachers", tags=["teachers"], responses=responses(401, 403, 500, 503))

TEXT_FIELDS = {
    **dict.fromkeys(("name", "preprocessing", "output", "output_kind", "input_values"), TEXT_MAX_BYTES),
    **CLASS_FIELDS,
}
_INSPECTIONS = anyio.CapacityLimiter(INSPECTIONS_MAX)


def show(row: TeacherRecord, settings: Settings) -> Teacher:
    """Document of a teacher's row."""
    reading = spec = _spec(row, settings)
    has_passed = smoke_test.has_passed(settings.smoke_dir, spec)
    return Teacher(
        id=row.id,
        name=row.name,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        inputs=[Value.model_validate(value) for value in row.inputs],
        outputs=[Value.model_validate(value) for value in row.outputs],
        output=row.output,
        output_kind=reading.output_kind,
        classes=classes_of(row),
        class_names=None if reading.class_names is None else list(reading.class_names),
        file_class_names=row.file_class_names or None,
        class_map=reading.class_map,
        input_values=reading.input_values,
        smoke_run="passed" if has_passed else "pending",
        preprocessing=Preprocessing.model_validate(row.preprocessing),
        created_at=row.created_at,
    )


def _spec(row: TeacherRecord, settings: Settings) -> TeacherSpec:
    """Spec of the teacher for the workers."""
    return TeacherSpec.model_validate(
        {
            "path": settings.teacher_path(row.sha256),
            "sha256": row.sha256,
            "output": row.output,
            "preprocessing": row.preprocessing,
            **(row.reading or {}),
        }
    )


@router.post(
    "",
    operation_id="create_teacher",
    summary="Upload a teacher",
    dependencies=[WRITE],
    status_code=201,
    responses={200: {"model": Teacher, "description": "It was uploaded before"}, **responses(400, 408, 413, 422, 507)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": TeacherUpload.model_json_schema()}},
        }
    },
)
async def create_teacher(request: Request, ctx: Ctx, response: Response) -> Teacher:
    """An ONNX classifier as the form field `file`, beside `name`, `preprocessing` (JSON), `output` and others.

    Weights that lie outside the file come as the field `data`, or with it in one zip or tar archive, and are put into
    it: what is kept is one file. Of 2 GiB or more together, which no ONNX file has, a tar archive is kept that the
    service writes anew. It must use standard operators only, is checked before it is kept, and run on noise if
    ONNX Runtime is there. The same bytes with the same fields, the name apart, give the teacher that is there already.
    `preprocessing` may be a name (`"imagenet"`), timm's `config.json` or Hugging Face's `preprocessor_config.json`: the
    teacher's document shows the fields that it became, and a step that they cannot say is refused by its name.
    """
    settings = ctx.settings
    upload = receive_in_turn(
        request, ctx, settings.teachers_dir, text_fields=TEXT_FIELDS, limit=teacher_limit(settings)
    )
    async with upload as received:
        row, is_new = await anyio.to_thread.run_sync(_register, received, ctx, limiter=_INSPECTIONS)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/teachers/{row.id}"
    return show(row, settings)


def _register(upload: Upload, ctx: Context) -> tuple[TeacherRecord, bool]:
    preprocessing = _preprocessing(upload.fields.get("preprocessing"))
    reading = reading_of(upload.fields)
    with _one_file(upload, ctx) as (path, file):
        return _keep(path, file, upload.fields, ctx, preprocessing=preprocessing, reading=reading)


def _keep(
    path: Path,
    file: PackedFile,
    fields: Mapping[str, str],
    ctx: Context,
    *,
    preprocessing: Preprocessing,
    reading: TeacherReading,
) -> tuple[TeacherRecord, bool]:
    """Look at a teacher's file, and keep it. Raises InvalidTeacher."""
    settings = ctx.settings
    name = upload_name(fields.get("name"), file.sha256)
    graph = inspect_in_subprocess(path, fields.get("output"), settings.inspect_timeout_s, reading.input_values)
    preprocessing = fitted_to_input(preprocessing, graph)
    check_bytes(graph, preprocessing)
    check_names(reading, graph.classes)
    check_picture(
        graph,
        channels=preprocessing.channel_count,
        size=preprocessing.size,
        layout=preprocessing.layout,
    )
    described, stated = preprocessing.model_dump(mode="json"), reading.model_dump(mode="json")
    row = TeacherRecord(
        id=new_id("tch"),
        name=name,
        sha256=file.sha256,
        identity=digest_of([file.sha256, graph.output, described, *([stated] if stated else [])]),
        size_bytes=file.size_bytes,
        inputs=[value.model_dump(mode="json") for value in graph.inputs],
        outputs=[value.model_dump(mode="json") for value in graph.outputs],
        output=graph.output,
        preprocessing=described,
        reading=stated or None,
        file_class_names=list(graph.class_names or ()),
    )
    spec = _spec(row, settings)
    may_run = versions.is_runtime_installed() and not smoke_test.has_passed(settings.smoke_dir, spec)
    has_run = may_run and smoke_test.smoke_run(path, graph, preprocessing, timeout_s=settings.inspect_timeout_s)
    kept, is_new = ctx.queries.add_teacher(row, lambda: place(path, spec.path))
    if has_run:
        smoke_test.remember(settings.smoke_dir, spec)
    return kept, is_new


@contextmanager
def _one_file(upload: Upload, ctx: Context) -> Iterator[tuple[Path, PackedFile]]:
    """Path of the upload as one file, its weights in it, with digest and size; removed unless it was renamed."""
    if upload.data is None and not is_archive(upload.path):
        yield upload.path, PackedFile(upload.sha256, upload.size_bytes)
        return
    with incoming_file(ctx.settings.teachers_dir) as (path, _):
        packed = pack(
            upload.path,
            upload.data,
            upload.data_name,
            path,
            bytes_max=ctx.settings.teacher_max_bytes,
            timeout_s=ctx.settings.inspect_timeout_s,
            check_room=ctx.check_disk,
        )
        yield path, packed


def _preprocessing(text: str | None) -> Preprocessing:
    if text is None:
        return Preprocessing()
    name = text.strip()
    if name in NAMED:
        return Preprocessing.model_validate(name)
    if name.replace("-", "_").isidentifier():
        raise UnknownName("preprocessing", name, NAMED)
    try:
        preprocessing = Preprocessing.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"/{step}" for step in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
    else:
        try:
            parse_json(text, "the preprocessing")
        except MalformedBody as error:
            raise InvalidRequest(str(error), "#/preprocessing") from error
        return preprocessing
    raise InvalidRequest(f"the preprocessing cannot be used: {message}", f"#/preprocessing{where}")


@router.get(
    "",
    operation_id="list_teachers",
    summary="List teachers",
    dependencies=[READ],
    response_model=Page[Teacher],
    responses=responses(422),
)
def list_teachers(ctx: Ctx, name: InName = None, after: After = None, limit: Limit = PAGE_DEFAULT) -> Response:
    """Newest first."""
    rows, has_more = ctx.queries.page(TeacherRecord, after, limit, name)
    return page(rows, has_more, lambda row: show(row, ctx.settings), lambda row: row.id)


@router.get(
    "/{teacher_id}",
    operation_id="get_teacher",
    summary="One teacher",
    dependencies=[READ],
    responses=responses(404, 422),
)
def get_teacher(teacher_id: str, ctx: Ctx) -> Teacher:
    """By its id."""
    return show(ctx.queries.get(TeacherRecord, teacher_id), ctx.settings)


@router.delete(
    "/{teacher_id}",
    operation_id="delete_teacher",
    summary="Delete a teacher",
    dependencies=[ADMIN],
    status_code=204,
    responses=responses(404, 409, 422),
)
def delete_teacher(teacher_id: str, ctx: Ctx) -> None:
    """Refused while a job that has not ended uses it. Its caches and the results of its jobs stay."""
    spec = _spec(ctx.queries.get(TeacherRecord, teacher_id), ctx.settings)
    ctx.deletion.delete_teacher(teacher_id)
    smoke_test.forget(ctx.settings.smoke_dir, spec)
