"""Name and place of a file that was uploaded."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from service.api.schemas.base import Name
from service.errors import InvalidRequest
from workers.files import sync_folder

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_DIGITS = 12


def upload_name(given: str | None, sha256: str) -> str:
    """Name of an upload as the client gives it, or the first digits of its SHA-256.

    Raises:
        InvalidRequest: it cannot be a name.
    """
    if given is None:
        return sha256[:_DIGITS]
    try:
        return _NAME.validate_python(given)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
    raise InvalidRequest(f"the name cannot be used: {problem}", "#/name")


def place(source: Path, target: Path) -> None:
    """Move a file that was received to where it is kept, durably."""
    source.replace(target)
    sync_folder(target.parent)
