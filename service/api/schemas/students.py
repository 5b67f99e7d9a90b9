"""Documents of students: the networks that can be trained."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from service.api.schemas.base import Document


class Student(Document):
    """A network that can be trained."""

    model_config = ConfigDict(extra="allow")

    object: Literal["student"] = "student"
    id: str
    name: str
    family: str
    summary: str
    paper: str
    parameters_100: int | None = Field(description="trainable parameters with 100 classes; null for timm's")
    min_side: int = Field(description="the smallest height and width in pixels")
    torchvision: bool
    json_schema: dict[str, Any]
