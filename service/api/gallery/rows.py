"""Rows of a split that both networks' logits are known of, and which of them to show.

Shapes: N rows of the split, C classes, K rows to show, B rows of a part.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.api.gallery.divergence import jensen_shannon
from service.api.gallery.kept_logits import CELLS, LogitsFile, parts
from service.errors import Conflict
from store import CacheReader
from workers.methods.preview_report import lowest
from workers.unlabelled import has_unlabelled

Rows = npt.NDArray[np.intp]
Float32 = npt.NDArray[np.float32]
# Of the teacher's logits that are looked at for mistakes: seconds of a core. All of 50,000 rows of 1,000 classes.
MISTAKE_CELLS_MAX = 1 << 28


@dataclass(frozen=True)
class Chosen:
    """Rows to show, int [K], with the values by which they are ordered, and what is to be said about them."""

    rows_K: Rows
    values_K: npt.NDArray[np.floating]
    notes: tuple[str, ...] = ()


def by_value(values_N: Float32, limit: int, *, highest: bool) -> Chosen:
    """Choose the rows of the highest or lowest values, of equal ones the earlier."""
    rows_K = lowest(-values_N if highest else values_N, limit)
    return Chosen(rows_K, values_N[rows_K])


def by_disagreement(reader: CacheReader, view: int, kept: LogitsFile, limit: int) -> Chosen:
    """Choose the rows on which teacher and student differ most, by ``jensen_shannon``; memory is of one part."""
    spec = reader.spec
    values_N = np.empty(spec.samples, np.float32)
    for part in parts(spec.samples, spec.classes):
        teacher_BC = reader.gather(view, np.arange(part.start, part.stop)).astype(np.float32)
        values_N[part] = jensen_shannon(teacher_BC, kept.read(part))
    return by_value(values_N, limit, highest=True)


def by_mistake(reader: CacheReader, view: int, labels_N: npt.NDArray[np.int64], limit: int) -> Chosen:
    """Choose the rows that the teacher gets wrong, the most confident first: few logits are read of most caches.

    Confidence follows from the statistics; logits are read in its order until there are enough mistakes.
    """
    spec, statistics = reader.spec, reader.statistics(view)
    log_confidence_N = statistics["max"] - statistics["sharpness"]
    order_N = np.argsort(-log_confidence_N, kind="stable")
    found: list[Rows] = []
    step, bound = max(1, CELLS // spec.classes), max(1, MISTAKE_CELLS_MAX // spec.classes)
    for start in range(0, min(bound, spec.samples), step):
        rows_B = order_N[start : start + step]
        predicted_B = reader.gather(view, rows_B).argmax(axis=1)
        found.append(rows_B[(predicted_B != labels_N[rows_B]) & (labels_N[rows_B] >= 0)])
        if sum(map(len, found)) >= limit:
            break
    rows_K = np.concatenate(found)[:limit]
    notes = ["rows without a label are left out"] if has_unlabelled(labels_N) else []
    if len(rows_K) < limit and bound < spec.samples:
        notes.append(f"only the {bound} rows of which the teacher is most confident were looked at")
    return Chosen(rows_K, np.exp(log_confidence_N[rows_K].astype(np.float64)), tuple(notes))


def check_kept(kept: LogitsFile | None, split: str, run_id: str) -> LogitsFile:
    """Raise Conflict where the student's logits of a split are not known."""
    if kept is not None:
        return kept
    why = (
        "runs keep logits of the validation and test splits alone"
        if split == "train"
        else "it has not ended yet, or `training.keep_logits` was false"
    )
    raise Conflict(f"{run_id} has kept no logits of {split} ({why}): where teacher and student disagree is not known")
