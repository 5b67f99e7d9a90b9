"""Query parameters that choose and sort jobs and runs."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, Query
from pydantic import BeforeValidator, WithJsonSchema

from service.api.dependencies import Ctx, Text
from service.db.job_labels import dataset_text
from service.db.queries.api_queries import ApiQueries
from service.db.queries.job_search import JobFilter, JobOrder, RunFilter
from service.db.states import State

_BEGINS_WITH_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_MOMENT: dict[str, Any] = {"type": "string", "anyOf": [{"format": "date-time"}, {"format": "date"}]}


def _moment(given: object) -> object:
    if not isinstance(given, str) or not _BEGINS_WITH_DATE.match(given):
        raise ValueError("Input should be a date or a time, such as 2026-11-30 or 2026-11-30T08:00:00Z")
    moment = datetime.fromisoformat(given)
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        # The first or the last day there is, of another zone.
        return moment.replace(tzinfo=UTC)


Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema(_MOMENT)]


def _filter(
    ctx: Ctx,
    state: Annotated[State | None, Query(description="only jobs in this state")] = None,
    status: Annotated[State | None, Query(description="the earlier name of `state`", deprecated=True)] = None,
    tag: Annotated[Text | None, Query(description="only jobs with this tag")] = None,
    name: Annotated[Text | None, Query(description="only jobs whose name holds this, case aside")] = None,
    teacher: Annotated[Text | None, Query(description="only jobs of the teacher with this id or name")] = None,
    dataset: Annotated[
        Text | None,
        Query(
            description="only jobs on this dataset: its kind (`digits`), its path below the data root, or the name or "
            "id of a registered one, which stands for its kind and path"
        ),
    ] = None,
    created_after: Annotated[
        Moment | None, Query(description="only jobs posted at this time or later; UTC where it names no zone")
    ] = None,
    created_before: Annotated[Moment | None, Query(description="only jobs posted before this time")] = None,
    q: Annotated[
        Text | None,
        Query(
            description="only jobs that have this in their name, note, tags, id, or in the name or id of their teacher "
            "or dataset, case aside; or the job of the run with this id"
        ),
    ] = None,
) -> JobFilter | None:
    if state is not None and status is not None and state != status:
        return None
    return JobFilter(
        state=state or status,
        tag=tag,
        name=name,
        teacher=teacher,
        dataset=None if dataset is None else _datasets(dataset, ctx.queries),
        created_after=created_after,
        created_before=created_before,
        text=q,
    )


def _datasets(given: str, queries: ApiQueries) -> tuple[str, ...]:
    """Texts that jobs may have of a dataset with this kind, path, name or id."""
    registered = queries.find_dataset(given)
    return (given,) if registered is None else (given, dataset_text(registered.spec))


def _run_filter(
    state: Annotated[State | None, Query(description="only runs in this state")] = None,
    student: Annotated[Text | None, Query(description="only runs of this student")] = None,
    method: Annotated[
        Text | None,
        Query(description="only runs of this method: `kd`, whatever its parameters, or just `kd(temperature=2)`"),
    ] = None,
) -> RunFilter:
    return RunFilter(state, student, method)


WantedRuns = Annotated[RunFilter, Depends(_run_filter)]
"""The type of a route's parameter that receives a filter of runs."""

Wanted = Annotated[JobFilter | None, Depends(_filter)]
"""The type of a route's parameter that receives the filter; None lets no job through."""

Order = Annotated[
    JobOrder,
    Query(description="what they are sorted by, `-` in reverse; jobs that have not ended have no `finished_at`: last"),
]
