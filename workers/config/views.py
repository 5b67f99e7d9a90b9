"""Views of a job: the augmentations and which boxes teacher and student see. Sizes are (height, width) in pixels."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.operations import ColorJitter, RandAugment, RandomErasing, check_ordered
from workers.spec import Flag, Positive, Seed, Size, Spec

# Of a random half of the views; ``alternate``: of a random half of the samples in view 0, and of the others in view 1,
# and so on, so that two views show both sides of each (Keller Jordan 2024, arXiv:2404.00498).
Flip = Flag | Literal["alternate"]


class NoAugmentation(Spec):
    """The plain picture; all views are equal, so one view is all there is."""

    recipe: Literal["none"] = "none"


class _WithOperations(Spec):
    """Operations that follow the cut of a box, in this order; each network has them at the size of its own view.

    Attributes:
        color_jitter, rand_augment, random_erasing: None leaves it out.
    """

    # Joined later, as ``Training.cuda_graph``.
    color_jitter: ColorJitter | None = Field(None, exclude_if=lambda given: given is None)
    rand_augment: RandAugment | None = Field(None, exclude_if=lambda given: given is None)
    random_erasing: RandomErasing | None = Field(None, exclude_if=lambda given: given is None)


class CropFlip(_WithOperations):
    """Zero-pad by ``pad`` pixels, crop the old size at a random place, mirror every second one."""

    recipe: Literal["crop_flip"] = "crop_flip"
    pad: Annotated[int, Field(strict=True, ge=0, le=64)] = 4
    flip: Flip = True


class ResizedCrop(_WithOperations):
    """Crop a random area of random aspect ratio, resize it to ``size``, mirror every second one.

    Attributes:
        size: (height, width) of the student's view; None keeps the picture's own. The teacher's has its own size, see
            ``teacher_augmentation``.
        scale: least and most area of the crop, as a fraction of the picture's.
        ratio: least and most width / height of the crop.
    """

    recipe: Literal["resized_crop"] = "resized_crop"
    size: Size | None = None
    scale: tuple[Positive, Annotated[float, Field(strict=True, gt=0.0, le=1.0)]] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: Flip = True

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_ordered(scale=self.scale, ratio=self.ratio)
        return self


Augmentation = Annotated[NoAugmentation | CropFlip | ResizedCrop, Field(discriminator="recipe")]


def output_size(recipe: Augmentation, height: int, width: int) -> Size:
    """Size (h, w) in pixels of a view of an H x W picture."""
    if isinstance(recipe, ResizedCrop) and recipe.size is not None:
        return recipe.size
    return height, width


def teacher_augmentation(recipe: Augmentation, size: Size | None, height: int, width: int) -> Augmentation:
    """Augmentation for the teacher: the same boxes of the same pictures, resampled to the teacher's size.

    A box and its mirroring do not depend on the size of the view, so each network gets its own resampling of one box:
    the teacher is not given the student's view made larger, or smaller, once more. Where the view has the teacher's
    size anyway, and where boxes are not resampled (``none``, ``crop_flip``: views as large as the picture, which
    ``Preprocessing`` resizes and crops), this is ``recipe`` itself. It is what a cache is known by, so students of
    different sizes share one.

    Args:
        recipe: of the student's views.
        size: (height, width) in pixels of the teacher's preprocessing; None is that of the dataset's pictures.
        height, width: of the dataset's pictures.
    """
    if not isinstance(recipe, ResizedCrop) or output_size(recipe, height, width) == (size or (height, width)):
        return recipe
    return recipe.model_copy(update={"size": size})


class Views(Spec):
    """The boxes that teacher and students share, each at its own size: epoch e trains on view e mod count.

    Attributes:
        fresh: a run without a teacher trains on view e in epoch e, whatever ``count`` is: it reads no cached logits.
            None, which is what jobs of earlier versions have, is false, until a job is posted: see
            ``workers.config.draft``.
    """

    augmentation: Augmentation = NoAugmentation()
    count: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 1
    seed: Seed = 0
    # Joined later, as ``Training.cuda_graph``.
    fresh: Flag | None = Field(None, exclude_if=lambda given: given is None)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        return self._check_distinct()

    def _check_distinct(self) -> Self:
        if self.augmentation.recipe == "none" and self.count > 1:
            raise ValueError(
                f"count is {self.count}, but without augmentation all views are the same picture: "
                "use 1, or choose the recipe crop_flip or resized_crop"
            )
        return self

    @model_validator(mode="after")
    def _fresh_differ(self) -> Self:
        if self.fresh and self.augmentation.recipe == "none":
            raise ValueError(
                "fresh is true, but without augmentation all views are the same picture: "
                "leave it out, or choose the recipe crop_flip or resized_crop"
            )
        return self

    def view(self, epoch: int, place: int = 0) -> int:
        """Number of the view that an epoch trains on, both counted from 0.

        Args:
            place: 1 for the second view of a method that compares two.
        """
        return epoch + place if self.fresh else (epoch + place) % self.count

    def seen(self, epochs: int, per_step: int = 1) -> int:
        """Count the different views of each picture that a training of so many epochs sees, ``per_step`` at once."""
        shown = epochs + per_step - 1
        return 1 if self.augmentation.recipe == "none" else shown if self.fresh else min(shown, self.count)
