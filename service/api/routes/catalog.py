"""Routes of methods with their JSON Schemas and their preview, of students and of recipes."""

from functools import cache
from typing import Annotated

import numpy as np
from fastapi import APIRouter

from service.api.auth import READ, WRITE
from service.api.bodies.json_bodies import JsonRoute, json_body
from service.api.dependencies import Context, Ctx, Heavy, Whole
from service.api.problems import responses
from service.api.schemas.base import Page
from service.api.schemas.methods import Method, MethodPage, MethodPreview, Part, PreviewRequest
from service.api.schemas.recipes import RecipeEntry
from service.api.schemas.students import Student
from service.errors import InvalidRequest
from store import CacheReader, CacheSpec
from workers.config import recipes
from workers.methods import catalog as methods
from workers.methods.preview import preview
from workers.methods.preview_report import Float32
from workers.students import catalog

# Two caches that agree in these are about the same rows.
_SAME_ROWS = ("dataset_fingerprint", "split", "samples", "classes", "augmentation", "augmentation_seed", "views")

router = APIRouter(tags=["catalog"], responses=responses(401, 403, 500), route_class=JsonRoute)


@router.get("/methods", operation_id="list_methods", summary="Methods, policies and losses", dependencies=[READ, Whole])
def list_methods() -> MethodPage:
    """Every preset, and the policies and losses that `{"preset": "custom"}` combines. Not paged."""
    return _methods()


@cache
def _methods() -> MethodPage:
    """Document of all methods, made once: it takes 50 ms, most of it for JSON Schemas, and never changes."""
    presets = [Method.model_validate(entry) for entry in methods.describe()]
    return MethodPage(
        data=presets,
        first_id=presets[0].id,
        last_id=presets[-1].id,
        policies=[Part.model_validate(entry) for entry in methods.describe_policies()],
        losses=[Part.model_validate(entry) for entry in methods.describe_losses()],
    )


@router.post(
    "/methods/preview",
    operation_id="preview_method",
    summary="Temperatures that a method would give",
    responses=responses(400, 404, 408, 409, 413, 422),
    dependencies=[WRITE, Heavy],
)
def preview_method(request: Annotated[PreviewRequest, json_body(PreviewRequest)], ctx: Ctx) -> MethodPreview:
    """For every row of a complete cache, from its statistics alone; learned temperatures are the initial ones.

    A temperature with which a run would stop is refused with the sample that has it.
    """
    spec, teacher = _statistics(ctx, request.cache)
    student = None
    if request.student_cache is not None:
        other, student = _statistics(ctx, request.student_cache)
        _check_same_rows(spec, other)
    terms = preview(
        request.method.expand(),
        teacher,
        spec.classes,
        student=student,
        epoch=request.epoch,
        epochs=request.epochs,
        bins=request.bins,
    )
    return MethodPreview(
        method=request.method.label,
        cache=request.cache,
        student_cache=request.student_cache,
        views=spec.views,
        samples=spec.samples,
        classes=spec.classes,
        epoch=request.epoch,
        epochs=request.epochs,
        terms=terms,
    )


def _statistics(ctx: Context, key: str) -> tuple[CacheSpec, dict[str, Float32]]:
    """Spec of a complete cache, and its statistics, float32 [views, samples] by name."""
    with CacheReader.from_key(ctx.settings.caches_dir, key) as reader:
        views = [reader.statistics(view) for view in range(reader.spec.views)]
    return reader.spec, {name: np.stack([view[name] for view in views]) for name in views[0]}


def _check_same_rows(spec: CacheSpec, other: CacheSpec) -> None:
    beside_rows = {name: getattr(other, name) for name in CacheSpec.model_fields if name not in _SAME_ROWS}
    # Two networks see the same boxes, each at its own size.
    if spec.augmentation | {"size": None} == other.augmentation | {"size": None}:
        beside_rows["augmentation"] = other.augmentation
    if differences := spec.model_copy(update=beside_rows).differences(other):
        raise InvalidRequest(
            f"cache {other.key} is not of the rows of cache {spec.key}: {'; '.join(differences)}", "#/student_cache"
        )


@router.get(
    "/students", operation_id="list_students", summary="Networks that can be trained", dependencies=[READ, Whole]
)
def list_students() -> Page[Student]:
    """Every student by the name that a job uses. Not paged."""
    students = [Student.model_validate({"id": info["name"], **info}) for info in catalog.describe()]
    return Page(data=students, first_id=students[0].id, last_id=students[-1].id)


@router.get("/recipes", operation_id="list_recipes", summary="Recipes that fill in a job", dependencies=[READ, Whole])
def list_recipes() -> Page[RecipeEntry]:
    """Every recipe by the name that a job uses, with the values that stand for what a job leaves out. Not paged."""
    found = [RecipeEntry.model_validate({"id": entry["name"], **entry}) for entry in recipes.describe()]
    return Page(data=found, first_id=found[0].id, last_id=found[-1].id)
