"""Route of a job's temperatures: histograms of its methods and runs over common bins."""

from collections.abc import Iterator, Mapping
from typing import Annotated, NamedTuple

import numpy as np
from fastapi import APIRouter, Query, Response

from service.api.auth import READ
from service.api.dependencies import Context, Ctx, Heavy, document
from service.api.gallery.histograms import FILE, Shares, common_bins, edges_of, measured, show
from service.api.gallery.row_temperatures import (
    held_out_notes,
    method_of,
    method_temperatures,
    term_of,
    training_statistics,
)
from service.api.problems import responses
from service.api.routes.runs import path_of
from service.api.schemas.temperatures import (
    JobTemperatures,
    MethodTemperatures,
    RunTemperatures,
    TemperatureKind,
    TermTemperatures,
)
from service.db.models import ArtifactRecord, RunRecord
from service.db.queries.report_queries import files_of_runs
from service.db.states import TERMINAL
from service.errors import Conflict, NotFound
from store import StoreError, read_view_statistics
from store.spec import CacheSpec
from workers.methods.names import distinct_names
from workers.methods.preview_report import Float32

VIEW = 0

router = APIRouter(prefix="/jobs", tags=["jobs"], responses=responses(401, 403, 404, 409, 422, 500, 503))


class _Cache(NamedTuple):
    """Statistics of one view of a training cache, [1, N] by name."""

    spec: CacheSpec
    teacher: Mapping[str, Float32]


class _Term(NamedTuple):
    parts: list[str]
    policy: str
    teacher: Shares
    student: Shares
    notes: list[str]


class _Method(NamedTuple):
    name: str
    terms: list[_Term]
    reason: str | None


class _Run(NamedTuple):
    row: RunRecord
    method: str
    epoch: int | None
    networks: Mapping[str, Shares]
    reason: str | None


@router.get(
    "/{job_id}/temperatures",
    operation_id="get_temperatures",
    summary="Histograms of temperatures",
    dependencies=[READ, Heavy],
    response_model=JobTemperatures,
)
def get_temperatures(
    job_id: str,
    ctx: Ctx,
    kind: Annotated[
        TemperatureKind, Query(description="the T of the method's paper, or what divides the logits")
    ] = "paper",
    epoch: Annotated[
        int | None, Query(ge=1, le=1_000_000, description="of runs and policies; the last by default")
    ] = None,
) -> Response:
    """Of teacher and student: of every method on the training cache by its policies, of every run as it was measured.

    All over the same bins, as shares of rows. A student's temperature on the cache is that of a student which equals
    its teacher, where the policy reads it; runs have measured both in training.
    """
    job, _ = ctx.queries.job(job_id)
    rows, _ = ctx.queries.runs(job_id)
    names = distinct_names([(row.method, row.method_spec) for row in rows])
    key = (job.caches or {}).get("train")
    cache = _cache(ctx, key)
    first_of = dict(reversed(list(zip(names, rows, strict=True))))
    methods = [_method(ctx, name, first_of[name], cache, epoch=epoch, kind=kind) for name in dict.fromkeys(names)]
    for term in (term for method in methods for term in method.terms):
        term.notes.extend(held_out_notes(job.plan))
    files = {file.run_id: file for file in files_of_runs(ctx.database, [row.id for row in rows], FILE)}
    runs = [
        _run(ctx, row, name, files.get(row.id), epoch=epoch, kind=kind) for row, name in zip(rows, names, strict=True)
    ]
    bins = common_bins(_all(methods, runs))
    return document(
        JobTemperatures(
            job_id=job_id,
            kind=kind,
            edges=edges_of(bins),
            cache=cache.spec.key if cache else None,
            rows=cache.spec.samples if cache else None,
            view=VIEW,
            methods=[_show_method(method, bins) for method in methods],
            runs=[_show_run(run, bins) for run in runs],
        )
    )


def _cache(ctx: Context, key: str | None) -> _Cache | None:
    """Statistics of the first view; None where the cache is not complete, or is gone."""
    if key is None:
        return None
    try:
        spec, found = read_view_statistics(ctx.settings.caches_dir, key, VIEW)
    except StoreError:
        return None
    return _Cache(spec, {name: values_N[np.newaxis] for name, values_N in found.items()})


def _method(
    ctx: Context, name: str, row: RunRecord, cache: _Cache | None, *, epoch: int | None, kind: TemperatureKind
) -> _Method:
    if cache is None:
        return _Method(name, [], "the job's training cache is not complete, or was deleted")
    terms: list[_Term] = []
    try:
        method = method_of(row)
        # At least one, whose absence says why.
        for place in range(max(1, len(method.terms))):
            term = term_of(method, place)
            given = method_temperatures(
                method,
                term,
                cache.teacher,
                cache.spec.classes,
                student=None,
                epoch=min(epoch or row.epochs, row.epochs),
                epochs=row.epochs,
                of_cache=training_statistics(ctx.settings.caches_dir, cache.spec.key, term),
            )
            teacher, student = (Shares.of(getattr(network, kind)) for network in (given.teacher, given.student))
            terms.append(_Term(list(term.part_names), term.policy.kind, teacher, student, notes=list(given.notes)))
    except (Conflict, StoreError) as error:
        return _Method(name, terms, str(error))
    return _Method(name, terms, None)


def _run(
    ctx: Context, row: RunRecord, name: str, file: ArtifactRecord | None, *, epoch: int | None, kind: TemperatureKind
) -> _Run:
    if file is None:
        why = (
            "it has left none: its method has no temperature, or an earlier version has trained it"
            if row.state in TERMINAL
            else "it has not ended yet; its metrics have quantiles of every epoch"
        )
        return _Run(row, name, None, {}, reason=why)
    try:
        number, networks = measured(path_of(file, ctx), file.sha256, epoch, kind)
    except (Conflict, NotFound) as error:
        return _Run(row, name, None, {}, reason=str(error))
    return _Run(row, name, number, networks, reason=None if networks else "its method has no temperature")


def _all(methods: list[_Method], runs: list[_Run]) -> Iterator[Shares]:
    for method in methods:
        for term in method.terms:
            yield from (term.teacher, term.student)
    for run in runs:
        yield from run.networks.values()


def _show_method(method: _Method, bins: range) -> MethodTemperatures:
    return MethodTemperatures(
        method=method.name,
        terms=[
            TermTemperatures(
                parts=term.parts,
                policy=term.policy,
                teacher=show(term.teacher, bins),
                student=show(term.student, bins),
                notes=term.notes,
            )
            for term in method.terms
        ],
        reason=method.reason,
    )


def _show_run(run: _Run, bins: range) -> RunTemperatures:
    row, networks = run.row, {name: show(shares, bins) for name, shares in run.networks.items()}
    return RunTemperatures(
        run_id=row.id,
        name=row.name,
        student_name=row.student,
        method=run.method,
        seed=row.seed,
        state=row.state,
        epochs=row.epochs,
        epoch=run.epoch,
        teacher=networks.get("teacher"),
        student=networks.get("student"),
        reason=run.reason,
    )
