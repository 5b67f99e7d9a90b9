"""Documents of recipes: values that stand for what a job leaves out."""

from typing import Any, Literal

from pydantic import Field, JsonValue

from service.api.schemas.base import Document


class PairParameters(Document):
    """Parameters of a method that its authors give for some pairs of teacher and student."""

    method: str
    pairs: list[str] = Field(description="each `TEACHER STUDENT`")
    parameters: dict[str, JsonValue]


class RecipeEntry(Document):
    """A recipe. A job names it in `recipe`; what the job states wins."""

    object: Literal["recipe"] = "recipe"
    id: str
    name: str
    title: str
    source: str = Field(description="where its values come from")
    default_of: list[str] = Field(description="dataset kinds whose jobs take it where they name none")
    training: dict[str, Any] = Field(description="as in a job; `warmup_epochs` is scaled with `epochs`")
    views: dict[str, Any] = Field(description="as in a job")
    reference_lr: bool = Field(description="whether students with a `reference_lr` take that one")
    methods: dict[str, JsonValue] = Field(description="parameters of every method")
    pairs: list[PairParameters]
