"""Micro-batches: the parts of a batch that are computed one after the other, their gradients added up.

The update is that of the whole batch: the mean over its rows is the mean of the parts, weighted by their rows. What
looks beyond a part differs: batch normalisation takes its statistics over each, dropout is drawn for each.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from workers.config.training import Training
from workers.objective.statistics import SharedTeacherTerms
from workers.training.feed.batches import LoadedBatch, ViewBatch


def part_count(rows: int, training: Training) -> int:
    """Number of parts of a batch; a last, smaller one may have fewer, of about as many rows.

    Each has a row in every process, and two in all unless its rows are to be one by one.
    """
    most = -(-training.batch_size // training.accumulate)
    least = max(training.actors, min(most, 2))
    return max(1, min(-(-rows // most), rows // least))


def micro_batches(loaded: LoadedBatch, training: Training) -> Sequence[LoadedBatch]:
    """Parts of a batch: rows p, p + P, ... of P parts, so that they are the same rows in however many processes."""
    parts = part_count(len(loaded.batch.labels), training)
    return (loaded,) if parts == 1 else [_part(loaded, slice(part, None, parts)) for part in range(parts)]


def _part(loaded: LoadedBatch, whole: slice) -> LoadedBatch:
    """These rows of a batch, by a stride: an index from the host would wait for a GPU."""
    batch = loaded.batch
    first, parts, start, stop = whole.start, whole.step, batch.local_slice.start, batch.local_slice.stop
    # Of the pictures, which are there of some of the rows alone.
    here = slice((first - start) % parts, None, parts)
    before, after = (-(-max(row - first, 0) // parts) for row in (start, stop))
    views = tuple(
        ViewBatch(
            seen.images[here],
            None if seen.teacher_logits is None else seen.teacher_logits[whole],
            None if seen.teacher_statistics is None else {k: x_B[whole] for k, x_B in seen.teacher_statistics.items()},
            SharedTeacherTerms(),
            mixed=None if seen.mixed is None else seen.mixed[whole],
        )
        for seen in batch.views
    )
    part = replace(
        batch,
        rows=batch.rows[whole],
        device_rows=batch.device_rows[whole],
        labels=batch.labels[whole],
        views=views,
        local_slice=slice(before, after),
    )
    inputs = tuple(x_bKHW[here].contiguous(memory_format=torch.channels_last) for x_bKHW in loaded.inputs)
    return replace(loaded, batch=part, inputs=inputs)
