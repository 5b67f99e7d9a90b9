"""Measures of a classifier on a split: accuracy, likelihood, calibration error, accuracy per class, confusion.

Those are over the rows that have a label; agreement with a teacher and KL to it are over all.

One place for what a student, a calibrated student and a teacher are measured by. Sums are kept on the device in
float64, so a result does not depend on the batch size beyond rounding, and are read once.

Shapes: N rows, B batch, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from workers.unlabelled import NO_LABEL

ECE_BINS = 15

# Documents that a database keeps have no more; the whole is in a run's ``evaluation.json``.
PER_CLASS_MAX, CONFUSION_MAX, CONFUSED_MAX = 1000, 32, 10


class Measures:
    """Running sums over a split, in one tensor: it is copied to the host once, at the end.

    Args:
        some_unlabelled: rows may have no label, which is -1.

    Attributes:
        totals: float64 [5 + 3 * ECE_BINS]: rows of the right class, with it among the first five, summed negative
            log-likelihood, rows on which student and teacher agree, summed KL; then for each bin of confidence its
            labelled rows, those of the right class, and their summed confidence.
    """

    def __init__(self, device: torch.device, *, some_unlabelled: bool = False) -> None:
        self._some_unlabelled = some_unlabelled
        self.totals = torch.zeros(5 + 3 * ECE_BINS, dtype=torch.float64, device=device)
        self._scalars, self._bins = self.totals[:5], self.totals[5:].view(3, ECE_BINS)

    def add(self, logits_BC: Tensor, labels_B: Tensor, teacher_BC: Tensor | None = None) -> Tensor:
        """Add a batch on the device; returns the classes that are predicted, int64 [B]."""
        log_q_BC = F.log_softmax(logits_BC, dim=1)
        confidence_B, predicted_B = log_q_BC.exp().max(dim=1)
        correct_B = predicted_B == labels_B
        top_B5 = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices
        in_top5_B = (top_B5 == labels_B[:, None]).any(dim=1)
        nll = F.nll_loss(log_q_BC, labels_B, ignore_index=NO_LABEL, reduction="sum")
        agreement = kl = torch.zeros((), device=logits_BC.device)
        if teacher_BC is not None:
            log_p_BC = F.log_softmax(teacher_BC.float(), dim=1)
            agreement = (log_p_BC.argmax(dim=1) == predicted_B).sum()
            kl = F.kl_div(log_q_BC, log_p_BC, reduction="sum", log_target=True)
        parts = (correct_B.sum(), in_top5_B.sum(), nll, agreement, kl)
        self._scalars += torch.stack([part.double() for part in parts])
        # (0, 1/15], (1/15, 2/15], ...: right-closed as in Guo et al.
        bin_B = (confidence_B.double() * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
        counted_B = (labels_B >= 0).double() if self._some_unlabelled else torch.ones_like(confidence_B.double())
        confidence_B = confidence_B.double() * counted_B if self._some_unlabelled else confidence_B.double()
        for row, value_B in enumerate((counted_B, correct_B.double(), confidence_B)):
            self._bins[row].index_add_(0, bin_B, value_B)
        return predicted_B


@dataclass(frozen=True)
class Measured:
    """Measures of a classifier on a split.

    Attributes:
        rows: N.
        labelled: rows that have a label; where none has, everything that needs one is None.
        top1, top5: accuracies, 0..1; top5 is top-C below five classes.
        nll: mean negative log-likelihood of the labels, nats.
        ece: expected calibration error, 15 equal bins (Guo et al. 2017, arXiv 1706.04599).
        agreement: share of rows on which student and teacher choose the same class; 0 without a teacher.
        kl: mean KL(teacher || student), nats; 0 without a teacher.
        reliability: for each bin of confidence its rows, their accuracy, and their mean confidence; None where empty.
    """

    rows: int
    labelled: int
    top1: float | None
    top5: float | None
    nll: float | None
    ece: float | None
    agreement: float
    kl: float
    reliability: Mapping[str, Sequence[float | None]]

    @classmethod
    def of(cls, totals: Tensor, rows: int) -> "Measured":
        """Compute the measures from ``Measures.totals`` of all rows: waits for the device."""
        totals = totals.cpu()
        agreement, kl = (totals[3:5] / rows).tolist()
        count_of_bin, correct_of_bin, confidence_of_bin = totals[5:].view(3, ECE_BINS)
        labelled, of_labels = int(count_of_bin.sum()), dict.fromkeys(("top1", "top5", "nll", "ece"), None)
        if labelled:
            ece = (correct_of_bin - confidence_of_bin).abs().sum()
            of_labels = dict(zip(of_labels, (torch.stack([*totals[:3], ece]) / labelled).tolist(), strict=True))
        counts = count_of_bin.tolist()
        reliability: dict[str, Sequence[float | None]] = {"rows": [int(count) for count in counts]}
        for name, sums in (("accuracy", correct_of_bin), ("confidence", confidence_of_bin)):
            reliability[name] = [
                value / count if count else None for value, count in zip(sums.tolist(), counts, strict=True)
            ]
        return cls(rows, labelled, **of_labels, agreement=agreement, kl=kl, reliability=reliability)

    def figures(self, *, has_teacher: bool) -> dict[str, float | None]:
        """The figures of an epoch's line of metrics, by name; those against a teacher are None without one."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "nll": self.nll,
            "ece": self.ece,
            "agreement": self.agreement if has_teacher else None,
            "kl_to_teacher": self.kl if has_teacher else None,
        }


