"""Document of the liveness check."""

from typing import Literal

from service.api.schemas.base import Document


class Health(Document):
    """The process answers."""

    status: Literal["ok"] = "ok"
