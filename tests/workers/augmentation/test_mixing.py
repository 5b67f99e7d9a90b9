"""Mixed views: the same bytes for every batch, shares that are Beta's, partners that may be partners."""

import zlib

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.workers.augmentation.test_augmentation import P_VALUE, noise
from workers.augmentation.apply import apply, apply_all, make_views
from workers.augmentation.draw import draw, pictures_of
from workers.augmentation.draw_mixing import _beta_levels, draw_mixing
from workers.augmentation.draw_operations import FRACTION
from workers.augmentation.resampling import fit_view
from workers.augmentation.single import make_view
from workers.config.mixing import CutMix, Mixup
from workers.config.operations import ColorJitter, RandAugment, RandomErasing, SecondView
from workers.config.teacher import Preprocessing
from workers.config.views import Augmentation, CropFlip, ResizedCrop, recipe_of_view, without_mixing
from workers.teacher.preprocess import fit_views

RECIPES = (
    CropFlip(mixup=Mixup(alpha=1.0)),
    CropFlip(pad=2, flip="alternate", cutmix=CutMix()),
    ResizedCrop(
        size=(19, 24),
        rand_augment=RandAugment(),
        random_erasing=RandomErasing(),
        mixup=Mixup(alpha=0.4, probability=0.5),
        cutmix=CutMix(probability=0.3),
    ),
)
PARTNERS = np.arange(5, 60, 2)


