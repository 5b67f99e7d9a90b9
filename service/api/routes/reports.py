"""Routes of reports: the table of one job, and one table over several."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.auth import READ
from service.api.bodies.json_bodies import JsonRoute, json_body
from service.api.dependencies import Context, Ctx, Heavy, document
from service.api.job_documents import forwards
from service.api.problems import responses
from service.api.reports import formats
from service.api.reports.comparison import check_comparable
from service.api.reports.formats import EXTENSIONS, MEDIA_TYPES, Grouping
from service.api.reports.groups import Baseline, GroupKey, group_runs, show_groups
from service.api.reports.notes import notes_of
from service.api.reports.rows import Split, report_row, teacher_result
from service.api.reports.samples import LOGITS, sample_tests
from service.api.routes.runs import path_of
from service.api.schemas.reports import (
    CONFIDENCE,
    ComparedJob,
    Comparison,
    ComparisonRequest,
    Confidence,
    Format,
    Paired,
    Report,
    SampleTest,
    Statistics,
)
from service.db.models import JobRecord
from service.db.queries.report_queries import ReportedRun, files_of_runs, fingerprints_of_jobs, jobs_and_runs
from service.errors import InvalidRequest

RUNS_MAX = 2000
CSV = MEDIA_TYPES["csv"]
_TEXTS: dict[str, Any] = {kind: {"schema": {"type": "string"}} for kind in MEDIA_TYPES.values()}

router = APIRouter(tags=["reports"], responses=responses(401, 403, 500, 503), route_class=JsonRoute)

Pairing = Annotated[
    Paired, Query(description="`samples` adds McNemar's exact test per seed, from the predictions that runs have kept")
]


@router.get(
    "/jobs/{job_id}/report",
    operation_id="get_report",
    summary="The table of results",
    dependencies=[READ, Heavy],
    response_class=Response,
    responses={
        200: {
            "model": Report,
            "description": "Rows and groups; with `format`, or `Accept: text/csv`, a table as text",
            "content": _TEXTS,
        },
        **responses(404, 409, 422),
    },
)
def get_report(
    job_id: str,
    request: Request,
    ctx: Ctx,
    format: Annotated[Format | None, Query(description="json unless the Accept header asks for CSV")] = None,
    group: Annotated[
        Grouping | None,
        Query(description="a line per run, or per student and method over seeds; JSON has both unless one is named"),
    ] = None,
    baseline: Annotated[
        str | None, Query(min_length=1, max_length=2000, description="the method to compare with; `ce` by default")
    ] = None,
    confidence: Annotated[Confidence, Query(description="of the intervals")] = CONFIDENCE,
    paired: Pairing = "seeds",
) -> Response:
    """Results of every run, and of every student and method over seeds. Nothing was chosen on the test split."""
    chosen = format or ("csv" if CSV in request.headers.get("accept", "") else "json")
    if group is None and chosen != "json":
        group = "runs" if chosen == "csv" else "seeds"
    jobs, runs = jobs_and_runs(ctx.database, [job_id])
    [job] = jobs
    rows = [report_row(run) for run in runs] if group != "seeds" else []
    compared = Baseline(baseline)
    over_seeds = (
        statistics_of(ctx, jobs, runs, compared, confidence=confidence, paired=paired)
        if group != "runs"
        else Statistics(baseline=compared.label, confidence=confidence, groups=[], notes=[])
    )
    teacher = teacher_result(job)
    if chosen == "json":
        counted = {"teacher": teacher, "teacher_forwards": forwards(job), "caches": job.caches}
        return document(Report(**dict(over_seeds), job_id=job.id, rows=rows, **counted))
    if group == "runs":
        text = formats.rows_csv(rows) if chosen == "csv" else _marked_up(formats.runs_table(rows), chosen)
    else:
        text = _groups_text(over_seeds, {job.id: teacher}, chosen)
    return _attachment(text, job.id, chosen)


@router.post(
    "/reports",
    operation_id="compare_jobs",
    summary="One table over several jobs",
    dependencies=[READ, Heavy],
    response_class=Response,
    responses={
        200: {"model": Comparison, "description": "Groups of all jobs; with `format` as text", "content": _TEXTS},
        **responses(400, 404, 408, 409, 413, 422),
    },
)
def compare_jobs(request: Annotated[ComparisonRequest, json_body(ComparisonRequest)], ctx: Ctx) -> Response:
    """Students and methods of several jobs on the same dataset, over seeds. Refused where datasets or splits differ."""
    ids = tuple(dict.fromkeys(request.jobs))
    baseline = Baseline(request.baseline, request.baseline_job)
    if baseline.job_id is not None and baseline.job_id not in ids:
        raise InvalidRequest(
            f"the baseline's job {baseline.job_id!r} is none of the jobs: name it there", "#/baseline_job"
        )
    jobs, runs = jobs_and_runs(ctx.database, ids, RUNS_MAX)
    fingerprints = fingerprints_of_jobs(ctx.database, ids)
    found = check_comparable(jobs, fingerprints, insists=request.accept_different_data)
    if found.differences and request.paired == "samples":
        # Equal labels would not do: those of stratified holdouts of two seeds are the same, of other pictures.
        raise InvalidRequest(
            f"rows of different data cannot be paired ({found.differences[0]}): leave `paired` out, or name jobs on "
            "the same dataset and splits",
            "#/paired",
        )
    over_seeds = statistics_of(ctx, jobs, runs, baseline, confidence=request.confidence, paired=request.paired)
    over_seeds.notes[:0] = [*found.differences, *found.unknown]
    teachers = {job.id: teacher_result(job) for job in jobs}
    if request.format != "json":
        return _attachment(_groups_text(over_seeds, teachers, request.format), "comparison", request.format)
    shown = [ComparedJob(job_id=job.id, name=job.name, state=job.state, teacher=teachers[job.id]) for job in jobs]
    return document(Comparison(**dict(over_seeds), jobs=shown))


def statistics_of(
    ctx: Context,
    jobs: Sequence[JobRecord],
    runs: Sequence[ReportedRun],
    baseline: Baseline,
    *,
    confidence: float,
    paired: Paired,
) -> Statistics:
    """Groups of runs over seeds, with notes. Raises what ``group_runs`` and ``sample_tests`` raise."""
    groups = group_runs(runs, baseline)
    tests: dict[tuple[GroupKey, Split], list[SampleTest]] | None = None
    notes: list[str] = []
    if paired == "samples":
        needed = {run.id: None for group in groups for pair in group.pairs() for run in pair}
        files = files_of_runs(ctx.database, needed, LOGITS)
        tests, notes = sample_tests(groups, files, lambda file: path_of(file, ctx))
    shown = show_groups(groups, {job.id: teacher_result(job) for job in jobs}, confidence, tests)
    notes = [*notes_of(jobs, groups, shown, baseline), *notes]
    return Statistics(baseline=baseline.label, confidence=confidence, groups=shown, notes=notes)


def _groups_text(over_seeds: Statistics, teachers: Mapping[str, Any], chosen: str) -> str:
    if chosen == "csv":
        return formats.groups_csv(over_seeds.groups)
    table = formats.groups_table(over_seeds.groups, teachers, over_seeds.notes, over_seeds.confidence)
    return _marked_up(table, chosen)


def _marked_up(table: formats.Table, chosen: str) -> str:
    return formats.markdown(table) if chosen == "markdown" else formats.latex(table)


def _attachment(text: str, name: str, chosen: str) -> Response:
    """Response that a browser stores: nothing in it is ever shown as a page of this origin."""
    headers = {"Content-Disposition": f'attachment; filename="{name}.{EXTENSIONS[chosen]}"'}
    return Response(text, media_type=MEDIA_TYPES[chosen], headers=headers)
