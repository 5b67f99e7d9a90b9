"""Document of a deletion that was not made yet."""

from typing import Literal

from pydantic import Field

from service.api.schemas.base import Document


class Deletion(Document):
    """Deletion that was not made: bytes that it would free at this moment."""

    object: Literal["deletion"] = "deletion"
    id: str
    frees_bytes: int = Field(description="of files; 0 while it is refused")
    refused: str | None = Field(description="why it would be refused; null if it would not")
