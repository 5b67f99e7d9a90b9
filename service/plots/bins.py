"""Bins of confidence, of the logits that a run has kept; read in blocks of rows, so that memory has a bound.

Guo et al. 2017 (arXiv 1706.04599): predictions fall into 15 equal bins of confidence, right-closed, as in the ECE that
runs report (``workers.training.evaluate``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from service.errors import ServiceError

BINS = 15
# Of one block, at least a row; a few float64 arrays of it are there at once.
_VALUES_AT_ONCE = 1 << 18


class BadLogits(ServiceError, ValueError):
    """A file of logits that is damaged, or that no run of this version has written."""


class Rows(Protocol):
    """Rows [rows, classes] of float16 or float32: an array, or a slice of a file that is read when it is indexed."""

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Reliability:
    """Bins of confidence.

    Attributes:
        share_B: float64 [BINS], the part of all rows in each bin.
        confidence_B, accuracy_B: float64 [BINS], means of the rows of a bin; NaN in an empty one.
        ece: expected calibration error, 0..1.
    """

    share_B: np.ndarray
    confidence_B: np.ndarray
    accuracy_B: np.ndarray
    ece: float


@dataclass(frozen=True)
class Calibration:
    """Reliability as trained, and with logits divided by the run's temperature; None where it has fitted none."""

    plain: Reliability
    calibrated: Reliability | None


def reliability(logits_NC: Rows, labels_N: np.ndarray, classes: int, temperature: float = 1.0) -> Reliability:
    """Bin predictions whose logits are divided by a temperature; a row without a label, -1, is in no bin."""
    rows_B, confidence_B, correct_B = np.zeros(BINS, np.int64), np.zeros(BINS), np.zeros(BINS)
    step = max(1, _VALUES_AT_ONCE // max(1, classes))
    for start in range(0, len(labels_N), step):
        block_NC = logits_NC[slice(start, min(start + step, len(labels_N)))].astype(np.float64) / temperature
        correct_N = block_NC.argmax(axis=1) == labels_N[start : start + step]
        block_NC -= block_NC.max(axis=1, keepdims=True)
        np.exp(block_NC, out=block_NC)
        confidence_N = block_NC.max(axis=1) / block_NC.sum(axis=1)
        is_labelled_N = labels_N[start : start + step] >= 0
        confidence_N, correct_N = confidence_N[is_labelled_N], correct_N[is_labelled_N]
        bin_N = np.clip(np.ceil(confidence_N * BINS).astype(int), 1, BINS) - 1
        rows_B += np.bincount(bin_N, minlength=BINS)
        confidence_B += np.bincount(bin_N, confidence_N, BINS)
        correct_B += np.bincount(bin_N, correct_N, BINS)
    with np.errstate(invalid="ignore"):
        confidence_B, accuracy_B = confidence_B / rows_B, correct_B / rows_B
    share_B = rows_B / rows_B.sum()
    ece = float(np.nansum(share_B * np.abs(accuracy_B - confidence_B)))
    return Reliability(share_B, confidence_B, accuracy_B, ece)


def read_calibrations(path: Path, temperature: float | None) -> Mapping[str, Calibration]:
    """Read logits.safetensors: for each split S a tensor ``S`` [rows, classes] and ``S_labels`` [rows].

    Args:
        path: of the file; only blocks of its rows are in memory.
        temperature: that the run has fitted; None for none.

    Raises:
        BadLogits: it is no such file.
    """
    found: dict[str, Calibration] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            for split in sorted(name for name in names if f"{name}_labels" in names):
                logits_NC, labels_N = file.get_slice(split), file.get_tensor(f"{split}_labels")
                shape = logits_NC.get_shape()
                if len(shape) != 2 or labels_N.shape != (shape[0],) or 0 in shape:
                    raise BadLogits(
                        f"{path.name} holds {split} logits {shape} with labels {labels_N.shape}, which have to be "
                        "[rows, classes] and [rows]: download it again, or draw the other runs one by one"
                    )
                if not (labels_N >= 0).any():
                    continue
                plain = reliability(logits_NC, labels_N, shape[1])
                calibrated = reliability(logits_NC, labels_N, shape[1], temperature) if temperature else None
                found[split] = Calibration(plain, calibrated)
    except SafetensorError as error:
        raise BadLogits(f"{path.name} cannot be read: {error}; download it again") from error
    return found
