"""Documents of garbage collection: limits, what goes, and usage."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, FiniteFloat

from service.api.schemas.base import Document
from service.db.states import State


def _number(given: object) -> object:
    """Refuse ``false`` and ``""``: as 0 they would have everything deleted; 30.0 is an integer, as in JSON Schema."""
    if isinstance(given, bool | str):
        raise ValueError("Input should be a number, without quotes")
    return given


AgeS = Annotated[FiniteFloat, Field(ge=0, le=1e10), BeforeValidator(_number)]
Bytes = Annotated[int, Field(ge=0, le=2**53), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=0, le=2**31), BeforeValidator(_number)]


class GcRequest(Document):
    """Limits of what may stay. One that is null or left out is as the service's settings say; 0 lets none stay."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"dry_run": True, "jobs_max_age_s": 2592000}]})

    dry_run: bool = Field(False, strict=True, description="choose and report, but change nothing")
    jobs_max_age_s: AgeS | None = Field(None, description="seconds since a job has ended")
    jobs_max_count: Count | None = Field(None, description="of jobs that have ended")
    jobs_max_bytes: Bytes | None = Field(None, description="of the files of all jobs")
    decoded_max_bytes: Bytes | None = Field(None, description="of all decoded datasets")
    events_max_age_s: AgeS | None = Field(
        None, description="seconds since a job has ended, until its events are compacted"
    )


class GcJob(Document):
    """A job that goes."""

    id: str
    name: str
    state: State
    ended_at: datetime
    size_bytes: int
    reason: str


class GcDecoded(Document):
    """A decoded copy of a dataset that goes; it is made again when a job needs it."""

    fingerprint: str
    split: str
    samples: int
    size_bytes: int
    used_at: datetime


class GcUsage(Document):
    """Jobs and bytes that the service keeps, before a dry run or after a collection."""

    jobs: int
    ended_jobs: int
    pinned_jobs: int
    jobs_bytes: int
    decoded_bytes: int
    caches_bytes: int
    teachers_bytes: int
    student_files_bytes: int
    database_bytes: int
    database_free_bytes: int = Field(description="of these, what holds nothing and is used next; 0 with PostgreSQL")


class GcReport(Document):
    """Report of what has gone, or would go."""

    object: Literal["gc_report"] = "gc_report"
    dry_run: bool
    jobs: list[GcJob] = Field(description="the one that ended first comes first")
    decoded: list[GcDecoded] = Field(description="the least recently used comes first")
    compacted_jobs: int
    compacted_events: int
    rests_bytes: int = Field(description="of files that deletions before this one had left")
    files_bytes: int = Field(description="of the file system, in all; the database is apart")
    usage: GcUsage
