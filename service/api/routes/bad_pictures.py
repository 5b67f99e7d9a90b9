"""Route of a dataset's bad pictures: all that could not be decoded, or were left out, when jobs prepared it last."""

import itertools
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query

from service.api.auth import READ
from service.api.dependencies import PAGE_DEFAULT, Ctx, Heavy, Limit, ends
from service.api.problems import responses
from service.api.routes.pictures import ROWS_MAX, SplitName
from service.api.schemas.bad_pictures import BadPicture
from service.api.schemas.base import Page
from service.db.models import DatasetRecord
from service.db.queries.api_queries import DATASET
from workers.data.preparation.bad_picture_reports import BadPictureReport, read_reports

router = APIRouter(tags=["pictures"], responses=responses(401, 403, 404, 422, 500, 503))


@router.get(
    "/datasets/{dataset_id}/bad-pictures",
    operation_id="list_bad_pictures",
    summary="Bad pictures of a dataset",
    dependencies=[READ, Heavy],
)
def list_bad_pictures(
    dataset_id: str,
    ctx: Ctx,
    split: Annotated[SplitName | None, Query(description="only those of this split")] = None,
    after: Annotated[int | None, Query(ge=0, le=ROWS_MAX, description="the `last_id` of the page before")] = None,
    limit: Limit = PAGE_DEFAULT,
) -> Page[BadPicture]:
    """Each with the reason, as jobs found them when they decoded the dataset last; empty before, and without any."""
    spec = DATASET.validate_python(ctx.queries.get(DatasetRecord, dataset_id).spec)
    reports = [each for each in read_reports(ctx.settings.datasets_dir, spec) if split in (None, each.split)]
    first = 0 if after is None else after + 1
    found = list(itertools.islice(_listed(reports), first, first + limit + 1))
    rows = found[:limit]
    return Page(data=rows, has_more=len(found) > limit, **ends(rows, lambda row: row.number))


def _listed(reports: list[BadPictureReport]) -> Iterator[BadPicture]:
    every = ((report, picture) for report in reports for picture in report.listed())
    for number, (report, picture) in enumerate(every):
        yield BadPicture(
            number=number,
            split=report.split,
            sample_id=picture.name,
            reason=picture.reason,
            left_out=report.left_out,
        )
