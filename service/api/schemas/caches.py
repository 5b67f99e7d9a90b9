"""Documents of caches of teacher logits."""

from datetime import datetime
from typing import Literal, Self

from pydantic import Field

from service.api.schemas.base import Document, Page, Stored
from store.catalog import CacheEntry
from store.verify import VerifyReport


class Cache(Document):
    """The logits of one teacher on one data set's views."""

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
