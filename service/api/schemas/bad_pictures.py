"""Document of a picture that cannot be used."""

from typing import Literal

from pydantic import Field

from service.api.schemas.base import Document


class BadPicture(Document):
    """A picture of a dataset that cannot be decoded, or does not fit the others."""

    object: Literal["bad_picture"] = "bad_picture"
    number: int = Field(description="its place in this list, from 0")
    split: Literal["train", "validation", "test"]
    sample_id: str = Field(description="its file below the dataset's folder, or its key")
    reason: str = Field(description="words that follow the id in a sentence")
    left_out: bool = Field(description="whether the dataset is used without it (`on_bad_picture`); else it is refused")
