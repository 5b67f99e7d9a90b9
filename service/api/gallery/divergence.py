"""Softmax of rows of logits, and how far two networks disagree, in NumPy.

Shapes: B rows, C classes.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
# Below float32's smallest normal number nothing is added to an entropy.
_TINY = np.float32(1e-37)


def log_softmax(logits_BC: Floats) -> Floats:
    """log S(z), [B, C], in the dtype of the logits."""
    below_BC = logits_BC - logits_BC.max(axis=1, keepdims=True)
    logarithms_BC: Floats = below_BC - np.log(np.exp(below_BC).sum(axis=1, keepdims=True))
    return logarithms_BC


def jensen_shannon(teacher_BC: Floats, student_BC: Floats) -> Floats:
    """Jensen-Shannon divergence of both softmaxes at T = 1, in nats, 0..log 2: [B] (Lin 1991)."""
    log_p_BC, log_q_BC = log_softmax(teacher_BC), log_softmax(student_BC)
    p_BC, q_BC = np.exp(log_p_BC), np.exp(log_q_BC)
    middle_BC = (p_BC + q_BC) / 2
    entropies_B = (p_BC * log_p_BC + q_BC * log_q_BC).sum(axis=1) / 2
    # Rounding may leave equal rows a hair below 0.
    divergence_B: Floats = entropies_B - (middle_BC * np.log(np.maximum(middle_BC, _TINY))).sum(axis=1)
    return np.maximum(divergence_B, 0)
