"""Documents of uploaded files of students."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.api.schemas.base import Document, Name

EXAMPLE_STUDENT_FILE = "stf_01m7yt5knp2b4d7r46qbv3d8r3"


class StudentFile(Document):
    """Weights of a student, or a program with its weights, that was uploaded and checked."""

    object: Literal["student_file"] = "student_file"
    id: str = Field(examples=[EXAMPLE_STUDENT_FILE])
    kind: Literal["weights", "program"]
    name: str
    sha256: str = Field(description="of the file that is kept: a program is written anew")
    size_bytes: int
    tensors: int
    parameters: int = Field(description="values of all tensors together, running statistics included")
    dtypes: list[str] = Field(description="of the tensors, by safetensors' names", examples=[["F32", "I64"]])
    student: str | None = Field(description="of a program: the name by which a job trains it")
    shape: list[int | None] | None = Field(
        description="of a program: channels, height and width of its pictures; null is any"
    )
    classes: int | None = Field(description="of a program: its logits")
    created_at: datetime


class StudentFileUpload(BaseModel):
    """The parts of the multipart body of an upload."""

    file: Annotated[
        bytes,
        Field(
            description="weights as a safetensors file, or a program of torch.export (.pt2)",
            json_schema_extra={"format": "binary"},
        ),
    ]
    name: Name | None = Field(None, description="for people; the first digits of the SHA-256 by default")
