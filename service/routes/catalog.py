"""What a job can ask for: methods and students, with the JSON Schemas of their parameters."""

from fastapi import APIRouter

from service.problems import responses
from service.schemas import Method, MethodPage, Page, Part, Student
from workers import methods
from workers.students import catalog

router = APIRouter(tags=["catalog"], responses=responses(401, 403, 500))


@router.get("/methods", operation_id="list_methods", summary="Methods, policies and losses")
def list_methods() -> MethodPage:
    """Every preset, and the policies and losses that `{"preset": "custom"}` combines. Not paged."""
    presets = [Method.model_validate(entry) for entry in methods.describe()]
    return MethodPage(
        data=presets,
        first_id=presets[0].id,
        last_id=presets[-1].id,
        policies=[Part.model_validate(entry) for entry in methods.describe_policies()],
        losses=[Part.model_validate(entry) for entry in methods.describe_losses()],
    )


@router.get("/students", operation_id="list_students", summary="Networks that can be trained")
def list_students() -> Page[Student]:
    """Every student by the name that a job uses. Not paged."""
    students = [Student.model_validate({"id": info["name"], **info}) for info in catalog.describe()]
    return Page(data=students, first_id=students[0].id, last_id=students[-1].id)
