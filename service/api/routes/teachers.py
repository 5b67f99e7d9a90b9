"""Routes of teachers: upload, list, delete.

An upload is streamed to disk, inspected and tried in confined processes, then kept.
"""

import os
from pathlib import Path

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter, ValidationError

from service.api.auth import ADMIN, READ, WRITE
from service.api.bodies.json_bodies import parse_json
from service.api.bodies.multipart import Upload, receive
from service.api.dependencies import INSPECTIONS_MAX, PAGE_DEFAULT, After, Context, Ctx, InName, Limit, page
from service.api.job_checks import classes_of
from service.api.problems import responses
from service.api.schemas.base import Name, Page
from service.api.schemas.teachers import Teacher, TeacherUpload, Value
from service.db.api_queries import digest_of
from service.db.ids import new_id
from service.db.models import TeacherRecord
from service.errors import InvalidRequest, MalformedBody
from service.settings import Settings
from workers.config.published_preprocessing import NAMED
from workers.config.teacher import Preprocessing, TeacherSpec
from workers.onnx import smoke_test, versions
from workers.onnx.inspection import inspect_in_subprocess
from workers.onnx.teacher_graph import check_picture

router = APIRouter(prefix="/teachers", tags=["teachers"], responses=responses(401, 403, 500, 503))

TEXT_FIELDS = frozenset({"name", "preprocessing", "output"})
_INSPECTIONS = anyio.CapacityLimiter(INSPECTIONS_MAX)
_NAME: TypeAdapter[str] = TypeAdapter(Name)


def show(row: TeacherRecord, settings: Settings) -> Teacher:
    """Document of a teacher's row."""
    has_passed = smoke_test.has_passed(settings.smoke_dir, _spec(row, settings))
    return Teacher(
        id=row.id,
        name=row.name,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        inputs=[Value.model_validate(value) for value in row.inputs],
        outputs=[Value.model_validate(value) for value in row.outputs],
        output=row.output,
        classes=classes_of(row),
        smoke_run="passed" if has_passed else "pending",
        preprocessing=Preprocessing.model_validate(row.preprocessing),
        created_at=row.created_at,
    )


def _spec(row: TeacherRecord, settings: Settings) -> TeacherSpec:
    """Spec of the teacher for the workers."""
    return TeacherSpec(
        path=settings.teacher_path(row.sha256),
        sha256=row.sha256,
        output=row.output,
        preprocessing=Preprocessing.model_validate(row.preprocessing),
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
    """An ONNX classifier as the form field `file`, beside `name`, `preprocessing` (JSON) and `output`.

    The file must hold its weights itself and use standard operators only; it is checked before it is kept, and run on
    noise if ONNX Runtime is there. The same bytes with the same preprocessing and output give the teacher that is there
    already. `preprocessing` may be a name (`"imagenet"`), timm's `config.json` or Hugging Face's
    `preprocessor_config.json`: the teacher's document shows the fields that it became, and a step that they cannot say
    is refused by its name.
    """
    settings = ctx.settings
    # Below the reserve it looks through the caches for what can be freed.
    await anyio.to_thread.run_sync(ctx.check_disk, int(request.headers.get("content-length", "0")))
    upload = receive(
        request,
        settings.teachers_dir,
        text_fields=TEXT_FIELDS,
        file_max_bytes=settings.teacher_max_bytes,
        check_room=ctx.check_disk,
    )
    async with upload as received, ctx.inspections.held(request.state.name):
        row, is_new = await anyio.to_thread.run_sync(_register, received, ctx, limiter=_INSPECTIONS)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/teachers/{row.id}"
    return show(row, settings)


def _register(upload: Upload, ctx: Context) -> tuple[TeacherRecord, bool]:
    preprocessing = _preprocessing(upload.fields.get("preprocessing"))
    name = _name(upload.fields.get("name"), upload.sha256)
    settings = ctx.settings
    graph = inspect_in_subprocess(upload.path, upload.fields.get("output"), settings.inspect_timeout_s)
    check_picture(
        graph,
        channels=preprocessing.channel_count,
        size=preprocessing.size,
        layout=preprocessing.layout,
    )
    described = preprocessing.model_dump(mode="json")
    row = TeacherRecord(
        id=new_id("tch"),
        name=name,
        sha256=upload.sha256,
        identity=digest_of([upload.sha256, graph.output, described]),
        size_bytes=upload.size_bytes,
        inputs=[value.model_dump(mode="json") for value in graph.inputs],
        outputs=[value.model_dump(mode="json") for value in graph.outputs],
        output=graph.output,
        preprocessing=described,
    )
    spec = _spec(row, settings)
    may_run = versions.is_runtime_installed() and not smoke_test.has_passed(settings.smoke_dir, spec)
    has_run = may_run and smoke_test.smoke_run(upload.path, graph, preprocessing, timeout_s=settings.inspect_timeout_s)
    kept, is_new = ctx.queries.add_teacher(row, lambda: _place(upload.path, spec.path))
    if has_run:
        smoke_test.remember(settings.smoke_dir, spec)
    return kept, is_new


def _place(source: Path, target: Path) -> None:
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _name(given: str | None, sha256: str) -> str:
    if given is None:
        return sha256[:12]
    try:
        return _NAME.validate_python(given)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
    raise InvalidRequest(f"the name cannot be used: {problem}", "#/name")


def _preprocessing(text: str | None) -> Preprocessing:
    if text is None:
        return Preprocessing()
    if text.strip() in NAMED:
        return Preprocessing.model_validate(text.strip())
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
