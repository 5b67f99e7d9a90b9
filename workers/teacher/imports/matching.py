"""Rows of imported logits for the samples of a dataset: by their ids, or in their order where a client says so.

Legend: N samples of the split, M samples of the upload.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from workers.errors import InvalidLogits
from workers.texts import shortened

_SHOWN = 3


def match_rows(
    ids: Sequence[str] | None, samples: int, of_dataset: Sequence[str], *, split: str, in_order: bool
) -> NDArray[np.int64]:
    """Number of the upload's row [N] of each sample of a split.

    Args:
        ids: of the upload's samples; None where it has none.
        samples: M.
        of_dataset: ids of the split's samples, in their order.
        in_order: the client says that the rows are in the split's order: then ids do not count.

    Raises:
        InvalidLogits: samples are missing, unknown or doubled, or there are no ids.
    """
    if in_order:
        if samples != len(of_dataset):
            raise InvalidLogits(
                f"the file has {samples:,} samples, the {split} split has {len(of_dataset):,}, and rows are said to be "
                "in its order: send one row for each, or sample ids"
            )
        return np.arange(samples, dtype=np.int64)
    if ids is None:
        raise InvalidLogits(
            "the file has no sample ids (`sample_ids` of an .npz, the column `sample_id` of Parquet): add them, as an "
            f"export of a cache has them (here {_examples(of_dataset)}); or say that row k is sample k of the {split} "
            'split: `rows` "in_order" in the upload, `--in-order` of `retort cache import`'
        )
    places: dict[str, int] = {}
    for row, id in enumerate(ids):
        if places.setdefault(id, row) != row:
            raise InvalidLogits(
                f"the sample id {shortened(repr(id))} is there twice, in rows {places[id]} and {row}: leave one out"
            )
    known = set(of_dataset)
    if len(known) < len(of_dataset):
        raise InvalidLogits(
            f"samples of the {split} split share their ids, which cannot tell them apart: send the rows in its order, "
            "and say so"
        )
    missing = [id for id in of_dataset if id not in places]
    unknown = [id for id in ids if id not in known]
    if missing or unknown:
        parts = [
            f"{len(some):,} samples {what} ({_examples(some)})"
            for some, what in (
                (missing, f"of the {split} split have no row"),
                (unknown, f"of the file are not in the {split} split"),
            )
            if some
        ]
        raise InvalidLogits(
            f"{' and '.join(parts)}: the file must have a row of each of the {len(of_dataset):,} samples, and no "
            f"other. The split's ids are like {_examples(of_dataset)}"
        )
    return np.array([places[id] for id in of_dataset], np.int64)


def _examples(ids: Iterable[str]) -> str:
    some = [repr(shortened(id, 60)) for id, _ in zip(ids, range(_SHOWN + 1), strict=False)]
    return ", ".join(some[:_SHOWN]) + (", ..." if len(some) > _SHOWN else "")
