"""Combine the rows of several caches into those of one, block by block. No teacher is run.

Shapes: M teachers, B rows, C classes. Sums run in float64; rows are float32.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store import CacheReader, CacheSpec, CacheWriter
from store.statistics import row_statistics
from workers.config.combination import Combination, ExpressionWeights
from workers.config.task import Folders
from workers.data.preparation import prepared
from workers.errors import InvalidJob, Stopped
from workers.events import ShouldStop
from workers.methods.expression_parser import parse
from workers.teacher.cached_views import CachedViews
from workers.unlabelled import labels_to_store

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Rows that are combined together: 16 MiB of float64 for 4 teachers of 1,000 classes.
_ROWS = 512


def combine_blocks(
    writer: CacheWriter,
    blocks: Sequence[int],
    members: Sequence[CacheSpec],
    weights: Sequence[float],
    combination: Combination,
    *,
    folders: Folders,
    should_stop: ShouldStop,
) -> None:
    """Combine and commit these blocks of a cache.

    Args:
        members: complete caches of the same views of the same pictures.
        weights: of the members, > 0.

    Raises:
        Stopped: ``should_stop`` said so; committed blocks stay.
        InvalidJob: as ``combine_rows``.
        store.StoreError: a member is not there, or the writer fails.
    """
    dataset = prepared.open_prepared(folders.datasets, writer.spec.dataset_fingerprint)
    views = CachedViews.of(writer.spec, dataset)
    origin: dict[str, Any] = {"combined_of": [spec.key for spec in members]}
    with ExitStack() as opened:
        readers = [opened.enter_context(CacheReader(folders.caches, spec)) for spec in members]
        for block in blocks:
            if should_stop():
                raise Stopped(f"stopped while the teachers' rows were combined, before block {block}")
            view, start, stop = writer.spec.block_range(block)
            combined_RC = np.empty((stop - start, writer.spec.classes), np.float32)
            for first in range(start, stop, _ROWS):
                index_B = np.arange(first, min(first + _ROWS, stop))
                rows = [reader.gather(view, index_B).astype(np.float32) for reader in readers]
                combined_RC[index_B - start] = combine_rows(rows, weights, combination, first)
            labels_R = views.heavier_labels(dataset, view, np.arange(start, stop))
            labels_R = labels_to_store(labels_R, combined_RC)
            writer.write_block(block, combined_RC, labels_R, origin=origin)


def combine_rows(
    rows: Sequence[Float32], weights: Sequence[float], combination: Combination, first: int = 0
) -> Float32:
    """Combine logits [B, C] of each teacher: see ``Combination``.

    Args:
        weights: of the teachers, > 0.
        first: number of the first sample, for messages.

    Raises:
        InvalidJob: an expression gives a weight that is negative or not finite, or weights of a sample that are all 0.
    """
    z_MBC: Float64 = np.stack(rows).astype(np.float64)
    shares_MB1 = _shares(rows, weights, combination, first)
    if combination.space == "logits":
        return np.asarray((shares_MB1 * z_MBC).sum(axis=0), dtype=np.float32)
    # A teacher of share 0 adds nothing: log(0) is -inf, which logaddexp takes.
    with np.errstate(divide="ignore"):
        log_p_MBC = np.log(shares_MB1) + _log_softmax(z_MBC)
    return np.asarray(np.logaddexp.reduce(log_p_MBC, axis=0), dtype=np.float32)


def _log_softmax(z_MBC: Float64) -> Float64:
    shifted_MBC = z_MBC - z_MBC.max(axis=-1, keepdims=True)
    log_p_MBC: Float64 = shifted_MBC - np.log(np.exp(shifted_MBC).sum(axis=-1, keepdims=True))
    return log_p_MBC


def _shares(rows: Sequence[Float32], weights: Sequence[float], combination: Combination, first: int) -> Float64:
    """Shares of the teachers [M, B, 1], which add up to 1 for each sample."""
    w_MB1 = np.broadcast_to(np.array(weights, np.float64)[:, None, None], (len(rows), len(rows[0]), 1))
    if combination.weights == "confidence":
        w_MB1 = w_MB1 * np.exp(_log_softmax(np.stack(rows).astype(np.float64)).max(axis=-1, keepdims=True))
    elif isinstance(combination.weights, ExpressionWeights):
        w_MB1 = w_MB1 * np.stack([_evaluate(combination.weights, logits_BC, first) for logits_BC in rows])
    sums_B1: Float64 = w_MB1.sum(axis=0)
    if not sums_B1.all():
        raise InvalidJob(
            f"combine.weights gives every teacher the weight 0 for sample {first + int(np.argmin(sums_B1))}: write an "
            "expression that is positive for one of them, max(..., 1e-6) say"
        )
    shares_MB1: Float64 = w_MB1 / sums_B1
    return shares_MB1


def _evaluate(weights: ExpressionWeights, logits_BC: Float32, first: int) -> Float64:
    """Value of an expression [B, 1] for the rows of one teacher. Raises InvalidJob."""
    rows, classes = logits_BC.shape
    names = {name: x_B.astype(np.float64)[:, None] for name, x_B in row_statistics(logits_BC).items()}
    names["classes"] = np.full((rows, 1), float(classes))
    with np.errstate(all="ignore"):
        value_B1: Float64 = parse(weights.expression).evaluate(names, np, lambda x: np.full((rows, 1), x))
    wrong_B = ~(np.isfinite(value_B1) & (value_B1 >= 0))[:, 0]
    if wrong_B.any():
        place = int(np.argmax(wrong_B))
        raise InvalidJob(
            f"combine.weights.expression {weights.expression!r} gives {value_B1[place, 0]:g} for sample "
            f"{first + place}: a weight must be finite and not negative; clip it"
        )
    return value_B1
