"""Documents of curves: the metrics of all runs of a job as columns."""

from typing import Literal

from pydantic import Field

from service.api.schemas.base import Document
from service.db.states import State


class RunCurves(Document):
    """Metrics of a run's epochs, a column each."""

    run_id: str
    name: str
    student: str
    method: str = Field(description="label; numbered where several methods of the job share one, as in reports")
    seed: int
    state: State
    epochs: int = Field(description="of the whole run")
    epoch: list[int] = Field(description="finished epochs, counted from 1, in order")
    metrics: dict[str, list[float | None]] = Field(
        description="by name, a value for each of `epoch`, rounded to 6 significant digits"
    )


class JobCurves(Document):
    """Metrics of all runs of a job. Ask for the next part with `after=last_id`."""

    object: Literal["curves"] = "curves"
    job_id: str
    last_id: int = Field(description="number of the newest event in this part")
    every: int = Field(
        description="1 if it has all epochs; else, because they would be more than a million numbers, of each run the "
        "first, the last and those whose number this power of two divides"
    )
    runs: list[RunCurves] = Field(description="all of the job, in the order of the plan")
