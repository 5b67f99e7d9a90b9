"""Documents of caches of teacher logits."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field

from service.api.schemas.base import Document, Page, Stored
from service.db.states import State
from store.catalog import CacheEntry
from store.verify import VerifyReport
from workers.config.teacher import OutputKind
from workers.events import Split
from workers.methods.preview_report import Histogram


class Cache(Document):
    """The logits of one teacher on one dataset's views."""

    object: Literal["cache"] = "cache"
    key: str
    state: Literal["complete", "partial", "corrupt"]
    problem: str | None = Field(description="what is wrong with a corrupt one")
    spec: Stored | None
    rows_committed: int
    size_bytes: int
    created_at: datetime | None
    last_used_at: datetime | None
    pinned: bool = Field(description="whether it is kept from eviction and deletion")
    provenance: Stored = Field(
        description="what made it, no part of its key; `computed_on` lists where its blocks were, or were to be, "
        "inferred, unless an older version did it"
    )

    @classmethod
    def of(cls, entry: CacheEntry) -> Self:
        """The document of an entry of the store's catalog."""
        return cls(
            key=entry.key,
            state=entry.state,
            problem=entry.problem,
            spec=entry.spec.model_dump(mode="json") if entry.spec else None,
            rows_committed=entry.rows_committed,
            size_bytes=entry.size_bytes,
            created_at=entry.created_at,
            last_used_at=entry.last_used_at,
            pinned=entry.pinned,
            provenance=entry.provenance,
        )


class ImportedCache(Cache):
    """A cache of logits that were imported, and what was found about them."""

    accuracy: float | None = Field(
        description="top-1 on some hundred samples with a label, of the worst view; null without any"
    )
    warnings: list[str]


class CacheUpload(BaseModel):
    """The parts of the multipart body of an import; all but the file are text."""

    file: Annotated[
        bytes,
        Field(
            json_schema_extra={"format": "binary"},
            description="npy, npz or Parquet: `logits` [views, samples, classes] or [samples, classes] and "
            "`sample_ids` [samples], as an export has them; or `values` and `indices` [.., samples, k] of top-k. "
            "Parquet has a row for each view of a sample: `view`, `sample_id`, and these as lists",
        ),
    ]
    dataset: str = Field(description="id or name of a registered dataset, or JSON of its description, as of a job")
    split: Split = Field("train", description="of the dataset")
    validation: str | None = Field(
        None,
        description="JSON: the `validation` of the jobs that will use them, if split is the one that it cuts",
        examples=['{"holdout": 0.1}'],
    )
    rows: Literal["by_id", "in_order"] = Field(
        "by_id", description="how rows are matched with samples; in_order: row k is sample k of the split"
    )
    output_kind: OutputKind | None = Field(
        None, description="what the values are; told by them by default, and log_probabilities of top-k"
    )
    class_names: str | None = Field(
        None, description="names of the columns in their order, as of a teacher", examples=['["cat", "dog"]']
    )
    class_map: str | None = Field(
        None, description="JSON: for classes of the dataset whose name is none of these, the name there or the column"
    )
    views: str | None = Field(
        None,
        description="JSON: the `views` of the jobs that will use them; by default the plain pictures",
        examples=['{"augmentation": {"recipe": "crop_flip"}, "count": 4, "seed": 0}'],
    )
    dtype: Literal["float16", "float32"] | None = Field(
        None, description="of stored rows; float16 stays so by default, the rest is float32"
    )
    encoding: str | None = Field(
        None,
        description="`dense`, `uint8` or JSON of a sparse one; top-k of many classes is sparse by default",
        examples=['{"kind": "sparse", "top": 20, "tail": 16, "temperature": 1}'],
    )
    accept_teacher: Literal["true", "false"] = Field(
        "false", description="import them although their accuracy or the order of their classes is doubted"
    )
    prepare: Literal["true", "false"] = Field(
        "false",
        description="decode a large dataset within this request, which waits for it; send it before the file: where "
        "`dataset` and `split` came before, the request is refused without it as soon as the file begins",
    )
    source: str = Field("", max_length=1000, description="where they come from, for people")


class CacheUser(Document):
    """A job that names a cache."""

    id: str
    name: str
    state: State
    split: str
    runs: int = Field(description="that distil: cross-entropy alone reads no logits")
    forwards: int = Field(description="of a live teacher, for what these runs have trained until now")


class CacheUse(Document):
    """Use of a cache, and what it has saved."""

    jobs: list[CacheUser] = Field(description="that name it, the newest 100; the figures below are of these")
    jobs_total: int
    forwards_needed: int = Field(description="pictures that a live teacher would have been asked about until now")
    forwards_run: int = Field(description="pictures that went through the teacher for it")
    forwards_saved: int = Field(description="what was needed less what was run; never below 0")
    rows_per_s: float | None = Field(description="rate of the teacher's inference, as `measured` says")
    measured: str | None = Field(description="which inference gave the rate; null where no job has told one")
    seconds_saved: float | None = Field(description="what was saved, at this rate")
    break_even_epochs: float | None = Field(
        description="epochs of one run after which a live teacher would have cost as much; null but for train"
    )


class CacheDetail(Cache):
    """A cache, with who uses it and what it has saved."""

    use: CacheUse | None = Field(description="null where its spec cannot be read")


class StatisticSummary(Document):
    """Distribution of a statistic over the rows of a view."""

    mean: float
    std: float = Field(description="divides by the number of rows")
    least: float
    greatest: float
    histogram: Histogram


class CacheStatistics(Document):
    """Statistics of the teacher's logits on one view, as they were measured before rounding."""

    object: Literal["cache_statistics"] = "cache_statistics"
    key: str
    view: int
    views: int
    rows: int
    statistics: dict[str, StatisticSummary] = Field(
        description="max, min, mean, std and sharpness (log of the sum of exponentials) of each row, and confidence, "
        "the largest softmax probability at T = 1"
    )


class CachePage(Page[Cache]):
    """Part of the list of caches, and what all of them take together."""

    total_bytes: int
    quota_bytes: int | None = Field(description="the most they may take; null where there is no quota")


class CacheReport(Document):
    """Report of the problems that reading every byte of a cache again has found."""

    object: Literal["cache_report"] = "cache_report"
    key: str
    ok: bool
    problems: list[str] = Field(description="one line each, beginning with the file it is about")
    blocks_checked: int
    rows_checked: int

    @classmethod
    def of(cls, report: VerifyReport) -> Self:
        """The document of a report of the store."""
        return cls.model_validate(report, from_attributes=True)
