"""Documents of teachers: the upload, and what is known of one."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.api.schemas.base import Document, Name
from workers.config.teacher import OutputKind, Preprocessing

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
    output_kind: OutputKind | None = Field(description="what the output holds, as stated; null has the preflight tell")
    classes: int | None = Field(description="columns of the output; null where the graph leaves it open")
    class_names: list[str] | None = Field(description="of the columns, as stated")
    file_class_names: list[str] | None = Field(description="of the columns, by the file's metadata")
    class_map: dict[str, str | int] = Field(description="the teacher's class, by that of a dataset, as stated")
    input_values: dict[str, bool | int | float] = Field(description="of scalar inputs beside the pictures, as stated")
    smoke_run: Literal["passed", "pending"] = Field(
        description="whether it was run on noise; pending where the API could not, the first job does it then"
    )
    preprocessing: Preprocessing
    created_at: datetime


class TeacherUpload(BaseModel):
    """The parts of the multipart body of an upload; all but the files are text, most of it JSON."""

    file: Annotated[
        bytes,
        Field(
            json_schema_extra={"format": "binary"},
            description="the ONNX file, or a zip or tar archive of one and the files of its weights",
        ),
    ]
    data: Annotated[bytes | None, Field(json_schema_extra={"format": "binary"})] = Field(
        None, description="the file of its weights (external data), under the name that it was saved with"
    )
    name: Name | None = None
    preprocessing: str | None = Field(
        None,
        description="JSON of Preprocessing, `imagenet`, timm's config.json or Hugging Face's preprocessor_config.json; "
        "ImageNet's mean and std by default, none for an input of uint8",
        examples=['{"size": [32, 32], "mean": [0.491, 0.482, 0.447], "std": [0.247, 0.243, 0.262]}'],
    )
    output: str | None = Field(None, description="which output holds the logits, if several could")
    output_kind: OutputKind | None = Field(None, description="what it holds; told by its values by default")
    class_names: str | None = Field(
        None,
        description="names of the output's columns in their order: a JSON list, an object of numbers and names, or one "
        "in each line",
        examples=['["cat", "dog"]'],
    )
    class_map: str | None = Field(
        None,
        description="JSON: for classes of a dataset whose name is none of these, the teacher's name or column",
        examples=['{"n02123045": "tabby, tabby cat", "dog": 207}'],
    )
    input_values: str | None = Field(
        None, description="JSON: values of scalar inputs beside the pictures", examples=['{"keep_prob": 1.0}']
    )
