"""Routes of caches of teacher logits: list, verify, pin, delete. Jobs make them, and ``cache_imports``."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from service.api.auth import ADMIN, READ, WRITE
from service.api.cache_statistics import summarise_statistics
from service.api.cache_use import use_of
from service.api.dependencies import PAGE_DEFAULT, After, Context, Ctx, Heavy, Limit, ends
from service.api.problems import responses
from service.api.schemas.caches import Cache, CacheDetail, CachePage, CacheReport, CacheStatistics
from service.errors import Conflict
from store import read_view_statistics
from workers.teacher.imports.imported_specs import is_imported

router = APIRouter(prefix="/caches", tags=["caches"], responses=responses(401, 403, 500))
Key = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of what the cache is of, in hex")]
Imported = Annotated[
    bool | None, Query(description="`true` keeps the caches whose logits were imported, `false` the others")
]


@router.get("", operation_id="list_caches", summary="List caches", dependencies=[READ], responses=responses(422))
def list_caches(ctx: Ctx, after: After = None, limit: Limit = PAGE_DEFAULT, imported: Imported = None) -> CachePage:
    """By key, in rising order; `after` is a key. The total is that of all caches, whatever the page and the filter."""
    everything = ctx.catalog.list()
    kept = [entry for entry in everything if imported in (None, is_imported(entry.spec))]
    entries = [entry for entry in kept if after is None or entry.key > after]
    shown = entries[:limit]
    return CachePage(
        data=[Cache.of(entry) for entry in shown],
        has_more=len(entries) > limit,
        **ends(shown, lambda entry: entry.key),
        total_bytes=sum(entry.size_bytes for entry in everything),
        quota_bytes=ctx.settings.caches_max_bytes or None,
    )


@router.get("/{key}", operation_id="get_cache", summary="One cache", dependencies=[READ], responses=responses(404, 422))
def get_cache(key: Key, ctx: Ctx) -> CacheDetail:
    """By its key, 64 hex digits; with the jobs that use it, and what it has saved them."""
    entry = ctx.catalog.get(key)
    return CacheDetail(**dict(Cache.of(entry)), use=use_of(entry, ctx.catalog, ctx.database))


@router.get(
    "/{key}/statistics",
    operation_id="get_cache_statistics",
    summary="Histograms of a cache's statistics",
    dependencies=[READ, Heavy],
    responses=responses(404, 409, 422),
)
def get_cache_statistics(
    key: Key,
    ctx: Ctx,
    view: Annotated[int, Query(ge=0, le=10_000, description="whose rows are counted, from 0")] = 0,
    bins: Annotated[int, Query(ge=1, le=200, description="of each histogram")] = 32,
) -> CacheStatistics:
    """Of one view of a complete cache; no logit is read."""
    spec, found = read_view_statistics(ctx.settings.caches_dir, key, view)
    return CacheStatistics(
        key=key, view=view, views=spec.views, rows=spec.samples, statistics=summarise_statistics(found, bins)
    )


@router.delete(
    "/{key}",
    operation_id="delete_cache",
    summary="Delete a cache",
    dependencies=[ADMIN],
    status_code=204,
    responses=responses(404, 409, 422),
)
def delete_cache(key: Key, ctx: Ctx) -> None:
    """Refused while it is pinned, or a job that is being worked on uses it. A later job makes it anew, unless it was
    imported.
    """
    used = why_in_use(key, ctx)
    if used is not None:
        raise Conflict(used)
    ctx.catalog.delete(key)


def why_in_use(key: str, ctx: Context) -> str | None:
    """Say which job that is being worked on uses a cache; None if none does."""
    job_id = ctx.queries.user_of_cache(key)
    return None if job_id is None else f"cache {key} is used by job {job_id}: cancel that, or wait for it"


@router.post(
    "/{key}/pin",
    operation_id="pin_cache",
    summary="Pin a cache",
    dependencies=[WRITE],
    responses=responses(404, 422, 507),
)
def pin_cache(key: Key, ctx: Ctx) -> Cache:
    """It is neither evicted nor deleted until it is unpinned. Pinning it again changes nothing."""
    ctx.catalog.pin(key)
    return Cache.of(ctx.catalog.get(key))


@router.delete(
    "/{key}/pin",
    operation_id="unpin_cache",
    summary="Unpin a cache",
    dependencies=[WRITE],
    status_code=204,
    responses=responses(404, 422),
)
def unpin_cache(key: Key, ctx: Ctx) -> None:
    """It may be evicted and deleted again. Unpinning it again changes nothing."""
    ctx.catalog.unpin(key)


@router.post(
    "/{key}/verify",
    operation_id="verify_cache",
    summary="Read every byte of a cache again",
    responses=responses(404, 422),
    dependencies=[WRITE, Heavy],
)
def verify_cache(key: Key, ctx: Ctx) -> CacheReport:
    """Compares every checksum and recomputes every statistic; takes as long as reading the files."""
    return CacheReport.of(ctx.catalog.verify(key))