def measure(logits_NC: Tensor, labels_N: Tensor, temperature: float = 1.0) -> Measured:
    """Measure logits [N, C] at hand, divided by a temperature, in blocks of rows, without a teacher."""
    sums = Measures(logits_NC.device, some_unlabelled=bool((labels_N < 0).any()))
    rows = max(1, (1 << 20) // logits_NC.shape[1])
    for z_BC, y_B in zip(torch.split(logits_NC, rows), torch.split(labels_N, rows), strict=True):
        sums.add(z_BC.float() / temperature, y_B)
    return Measured.of(sums.totals, len(labels_N))


# ------------------------------------------------------------------------------------------------------------ classes


def confusion_cells(labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cells of the confusion matrix that are not 0: int64 [M, 3], label, predicted class, rows; ascending.

    Rows without a label are in none.
    """
    is_labelled_N = labels_N >= 0
    labels_N, predicted_N = labels_N[is_labelled_N], predicted_N[is_labelled_N]
    classes = int(max(labels_N.max(initial=0), predicted_N.max(initial=0))) + 1
    cells_M, counts_M = np.unique(labels_N * classes + predicted_N, return_counts=True)
    return np.stack([*np.divmod(cells_M, classes), counts_M], axis=1)


def accuracy_per_class(cells_M3: NDArray[np.int64], classes: int) -> list[float | None]:
    """Accuracy of the rows of each class, to four digits; None where no row has it."""
    label_M, predicted_M, count_M = cells_M3.T
    rows_C, hits_C = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    np.add.at(rows_C, label_M, count_M)
    is_hit_M = label_M == predicted_M
    hits_C[label_M[is_hit_M]] = count_M[is_hit_M]
    return [round(int(hits) / int(rows), 4) if rows else None for hits, rows in zip(hits_C, rows_C, strict=True)]


def class_document(cells_M3: NDArray[np.int64], classes: int) -> dict[str, object]:
    """Classes as a document that a database keeps: bounded, whatever C is.

    Returns:
        ``per_class`` (null above ``PER_CLASS_MAX`` classes), ``best_class`` and ``worst_class`` (label and accuracy;
        the first of equals). All null where no row has a label.
    """
    if not len(cells_M3):
        return dict.fromkeys(("per_class", "best_class", "worst_class"))
    per_class = accuracy_per_class(cells_M3, classes)
    seen = [(label, accuracy) for label, accuracy in enumerate(per_class) if accuracy is not None]
    best = max(seen, key=lambda one: one[1])
    worst = min(seen, key=lambda one: one[1])
    return {
        "per_class": per_class if classes <= PER_CLASS_MAX else None,
        "best_class": list(best),
        "worst_class": list(worst),
    }


def confusion_document(cells_M3: NDArray[np.int64], classes: int) -> dict[str, object]:
    """The confusion matrix as a document that a database keeps.

    Returns:
        ``confusion`` (a row for each label; null above ``CONFUSION_MAX`` classes) and ``most_confused`` (label, the
        class it was taken for, and how often; at most ``CONFUSED_MAX``). Null and empty where no row has a label.
    """
    confusion = None
    if classes <= CONFUSION_MAX and len(cells_M3):
        matrix_CC = np.zeros((classes, classes), np.int64)
        matrix_CC[cells_M3[:, 0], cells_M3[:, 1]] = cells_M3[:, 2]
        confusion = matrix_CC.tolist()
    wrong_M3 = cells_M3[cells_M3[:, 0] != cells_M3[:, 1]]
    order = np.argsort(-wrong_M3[:, 2], kind="stable")[:CONFUSED_MAX]
    return {"confusion": confusion, "most_confused": wrong_M3[order].tolist()}
