"""Class order: another order of a dataset's classes with which the teacher is right significantly more often.

Orders tried are those that sorting makes of the names, and the best assignment of outputs to classes.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from workers.teacher.preflight.score import ALPHA, Explanation, Score
from workers.teacher.preflight.session import Rows
from workers.teacher.wording import TEACHER, Wording


def better_order(score: Score, names: tuple[str, ...], wording: Wording = TEACHER) -> Explanation | None:
    """The order of the classes that is right significantly more often than the dataset's own."""
    best, best_order_N, described = score, np.arange(score.classes), ""
    orders = _usual_orders(names)
    alpha = ALPHA / (len(orders) + 1)
    if 0.5 ** (score.rows - score.hits) > alpha:  # not even one that is right on all rows
        return None
    for description, order_N in orders:
        candidate = score.permuted(order_N)
        if candidate.p_value(best) <= alpha:
            best, best_order_N, described = candidate, order_N, description
    fitted_R, tested_R = _halves(score.labels_R)
    order_N = best_assignment(score.part(fitted_R), best_order_N)
    if score.part(tested_R).permuted(order_N).p_value(best.part(tested_R)) <= alpha:
        best, best_order_N, described = score.permuted(order_N), order_N, "its classes so matched"
    if not described:
        return None
    moved = [k for k in np.unique(score.predicted_R[best.is_right_R]) if best_order_N[k] != k]
    examples = ", ".join(
        f"its class {k} is mostly {names[best_order_N[k]]!r} (class {best_order_N[k]} here)" for k in moved[:3]
    )
    return Explanation(
        best,
        f"The label order seems to differ: {examples}; with {described}, {best.accuracy:.1%} of {best.rows} pictures "
        f"are right, with the dataset's order ({_listed(names)}) {score.accuracy:.1%}. "
        f"{wording.name_classes}, one for each column, and they are matched with the dataset's; or rename "
        f"the class folders (numbers with leading zeros) or renumber the labels to have {wording.who}'s order "
        f"here, or {wording.reorder}.",
    )


def _usual_orders(names: tuple[str, ...]) -> list[tuple[str, Rows]]:
    """(description, order [N]) of the class names as people's programs sort them, the dataset's own left out."""
    keys: dict[str, Callable[[str], list[tuple[int, str]]]] = {
        "the class names in the order of their numbers": _natural,
        "the class names sorted as text": lambda name: [(0, name)],
        "the class names sorted as Unicode composes them": lambda name: [(0, unicodedata.normalize("NFC", name))],
        "the class names sorted as macOS spells them, decomposed": lambda name: [
            (0, unicodedata.normalize("NFD", name))
        ],
        "the class names sorted regardless of case": lambda name: [(0, name.casefold())],
        "the class names in the order of their numbers, regardless of case": lambda name: _natural(name.casefold()),
    }
    orders: list[tuple[str, Rows]] = []
    seen = [tuple(range(len(names)))]
    for description, key in keys.items():
        sorted_names = sorted((key(name), k) for k, name in enumerate(names))
        order = tuple(k for _, k in sorted_names)
        if order not in seen:
            seen.append(order)
            orders.append((f"{description} ({_listed([names[k] for k in order])})", np.array(order)))
    return orders


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts runs of digits as numbers: class2 before class10."""
    parts = re.split(r"(\d+)", name)  # text and digits take turns
    stripped = [part.lstrip("0") if i % 2 else part for i, part in enumerate(parts)]
    return [(len(part) if i % 2 else 0, part) for i, part in enumerate(stripped)]


def _listed(names: Sequence[str]) -> str:
    """The first names, short enough for a message."""
    shown = ", ".join(repr(name if len(name) <= 24 else f"{name[:23]}…") for name in names[:4])
    return f"{shown}, ..." if len(names) > 4 else shown


def _halves(labels_R: Rows) -> tuple[Rows, Rows]:
    """Two halves of the rows that have every class alike, give or take one row."""
    order_R = np.lexsort((np.random.default_rng(0).random(len(labels_R)), labels_R))
    return order_R[::2], order_R[1::2]


def best_assignment(score: Score, preferred_N: Rows) -> Rows:
    """The order [N] with the most hits; where they do not decide, that of ``preferred_N``.

    Solved for the K outputs that occur, or whose preferred class does: at most two for each row, however many classes.
    """
    from scipy.optimize import linear_sum_assignment  # 0.2 s, and few processes come here

    output_K = np.union1d(score.predicted_R, np.argsort(preferred_N)[score.labels_R])
    column_N = np.empty(score.classes, dtype=np.int64)  # of the matrix, for a class of the dataset
    column_N[preferred_N[output_K]] = np.arange(len(output_K))
    together_KK = np.zeros((len(output_K), len(output_K)))
    np.add.at(together_KK, (np.searchsorted(output_K, score.predicted_R), column_N[score.labels_R]), 1)
    # All of it together is less than one hit.
    together_KK[np.diag_indices(len(output_K))] += 1 / (len(output_K) + 1)
    _, matched_K = linear_sum_assignment(together_KK, maximize=True)
    order_N = preferred_N.copy()
    order_N[output_K] = preferred_N[output_K[matched_K]]
    return order_N


def numeric_names(names: tuple[str, ...]) -> list[str]:
    """A warning if the class names are numbers in another order than that of their values."""
    if not all(name.isdecimal() for name in names):
        return []
    by_number = sorted(names, key=_natural)
    if by_number == list(names):
        return []
    k = next(k for k, name in enumerate(names) if name != by_number[k])
    return [
        f"the class names are numbers, but not in their order ({_listed(names)}): class {k} is {names[k]!r}, and a "
        f"teacher that was trained on the numbers has {by_number[k]!r} there. Leading zeros make text sort as numbers"
    ]
