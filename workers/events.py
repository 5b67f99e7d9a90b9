"""Events of workers: one flat record per event, JSON from the start.

Workers only emit; they never move a state. The runner numbers the events of an attempt, stores
them once, and derives progress from them. Times are seconds, rates are rows (samples) per second.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workers.texts import storable

Split = Literal["train", "validation", "test"]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, told: Any) -> Any:  # noqa: ANN401  # whatever it is made of
        # A message may quote the name of a file, which need not be UTF-8.
        return storable(told)


class Log(_Event):
    """A sentence for a person: a decision and its reason, or a warning."""

    type: Literal["log"] = "log"
    level: Literal["info", "warning"] = "info"
    message: str


class Stage(_Event):
    """A part of the work has begun."""

    type: Literal["stage"] = "stage"
    stage: Literal["preparing", "inference", "training"]


class DatasetReady(_Event):
    """A split is decoded and mapped. ``reused`` says that an earlier job had decoded it."""

    type: Literal["dataset_ready"] = "dataset_ready"
    split: Split
    fingerprint: str
    samples: int
    classes: int
    reused: bool


class PreflightChecked(_Event):
    """The teacher was tried on ``rows`` pictures before any long work, with ``forwards`` passes.

    ``views_accuracy`` is that on as many training views, None without augmentation. Where not all have a label,
    ``labelled`` of them have; where none has, accuracy and chance are None, and the teacher is judged by the
    ``entropy`` of its outputs (nats) and by the ``agreement`` of its answers to a picture and the same moved a little.
    """

    type: Literal["contract_checked"] = "contract_checked"
    rows: int
    forwards: int
    accuracy: float | None
    views_accuracy: float | None = None
    chance: float | None
    labelled: int | None = Field(None, exclude_if=lambda given: given is None)
    entropy: float | None = Field(None, exclude_if=lambda given: given is None)
    agreement: float | None = Field(None, exclude_if=lambda given: given is None)
    output_kind: str
    provider: str
    provider_reason: str


class InferenceProgress(_Event):
    """Committed rows of one cache.

    ``rows_done`` counts all that are there, ``rows_inferred`` those that this attempt has put there.
    """

    type: Literal["inference_progress"] = "inference_progress"
    cache: str
    split: Split
    rows_done: int
    rows_total: int
    rows_inferred: int
    rows_per_s: float | None
    eta_s: float | None


class CacheReady(_Event):
    """A cache is complete. ``rows_inferred`` rows went through the teacher for it in this job."""

    type: Literal["cache_ready"] = "cache_ready"
    cache: str
    split: Split
    views: int
    rows_total: int
    rows_inferred: int
    seconds: float


class Step(_Event):
    """Progress inside an epoch, at most a few per second."""

    type: Literal["step"] = "step"
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_s: float


class Epoch(_Event):
    """An epoch is trained and evaluated; ``metrics`` is one line of metrics.jsonl."""

    type: Literal["epoch"] = "epoch"
    epoch: int
    epochs: int
    metrics: dict[str, float | None]


class Finished(_Event):
    """A run has written all its artifacts; ``result`` is result.json."""

    type: Literal["finished"] = "finished"
    result: dict[str, object]


Event = Annotated[
    Log | Stage | DatasetReady | PreflightChecked | InferenceProgress | CacheReady | Step | Epoch | Finished,
    Field(discriminator="type"),
]

Emit = Callable[[_Event], None]
ShouldStop = Callable[[], bool]


def ignore(event: _Event) -> None:
    """An ``Emit`` for callers that do not listen."""


def warn(warnings: Iterable[str], emit: Emit) -> None:
    """Emit each sentence as a warning."""
    for warning in warnings:
        emit(Log(level="warning", message=warning))


def with_prefix(prefix: str, emit: Emit) -> Emit:
    """An ``Emit`` that puts ``prefix`` before every sentence for a person."""

    def prefixed(event: _Event) -> None:
        emit(Log(level=event.level, message=prefix + event.message) if isinstance(event, Log) else event)

    return prefixed


def never() -> bool:
    """A ``ShouldStop`` for work that nobody will stop."""
    return False
