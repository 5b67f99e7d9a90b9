"""Views of a cache as pixels: what the teacher was given, or the same box at a student's size."""

from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from service.errors import Conflict
from store.spec import CacheSpec
from workers.augmentation.draw import draw
from workers.augmentation.resampling import fit_view
from workers.augmentation.single import Picture, make_view
from workers.config.teacher import Preprocessing
from workers.config.views import Augmentation, ResizedCrop
from workers.spec import Size
from workers.teacher.combined_cache import members_of, name_members

Network = Literal["teacher", "student"]
_RECIPE: TypeAdapter[Augmentation] = TypeAdapter(Augmentation)


def view_pixels(
    pixels_HWC: Picture, spec: CacheSpec, view: int, *, row: int, network: Network, size: Size | None
) -> Picture:
    """Make a view of a picture of a cache, uint8 [h, w, C].

    Args:
        pixels_HWC: the picture of row ``row`` of the cache's split.
        spec: of the cache.
        network: ``teacher`` has the view at the size of its input, ``student`` at that of the student's views.
        size: (height, width) of a student's resampled views; None is the size of the picture.

    Raises:
        Conflict: a size is given for views that are not resampled, or for the teacher's.
    """
    recipe = _RECIPE.validate_python(spec.augmentation)
    is_resampled = isinstance(recipe, ResizedCrop)
    if size is not None and (network == "teacher" or not is_resampled):
        raise Conflict(
            f"size is for a student's views of the recipe resized_crop; this is the {network}'s view of the recipe "
            f"{recipe.recipe}, which has its own: leave size out"
        )
    if network == "student":
        seen = recipe.model_copy(update={"size": size}) if is_resampled else recipe
        return make_view(pixels_HWC, seen, spec.augmentation_seed, view, sample=row)
    if members_of(spec):
        raise Conflict(
            f"cache {spec.key[:12]} is combined of the caches {name_members(spec)}, whose teachers have views of their "
            "own: ask for the view of one of those, or for the student's"
        )
    try:
        preprocessing = Preprocessing.model_validate(spec.preprocessing)
    except ValidationError:
        # Of logits that no single preprocessing of this version has made.
        return make_view(pixels_HWC, recipe, spec.augmentation_seed, view, sample=row)
    height, width = pixels_HWC.shape[:2]
    drawn = draw(recipe, spec.augmentation_seed, view, np.array([row]), height=height, width=width)
    return fit_view(pixels_HWC, recipe, drawn, preprocessing)
