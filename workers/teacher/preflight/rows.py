"""Rows of a preflight: which pictures of a dataset it takes, and how many of them at once."""

import math

import numpy as np

from workers.config.teacher import Preprocessing
from workers.config.views import Augmentation, NoAugmentation, output_size
from workers.data.preparation.prepared import Dataset
from workers.teacher.preflight.session import Rows
from workers.unlabelled import labelled_rows

ROWS = 512  # pictures in a slice, or more, see ``slice_rows``
BATCH = 256  # pictures per call, as of inference: a graph may do something else in a large batch than in a small one
PART = 64  # rows after which other preprocessings are given up, and the next view has its turn
# Of the float32 input of one call, or, as bytes, of the pictures that it is made from, at four bytes a pixel.
BATCH_PIXELS = 256 * 128 * 128
# Two classes of the teacher that have changed places are noticed if each has about so many rows.
ROWS_PER_CLASS = 10
ROWS_MAX = 2048  # of a slice that grows with the classes
LABELLED_MIN = 20  # fewer labelled pictures, among others, refuse no teacher
_PLAIN = NoAugmentation()


def batch_rows(most: int, preprocessing: Preprocessing, dataset: Dataset, recipe: Augmentation = _PLAIN) -> int:
    """Pictures to take at once: ``most``, or fewer of large ones, since memory grows with their pixels.

    Args:
        recipe: of the views that the teacher sees.
    """
    shape = dataset.height, dataset.width
    seen = output_size(recipe, *shape)
    pixels = max(math.prod(preprocessing.size or seen), math.prod(seen) // 4, math.prod(shape) // 4)
    return max(1, min(most, BATCH_PIXELS // pixels))


def slice_rows(labels_N: Rows, classes: int, rows: int) -> Rows:
    """Sample numbers, ascending, of a slice in which every class has its part, as ``_of_classes`` draws it.

    Of a split where not all have a label: of those that have one, and as many others as ``rows`` leaves room for.
    """
    labelled = labelled_rows(labels_N)
    if len(labelled) == len(labels_N):
        return _of_classes(labels_N, classes, rows)
    chosen = labelled[_of_classes(labels_N[labelled], classes, rows)] if len(labelled) else labelled
    if (room := rows - len(chosen)) > 0:
        others = np.flatnonzero(labels_N < 0)
        chosen = np.concatenate([chosen, others[spread(len(others), room)]])
    return np.sort(chosen)


def _of_classes(labels_N: Rows, classes: int, rows: int) -> Rows:
    """Sample numbers, ascending, of a slice of labelled pictures.

    ``rows`` or ``ROWS_PER_CLASS`` for each class, if that is more, spread over the dataset; then more of the classes
    that have fewer than ``ROWS_PER_CLASS``, the rarest first. Neither goes beyond ``ROWS_MAX``, unless ``rows`` does.
    """
    is_chosen = np.zeros(len(labels_N), dtype=bool)
    is_chosen[spread(len(labels_N), max(rows, min(ROWS_PER_CLASS * classes, ROWS_MAX)))] = True
    counts = np.bincount(labels_N[is_chosen], minlength=classes)
    room = ROWS_MAX - int(counts.sum())
    for k in np.argsort(counts, kind="stable"):
        missing = min(ROWS_PER_CLASS - int(counts[k]), room)
        if missing <= 0:
            break
        others = np.flatnonzero((labels_N == k) & np.logical_not(is_chosen))
        if len(others):
            more = others[spread(len(others), missing)]
            is_chosen[more] = True
            room -= len(more)
    return np.flatnonzero(is_chosen)


def spread(samples: int, rows: int) -> Rows:
    """``rows`` sample numbers (all, if there are fewer), one at random from each of as many equal parts.

    A sorted dataset shows all its classes that way, and so does one whose classes take turns, of which equal
    distances could show a single one. The same numbers on every call.
    """
    edges = np.arange(min(rows, samples) + 1, dtype=np.int64) * samples // min(rows, samples)
    return np.random.default_rng(0).integers(edges[:-1], edges[1:])
