"""Operations on views: the same bytes for every batch, and Pillow's pictures.

The reference in NumPy (``single_operations``) is written apart from what batches go through.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import stats
from torchvision.transforms import InterpolationMode, autoaugment
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

from tests.workers.augmentation.test_augmentation import P_VALUE, noise, reference_word
from workers.augmentation.apply import apply, make_views
from workers.augmentation.draw import BOX_ROWS, draw
from workers.augmentation.draw_operations import FRACTION, GRID, Kind, _amount, rotation, steps_of
from workers.augmentation.operations import _operations, apply_steps, erase
from workers.augmentation.single import make_view
from workers.augmentation.single_operations import apply_step
from workers.config.operations import ColorJitter, RandAugment, RandomErasing
from workers.config.views import Augmentation, CropFlip, ResizedCrop

RECIPES = (
    CropFlip(color_jitter=ColorJitter(hue=0.3)),
    CropFlip(rand_augment=RandAugment(num_ops=3, magnitude=15)),
    CropFlip(flip="alternate", random_erasing=RandomErasing(probability=1.0)),
    ResizedCrop(
        size=(19, 24),
        color_jitter=ColorJitter(brightness=0.0, contrast=1.0, hue=0.5),
        rand_augment=RandAugment(),
        random_erasing=RandomErasing(value=7),
    ),
)


def smooth_pictures(count: int) -> np.ndarray:
    """Uint8 [count, 29, 33, 3] with large areas, of which some do not reach 0 or 255."""
    small = noise(count, 4, 5).numpy()
    large = [np.asarray(Image.fromarray(each).resize((33, 29), Image.Resampling.BICUBIC)) for each in small]
    return np.stack([each // (1 + k % 3) + 10 * (k % 3) for k, each in enumerate(large)]).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------- the same bytes


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_do_not_depend_on_the_batch_and_are_the_references(recipe: Augmentation, channels: int) -> None:
    images, index = noise(30, 21, 26, channels), np.arange(100, 130)
    whole = make_views(images, recipe, 5, 2, index)
    order = np.random.default_rng(0).permutation(30)
    assert torch.equal(make_views(images[order], recipe, 5, 2, index[order]), whole[order])
    parts = [make_views(images[k : k + 7], recipe, 5, 2, index[k : k + 7]) for k in range(0, 30, 7)]
    assert torch.equal(torch.cat(parts), whole)
    for picture, row, expected in zip(images.numpy(), index.tolist(), whole.numpy(), strict=True):
        np.testing.assert_array_equal(make_view(picture, recipe, 5, 2, sample=row), expected)


def test_operations_on_all_samples_at_once_are_those_on_some() -> None:
    """A GPU computes each operation for the whole batch and chooses: here on the CPU's pictures."""
    for recipe in RECIPES[:2]:
        images, drawn = noise(40, 21, 26), draw(recipe, 1, 0, np.arange(40), 21, 26)
        expected = apply(images, recipe, drawn)
        views = apply(images, recipe.model_copy(update={"color_jitter": None, "rand_augment": None}), drawn)
        table, magnitude = torch.from_numpy(drawn.table()[BOX_ROWS:]), 15
        for number, kinds in enumerate(steps_of(recipe)):
            kind_B, amount_B = table[2 * number], table[2 * number + 1]
            for members, operation in _operations(frozenset(kinds), magnitude):
                is_wanted = torch.tensor([Kind(int(kind)) in members for kind in kind_B])
                views = torch.where(is_wanted[:, None, None, None], operation(views, kind_B, amount_B), views)
        assert torch.equal(views, expected)


def test_operations_compute_with_integers_alone() -> None:
    images = noise(64, 12, 12)
    seen = seen_dtypes(lambda: [make_views(images, recipe, 0, 0, np.arange(64)) for recipe in RECIPES])
    assert torch.uint8 in seen
    assert torch.int32 in seen
    assert not any(dtype.is_floating_point for dtype in seen)


