"""Documents of galleries: rows of a split that a run is worth looking at for."""

from typing import Literal

from pydantic import Field

from service.api.schemas.base import Document

GalleryOrder = Literal["highest_temperature", "lowest_temperature", "disagreement", "teacher_mistakes"]


class NetworkRow(Document):
    """Answer of a network to a picture."""

    predicted: int = Field(description="label of the class with the largest logit")
    confidence: float = Field(description="its softmax probability at T = 1")
    logits: list[float] = Field(
        description="of every class, rounded to 4 decimals; those that a student has kept are less the row's largest"
    )


class RowTemperature(Document):
    """Temperature of a network on one picture."""

    paper: float = Field(description="what the method's paper calls the temperature")
    divisor: float = Field(description="what divides the logits; another number for methods that standardise them")


class RowTemperatures(Document):
    """Temperatures of both networks on one picture."""

    teacher: RowTemperature
    student: RowTemperature


class GalleryRow(Document):
    """A row with both networks' logits, of which softmax at any temperature can be drawn."""

    row: int
    value: float = Field(description="by which rows are ordered, see `measure`")
    label: int | None = Field(
        description="null for a picture without one, and where neither the decoded dataset nor the run has it any more"
    )
    sample_id: str | None = Field(description="its file below the dataset's folder, or a key; null where not known")
    picture: str | None = Field(
        description="path of its PNG, of the view where the split is augmented; null where the decoded copy is gone"
    )
    teacher: NetworkRow
    student: NetworkRow | None = Field(description="null where the run has kept no logits of this split")
    temperature: RowTemperatures | None = Field(description="by the run's method; null where `notes` says why")


class Gallery(Document):
    """Rows of a split, the most remarkable first."""

    object: Literal["gallery"] = "gallery"
    run_id: str
    by: GalleryOrder
    split: Literal["train", "validation", "test"]
    cache: str
    fingerprint: str = Field(description="of the split's content")
    view: int
    rows: int = Field(description="of the split")
    classes: int
    class_names: list[str] = Field(description="in the order of labels")
    measure: str = Field(description="meaning of `value`, in words")
    terms: list[str] = Field(description="of the method, each by the parts of its loss")
    term: int = Field(description="whose temperatures are shown")
    ordered_by: Literal["paper", "divisor"] | None = Field(
        description="of orders by temperature: which one; the paper's, unless that is the same for all rows"
    )
    notes: list[str] = Field(description="what was assumed or is missing, in sentences")
    data: list[GalleryRow]
