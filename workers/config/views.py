"""Views of a job: the augmentations and which boxes teacher and student see. Sizes are (height, width) in pixels."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.mixing import CutMix, Mixup
from workers.config.operations import ColorJitter, RandAugment, RandomErasing, SecondView, check_ordered
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
        mixup, cutmix: what mixes a view with that of another sample, after the operations; None mixes none. With both,
            a view is mixed by one of them at most.
        second_view: operations of every other view, from view 1 on, in place of these: methods that compare two views
            of a sample see pairs of views, a view and the next. None has the same for all.
    """

    # Joined later, as ``Training.cuda_graph``.
    color_jitter: ColorJitter | None = Field(None, exclude_if=lambda given: given is None)
    rand_augment: RandAugment | None = Field(None, exclude_if=lambda given: given is None)
    random_erasing: RandomErasing | None = Field(None, exclude_if=lambda given: given is None)
    mixup: Mixup | None = Field(None, exclude_if=lambda given: given is None)
    cutmix: CutMix | None = Field(None, exclude_if=lambda given: given is None)
    second_view: SecondView | None = Field(None, exclude_if=lambda given: given is None)

    @model_validator(mode="after")
    def _mixed_once(self) -> Self:
        if self.mixup is not None and self.cutmix is not None:
            together = self.mixup.probability + self.cutmix.probability
            if together > 1.0:
                raise ValueError(
                    f"the probabilities of mixup and cutmix are {together:g} together, and a view is mixed by one of "
                    "them: at most 1, such as 0.5 each"
                )
        return self


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


def is_mixed(recipe: Augmentation) -> bool:
    """Whether views of a recipe are mixed with those of other samples."""
    return not isinstance(recipe, NoAugmentation) and (recipe.mixup is not None or recipe.cutmix is not None)


def without_mixing(recipe: Augmentation) -> Augmentation:
    """The recipe of a view before it is mixed."""
    return recipe.model_copy(update={"mixup": None, "cutmix": None}) if is_mixed(recipe) else recipe


def has_second_view(recipe: Augmentation) -> bool:
    """Whether every other view of a recipe has operations of its own."""
    return not isinstance(recipe, NoAugmentation) and recipe.second_view is not None


def recipe_of_view(recipe: Augmentation, view: int) -> Augmentation:
    """The recipe of one view, in which ``second_view`` is None; as it was where all views have the same operations."""
    if isinstance(recipe, NoAugmentation) or recipe.second_view is None:
        return recipe
    changes = {name: getattr(recipe.second_view, name) for name in SecondView.model_fields} if view % 2 else {}
    return recipe.model_copy(update={**changes, "second_view": None})


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
    def _pairs(self) -> Self:
        return self._check_pairs()

    def _check_pairs(self) -> Self:
        if not has_second_view(self.augmentation):
            return self
        if self.count % 2:
            raise ValueError(
                f"count is {self.count}, and with second_view every other view is a second one: give an even count"
            )
        if getattr(self.augmentation, "flip", None) == "alternate":
            raise ValueError(
                "flip is 'alternate', which goes by the number of a view, and with second_view all first views are "
                "even: say true"
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

    @property
    def distinct(self) -> int:
        """Number of epochs after which a run sees the first view again: ``count``, or half of it with second views."""
        return self.count // 2 if has_second_view(self.augmentation) else self.count

    def view(self, epoch: int, place: int = 0) -> int:
        """Number of the view that an epoch trains on, both counted from 0.

        Args:
            place: 1 for the second view of a method that compares two.
        """
        if has_second_view(self.augmentation):
            return 2 * (epoch if self.fresh else epoch % self.distinct) + place
        return epoch + place if self.fresh else (epoch + place) % self.count

    def recipes(self, per_step: int) -> tuple[Augmentation, ...]:
        """Recipe of each view of a step."""
        return tuple(recipe_of_view(self.augmentation, self.view(0, place)) for place in range(per_step))

    def seen(self, epochs: int, per_step: int = 1) -> int:
        """Count the different views of each picture that a training of so many epochs sees, ``per_step`` at once."""
        if has_second_view(self.augmentation):
            return per_step * (epochs if self.fresh else min(epochs, self.distinct))
        shown = epochs + per_step - 1
        return 1 if self.augmentation.recipe == "none" else shown if self.fresh else min(shown, self.count)
