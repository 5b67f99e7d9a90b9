"""Pictures without a label: ``NO_LABEL`` in the labels of a split, and what is counted and named without them. Light.

Labels are int64 [N], 0..classes-1, or ``NO_LABEL``. A dataset of which nothing names the classes has none: then the
teacher's outputs tell how many there are.

Legend: N samples of a split.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]

NO_LABEL = -1


def labelled_rows(labels_N: Labels) -> Labels:
    """Rows of a split that have a label: int64, ascending."""
    return np.flatnonzero(np.asarray(labels_N) >= 0).astype(np.int64)


def count_labelled(labels_N: Labels) -> int:
    """Number of rows that have a label."""
    return int(np.count_nonzero(np.asarray(labels_N) >= 0))


def has_unlabelled(labels_N: Labels) -> bool:
    """Whether some row has no label."""
    return count_labelled(labels_N) < len(labels_N)


def count_classes(labels_N: Labels, classes: int) -> Labels:
    """Rows of each class, int64 [classes]; those without a label count nowhere."""
    labels_N = np.asarray(labels_N)
    return np.bincount(labels_N[labels_N >= 0], minlength=classes)


def with_unlabelled(labels_N: Labels, samples: int) -> Labels:
    """Labels followed by ``NO_LABEL`` for the rest of so many samples: int64 [samples]."""
    return np.concatenate([labels_N, np.full(samples - len(labels_N), NO_LABEL, dtype=np.int64)])


def labels_to_store(labels_R: Labels, logits_RC: NDArray[np.float32]) -> Labels:
    """Labels for a sparse cache, which keeps the label's logit: where there is none, the class that is taken."""
    return np.where(labels_R < 0, logits_RC.argmax(axis=1), labels_R) if (labels_R < 0).any() else labels_R


def numbered(classes: int) -> tuple[str, ...]:
    """Names of classes that nothing names: "0", "1", ..."""
    return tuple(str(label) for label in range(classes))


def class_name(names: Sequence[str], label: int) -> str | None:
    """Name of a label; None for ``NO_LABEL``, and its number where nothing names the classes."""
    if label < 0:
        return None
    return names[label] if label < len(names) else str(label)
