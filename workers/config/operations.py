"""Operations on a view after its box was cut out: colour jitter, RandAugment, random erasing.

They are what the field calls by these names, in integer arithmetic: see ``workers.augmentation.operations``.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from workers.spec import Fraction, Positive, Spec


class ColorJitter(Spec):
    """torchvision's ``ColorJitter``: brightness, contrast, saturation and hue, in random order.

    Attributes:
        brightness, contrast, saturation: the factor is drawn from [1 - value, 1 + value].
        hue: the turn of the colour circle is drawn from [-value, value].
    """

    brightness: Fraction = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.4
    hue: Annotated[float, Field(strict=True, ge=0.0, le=0.5)] = 0.0

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not any((self.brightness, self.contrast, self.saturation, self.hue)):
            raise ValueError("brightness, contrast, saturation and hue are all 0: leave color_jitter out")
        return self


class RandAugment(Spec):
    """torchvision's ``RandAugment`` (Cubuk et al. 2020, arXiv:1909.13719): some of 14 operations, one after the other.

    Attributes:
        num_ops: operations for each view.
        magnitude: of all operations, 0 to 30.
    """

    num_ops: Annotated[int, Field(strict=True, ge=1, le=8)] = 2
    magnitude: Annotated[int, Field(strict=True, ge=0, le=30)] = 9


class RandomErasing(Spec):
    """Random erasing (Zhong et al. 2017, arXiv:1708.04896): one box of a view is filled with one level.

    Attributes:
        probability: that a view is erased.
        scale: least and most area of the box, as a fraction of the view's.
        ratio: least and most width / height of the box, in units of the view's sides.
        value: the level, 0 to 255, of all channels; the middle is near what torchvision's 0 is after mean and std.
    """

    probability: Fraction = 0.25
    scale: tuple[Positive, Annotated[float, Field(strict=True, gt=0.0, le=1.0)]] = (0.02, 0.33)
    ratio: tuple[Positive, Positive] = (0.3, 3.3)
    value: Annotated[int, Field(strict=True, ge=0, le=255)] = 128

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_ordered(scale=self.scale, ratio=self.ratio)
        return self


class SecondView(Spec):
    """Operations of the second view of a method that compares two, in place of those of the first.

    Attributes:
        color_jitter, rand_augment, random_erasing: None leaves it out.
    """

    color_jitter: ColorJitter | None = Field(None, exclude_if=lambda given: given is None)
    rand_augment: RandAugment | None = Field(None, exclude_if=lambda given: given is None)
    random_erasing: RandomErasing | None = Field(None, exclude_if=lambda given: given is None)

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not any((self.color_jitter, self.rand_augment, self.random_erasing)):
            raise ValueError(
                "second_view has no operation: give it color_jitter, rand_augment or random_erasing, or leave it out"
            )
        return self


def check_ordered(**pairs: tuple[float, float]) -> None:
    """Raise ValueError if the first of a pair exceeds the second."""
    for name, (low, high) in pairs.items():
        if low > high:
            raise ValueError(f"{name} is ({low}, {high}); the first must not exceed the second")
