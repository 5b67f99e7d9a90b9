"""Resize and centre crop of a teacher's pictures: Pillow's and torchvision's bits, for plain pictures and for views."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms._presets import ImageClassification

from workers.augmentation.apply import apply, resize
from workers.augmentation.draw import draw
from workers.augmentation.resampling import fit_picture, fit_view
from workers.config.operations import RandAugment, RandomErasing
from workers.config.teacher import Preprocessing
from workers.config.views import Augmentation, CropFlip, NoAugmentation, ResizedCrop
from workers.errors import InvalidTeacher
from workers.teacher.preprocess import fit, fit_views, preprocess

MODES = {
    "nearest": InterpolationMode.NEAREST,
    "box": InterpolationMode.BOX,
    "bilinear": InterpolationMode.BILINEAR,
    "hamming": InterpolationMode.HAMMING,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
}


def photographs(height: int, width: int, channels: int = 3, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def as_image(picture_HWC: np.ndarray) -> Image.Image:
    return Image.fromarray(picture_HWC[..., 0] if picture_HWC.shape[2] == 1 else picture_HWC)


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, -1)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("shape", [(61, 85, 3), (90, 44, 3), (20, 31, 1), (40, 40, 3)])
def test_fit_is_torchvisions_resize_and_centre_crop_of_pillow_pictures(
    interpolation: str, shape: tuple[int, int, int]
) -> None:
    images = photographs(*shape)
    for asked in (37, (41, 50)):
        preprocessing = Preprocessing(size=(32, 35), resize=asked, interpolation=interpolation)
        theirs = transforms.Compose(
            [transforms.Resize(asked, interpolation=MODES[interpolation]), transforms.CenterCrop((32, 35))]
        )
        made = fit(torch.from_numpy(images), preprocessing)
        assert made.dtype == torch.uint8
        for picture, fitted in zip(images, made.numpy(), strict=True):
            np.testing.assert_array_equal(fitted, as_array(theirs(as_image(picture))))


def test_imagenet_is_torchvisions_preset_of_a_picture() -> None:
    image = photographs(300, 401, count=1)
    theirs = ImageClassification(crop_size=224)(as_image(image[0]))
    ours = preprocess(image, Preprocessing.model_validate("imagenet"))
    np.testing.assert_allclose(ours[0], theirs.numpy(), atol=1e-6)


def test_interpolation_without_resize_takes_the_whole_picture() -> None:
    images = photographs(61, 85)
    made = fit(torch.from_numpy(images), Preprocessing(size=(32, 35), interpolation="bicubic")).numpy()
    expected = F.resize(as_image(images[0]), [32, 35], InterpolationMode.BICUBIC)
    np.testing.assert_array_equal(made[0], as_array(expected))


def test_size_alone_is_what_it_was() -> None:
    images = torch.from_numpy(photographs(61, 85))
    assert torch.equal(fit(images, Preprocessing(size=(32, 35))), resize(images, 32, 35))
    assert fit(images, Preprocessing()) is images


def test_a_crop_larger_than_the_resized_picture_is_refused_with_all_sizes() -> None:
    preprocessing = Preprocessing(size=(32, 64), resize=40)
    says = r"pictures of 50 x 60 pixels .* become 40 x 48 by resize 40, and 32 x 64 cannot be cut out of that"
    with pytest.raises(InvalidTeacher, match=says):
        fit(torch.from_numpy(photographs(50, 60)), preprocessing)


# ------------------------------------------------------------------------------------------------------------ views

CROPPED = Preprocessing(size=(48, 48), resize=54, interpolation="bicubic")


def test_a_view_of_resized_crop_is_the_students_box_resampled_once_and_whole() -> None:
    images, recipe = photographs(60, 70, count=12), ResizedCrop(size=(48, 48))
    drawn = draw(recipe, 3, 1, np.arange(12), 60, 70)
    made = fit_views(torch.from_numpy(images), recipe, drawn, CROPPED).numpy()
    for picture, view, column in zip(images, made, drawn.table().T.tolist(), strict=True):
        top, left, height, width, flip = column
        expected = F.resized_crop(as_image(picture), top, left, height, width, [48, 48], InterpolationMode.BICUBIC)
        np.testing.assert_array_equal(view, as_array(F.hflip(expected) if flip else expected))


def test_views_as_large_as_the_picture_are_fitted_as_plain_pictures() -> None:
    images = torch.from_numpy(photographs(60, 70, count=8))
    for recipe in (CropFlip(pad=5), CropFlip(rand_augment=RandAugment())):
        drawn = draw(recipe, 3, 1, np.arange(8), 60, 70)
        assert torch.equal(fit_views(images, recipe, drawn, CROPPED), fit(apply(images, recipe, drawn), CROPPED))
    plain = NoAugmentation()
    assert torch.equal(fit_views(images, plain, draw(plain, 0, 0, np.arange(8), 60, 70), CROPPED), fit(images, CROPPED))


@pytest.mark.parametrize("preprocessing", [CROPPED, Preprocessing(size=(48, 48)), Preprocessing()])
@pytest.mark.parametrize(
    "recipe",
    [
        NoAugmentation(),
        CropFlip(rand_augment=RandAugment()),
        ResizedCrop(size=(48, 48), random_erasing=RandomErasing(probability=1.0)),
    ],
    ids=lambda recipe: recipe.recipe,
)
def test_the_picture_that_is_shown_of_a_view_is_the_teachers(
    recipe: Augmentation, preprocessing: Preprocessing
) -> None:
    images = photographs(60, 70, count=5)
    drawn = draw(recipe, 3, 1, np.arange(5), 60, 70)
    made = fit_views(torch.from_numpy(images.copy()), recipe, drawn, preprocessing).numpy()
    for row, picture in enumerate(images):
        shown = fit_view(picture, recipe, drawn[row : row + 1], preprocessing)
        np.testing.assert_array_equal(shown, made[row])
    np.testing.assert_array_equal(fit_picture(images[0], CROPPED), fit(torch.from_numpy(images), CROPPED)[0].numpy())