def mixed_views(images: Tensor, recipe: Augmentation, view: int, index_B: np.ndarray) -> Tensor:
    """Views of some rows of these pictures."""
    drawn = draw(recipe, 5, view, index_B, *images.shape[1:3], partners_P=PARTNERS)
    return apply(images[pictures_of(index_B, [drawn])], recipe, drawn)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_mixed_views_do_not_depend_on_the_batch_and_are_the_references(
    recipe: Augmentation, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, index = noise(60, 21, 26, channels), np.arange(20, 50)
    whole = mixed_views(images, recipe, 2, index)
    order = np.random.default_rng(0).permutation(30)
    assert torch.equal(mixed_views(images, recipe, 2, index[order]), whole[order])
    assert torch.equal(torch.cat([mixed_views(images, recipe, 2, index[k : k + 7]) for k in range(0, 30, 7)]), whole)
    monkeypatch.setattr("workers.augmentation.parts._CHUNK_CPU", 3 * 21 * 26 * 3)
    assert torch.equal(mixed_views(images, recipe, 2, index), whole)
    assert mixed_views(images, recipe, 2, index[:0]).shape == (0, *whole.shape[1:])

    def take(row: int) -> np.ndarray:
        return images[row].numpy()

    for row, expected in zip(index.tolist(), whole.numpy(), strict=True):
        made = make_view(take(row), recipe, 5, 2, sample=row, partners_P=PARTNERS, take=take)
        np.testing.assert_array_equal(made, expected)


def test_mixed_views_are_of_two_views_that_are_not_mixed() -> None:
    images, index = noise(60, 21, 26), np.arange(40)
    for recipe in RECIPES:
        mixing = draw_mixing(recipe, 5, 3, index, partners_P=PARTNERS)
        plain = without_mixing(recipe)
        own = make_views(images[index], plain, 5, 3, index).numpy().astype(np.float64)
        other = make_views(images[mixing.sample], plain, 5, 3, mixing.sample).numpy().astype(np.float64)
        share = (mixing.weight / FRACTION)[:, None, None, None]
        expected = np.floor(own * share + other * (1 - share) + 0.5)
        made = mixed_views(images, recipe, 3, index).numpy()
        boxes = mixing.height * mixing.width > 0
        np.testing.assert_array_equal(made[~boxes], expected[~boxes])
        assert ((made == own) | (made == other))[boxes].all()


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (21, 26), (224, 224)])
def test_own_share_of_a_mixed_view_is_that_of_its_pixels(size: tuple[int, int]) -> None:
    """The authors' correction: a box is so many whole pixels, however the share was drawn."""
    images = torch.zeros((60, *size, 1), dtype=torch.uint8)
    images[PARTNERS] = 255
    index = np.arange(0, 60, 2)
    recipe = CropFlip(pad=0, cutmix=CutMix())
    mixing = draw_mixing(recipe, 5, 0, index, partners_P=PARTNERS)
    own = (mixed_views(images, recipe, 0, index) == 0).float().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(mixing.own_share(*size), own.numpy(), atol=1e-7)
    assert 0.2 < own.mean() < 0.9
    recipe = CropFlip(pad=0, mixup=Mixup(alpha=1.0))
    share = draw_mixing(recipe, 5, 0, index, partners_P=PARTNERS).own_share(*size)
    level = mixed_views(images, recipe, 0, index)[:, 0, 0, 0].numpy()
    np.testing.assert_allclose(1 - level / 255, share, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 4.0, 32.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float) -> None:
    levels = (2 * np.arange(FRACTION // 2) + 1) / (2 * FRACTION)
    np.testing.assert_allclose(_beta_levels(alpha), stats.beta.cdf(levels, alpha, alpha), atol=1e-12)
    mixing = draw_mixing(CropFlip(mixup=Mixup(alpha=alpha)), 0, 0, np.arange(20_000), partners_P=PARTNERS)
    drawn = (mixing.weight + np.random.default_rng(0).uniform(-0.5, 0.5, 20_000)) / FRACTION
    inner = drawn[(drawn > 1e-4) & (drawn < 1 - 1e-4)]
    ends = stats.beta.cdf([1e-4, 1 - 1e-4], alpha, alpha)
    assert abs(len(inner) / 20_000 - (ends[1] - ends[0])) < 0.015
    if alpha >= 0.2:
        found = (stats.beta.cdf(inner, alpha, alpha) - ends[0]) / (ends[1] - ends[0])
        assert stats.kstest(found, "uniform").pvalue > P_VALUE


def test_partners_are_drawn_from_the_given_rows_alike() -> None:
    recipe = CropFlip(mixup=Mixup(probability=0.5), cutmix=CutMix(probability=0.25))
    mixing = draw_mixing(recipe, 1, 0, np.arange(20_000), partners_P=PARTNERS)
    counts = np.bincount(mixing.sample, minlength=60)
    assert counts[PARTNERS].sum() == 20_000
    assert stats.chisquare(counts[PARTNERS]).pvalue > P_VALUE
    is_box = mixing.height * mixing.width > 0
    is_mixup = mixing.weight < FRACTION
    assert not (is_box & is_mixup).any()
    # A box may be empty, and a share whole: nearly none of alpha 1, some of alpha 0.2.
    assert is_box.mean() == pytest.approx(0.25, abs=0.015)
    assert is_mixup.mean() == pytest.approx(0.5, abs=0.03)
    others = draw_mixing(recipe, 1, 1, np.arange(20_000), partners_P=PARTNERS)
    assert (others.sample == mixing.sample).mean() < 0.1


def test_draws_of_mixed_views_stay_what_they_are() -> None:
    """Caches that are there hold logits of these very pictures."""
    for recipe, expected in zip(RECIPES, (2274623033, 1399985166, 2516500233), strict=True):
        drawn = draw(recipe, 7, 2, np.arange(500), 32, 32, partners_P=np.arange(500))
        assert drawn.mixing is not None
        table = np.concatenate([drawn.table(), drawn.mixing.sample[None]])
        assert zlib.crc32(table.astype("<i8").tobytes()) == expected


@pytest.mark.parametrize(
    "preprocessing", [Preprocessing(size=(30, 30)), Preprocessing(size=(30, 30), interpolation="bicubic")], ids=str
)
def test_teachers_see_the_same_mixture_at_their_own_size(preprocessing: Preprocessing) -> None:
    images, index = noise(60, 21, 26), np.arange(12)
    for recipe in (RECIPES[0], RECIPES[1], RECIPES[2].model_copy(update={"size": (30, 30)})):
        drawn = draw(recipe, 5, 1, index, 21, 26, partners_P=PARTNERS)
        made = fit_views(images[pictures_of(index, [drawn])], recipe, drawn, preprocessing).numpy()
        assert made.shape == (12, 30, 30, 3)
        assert drawn.mixing is not None
        for row in range(12):
            other = images[drawn.mixing.sample[row]].numpy()
            of_one = drawn[row : row + 1]
            one = fit_view(images[row].numpy(), recipe, of_one, preprocessing, other_HWC=other)
            np.testing.assert_array_equal(one, made[row])


def test_two_mixed_views_of_the_same_samples_have_a_partner_each() -> None:
    images, index = noise(60, 21, 26), np.arange(10)
    second = SecondView(rand_augment=RandAugment(num_ops=2, magnitude=10))
    recipe = CropFlip(mixup=Mixup(alpha=1.0), second_view=second)
    recipes = [recipe_of_view(recipe, view) for view in (4, 5)]
    drawn = [draw(of, 5, view, index, 21, 26, partners_P=PARTNERS) for of, view in zip(recipes, (4, 5), strict=True)]
    both = apply_all(images[pictures_of(index, drawn)], recipes, drawn)
    for made, of, view in zip(both, recipes, (4, 5), strict=True):
        assert torch.equal(made, mixed_views(images, of, view, index))


def test_second_views_have_their_own_operations_and_first_views_those_of_the_recipe() -> None:
    second = SecondView(rand_augment=RandAugment(), random_erasing=RandomErasing(probability=1.0))
    recipe = ResizedCrop(color_jitter=ColorJitter(), second_view=second)
    assert recipe_of_view(recipe, 6) == ResizedCrop(color_jitter=ColorJitter())
    assert recipe_of_view(recipe, 7) == ResizedCrop(
        rand_augment=RandAugment(), random_erasing=RandomErasing(probability=1.0)
    )
    assert recipe_of_view(CropFlip(), 7) == CropFlip()


def test_draw_refuses_what_it_would_have_to_guess() -> None:
    with pytest.raises(ValueError, match="give the rows that these are drawn from"):
        draw(CropFlip(mixup=Mixup()), 0, 0, np.arange(3), 8, 8)
    with pytest.raises(ValueError, match="recipe_of_view"):
        draw(CropFlip(second_view=SecondView(rand_augment=RandAugment())), 0, 0, np.arange(3), 8, 8)
    drawn = draw(RECIPES[0], 0, 0, np.arange(3), 8, 8, partners_P=PARTNERS)
    with pytest.raises(ValueError, match="3 pictures with parameters of 6"):
        apply(noise(3, 8, 8), RECIPES[0], drawn)


def test_mixed_views_compute_with_integers_alone() -> None:
    from tests.workers.augmentation.test_operations import seen_dtypes

    images = noise(60, 12, 12)
    seen = seen_dtypes(lambda: [mixed_views(images, recipe, 0, np.arange(40)) for recipe in RECIPES])
    assert torch.int32 in seen
    assert not any(dtype.is_floating_point for dtype in seen)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_mixed_views_on_cuda_and_cpu_are_the_same_bytes(recipe: Augmentation) -> None:
    images, index = noise(60, 32, 40), np.arange(50)
    assert torch.equal(mixed_views(images.cuda(), recipe, 1, index).cpu(), mixed_views(images, recipe, 1, index))
