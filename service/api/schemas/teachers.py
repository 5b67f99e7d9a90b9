"""Documents of teachers: the upload, and what is known of one."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.api.schemas.base import Document, Name
from workers.config.teacher import Preprocessing

EXAMPLE_TEACHER = "tch_01m7yt5knp2b4d7r46qbv3d8r3"


class Value(Document):
    """An input or output of the graph; a size is a number, a name, or null where the graph leaves it open."""

    name: str
    dtype: str
    shape: list[int | str | None] | None


class Teacher(Document):
    """An ONNX classifier that was uploaded and inspected."""

    object: Literal["teacher"] = "teacher"
    id: str = Field(examples=[EXAMPLE_TEACHER])
    name: str
    sha256: str
    size_bytes: int
    inputs: list[Value]
    outputs: list[Value]
    output: str = Field(description="the output that holds the logits")
    classes: int | None = Field(description="null where the graph leaves it open")
    smoke_run: Literal["passed", "pending"] = Field(
        description="whether it was run on noise; pending where the API could not, the first job does it then"
    )
    preprocessing: Preprocessing
    created_at: datetime


class TeacherUpload(BaseModel):
    """The parts of the multipart body of an upload; `preprocessing` is JSON text."""

    file: Annotated[bytes, Field(json_schema_extra={"format": "binary"})]
    name: Name | None = None
    preprocessing: str | None = Field(
        None,
        description="JSON of Preprocessing, `imagenet`, timm's config.json or Hugging Face's preprocessor_config.json; "
        "ImageNet's mean and std by default",
        examples=['{"size": [32, 32], "mean": [0.491, 0.482, 0.447], "std": [0.247, 0.243, 0.262]}'],
    )
    output: str | None = Field(None, description="which output holds the logits, if several could")
