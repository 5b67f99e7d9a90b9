"""Rows of a holdout: which rows of a training split become the validation split, and the fingerprint of that split.

They are a pure function of (labels, holdout): the same on every machine. Pictures without a label stay in the training
split, unless none of it has one: then the share is of all. The split is known by the fingerprint of the
training split and the rows. Light: the API process knows by it whether a split is cached.

Legend: N samples of the training split, L of them labelled, V of them held out.
"""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from workers.data.preparation.holdout_spec import Holdout
from workers.errors import InvalidDataset
from workers.unlabelled import count_classes, labelled_rows

Rows = NDArray[np.int64]


def holdout_rows(labels_N: NDArray[np.int64], holdout: Holdout, class_names: tuple[str, ...]) -> Rows:
    """Draw the rows of the validation split: int64 [V], ascending.

    Raises:
        InvalidDataset: nothing would be held out, or a class would keep no picture to train on.
    """
    labels_N = np.asarray(labels_N)
    counts = count_classes(labels_N, len(class_names))
    labelled, rows_L = int(counts.sum()), labelled_rows(labels_N)
    groups = [rows_L if labelled else np.arange(len(labels_N))]
    if holdout.stratified and labelled:
        groups = np.split(rows_L[np.argsort(labels_N[rows_L], kind="stable")], np.cumsum(counts)[:-1])
    chosen = []
    for number, rows in enumerate(groups):
        # Philox is counter-based: (seed, group) is its key, the same on every machine.
        order = np.random.Generator(np.random.Philox(key=np.array([holdout.seed, number], dtype=np.uint64)))
        count = max(0, min(round(holdout.holdout * len(rows)), len(rows) - 1))
        chosen.append(order.permutation(rows)[:count])
    rows_V = np.sort(np.concatenate(chosen)).astype(np.int64)
    if not len(rows_V):
        raise InvalidDataset(
            f"validation.holdout of {holdout.holdout} holds none of {sum(map(len, groups))} training pictures out "
            f'({len(class_names)} classes): raise it, or say `"stratified": false`'
        )
    kept = count_classes(np.delete(labels_N, rows_V), len(class_names))
    if (empty := np.flatnonzero((kept == 0) & (counts > 0))).size:
        raise InvalidDataset(
            f"validation.holdout of {holdout.holdout} leaves class {int(empty[0])} ({class_names[empty[0]]!r}) without "
            f'a training picture ({empty.size} of {len(class_names)} classes): lower it, or say `"stratified": true`'
        )
    return rows_V


def holdout_fingerprint(rows_V: Rows, train_fingerprint: str) -> str:
    """Fingerprint, 64 hex digits, of the validation split that these rows of a training split are."""
    header = json.dumps({"format": "retort-rows-1", "split": "validation", "of": train_fingerprint}, sort_keys=True)
    return hashlib.sha256(header.encode() + b"\n" + rows_V.astype("<i8").tobytes()).hexdigest()
