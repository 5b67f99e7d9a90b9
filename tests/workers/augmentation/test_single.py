"""Single views with NumPy alone: bit for bit those that teachers and students are given."""

import numpy as np
import pytest

from tests.workers.augmentation.test_augmentation import noise
from workers.augmentation.apply import make_views, resize
from workers.augmentation.single import make_view, resize_single
from workers.config.views import Augmentation, CropFlip, NoAugmentation, ResizedCrop


@pytest.mark.parametrize(
    "recipe",
    [NoAugmentation(), CropFlip(), CropFlip(pad=0), CropFlip(pad=3, flip=False), ResizedCrop()]
    + [ResizedCrop(size=size, scale=(0.02, 1.0)) for size in ((20, 44), (61, 9), (1, 1))],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 3])
def test_single_views_are_bit_equal_to_those_of_training(recipe: Augmentation, channels: int) -> None:
    pictures = noise(40, 31, 26, channels)
    rows_N = np.arange(1000, 1040)
    for view in (0, 3):
        expected = make_views(pictures, recipe, 7, view, rows_N).numpy()
        for picture, row, wanted in zip(pictures.numpy(), rows_N.tolist(), expected, strict=True):
            np.testing.assert_array_equal(make_view(picture, recipe, 7, view, sample=row), wanted)


@pytest.mark.parametrize("size", [(31, 26), (64, 64), (7, 90), (1, 1)])
def test_single_resize_is_bit_equal_to_that_of_teachers(size: tuple[int, int]) -> None:
    pictures = noise(3, 31, 26)
    expected = resize(pictures, *size).numpy()
    for picture, wanted in zip(pictures.numpy(), expected, strict=True):
        np.testing.assert_array_equal(resize_single(picture, *size), wanted)
