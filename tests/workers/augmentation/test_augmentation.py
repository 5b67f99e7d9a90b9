"""The views: same bytes everywhere, the geometry of the published recipes, sane randomness."""

import math
import zlib

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from store.counter_rng import below, hash_words, unit
from workers.augmentation.apply import _mirror_all, _mirror_some, apply, make_views, resize
from workers.augmentation.draw import ViewParameters, draw
from workers.augmentation.draw_boxes import _log, exp
from workers.config.views import Augmentation, CropFlip, NoAugmentation, ResizedCrop, output_size
from workers.errors import InvalidDataset

RECIPES = (NoAugmentation(), CropFlip(), CropFlip(pad=3, flip=False), ResizedCrop(), ResizedCrop(size=(20, 44)))
# Fixed seeds make these tests repeatable; the bound only says how odd the fixed sample may look.
P_VALUE = 1e-3


def ramp(batch: int, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    """uint8 [batch, height, width, channels], the same on every machine."""
    count = np.arange(batch * height * width * channels, dtype=np.uint64)
    values = (count * count * np.uint64(2654435761) >> np.uint64(13)) & np.uint64(255)
    return torch.from_numpy(values.astype(np.uint8).reshape(batch, height, width, channels))


def noise(batch: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Random pictures with every byte value, uint8 [batch, height, width, channels]."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (batch, height, width, channels), dtype=torch.uint8, generator=generator)


def rows(parameters: ViewParameters) -> list[tuple[int, ...]]:
    columns = (parameters.top, parameters.left, parameters.height, parameters.width, parameters.flip)
    return [tuple(int(value) for value in row) for row in zip(*columns, strict=True)]


# ------------------------------------------------------------------------------------------- the generator


def splitmix(state: int) -> int:
    """SplitMix64's finaliser in plain integers, the reference."""
    mask = 2**64 - 1
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
    return state ^ (state >> 31)


GOLDEN = 0x9E3779B97F4A7C15


def reference_word(*values: int) -> int:
    state = 0
    for value in values:
        state = splitmix((state + (value + 1) * GOLDEN) % 2**64)
    return state


def test_the_reference_is_the_published_splitmix64() -> None:
    outputs = [splitmix((1234567 + k * GOLDEN) % 2**64) for k in (1, 2, 3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(("seed", "view", "slot"), [(0, 0, 0), (1, 0, 0), (0, 1, 0), (2**32 - 1, 9_999, 22)])
def test_words_are_the_documented_hash(seed: int, view: int, slot: int) -> None:
    index = np.array([0, 1, 49_999, 2**40])
    words = hash_words(seed, view, index, slot)
    assert words.dtype == np.uint64
    assert [int(word) for word in words] == [reference_word(seed, view, int(i), slot) for i in index]


def test_words_of_all_coordinates_are_distinct() -> None:
    index = np.arange(1000)
    words = [hash_words(s, v, index, k) for s in range(3) for v in range(3) for k in range(23)]
    assert len(np.unique(np.concatenate(words))) == 3 * 3 * 23 * 1000


def test_integers_cover_exactly_their_range() -> None:
    words = np.array([0, 2**32 - 1, 2**63, 2**64 - 1], dtype=np.uint64)
    assert below(words, 9).tolist() == [0, 0, 4, 8]
    assert unit(words)[[0, 2]].tolist() == [0.0, 0.5]
    assert unit(words)[3] == 1 - 2**-53


def test_the_portable_exponential_is_accurate() -> None:
    x = np.linspace(-7, 7, 1001)
    expected = [math.exp(value) for value in x]
    np.testing.assert_allclose(exp(x), expected, rtol=1e-12)
    assert _log(4 / 3) == pytest.approx(math.log(4 / 3), rel=1e-15)


# Pinned: a change of any of these makes every stored cache of augmented views wrong.
GOLDEN_ROWS = {
    "none": [(0, 0, 32, 32, 0)] * 4,
    "crop_flip": [(3, 0, 32, 32, 1), (-3, 1, 32, 32, 1), (-1, -4, 32, 32, 1), (-2, -2, 32, 32, 1)],
    "resized_crop": [(2, 5, 30, 23, 1), (0, 1, 26, 30, 1), (7, 0, 12, 10, 1), (0, 1, 32, 28, 1)],
}
GOLDEN_CRC32 = {"none": 3121833896, "crop_flip": 3375764596, "resized_crop": 2391968072}


@pytest.mark.parametrize("recipe", [NoAugmentation(), CropFlip(), ResizedCrop()], ids=lambda r: r.recipe)
def test_parameters_and_bytes_are_pinned(recipe: Augmentation) -> None:
    parameters = draw(recipe, 7, 3, np.array([0, 1, 2, 49_999]), 32, 32)
    assert rows(parameters) == GOLDEN_ROWS[recipe.recipe]
    made = apply(ramp(4), recipe, parameters)
    assert zlib.crc32(made.numpy().tobytes()) == GOLDEN_CRC32[recipe.recipe]


def test_resized_bytes_are_pinned() -> None:
    # Neither side divides a power of two, so the rounding of positions shows.
    assert zlib.crc32(resize(ramp(2), 27, 45).numpy().tobytes()) == 1969717164


def test_slots_and_integers_are_as_documented() -> None:
    drawn = rows(draw(CropFlip(pad=4), 7, 3, np.arange(100), 32, 32))
    for sample, (top, left, _, _, flip) in enumerate(drawn):
        high = [reference_word(7, 3, sample, slot) >> 32 for slot in (0, 1, 2)]
        assert (flip, top + 4, left + 4) == (high[0] * 2 >> 32, high[1] * 9 >> 32, high[2] * 9 >> 32)


# ---------------------------------------------------------------------------------------- same bytes always


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_samples_parameters_depend_on_its_number_alone(recipe: Augmentation) -> None:
    epoch = rows(draw(recipe, 5, 2, np.arange(300), 32, 40))
    order = np.random.default_rng(0).permutation(300)
    shuffled = rows(draw(recipe, 5, 2, order, 32, 40))
    assert shuffled == [epoch[i] for i in order]
    alone = [rows(draw(recipe, 5, 2, np.array([i]), 32, 40))[0] for i in range(300)]
    assert alone == epoch


@pytest.mark.parametrize("recipe", RECIPES[1:], ids=str)
def test_seed_and_view_change_the_parameters(recipe: Augmentation) -> None:
    index = np.arange(50)
    drawn = [rows(draw(recipe, seed, view, index, 32, 32)) for seed, view in ((0, 0), (0, 1), (1, 0))]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_do_not_depend_on_the_batch(recipe: Augmentation, channels: int) -> None:
    images = noise(37, 32, 40, channels)
    index = np.arange(37)
    whole = make_views(images, recipe, 5, 2, index)
    assert whole.dtype == torch.uint8
    assert whole.shape == (37, *output_size(recipe, 32, 40), channels)
    assert torch.equal(make_views(images, recipe, 5, 2, index), whole)
    for size in (1, 16):
        parts = [make_views(images[s : s + size], recipe, 5, 2, index[s : s + size]) for s in range(0, 37, size)]
        assert torch.equal(torch.cat(parts), whole)
    order = np.random.default_rng(0).permutation(37)
    assert torch.equal(make_views(images[order], recipe, 5, 2, order), whole[order])


def test_bytes_do_not_depend_on_how_the_work_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    images, recipe, index = noise(20, 24, 24), ResizedCrop(size=(40, 24)), np.arange(20)
    whole = make_views(images, recipe, 0, 0, index)
    monkeypatch.setattr("workers.augmentation.parts._CHUNK_CPU", 3 * 40 * 24 * 3)
    assert torch.equal(make_views(images, recipe, 0, 0, index), whole)


def test_an_epochs_parameters_can_be_sliced() -> None:
    epoch = draw(CropFlip(), 0, 0, np.arange(100), 32, 32)
    assert len(epoch) == 100
    assert rows(epoch[10:20]) == rows(epoch)[10:20]
    assert rows(epoch[np.array([7, 3])]) == [rows(epoch)[7], rows(epoch)[3]]


def test_pictures_that_are_not_contiguous_give_the_same_bytes() -> None:
    images, index = noise(8, 32, 32), np.arange(8)
    strided = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for recipe in RECIPES:
        made = make_views(strided, recipe, 0, 0, index)
        assert torch.equal(made, make_views(images, recipe, 0, 0, index))


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_cuda_and_cpu_make_the_same_bytes(recipe: Augmentation) -> None:
    images, index = noise(200, 32, 40), np.arange(200)
    on_cpu = make_views(images, recipe, 1, 1, index)
    assert torch.equal(make_views(images.cuda(), recipe, 1, 1, index).cpu(), on_cpu)
    assert torch.equal(resize(images.cuda(), 17, 71).cpu(), resize(images, 17, 71))


# ------------------------------------------------------------------------------------------------- geometry


def channels_first(image_HWC: Tensor) -> Tensor:
    return image_HWC.permute(2, 0, 1)


@pytest.mark.parametrize("pad", [0, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_flip_is_pad_crop_mirror(pad: int, channels: int) -> None:
    recipe, images = CropFlip(pad=pad), noise(64, 28, 36, channels)
    parameters = draw(recipe, 0, 0, np.arange(64), 28, 36)
    made = apply(images, recipe, parameters)
    assert {0, 1} == set(parameters.flip.tolist())
    for image, view, (top, left, _, _, flip) in zip(images, made, rows(parameters), strict=True):
        expected = F.crop(F.pad(channels_first(image), [pad] * 4), top + pad, left + pad, 28, 36)
        assert torch.equal(channels_first(view), F.hflip(expected) if flip else expected)


def interpolated(image_HWC: Tensor, size: tuple[int, int]) -> Tensor:
    """torch's own bilinear resize in float64, [h, w, C]."""
    made = torch.nn.functional.interpolate(
        channels_first(image_HWC)[None].double(), size, mode="bilinear", align_corners=False, antialias=False
    )
    return made[0].permute(1, 2, 0)


@pytest.mark.parametrize("size", [None, (48, 20), (7, 90)])
def test_resized_crop_is_crop_resize_mirror(size: tuple[int, int] | None) -> None:
    recipe, images = ResizedCrop(size=size), noise(64, 32, 40)
    parameters = draw(recipe, 0, 0, np.arange(64), 32, 40)
    made = apply(images, recipe, parameters)
    for image, view, (top, left, height, width, flip) in zip(images, made, rows(parameters), strict=True):
        expected = interpolated(image[top : top + height, left : left + width], size or (32, 40))
        difference = (expected.flip(1) if flip else expected) - view
        assert difference.abs().max() < 1.0
        assert abs(float(difference.mean())) < 0.1


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (20, 33), (16, 16), (1, 1)])
def test_resize_is_bilinear(size: tuple[int, int]) -> None:
    images = noise(3, 32, 32)
    made = resize(images, *size)
    for image, resized in zip(images, made, strict=True):
        assert (interpolated(image, size) - resized).abs().max() < 1.0


def test_resize_keeps_flat_pictures_flat_and_single_pixels() -> None:
    for value in (0, 1, 254, 255):
        flat = torch.full((1, 5, 7, 1), value, dtype=torch.uint8)
        assert torch.equal(resize(flat, 13, 3), torch.full((1, 13, 3, 1), value, dtype=torch.uint8))
    one = torch.tensor([[[[9, 8, 7]]]], dtype=torch.uint8)
    assert torch.equal(resize(one, 4, 4), one.expand(1, 4, 4, 3))


def test_the_own_size_and_the_recipe_none_change_nothing() -> None:
    images = noise(4, 32, 32)
    assert torch.equal(resize(images, 32, 32), images)
    assert torch.equal(make_views(images, NoAugmentation(), 3, 0, np.arange(4)), images)
    whole = draw(NoAugmentation(), 0, 0, np.arange(4), 32, 32)
    assert torch.equal(apply(images, ResizedCrop(), whole), images)


def test_output_size() -> None:
    assert output_size(NoAugmentation(), 28, 36) == (28, 36)
    assert output_size(CropFlip(), 28, 36) == (28, 36)
    assert output_size(ResizedCrop(), 28, 36) == (28, 36)
    assert output_size(ResizedCrop(size=(10, 12)), 28, 36) == (10, 12)


# ------------------------------------------------------------------------------------------------ randomness


def test_crop_flip_draws_every_offset_and_mirror_equally_often() -> None:
    parameters = draw(CropFlip(pad=4), 0, 0, np.arange(50_000), 32, 32)
    cells = ((parameters.top + 4) * 9 + parameters.left + 4) * 2 + parameters.flip
    counts = np.bincount(cells, minlength=162)
    assert len(counts) == 162
    assert stats.chisquare(counts).pvalue > P_VALUE


def test_two_views_of_a_sample_are_independent() -> None:
    first, second = (draw(CropFlip(pad=2), 0, view, np.arange(50_000), 32, 32) for view in (0, 1))
    table = np.zeros((25, 25))
    np.add.at(table, (first.top * 5 + first.left + 12, second.top * 5 + second.left + 12), 1)
    assert stats.chi2_contingency(table).pvalue > P_VALUE


def test_recipes_without_flip_never_mirror() -> None:
    for recipe in (CropFlip(flip=False), ResizedCrop(flip=False)):
        assert not draw(recipe, 0, 0, np.arange(1000), 32, 32).flip.any()


def test_resized_crop_boxes_are_distributed_as_torchvisions() -> None:
    count, height, width = 4000, 48, 64
    ours = draw(ResizedCrop(), 1, 0, np.arange(count), height, width)
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)], dtype=np.float64
    )
    for mine, column in zip((ours.top, ours.left, ours.height, ours.width), theirs.T, strict=True):
        assert stats.ks_2samp(mine, column).pvalue > P_VALUE
    area = theirs[:, 2] * theirs[:, 3]
    assert stats.ks_2samp(ours.height * ours.width, area).pvalue > P_VALUE


@pytest.mark.parametrize(("height", "width"), [(32, 32), (5, 64), (1, 1), (64, 3)])
def test_resized_crop_boxes_lie_inside_the_picture(height: int, width: int) -> None:
    p = draw(ResizedCrop(), 0, 0, np.arange(2000), height, width)
    assert (p.top >= 0).all()
    assert (p.left >= 0).all()
    assert (p.height >= 1).all()
    assert (p.width >= 1).all()
    assert (p.top + p.height <= height).all()
    assert (p.left + p.width <= width).all()


@pytest.mark.parametrize(
    ("ratio", "box"),
    [((2.0, 3.0), (8, 0, 16, 32)), ((0.25, 0.5), (0, 8, 32, 16)), ((0.5, 2.0), (0, 0, 32, 32))],
)
def test_impossible_boxes_fall_back_to_the_centre(
    ratio: tuple[float, float], box: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.augmentation.draw_boxes._TRIES", 0)
    drawn = rows(draw(ResizedCrop(ratio=ratio), 0, 0, np.arange(20), 32, 32))
    assert {row[:4] for row in drawn} == {box}


def test_boxes_larger_than_the_picture_are_tried_again() -> None:
    # A fifth of the tries fit: most samples need several, some none of the ten.
    recipe = ResizedCrop(scale=(0.9, 1.0), ratio=(0.7, 1.4))
    p = draw(recipe, 0, 0, np.arange(5000), 100, 100)
    central = (p.height == 100) & (p.width == 100)
    assert 0 < central.mean() < 0.2
    assert ((p.height * p.width)[~central] >= 0.89 * 100 * 100).all()


# ------------------------------------------------------------------------------------------------- mistakes


def test_pictures_of_another_type_or_shape_are_refused() -> None:
    parameters = draw(CropFlip(), 0, 0, np.arange(2), 32, 32)
    with pytest.raises(InvalidDataset, match=r"float32 \[2, 32, 32, 3\]; views are made of uint8"):
        apply(torch.zeros(2, 32, 32, 3), CropFlip(), parameters)
    with pytest.raises(InvalidDataset, match=r"uint8 \[32, 32, 3\]"):
        resize(torch.zeros(32, 32, 3, dtype=torch.uint8), 8, 8)
    with pytest.raises(InvalidDataset, match="float32"):
        make_views(torch.zeros(2, 32, 32, 3), CropFlip(), 0, 0, np.arange(2))


def test_parameters_of_another_batch_are_refused() -> None:
    parameters = draw(CropFlip(), 0, 0, np.arange(3), 32, 32)
    with pytest.raises(ValueError, match="2 pictures with parameters of 3"):
        apply(ramp(2), CropFlip(), parameters)


def test_mirroring_some_pictures_is_choosing_among_all_and_their_mirror_images() -> None:
    """What a GPU computes and what a CPU computes, on one."""
    pictures = noise(9, 7, 10)
    for flips in (torch.arange(9) % 2, torch.zeros(9, dtype=torch.int64), torch.ones(9, dtype=torch.int64)):
        expected = torch.stack([each.flip(1) if flip else each for each, flip in zip(pictures, flips, strict=True)])
        assert torch.equal(_mirror_all(pictures.clone(), flips), expected)
        assert torch.equal(_mirror_some(pictures.clone(), flips), expected)
