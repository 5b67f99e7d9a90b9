"""Routes of pictures: the decoded splits of a dataset, their rows, single pictures and views as PNG."""

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response

from service.api.auth import READ
from service.api.dependencies import PAGE_DEFAULT, Ctx, Heavy, Limit, ends
from service.api.gallery.png import check_installed, to_png
from service.api.gallery.splits import (
    is_fingerprint,
    list_pictures,
    open_fingerprint,
    open_split,
    open_splits,
    show_split,
)
from service.api.gallery.views import Network, view_pixels
from service.api.problems import responses
from service.api.routes.caches import Key
from service.api.schemas.base import Page
from service.api.schemas.pictures import PictureRow, Split
from store import RowOutOfRange
from workers.augmentation.single import Picture
from workers.data.preparation.prepared import Dataset
from workers.spec import Size

IMMUTABLE = "private, max-age=31536000, immutable"
ROWS_MAX = 2**31

router = APIRouter(tags=["pictures"], responses=responses(401, 403, 404, 409, 422, 500, 503))

DatasetKey = Annotated[
    str,
    Path(max_length=64, pattern=r"^[0-9a-z_]+$", description="id of a dataset, or the fingerprint of a split"),
]
SplitName = Literal["train", "validation", "test"]
Row = Annotated[int, Path(ge=0, le=ROWS_MAX, description="place in the split, from 0")]
Side = Annotated[int, Query(ge=8, le=512, description="pixels; a picture with a longer side is shrunk to it")]
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"description": "The picture", "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "If-None-Match names the present ETag"},
    **responses(501),
}


def _png(pixels_HWC: Picture, side: int, *, immutable: bool) -> Response:
    headers = {"X-Content-Type-Options": "nosniff"} | ({"Cache-Control": IMMUTABLE} if immutable else {})
    return Response(to_png(pixels_HWC, side), media_type="image/png", headers=headers)


def _pixels(opened: Dataset, row: int) -> Picture:
    """Picture of a row, uint8 [H, W, C]. Raises RowOutOfRange, InvalidDataset (its file has changed)."""
    if row >= opened.samples:
        raise RowOutOfRange(f"picture {row} of {opened.split} does not exist: there are {opened.samples}")
    pixels_HWC: Picture = opened.take(slice(row, row + 1))[0]
    return pixels_HWC


@router.get(
    "/datasets/{dataset}/splits",
    operation_id="list_splits",
    summary="Decoded splits of a dataset",
    dependencies=[READ, Heavy],
)
def list_splits(dataset: DatasetKey, ctx: Ctx) -> Page[Split]:
    """With the pictures of each class counted. Refused until a job has decoded the dataset. Not paged."""
    splits = [show_split(opened) for opened in open_splits(ctx.queries, ctx.settings.datasets_dir, dataset)]
    return Page(data=splits, **ends(splits, lambda split: split.split))


@router.get(
    "/datasets/{dataset}/pictures",
    operation_id="list_pictures",
    summary="Pictures of a split",
    dependencies=[READ, Heavy],
)
def list_rows(
    dataset: DatasetKey,
    ctx: Ctx,
    split: Annotated[SplitName | None, Query(description="may be left out where there is only one")] = None,
    label: Annotated[
        int | None, Query(alias="class", ge=-1, le=ROWS_MAX, description="label of a class; -1 for none")
    ] = None,
    after: Annotated[int | None, Query(ge=0, le=ROWS_MAX, description="the `last_id` of the page before")] = None,
    limit: Limit = PAGE_DEFAULT,
) -> Page[PictureRow]:
    """By row, in rising order; `after` is a row. Refused until a job has decoded the dataset."""
    opened = open_split(ctx.queries, ctx.settings.datasets_dir, dataset, split)
    rows, has_more = list_pictures(opened, label, after=-1 if after is None else after, limit=limit)
    return Page(data=rows, has_more=has_more, **ends(rows, lambda row: row.row))


@router.get(
    "/datasets/{dataset}/pictures/{split}/{row}.png",
    operation_id="get_picture",
    summary="One picture",
    dependencies=[READ, Heavy],
    response_class=Response,
    responses=_PNG,
)
def get_picture(dataset: DatasetKey, split: SplitName, row: Row, ctx: Ctx, side: Side = 128) -> Response:
    """As it was decoded, as PNG. By a fingerprint it may be kept for good. Needs the extra `page`."""
    check_installed()
    opened = open_split(ctx.queries, ctx.settings.datasets_dir, dataset, split)
    return _png(_pixels(opened, row), side, immutable=is_fingerprint(dataset))


@router.get(
    "/caches/{key}/views/{row}.png",
    operation_id="get_view",
    summary="One view of a picture",
    dependencies=[READ, Heavy],
    response_class=Response,
    responses=_PNG,
)
def get_view(
    key: Key,
    row: Row,
    ctx: Ctx,
    view: Annotated[int, Query(ge=0, le=ROWS_MAX, description="number of the view, from 0")] = 0,
    network: Annotated[Network, Query(description="whose size the view has")] = "teacher",
    size: Annotated[
        str | None,
        Query(pattern=r"^[1-9]\d{0,2}x[1-9]\d{0,2}$", description="HEIGHTxWIDTH of a student's `resized_crop` views"),
    ] = None,
    side: Side = 128,
) -> Response:
    """The picture as it was augmented for a cache's view, as PNG; may be kept for good. Needs the extra `page`."""
    check_installed()
    spec = ctx.catalog.spec(key)
    if view >= spec.views:
        raise RowOutOfRange(f"view {view} does not exist: there are {spec.views}")
    opened = open_fingerprint(ctx.settings.datasets_dir, spec.dataset_fingerprint)
    take = partial(_pixels, opened)
    shown = view_pixels(take, opened, spec, view, row=row, network=network, size=_size(size))
    return _png(shown, side, immutable=True)


def _size(text: str | None) -> Size | None:
    if text is None:
        return None
    height, width = text.split("x")
    return int(height), int(width)