def seen_dtypes(work: Callable[[], object]) -> set[torch.dtype]:
    """Types of all tensors that are computed in some work."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: set[torch.dtype] = set()

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(
            self,
            func: Callable[..., object],
            types: object,
            args: tuple[object, ...] = (),
            kwargs: Mapping[str, object] | None = None,
        ) -> object:
            result = func(*args, **(kwargs or {}))
            seen.update(each.dtype for each in _tensors(result))
            return result

    with Noting():
        work()
    return seen


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_operations_on_cuda_and_cpu_make_the_same_bytes(recipe: Augmentation) -> None:
    images, index = noise(200, 32, 40), np.arange(200)
    on_cpu = make_views(images, recipe, 1, 1, index)
    assert torch.equal(make_views(images.cuda(), recipe, 1, 1, index).cpu(), on_cpu)


def test_recipes_without_operations_are_spelt_and_drawn_as_before() -> None:
    assert CropFlip().model_dump(mode="json") == {"recipe": "crop_flip", "pad": 4, "flip": True}
    assert draw(CropFlip(), 7, 3, np.arange(9), 32, 32).table().shape == (BOX_ROWS, 9)
    plain, more = (draw(recipe, 7, 3, np.arange(9), 21, 26) for recipe in (CropFlip(), RECIPES[1]))
    np.testing.assert_array_equal(more.table()[:BOX_ROWS], plain.table())


# -------------------------------------------------------------------------------------------------------- Pillow's


def done(pictures_BHWC: np.ndarray, kind: Kind, amount: int, magnitude: int = 0) -> np.ndarray:
    """What training does, after a check that the reference does the same."""
    batch = torch.from_numpy(pictures_BHWC.copy())
    table = torch.tensor([[int(kind)] * len(batch), [amount] * len(batch)])
    made = apply_steps(batch, [(kind,)], table, magnitude=magnitude).numpy()
    for picture, expected in zip(pictures_BHWC, made, strict=True):
        np.testing.assert_array_equal(apply_step(picture, kind, amount, magnitude), expected)
    return made


def apart(made_BHWC: np.ndarray, pictures: list[Image.Image]) -> np.ndarray:
    return np.abs(made_BHWC.astype(int) - np.stack([np.asarray(picture) for picture in pictures]).astype(int))


PICTURES = np.concatenate([smooth_pictures(9), noise(3, 29, 33).numpy()])
OF_PILLOW = [Image.fromarray(picture) for picture in PICTURES]


@pytest.mark.parametrize("factor", [0.1, 0.73, 1.0, 1.27, 1.9])
@pytest.mark.parametrize(
    ("kind", "enhance"),
    [
        (Kind.BRIGHTNESS, ImageEnhance.Brightness),
        (Kind.COLOR, ImageEnhance.Color),
        (Kind.CONTRAST, ImageEnhance.Contrast),
        (Kind.SHARPNESS, ImageEnhance.Sharpness),
    ],
)
def test_blends_are_pillows_to_a_level(kind: Kind, enhance: type, factor: float) -> None:
    made = done(PICTURES, kind, round(factor * FRACTION))
    different = apart(made, [enhance(picture).enhance(factor) for picture in OF_PILLOW])
    assert different.max() <= 1
    # Where the exact level is a whole number, as that of every tenth at a factor of 0.1.
    assert different.mean() < 0.1
    assert factor != 1.0 or np.array_equal(made, PICTURES)


def test_the_smoothing_of_sharpness_is_pillows() -> None:
    different = apart(done(PICTURES, Kind.SHARPNESS, 0), [each.filter(ImageFilter.SMOOTH) for each in OF_PILLOW])
    assert not different.any()


def test_posterize_solarize_and_equalize_are_pillows_bits() -> None:
    for bits in (4, 7):
        made = done(PICTURES, Kind.POSTERIZE, 256 - (1 << (8 - bits)))
        assert not apart(made, [ImageOps.posterize(picture, bits) for picture in OF_PILLOW]).any()
    for threshold in (0, 100, 178.5, 255):
        made = done(PICTURES, Kind.SOLARIZE, int(np.ceil(threshold)))
        assert not apart(made, [ImageOps.solarize(picture, threshold) for picture in OF_PILLOW]).any()
    assert not apart(done(PICTURES, Kind.EQUALIZE, 0), [ImageOps.equalize(picture) for picture in OF_PILLOW]).any()


def test_equalize_of_few_pixels_and_of_one_level_is_pillows() -> None:
    for pictures in (noise(5, 17, 16).numpy(), noise(5, 5, 5).numpy(), np.full((2, 30, 30, 3), 77, dtype=np.uint8)):
        made = done(pictures, Kind.EQUALIZE, 0)
        assert not apart(made, [ImageOps.equalize(Image.fromarray(each)) for each in pictures]).any()


def test_autocontrast_is_pillows_to_a_level() -> None:
    pictures = np.concatenate([PICTURES, np.full((1, 29, 33, 3), 77, dtype=np.uint8)])
    made = done(pictures, Kind.AUTOCONTRAST, 0)
    assert apart(made, [ImageOps.autocontrast(Image.fromarray(each)) for each in pictures]).max() <= 1
    assert made[:9].min() == 0
    assert made[:9].max() == 255
    np.testing.assert_array_equal(made[-1], pictures[-1])


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Kind.SHEAR_X, "ShearX"),
        (Kind.SHEAR_Y, "ShearY"),
        (Kind.TRANSLATE_X, "TranslateX"),
        (Kind.TRANSLATE_Y, "TranslateY"),
        (Kind.ROTATE, "Rotate"),
    ],
)
def test_moves_are_torchvisions_of_pillow_pictures_but_for_a_few_pixels(kind: Kind, name: str, sign: int) -> None:
    for magnitude in (3, 9, 30):
        of_torchvision = autoaugment.RandAugment()._augmentation_space(31, (29, 33))[name][0][magnitude].item()
        made = done(PICTURES, kind, _amount(kind, magnitude, sign), magnitude)
        expected = [_apply_op(each, name, sign * of_torchvision, InterpolationMode.NEAREST, None) for each in OF_PILLOW]
        is_other = apart(made, expected).any(axis=3)
        assert is_other.mean() < 0.02
        assert not apart(made, OF_PILLOW).any(axis=3).mean() < 0.2 or magnitude == 3


def test_hue_is_torchvisions_to_two_levels() -> None:
    as_tensors = torch.from_numpy(PICTURES).permute(0, 3, 1, 2)
    for turn in (-0.5, -0.11, 0.0, 0.25, 0.4):
        made = done(PICTURES, Kind.HUE, round(turn * FRACTION))
        expected = F.adjust_hue(as_tensors, turn).permute(0, 2, 3, 1).numpy()
        assert np.abs(made.astype(int) - expected.astype(int)).max() <= 2
        assert np.array_equal(made, PICTURES) == (turn == 0.0)


def test_amounts_of_rand_augment_are_torchvisions() -> None:
    space = autoaugment.RandAugment()._augmentation_space(31, (331, 331))
    assert [name.upper() for name in space] == [kind.name.replace("_", "") for kind in tuple(Kind)[:14]]
    for magnitude in range(31):
        of = {name: float(values[magnitude]) if values.ndim else 0.0 for name, (values, _) in space.items()}
        assert _amount(Kind.SHEAR_X, magnitude, -1) == -round(of["ShearX"] * FRACTION)
        assert abs(_amount(Kind.TRANSLATE_Y, magnitude, 1) * 331 / FRACTION - of["TranslateY"]) < 1e-2
        assert abs(_amount(Kind.BRIGHTNESS, magnitude, 1) / FRACTION - 1 - of["Brightness"]) < 1e-4
        assert _amount(Kind.POSTERIZE, magnitude, 1) == 256 - 2 ** (8 - int(of["Posterize"]))
        assert _amount(Kind.SOLARIZE, magnitude, 1) == np.ceil(of["Solarize"])
        assert rotation(magnitude) == pytest.approx((np.sin(np.radians(magnitude)), np.cos(np.radians(magnitude))))
        assert of["Rotate"] == pytest.approx(magnitude, abs=1e-5)


# ------------------------------------------------------------------------------------------------------------ draws


def test_slots_of_operations_are_as_documented() -> None:
    recipe = RECIPES[3]
    jitter, erasing = recipe.color_jitter, recipe.random_erasing
    assert jitter is not None
    assert erasing is not None
    rows = draw(recipe, 7, 3, np.arange(60), 32, 32).operations
    assert rows.shape == (2 * 3 + 2 * 2 + 4, 60)
    for sample in range(60):
        high = {slot: reference_word(7, 3, sample, slot) >> 32 for slot in (32, 34, 35, 36, 40, 64, 65, 66, 67)}
        found = dict(zip(rows[0:6:2, sample].tolist(), rows[1:6:2, sample].tolist(), strict=True))
        assert found[Kind.CONTRAST] == high[34] * (2 * FRACTION + 1) >> 32
        assert found[Kind.HUE] == (high[36] * (FRACTION + 1) >> 32) - FRACTION // 2
        assert (rows[0, sample] == Kind.CONTRAST) == (high[32] * 6 >> 32 in (0, 1))
        assert rows[6:10:2, sample].tolist() == [high[64] * 14 >> 32, high[66] * 14 >> 32]
        sign = -1 if high[65] * 2 >> 32 else 1
        assert rows[7, sample] == _amount(Kind(int(rows[6, sample])), 9, sign)
        assert (rows[12, sample] > 0) == ((high[40] * FRACTION >> 32) < FRACTION // 4)


def test_alternate_flip_shows_both_sides_in_two_views_and_again_in_four() -> None:
    flips = np.stack([draw(CropFlip(flip="alternate"), 5, view, np.arange(400), 32, 32).flip for view in range(4)])
    np.testing.assert_array_equal(flips[0], draw(CropFlip(), 5, 0, np.arange(400), 32, 32).flip)
    np.testing.assert_array_equal(flips[1], 1 - flips[0])
    np.testing.assert_array_equal(flips[2:], flips[:2])
    assert 150 < flips[0].sum() < 250


def test_rand_augment_draws_all_operations_equally_often() -> None:
    rows = draw(CropFlip(rand_augment=RandAugment()), 0, 0, np.arange(20_000), 8, 8).operations
    for row in rows[::2]:
        assert stats.chisquare(np.bincount(row, minlength=14)).pvalue > P_VALUE
    assert stats.chi2_contingency(np.histogram2d(rows[0], rows[2], 14)[0]).pvalue > P_VALUE


def test_erased_boxes_have_the_area_that_was_asked_for_and_are_one_at_every_size() -> None:
    recipe = CropFlip(random_erasing=RandomErasing(probability=0.5, scale=(0.1, 0.2), value=9))
    boxes = draw(recipe, 0, 0, np.arange(2000), 8, 8).operations
    is_erased = boxes[2] > 0
    assert abs(is_erased.mean() - 0.5) < 0.05
    area = (boxes[2] * boxes[3] / GRID**2)[is_erased]
    assert 0.0999 < area.min() < area.max() < 0.2001
    large, small = (
        erase(torch.full((2000, side, side, 1), 200, dtype=torch.uint8), torch.from_numpy(boxes), 9)
        for side in (64, 16)
    )
    assert set(large.unique().tolist()) == {9, 200}
    share = (large == 9).float().mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(share, np.where(is_erased, boxes[2] * boxes[3] / GRID**2, 0), atol=0.04)
    # The middle of a small pixel lies in the corner of four large ones.
    inner = torch.stack([large[:, 4 * 5 + 1 : 4 * 5 + 3, 4 * 7 + 1 : 4 * 7 + 3, 0]]).squeeze(0) == 9
    agree = inner.all((1, 2)) <= (small[:, 5, 7, 0] == 9)
    assert bool(agree.all())
