"""Use of a cache: what the runs that read it would have asked of a live teacher, and what that would have taken."""

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import lru_cache

from service.api.schemas.caches import CacheUse, CacheUser
from service.db.database import Database
from service.db.models import Json
from service.db.queries.cache_use import TrainedRun, UsingJob, cache_events, jobs_of_cache, trained_runs
from store import Catalog, StoreError
from store.catalog import CacheEntry
from store.spec import CacheSpec
from workers.errors import UserError
from workers.methods.catalog import parse_method
from workers.teacher.imports.imported_specs import is_imported

USERS_MAX = 100


def use_of(entry: CacheEntry, catalog: Catalog, database: Database) -> CacheUse | None:
    """Use of a cache by the newest jobs that name it; None of one whose spec cannot be read."""
    spec = entry.spec
    if spec is None:
        return None
    jobs, total = jobs_of_cache(database, spec.key, USERS_MAX)
    ids = [job.id for job in jobs]
    runs: dict[str, list[TrainedRun]] = defaultdict(list)
    for run in trained_runs(database, ids):
        runs[run.job_id].append(run)
    trained = {job.id: spec.samples - _held_out(job, spec, catalog) for job in jobs}
    begun = {run.id for of_job in runs.values() for run in of_job if run.epoch}
    users = [_user(job, runs[job.id], spec, trained[job.id], begun=begun) for job in jobs]
    events = cache_events(database, ids)
    inferred = sum(int(data["rows_inferred"]) for _, data in events if data["cache"] == spec.key)
    needed = sum(user.forwards for user in users)
    done = 0 if is_imported(spec) else max(inferred, entry.rows_committed)
    saved = max(0, needed - done)
    rate, measured = _rate(events, spec.key)
    return CacheUse(
        jobs=users,
        jobs_total=total,
        forwards_needed=needed,
        forwards_run=done,
        forwards_saved=saved,
        rows_per_s=rate,
        measured=measured,
        seconds_saved=None if rate is None else saved / rate,
        break_even_epochs=spec.views * spec.samples / trained[ids[0]] if spec.split == "train" and ids else None,
    )


def _user(
    job: UsingJob, runs: Sequence[TrainedRun], spec: CacheSpec, trained: int, *, begun: Collection[str]
) -> CacheUser:
    """Forward passes of a live teacher for what a job's runs have trained until now.

    Counted as ``workers.teacher.forwards.forwards_needed`` does, for the epochs that are done: those of a run that is
    extended are that one's, and so is the split that both are measured on, if it is among the users.

    Args:
        trained: pictures of an epoch.
        begun: runs of all users that have trained an epoch, by id.
    """
    extends = job.plan.get("extends")
    before = extends["training"]["epochs"] if extends else 0
    shown = [(max(0, run.epoch - before), _views(json.dumps(run.method_spec, sort_keys=True))) for run in runs]
    distilling = [(epoch, views) for epoch, views in shown if views]
    if spec.split == "train":
        forwards = sum(epoch * views for epoch, views in distilling) * trained
    elif extends and extends["run"] in begun:
        forwards = 0
    else:
        forwards = sum(epoch > 0 for epoch, _ in distilling) * spec.samples
    return CacheUser(
        id=job.id, name=job.name, state=job.state, split=spec.split, runs=len(distilling), forwards=forwards
    )


@lru_cache(maxsize=256)
def _views(method_spec: str) -> int:
    """Views of each picture that a step of a method asks a live teacher about; 0 for cross-entropy."""
    with suppress(UserError):
        method = parse_method(json.loads(method_spec)).expand()
        return method.views if method.needs_teacher else 0
    return 0


def _held_out(job: UsingJob, spec: CacheSpec, catalog: Catalog) -> int:
    """Rows of the training split that a job does not train on, by its validation cache; 0 where that is gone."""
    key = job.caches.get("validation")
    if spec.split == "train" and job.plan.get("validation") and key is not None:
        with suppress(StoreError):
            return catalog.spec(key).samples
    return 0


def _rate(events: Sequence[tuple[str, Json]], key: str) -> tuple[float | None, str | None]:
    """Pictures per second of the newest inference of this cache, or of another one by the same teacher; and which."""
    timed = [(job_id, data) for job_id, data in events if data["rows_inferred"] and data["seconds"] > 0]
    own = [(job_id, data) for job_id, data in timed if data["cache"] == key]
    if not timed:
        return None, None
    job_id, data = (own or timed)[-1]
    rate = data["rows_inferred"] / data["seconds"]
    of = "" if own else f" for the cache of {data['split']}"
    return rate, f"{job_id} inferred {data['rows_inferred']} pictures in {data['seconds']:.1f} s{of}"
