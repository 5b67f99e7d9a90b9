"""Views of a cache as pixels: what the teacher was given, or the same box at a student's size."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import ValidationError

from service.errors import Conflict
from store.spec import CacheSpec
from workers.augmentation.resampling import fit_view
from workers.augmentation.single import Picture, make_view, other_of
from workers.config.teacher import Preprocessing
from workers.config.views import ResizedCrop
from workers.data.preparation.prepared import Dataset
from workers.spec import Size
from workers.teacher.cached_views import CachedViews
from workers.teacher.combined_cache import members_of, name_members

Network = Literal["teacher", "student"]


def view_pixels(
    take: Callable[[int], Picture],
    opened: Dataset,
    spec: CacheSpec,
    view: int,
    *,
    row: int,
    network: Network,
    size: Size | None,
) -> Picture:
    """Make a view of a picture of a cache, uint8 [h, w, C]; a mixed one with its other picture in it.

    Args:
        take: gives the picture of a row of the cache's split, uint8 [H, W, C].
        opened: that split.
        spec: of the cache.
        row: of the split.
        network: ``teacher`` has the view at the size of its input, ``student`` at that of the student's views.
        size: (height, width) of a student's resampled views; None is the size of the picture.

    Raises:
        Conflict: a size is given for views that are not resampled, or for the teacher's.
    """
    views = CachedViews.of(spec, opened)
    recipe = views.recipe_of(view)
    is_resampled = isinstance(recipe, ResizedCrop)
    if size is not None and (network == "teacher" or not is_resampled):
        raise Conflict(
            f"size is for a student's views of the recipe resized_crop; this is the {network}'s view of the recipe "
            f"{recipe.recipe}, which has its own: leave size out"
        )
    if network == "student":
        seen = recipe.model_copy(update={"size": size}) if is_resampled else recipe
        return make_view(take(row), seen, views.seed, view, sample=row, partners_P=views.partners_P, take=take)
    if members_of(spec):
        raise Conflict(
            f"cache {spec.key[:12]} is combined of the caches {name_members(spec)}, whose teachers have views of their "
            "own: ask for the view of one of those, or for the student's"
        )
    try:
        preprocessing = Preprocessing.model_validate(spec.preprocessing)
    except ValidationError:
        # Of logits that no single preprocessing of this version has made.
        return make_view(take(row), recipe, views.seed, view, sample=row, partners_P=views.partners_P, take=take)
    drawn = views.draw(view, np.array([row]), height=opened.height, width=opened.width)
    return fit_view(take(row), recipe, drawn, preprocessing, other_HWC=other_of(drawn, take))
