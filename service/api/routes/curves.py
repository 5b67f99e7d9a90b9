"""Route of a job's curves: metrics of every epoch of every run, in one answer."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from service.api.auth import READ
from service.api.dependencies import Ctx, document
from service.api.problems import responses
from service.api.schemas.curves import JobCurves, RunCurves
from service.db.queries.curve_queries import CurveRun, curves_of
from workers.methods.names import distinct_names

SEQ_MAX = 2**62
MetricName = Annotated[str, Query(max_length=100)]

router = APIRouter(prefix="/jobs", tags=["jobs"], responses=responses(401, 403, 404, 422, 500, 503))


@router.get(
    "/{job_id}/curves",
    operation_id="get_curves",
    summary="Metrics of all runs as columns",
    dependencies=[READ],
    response_model=JobCurves,
)
def get_curves(
    job_id: str,
    ctx: Ctx,
    after: Annotated[int, Query(ge=0, le=SEQ_MAX, description="the `last_id` of the part before; 0 for all")] = 0,
    metric: Annotated[
        list[MetricName] | None, Query(max_length=100, description="names of metrics; all if left out")
    ] = None,
) -> Response:
    """Of all epochs, or of those that ended since another answer: a page polls with `after=last_id`.

    An epoch that comes again, trained twice after a kill, replaces the earlier one. Where there would be more than a
    million numbers, epochs are left out evenly, as `every` says: ask for fewer metrics by `metric`, or for a run's own.
    """
    found = curves_of(ctx.database, job_id, after, None if metric is None else len(metric))
    if after == 0:
        # Once, for these epochs do not change: those that a retry has from the run that it tries again.
        for run in found.runs:
            if run.retry_of is not None:
                lines = {int(line["epoch"]): line for line in ctx.queries.metrics(run.id)}
                last = max(lines, default=0)
                found.epochs[run.id] = {epoch: lines[epoch] for epoch in lines if found.has(epoch, last)}
    names = distinct_names([(run.method, run.method_spec) for run in found.runs])
    shown = [_show(run, name, found.epochs[run.id], metric) for run, name in zip(found.runs, names, strict=True)]
    return document(JobCurves(job_id=job_id, last_id=found.last_seq, every=found.every, runs=shown))


def _show(
    run: CurveRun, method: str, epochs: Mapping[int, Mapping[str, Any]], wanted: Collection[str] | None
) -> RunCurves:
    order = sorted(epochs)
    # In the order in which they come; an epoch may lack some.
    names = dict.fromkeys(name for epoch in order for name in epochs[epoch] if name != "epoch")
    return RunCurves(
        run_id=run.id,
        name=run.name,
        student=run.student,
        method=method,
        seed=run.seed,
        state=run.state,
        epochs=run.epochs,
        epoch=order,
        metrics={
            name: [_rounded(epochs[epoch].get(name)) for epoch in order]
            for name in names
            if wanted is None or name in wanted
        },
    )


def _rounded(value: object) -> float | None:
    return float(f"{value:.6g}") if isinstance(value, int | float) else None
