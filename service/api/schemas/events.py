"""Document of an event of a job or run."""

from datetime import datetime

from service.api.schemas.base import Document, Stored


class Event(Document):
    """Something that happened, in the order of `seq`."""

    seq: int
    job_id: str
    run_id: str | None
    attempt: int
    at: datetime
    type: str
    data: Stored
