"""Views of a cache, as its specification names them: what the teacher was given. No torch here.

Legend: N samples of the split, B of a batch.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from store.counter_rng import Ints
from store.spec import CacheSpec
from workers.augmentation.draw import ViewParameters, draw, pictures_of
from workers.augmentation.draw_mixing import MixingParameters, draw_mixing
from workers.config.cached_augmentation import read_held_out, read_recipe
from workers.config.views import Augmentation, Views, is_mixed, output_size, recipe_of_view
from workers.data.preparation.holdout_rows import holdout_rows
from workers.data.preparation.prepared import Dataset


@dataclass(frozen=True)
class CachedViews:
    """Views of a cache.

    Attributes:
        recipe: of the teacher's views.
        seed: of the augmentation.
        count: number of views.
        samples: N.
        partners_P: rows of the split that a view may be mixed with, int64, ascending; None where views are not mixed.
    """

    recipe: Augmentation
    seed: int
    count: int
    samples: int
    partners_P: Ints | None

    @classmethod
    def of(cls, spec: CacheSpec, dataset: Dataset) -> Self:
        """Views of a cache; ``dataset`` is the split that its specification names."""
        recipe = read_recipe(spec.augmentation)
        partners_P = None
        if is_mixed(recipe):
            partners_P = np.arange(dataset.samples)
            if (held_out := read_held_out(spec.augmentation)) is not None:
                rows_V = holdout_rows(dataset.labels_N, held_out, dataset.class_names)
                partners_P = np.delete(partners_P, rows_V)
        return cls(recipe, spec.augmentation_seed, spec.views, spec.samples, partners_P)

    @property
    def views(self) -> Views:
        """Recipe, seed and number of views, as a job has them."""
        return Views(augmentation=self.recipe, seed=self.seed, count=self.count)

    def take(
        self, dataset: Dataset, view: int, rows: slice | NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], Augmentation, ViewParameters]:
        """Pictures of these rows of the split for a view, its recipe and what was drawn, as a teacher takes them.

        Of a mixed view the pictures are those of ``draw.pictures_of``.
        """
        index_B = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        drawn = self.draw(view, index_B, height=dataset.height, width=dataset.width)
        wanted = rows if drawn.mixing is None else pictures_of(index_B, [drawn])
        return dataset.take(wanted), self.recipe_of(view), drawn

    def recipe_of(self, view: int) -> Augmentation:
        """Recipe of one view."""
        return recipe_of_view(self.recipe, view)

    def draw(self, view: int, index_B: NDArray[np.integer], *, height: int, width: int) -> ViewParameters:
        """Draw the parameters of a view of H x W pictures, for ``recipe_of`` it."""
        return draw(self.recipe_of(view), self.seed, view, index_B, height, width, partners_P=self.partners_P)

    def draw_mixing(self, view: int, index_B: Ints) -> MixingParameters | None:
        """Draw how a view of these samples is mixed; None where it is not."""
        if not is_mixed(self.recipe):
            return None
        return draw_mixing(self.recipe, self.seed, view, index_B, partners_P=self.partners_P)

    def label_shares(self, dataset: Dataset, view: int, index_B: Ints) -> list[tuple[Ints, NDArray[np.float32]]]:
        """Labels of a view's pictures, int64 [B], with their shares, float32 [B]: one such pair, or two of mixed ones.

        The shares are those of the teacher's view; a student's of another size may have a box of a pixel more or less.
        """
        labels_N = np.asarray(dataset.labels_N)
        mixing = self.draw_mixing(view, index_B)
        if mixing is None:
            return [(labels_N[index_B], np.ones(len(index_B), dtype=np.float32))]
        own_B = mixing.own_share(*output_size(self.recipe, dataset.height, dataset.width))
        return [(labels_N[index_B], own_B), (labels_N[mixing.sample], 1.0 - own_B)]

    def heavier_labels(self, dataset: Dataset, view: int, index_B: Ints) -> Ints:
        """Label with the larger share of each picture of a view, int64 [B]."""
        own, *others = self.label_shares(dataset, view, index_B)
        return np.where(own[1] >= 0.5, own[0], others[0][0]) if others else own[0]
