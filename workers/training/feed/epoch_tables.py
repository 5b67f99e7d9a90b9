"""Tables of an epoch: its samples in their order, their labels, and how each of their views is made.

Legend: N samples of the epoch, V views of each, M of them mixed: all or none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from workers.augmentation.draw import ViewParameters, draw
from workers.config.views import Views, recipe_of_view
from workers.data.preparation.prepared import Dataset
from workers.spec import Size
from workers.unlabelled import NO_LABEL


@dataclass(frozen=True)
class EpochTables:
    """Tables of an epoch.

    Attributes:
        drawn: parameters of each view.
        rows: number of rows of each view's ``ViewParameters.table``.
        integers: int64 [2 + 2M + rows, N]: samples and what each view of them is mixed with, the labels of those, and
            the table of each view. Where one of the pictures of a sample has no label, all are -1.
        own_shares: float32 [M, N], shares of the samples' own labels; None where M is 0.
    """

    drawn: tuple[ViewParameters, ...]
    rows: list[int]
    integers: NDArray[np.int64]
    own_shares: NDArray[np.float32] | None

    @classmethod
    def draw(
        cls,
        dataset: Dataset,
        plan: Views,
        shown: Sequence[int],
        order_N: NDArray[np.int64],
        *,
        partners_P: NDArray[np.int64],
        size: Size,
    ) -> Self:
        """Draw the views of an epoch.

        Args:
            shown: numbers of the views.
            order_N: the samples in their order.
            partners_P: rows of the split that mixed views are mixed with.
            size: (height, width) of the student's views.
        """
        drawn = tuple(
            draw(
                recipe_of_view(plan.augmentation, view),
                plan.seed,
                view,
                order_N,
                dataset.height,
                dataset.width,
                partners_P=partners_P,
            )
            for view in shown
        )
        mixing = [each.mixing for each in drawn if each.mixing is not None]
        samples = [order_N, *(each.sample for each in mixing)]
        labels = np.stack([np.asarray(dataset.labels_N)[rows] for rows in samples])
        labels[:, (labels < 0).any(axis=0)] = NO_LABEL
        tables = [each.table() for each in drawn]
        return cls(
            drawn,
            [len(table) for table in tables],
            np.concatenate([samples, labels, *tables]),
            np.stack([each.own_share(*size) for each in mixing]) if mixing else None,
        )
