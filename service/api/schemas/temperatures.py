"""Documents of a job's temperatures: histograms of all its methods and runs over common bins."""

from typing import Literal

from pydantic import Field

from service.api.schemas.base import Document
from service.db.states import State

TemperatureKind = Literal["paper", "divisor"]


class TemperatureHistogram(Document):
    """Distribution of a network's temperatures."""

    mean: float
    std: float
    quantiles: dict[str, float | None] = Field(description="q05, q25, q50, q75, q95, to 4.4 %")
    shares: list[float] = Field(description="of all rows, in each bin between `edges` of the whole document")
    below: float = Field(description="share below 2^-10")
    above: float = Field(description="share of 2^14 or more")


class TermTemperatures(Document):
    """Temperatures that a term's policy gives to every row of a cache."""

    parts: list[str] = Field(description="what metrics call the parts of its loss")
    policy: str
    teacher: TemperatureHistogram
    student: TemperatureHistogram
    notes: list[str] = Field(description="what was assumed, in sentences")


class MethodTemperatures(Document):
    """Temperatures of one of the job's methods on its training cache, by its policies alone."""

    method: str = Field(description="label; numbered where several methods of the job share one, as in reports")
    terms: list[TermTemperatures]
    reason: str | None = Field(description="why there are none, or not all")


class RunTemperatures(Document):
    """Temperatures that a run has trained with in one epoch, by what it has measured."""

    run_id: str
    name: str
    student_name: str
    method: str
    seed: int
    state: State
    epochs: int
    epoch: int | None = Field(description="that was measured; null where there is none")
    teacher: TemperatureHistogram | None
    student: TemperatureHistogram | None
    reason: str | None = Field(description="why there are none")


class JobTemperatures(Document):
    """Histograms of temperatures over common bins, of the methods on the training cache and of runs as measured.

    All jobs have the same grid of bins, 16 an octave from 2^-10 to 2^14, of which `edges` are those that are needed
    here: shares of equal edges are comparable across jobs, methods and runs.
    """

    object: Literal["job_temperatures"] = "job_temperatures"
    job_id: str
    kind: TemperatureKind
    edges: list[float] = Field(description="one more than there are bins; empty without any temperature")
    cache: str | None = Field(description="of the training split, whose rows `methods` are of")
    rows: int | None
    view: int
    methods: list[MethodTemperatures]
    runs: list[RunTemperatures]
