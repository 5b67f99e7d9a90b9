"""Micro-batches: the parts of a batch that are computed one after the other, their gradients added up.

The update is that of the whole batch: the mean over its rows is the mean of the parts, weighted by their rows. What
looks beyond a part differs: batch normalisation takes its statistics over each, dropout is drawn for each.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from workers.config.training import Training
from workers.objective.statistics import SharedTeacherTerms
from workers.training.batches import LoadedBatch, Share, ViewBatch


def part_count(rows: int, training: Training) -> int:
    """How many parts a batch has; a last, smaller one may have fewer, of about as many rows.

    Each has a row in every process, and two in all unless its rows are to be one by one.
    """
    most = -(-training.batch_size // training.accumulate)
    least = max(training.actors, min(most, 2))
    return max(1, min(-(-rows // most), rows // least))


def micro_batches(loaded: LoadedBatch, training: Training, share: Share) -> Sequence[LoadedBatch]:
    """Parts of a batch in order; of several processes each computes its share of every part.

    Args:
        share: of the batch that has its pictures here.
    """
    rows = len(loaded.batch.labels)
    parts = part_count(rows, training)
    if parts == 1:
        return (loaded,)
    shares = [replace(share, rank=rank).of(rows) for rank in range(share.ranks)]
    return [_part(loaded, [_cut(own, part, parts) for own in shares], share.rank) for part in range(parts)]


def _cut(rows: slice, part: int, parts: int) -> slice:
    cut = Share(part, parts).of(rows.stop - rows.start)
    return slice(rows.start + cut.start, rows.start + cut.stop)


def _part(loaded: LoadedBatch, cuts: Sequence[slice], rank: int) -> LoadedBatch:
    """The rows ``cuts`` of a batch, those of each process; pictures are there of those of ``rank``."""
    batch, own = loaded.batch, cuts[rank]
    first = own.start - batch.local_slice.start
    here = slice(first, first + own.stop - own.start)
    before = sum(cut.stop - cut.start for cut in cuts[:rank])
    whole = partial(_rows, cuts=cuts)
    views = tuple(
        ViewBatch(
            seen.images[here],
            None if seen.teacher_logits is None else whole(seen.teacher_logits),
            None if seen.teacher_statistics is None else {k: whole(x_B) for k, x_B in seen.teacher_statistics.items()},
            SharedTeacherTerms(),
        )
        for seen in batch.views
    )
    part = replace(
        batch,
        rows=whole(batch.rows),
        device_rows=whole(batch.device_rows),
        labels=whole(batch.labels),
        views=views,
        local_slice=slice(before, before + own.stop - own.start),
    )
    return replace(loaded, batch=part, inputs=tuple(x_bKHW[here] for x_bKHW in loaded.inputs))


def _rows(values_B: Tensor, cuts: Sequence[slice]) -> Tensor:
    """These rows of a tensor, without an index from the host: that would wait for a GPU."""
    return values_B[cuts[0]] if len(cuts) == 1 else torch.cat([values_B[cut] for cut in cuts])
