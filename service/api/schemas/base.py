"""Base of all documents of the API, and the types that several of them share.

``workers.config.job`` is embedded in requests, never redefined. Times are UTC, ISO 8601. Optional facts are null, never
left out. ``object`` says what a document is.
"""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints

from workers.texts import composed

# No control characters: a name goes into logs, headers and tables, and PostgreSQL refuses NUL.
# In one normal form: what is looked up by name is found, whichever machine has spelt it.
_Composed = BeforeValidator(lambda given: composed(given) if isinstance(given, str) else given)
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$"), _Composed]
OptionalName = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Item = TypeVar("Item")
# What was stored as JSON, as it was stored. With JsonValue pydantic would ask for the type of each value in it again,
# which takes a third of the time of making a document.
Stored = dict[str, Any]


class Document(BaseModel):
    """Base of every response."""

    model_config = ConfigDict(extra="forbid")


class Page(Document, Generic[Item]):
    """Part of a list. Ask for the next part with ``after=last_id`` while ``has_more``."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None
