"""Documents of pictures: decoded splits with their classes, and the rows of a split."""

from typing import Literal

from pydantic import Field

from service.api.schemas.base import Document, Sha256


class SplitClass(Document):
    """A class of a split."""

    label: int
    name: str
    samples: int = Field(description="pictures of the class in this split")


class Split(Document):
    """A split of a dataset, as it was decoded."""

    object: Literal["split"] = "split"
    split: Literal["train", "validation", "test"]
    fingerprint: Sha256 = Field(description="SHA-256 of the content: pictures, labels, class names, order")
    samples: int
    height: int = Field(description="of every picture, in pixels")
    width: int
    channels: int = Field(description="1 (grey) or 3 (RGB)")
    unlabelled: int = Field(description="pictures without a label")
    classes: list[SplitClass] = Field(description="in the order of labels; empty where nothing names them")


class PictureRow(Document):
    """A picture by its place in its split."""

    object: Literal["picture"] = "picture"
    row: int = Field(description="its place in the split, from 0")
    label: int | None = Field(description="null for a picture without one")
    class_name: str | None = Field(description="null likewise")
    sample_id: str | None = Field(
        description="its file below the dataset's folder, a key, or its number in an array; null in datasets that "
        "an earlier version has decoded"
    )
    picture: str = Field(description="path of its PNG, by content: what it shows never changes")
