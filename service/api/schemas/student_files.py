"""Documents of uploaded files of students."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.api.schemas.base import Document, Name

EXAMPLE_STUDENT_FILE = "stf_01m7yt5knp2b4d7r46qbv3d8r3"


class StudentFile(Document):
    """A file of weights that was uploaded and checked."""

    object: Literal["student_file"] = "student_file"
    id: str = Field(examples=[EXAMPLE_STUDENT_FILE])
    name: str
    sha256: str
    size_bytes: int
    tensors: int
    parameters: int = Field(description="values of all tensors together, running statistics included")
    dtypes: list[str] = Field(description="of the tensors, by safetensors' names", examples=[["F32", "I64"]])
    created_at: datetime


class StudentFileUpload(BaseModel):
    """The parts of the multipart body of an upload."""

    file: Annotated[bytes, Field(description="the weights: a safetensors file", json_schema_extra={"format": "binary"})]
    name: Name | None = Field(None, description="for people; the first digits of the SHA-256 by default")
