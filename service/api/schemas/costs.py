"""Documents of what a job would cost, and of expected ends."""

from datetime import datetime

from pydantic import Field

from service.api.schemas.base import Document


class Eta(Document):
    """Expected end of a job or run that is queued, lost or at work: a moment, so that it stays true between changes."""

    expected_at: datetime
    as_of: datetime = Field(description="when it was expected so")
    based_on: str = Field(description="what it was found from")


class CacheCost(Document):
    """One cache that the job would have."""

    split: str
    teacher: str | None = Field(
        description="whose rows it holds; null for rows that are combined of several teachers', and for imported ones"
    )
    key: str | None = Field(description="null where it is not known before the pictures are decoded")
    samples: int
    views: int
    rows: int
    is_exact: bool = Field(
        description="false where only decoding tells how many pictures are held out of each class: then all numbers of "
        "this cache are about so many"
    )
    chunks_bytes: int = Field(description="of its arrays when it is complete, by the format's arithmetic")
    full_bytes: int = Field(description="the same with its descriptions and commit records, at most")
    rows_cached: int = Field(description="that are committed already")


class ForwardsCost(Document):
    """Rows of the caches that go through the teacher, beside the preflight's some hundred pictures."""

    needed: int
    cached: int
    to_run: int
    cached_known_by: str = Field(description="how it is known what is cached")


class SecondsCost(Document):
    """Seconds if the engine has nothing else to do, by measured times; null for what was never measured."""

    preparing: float | None = Field(description="starting, preparing the data, the preflight, verifying the caches")
    inference: float | None
    training: float | None = Field(description="of all runs, as many at once as the engine has slots for")
    total: float | None
    measured_by: list[str] = Field(description="what each was measured by")
    missing: list[str] = Field(description="why there is a null")


class BreakEven(Document):
    """When the caches have paid for themselves, compared with a teacher that runs in every step."""

    live_forwards: int = Field(description="that a live teacher would need for all runs")
    runs: float | None = Field(
        description="of this job's that distil: after so many a live teacher would have been run as often; null where "
        "none needs a teacher"
    )
    epochs: float | None = Field(description="the same in epochs of such runs")
    live_seconds: float | None = Field(description="of the teacher in training; null where its rate is not known")
    saved_seconds: float | None = Field(description="`live_seconds` less those of inference; negative where it costs")


class OtherWork(Document):
    """Work that the engine has already."""

    jobs: int = Field(description="queued or worked on")
    expected_at: datetime | None = Field(description="end of the last of them; null where there is none, or not known")


class Cost(Document):
    """Cost of a job before it is posted."""

    samples: dict[str, int] = Field(
        description="pictures by split; those of a validation split that is held out are among the training split's"
    )
    caches: list[CacheCost]
    forwards: ForwardsCost
    seconds: SecondsCost
    break_even: BreakEven
    other_work: OtherWork
