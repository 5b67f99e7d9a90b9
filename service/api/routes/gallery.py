"""Route of a run's gallery: pictures that it is worth looking at, with both networks' logits."""

import json
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from service.api.auth import READ
from service.api.dependencies import Context, Ctx, Heavy, document
from service.api.gallery import gallery
from service.api.gallery.gallery import MEASURES, Sources
from service.api.gallery.kept_logits import LOGITS, open_kept_logits
from service.api.gallery.row_temperatures import MethodRowTemperatures, held_out_notes, method_of
from service.api.gallery.splits import open_fingerprint
from service.api.problems import responses
from service.api.routes.runs import path_of
from service.api.schemas.gallery import Gallery, GalleryOrder
from service.db.models import JobRecord, RunRecord
from service.errors import Conflict, InvalidRequest, NotFound
from store import CacheReader, RowOutOfRange
from workers.data.preparation.prepared import Dataset

LIMIT_MAX = 100
# Of each network in one answer: 10 MB of JSON.
ANSWER_CELLS_MAX = 1 << 20
_CONFIG = "config.json"

router = APIRouter(prefix="/runs", tags=["runs"], responses=responses(401, 403, 404, 409, 422, 500, 503))


@router.get(
    "/{run_id}/gallery",
    operation_id="get_gallery",
    summary="Pictures to look at",
    dependencies=[READ, Heavy],
    response_model=Gallery,
)
def get_gallery(
    run_id: str,
    ctx: Ctx,
    by: Annotated[GalleryOrder, Query(description="order of the rows, the most remarkable first")],
    split: Annotated[Literal["train", "validation", "test"], Query(description="of the run's dataset")] = "test",
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX, description="rows")] = 24,
    view: Annotated[int, Query(ge=0, le=10_000, description="of the cache; test and validation have one")] = 0,
    term: Annotated[int, Query(ge=0, le=31, description="of a method with several, from 0")] = 0,
    epoch: Annotated[
        int | None, Query(ge=1, le=1_000_000, description="that policies may read; the run's last by default")
    ] = None,
) -> Response:
    """Rows of a split by temperature, disagreement of teacher and student, or the teacher's confident mistakes.

    With the logits of both networks, for softmax at any temperature. Orders by temperature are refused, with the
    reason, where the method has none or the same for all rows; disagreement needs the logits that a run has kept.
    """
    query = gallery.Query(by, split, limit, view, term=term, epoch=epoch)
    run = ctx.queries.get(RunRecord, run_id)
    job, _ = ctx.queries.job(run.job_id)
    with closing(gallery.open_cache(ctx.settings.caches_dir, job.caches, split, job.id)) as reader:
        _check(query, reader)
        sources = _sources(ctx, run, job, reader)
        shown = _gallery(ctx, query, run, sources)
        if split == "train":
            shown.notes.extend(held_out_notes(job.plan))
        if sources.is_mixed:
            shown.notes.append("views are mixed with those of other rows: `label` is that with the larger share")
        return document(shown)


def _check(query: gallery.Query, reader: CacheReader) -> None:
    classes, views = reader.spec.classes, reader.spec.views
    if query.limit * classes > ANSWER_CELLS_MAX:
        raise InvalidRequest(
            f"limit={query.limit} of {classes} classes are {query.limit * classes} logits of each network, at most "
            f"{ANSWER_CELLS_MAX} go into one answer: ask for limit={max(1, ANSWER_CELLS_MAX // classes)} or less"
        )
    if query.view >= views:
        raise RowOutOfRange(f"view {query.view} does not exist: the cache of {query.split} has {views}")


def _sources(ctx: Context, run: RunRecord, job: JobRecord, reader: CacheReader) -> Sources:
    spec = reader.spec
    files = {file.name: file for file in ctx.queries.artifacts(run.id)}
    kept = None
    if LOGITS in files:
        kept = open_kept_logits(path_of(files[LOGITS], ctx), spec.split, (spec.samples, spec.classes), run.id)
    opened: Dataset | None = None
    with suppress(NotFound):
        opened = open_fingerprint(ctx.settings.datasets_dir, spec.dataset_fingerprint)
    return Sources(run, reader, kept, opened, train_cache=(ctx.settings.caches_dir, (job.caches or {}).get("train")))


def _gallery(ctx: Context, query: gallery.Query, run: RunRecord, sources: Sources) -> Gallery:
    spec, notes = sources.reader.spec, list[str]()
    given: MethodRowTemperatures | None = None
    try:
        given = gallery.temperatures(sources, query)
        notes += given.notes
    except Conflict as error:
        if query.by.endswith("temperature"):
            raise
        notes.append(f"no temperatures: {error}")
    chosen = gallery.choose(sources, query, given)
    by_temperature = query.by.endswith("temperature") and given is not None
    return Gallery(
        run_id=run.id,
        by=query.by,
        split=query.split,
        cache=spec.key,
        fingerprint=spec.dataset_fingerprint,
        view=query.view,
        rows=spec.samples,
        classes=spec.classes,
        class_names=_class_names(ctx, run, sources),
        measure=MEASURES[query.by],
        terms=_terms(run),
        term=query.term,
        ordered_by=given.varying()[0] if by_temperature and given is not None else None,
        notes=[*notes, *chosen.notes],
        data=gallery.show_rows(sources, query, chosen, given),
    )


def _terms(run: RunRecord) -> list[str]:
    try:
        return [", ".join(term.part_names) for term in method_of(run).terms]
    except Conflict:
        return []


def _class_names(ctx: Context, run: RunRecord, sources: Sources) -> list[str]:
    """Names in the order of labels: the dataset's, or those that the run has noted, or numbers."""
    if sources.opened is not None:
        return list(sources.opened.class_names)
    classes = sources.reader.spec.classes
    for file in ctx.queries.artifacts(run.id):
        if file.name == _CONFIG:
            names = _noted_names(path_of(file, ctx))
            if len(names) == classes:
                return names
    return [str(label) for label in range(classes)]


def _noted_names(config: Path) -> list[str]:
    found = json.loads(config.read_text()).get("class_names") or []
    return [str(name) for name in found]
