"""Score of top-1 predictions, with exact tests: against chance, and against another way to read the same rows."""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.teacher.preflight.session import Outputs, Rows

ALPHA = 0.01  # the chance that a teacher which only guesses gets through
PERMUTATIONS = 2000


@dataclass(frozen=True, eq=False)
class Score:
    """Top-1 predictions [R] on rows with labels [R], of ``classes`` classes."""

    predicted_R: Rows
    labels_R: Rows
    classes: int

    @classmethod
    def of(cls, outputs_RN: Outputs, labels_R: Rows) -> "Score":
        """The score of outputs [R, N] against labels [R]."""
        return cls(outputs_RN.argmax(axis=1), labels_R, outputs_RN.shape[1])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.labels_R)

    @property
    def is_right_R(self) -> NDArray[np.bool_]:
        """Whether each prediction is the label."""
        return np.equal(self.predicted_R, self.labels_R)

    @functools.cached_property
    def hits(self) -> int:
        """Number of rows that are right."""
        return int(self.is_right_R.sum())

    @property
    def accuracy(self) -> float:
        """Share of rows that are right."""
        return self.hits / self.rows

    @property
    def chance(self) -> float:
        """Mean accuracy of the same predictions against the same labels in random order."""
        return self._hits_by_chance / self.rows

    @property
    def _hits_by_chance(self) -> float:
        predicted_N, labelled_N = self._counts
        return int(predicted_N @ labelled_N) / self.rows

    @property
    def _counts(self) -> tuple[Rows, Rows]:
        predicted_N, labelled_N = (np.bincount(v, minlength=self.classes) for v in (self.predicted_R, self.labels_R))
        return predicted_N, labelled_N

    @functools.cached_property
    def explained_by_chance(self) -> bool:
        """Whether the same labels in random order give as many hits with probability above ``ALPHA``.

        So few rows, or so few of all classes but one, that not even the most hits that these counts allow would be
        unlikely cannot tell; then only a score at or below chance counts. Nothing more can be asked than that all are
        right.
        """
        if self.hits == self.rows:
            return False
        predicted_N, labelled_N = self._counts
        if self.hits * self.rows <= int(predicted_N @ labelled_N):
            return True
        rng, labels_R = np.random.default_rng(0), self.labels_R
        hits = np.array([(self.predicted_R == rng.permutation(labels_R)).sum() for _ in range(PERMUTATIONS)])

        def probability(least: int) -> float:
            return (1 + int((hits >= least).sum())) / (1 + PERMUTATIONS)

        if probability(int(np.minimum(predicted_N, labelled_N).sum())) > ALPHA:
            return False
        return probability(self.hits) > ALPHA

    def permuted(self, order_N: Rows) -> "Score":
        """The score if the teacher's class k were the dataset's ``order_N[k]``."""
        return Score(order_N[self.predicted_R], self.labels_R, self.classes)

    def part(self, rows: Rows) -> "Score":
        """The score on some of the rows."""
        return Score(self.predicted_R[rows], self.labels_R[rows], self.classes)

    def p_value(self, other: "Score") -> float:
        """McNemar's exact test, one-sided: how likely so many more hits than ``other``'s are if neither is better."""
        mine = int((self.is_right_R & np.logical_not(other.is_right_R)).sum())
        others = int((other.is_right_R & np.logical_not(self.is_right_R)).sum())
        return binomial_tail(mine, mine + others, 0.5)


def binomial_tail(hits: int, rows: int, chance: float) -> float:
    """P(X >= hits) of X ~ Binomial(rows, chance), 0 <= chance <= 1."""
    if hits == 0 or chance >= 1:
        return 1.0
    if chance <= 0:
        return 0.0

    def log_term(k: int) -> float:
        ways = math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1)
        return ways + k * math.log(chance) + (rows - k) * math.log1p(-chance)

    return min(1.0, math.fsum(math.exp(log_term(k)) for k in range(hits, rows + 1)))


@dataclass(frozen=True)
class Explanation:
    """Another way to read the slice that is right significantly more often, and a sentence about it."""

    score: Score
    sentence: str
