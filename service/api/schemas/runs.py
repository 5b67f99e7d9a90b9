"""Documents of runs: state, errors and artifacts."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field

from service.api.schemas.base import Document, Stored
from service.api.schemas.costs import Eta
from service.db.states import State
from workers.spec import Seed


class ErrorInfo(Document):
    """Error with which something failed."""

    model_config = ConfigDict(extra="allow")

    type: str
    message: str


class SetAside(Document):
    """Reason why something is paused that no client has paused; it goes on by itself."""

    code: str = Field(description="name of the system's error: `ENOSPC`, `EDQUOT`, `EROFS`, `EIO`")
    message: str
    since: datetime


class Run(Document):
    """One student in training, or trained."""

    object: Literal["run"] = "run"
    id: str
    job_id: str
    index: int
    name: str
    student: str
    method: str
    method_spec: Stored
    seed: Seed
    state: State
    attempt: int
    epoch: int
    epochs: int
    progress: Stored | None = Field(description="inside the present epoch")
    metrics: Stored | None = Field(description="of the last finished epoch")
    result: Stored | None
    error: ErrorInfo | None
    set_aside: SetAside | None = Field(
        description="why it is paused although no client has paused it; it goes on by itself"
    )
    waits_for: str | None = Field(
        description="why it waits although it is its turn: for a whole GPU, say, and who has them, or for the time at "
        "which it starts again after its process was lost"
    )
    retry_of: str | None = Field(description="the run that it tries again")
    eta: Eta | None = Field(description="null once it has ended, while it is paused, and while nothing is known")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Artifact(Document):
    """A file that a run has left."""

    object: Literal["artifact"] = "artifact"
    name: str
    size_bytes: int
    sha256: str
    media_type: str
