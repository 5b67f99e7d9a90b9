"""Documents of API keys."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field

from service.api.schemas.base import Document, Name
from service.db.keys.scopes import Scope
from workers.spec import Spec


class KeyRequest(Spec):
    """A key to be made."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "ci", "scope": "write"}]})

    name: Name
    scope: Scope = Field(description="each includes those before it: read, write, admin")


class Key(Document):
    """An API key, without its secret."""

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    scope: Scope
    created_at: datetime
    last_used_at: datetime | None = Field(description="to within a minute or two")
    revoked_at: datetime | None = Field(description="null while it is good")


class NewKey(Key):
    """An API key that was just made, with its secret."""

    secret: str = Field(description="sent as `Authorization: Bearer SECRET`; it is nowhere kept")
