"""Sparse encoding: a few classes of very many, chosen so that soft targets stay unbiased.

Of a row of C logits z, at the encoding's temperature T, with e_c = exp(z_c / T), are kept

- the ``top`` largest logits, and the label's;
- the logits of a *sample* S of ``tail`` classes, drawn from the tail: all classes that are neither;
- log M, where M is the sum of e_c over the whole tail.

Softmax needs Z = M + the sum of e_c over top and label. So a class that is kept for itself has its exact soft target
e_c / Z. The sample shares the tail's target M / Z in proportion, and a class outside it gets 0:

    p_c = (M / Z) * e_c / (sum of e over S)    for c in S

Every row sums to one, nothing is negative, and p is unbiased, exactly and for each class, because of how S is drawn
(Midzuno 1951; sampling of soft targets: Anshumann et al., "Sparse Logit Sampling", ACL 2025, arXiv 2503.16870): its
first class with probability e_c / M, the ``tail`` - 1 others as a simple random sample of what is left of the tail's t
classes, without replacement. Any of its members may have been the first, so that a set S has probability

    P(S) = (sum of e over S) / M / binomial(t - 1, tail - 1)

The sum cancels the one in p_c, and class c is in binomial(t - 1, tail - 1) of the sets: E[p_c] = e_c / Z.

Only the first class is stored, for its draw needs all logits. The others are drawn again when a row is read, from the
row's (seed, view, sample) alone, as ranks among the classes that are left; so their indices take no room.

A decoded row gives these soft targets at temperature T and sums to one at any other, but there it is biased. An absent
class is at ABSENT.

Arrays of a row: ``logits`` float16 [top + 1 + tail]: the largest in descending order, the label's, the sample's;
``classes`` [top + 2]: of the largest, of the label, of the sample's first; ``tail_logsumexp`` float32: log M.

Shapes: N rows, C classes, K = top + 1 + tail kept logits, X = top + 2 stored classes, s = tail - 1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.counter_rng import Ints, Words, below, unit, word_table
from store.encodings.arrays import SparseEncoding, StoredRows
from store.statistics import Float32

ABSENT = -1e6
"""The logit of a class that was not kept: a probability of exactly 0 at any temperature up to 1000 (float16 logits end
at 65504), and finite, so that 0 times it is 0."""

_FIRST_SLOT = 1 << 32
_SLAB_ELEMENTS = 1 << 19  # 4 MB of float64


def encode(
    encoding: SparseEncoding, logits_NC: Float32, labels_N: NDArray[np.integer], view: int, samples_N: Ints
) -> dict[str, NDArray[Any]]:
    """Encode rows, which are samples ``samples_N`` of ``view``, into the arrays of the encoding."""
    step = max(1, _SLAB_ELEMENTS // logits_NC.shape[1])
    parts = []
    for start in range(0, len(logits_NC), step):
        slab = slice(start, start + step)
        parts.append(
            _encode(encoding, logits_NC[slab], labels_N[slab].astype(np.int64), view=view, samples_N=samples_N[slab])
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _encode(
    encoding: SparseEncoding, logits_NC: Float32, labels_N: Ints, view: int, samples_N: Ints
) -> dict[str, NDArray[Any]]:
    classes = logits_NC.shape[1]
    own_NX = np.concatenate((_largest(logits_NC, encoding.top), labels_N[:, None]), axis=1)
    words = _words(encoding, view, samples_N)
    first_N, log_mass_N = _draw_first(logits_NC, own_NX, encoding.temperature, words[:, 0])
    own_NX = np.concatenate((own_NX, first_N[:, None]), axis=1)
    kept_NK = np.concatenate((own_NX, _draw_others(own_NX, classes, words[:, 1:])), axis=1)
    index = np.uint16 if classes <= 1 << 16 else np.uint32
    return {
        "logits": np.take_along_axis(logits_NC, kept_NK, axis=1).astype(np.float16),
        "classes": own_NX.astype(index),
        "tail_logsumexp": log_mass_N.astype(np.float32),
    }


def decode(encoding: SparseEncoding, stored: StoredRows, view: int, samples_N: Ints, out_NC: Float32) -> None:
    """Decode rows of ``encode`` to float32 logits [N, C]."""
    own_NX = stored["classes"].astype(np.int64)
    others_Ns = _draw_others(own_NX, out_NC.shape[1], _words(encoding, view, samples_N)[:, 1:])
    values_NK = stored["logits"].astype(np.float32)
    sample_Nm = values_NK[:, encoding.top + 1 :]
    log_sum_N = logsumexp(sample_Nm.astype(np.float64) / encoding.temperature)
    sample_Nm += (encoding.temperature * (stored["tail_logsumexp"] - log_sum_N)).astype(np.float32)[:, None]
    out_NC.fill(ABSENT)
    np.put_along_axis(out_NC, np.concatenate((own_NX, others_Ns), axis=1), values_NK, axis=1)


def label_is_among_largest(own_NX: Ints) -> NDArray[np.bool_]:
    """Rows of ``classes`` in which the label's class occurs twice, bool [N]."""
    result: NDArray[np.bool_] = (own_NX[:, :-2] == own_NX[:, -2:-1]).any(axis=1)
    return result


def logsumexp(x_Nm: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(sum(exp(x))) of each row: [N]."""
    highest_N = x_Nm.max(axis=1)
    result: NDArray[np.float64] = highest_N + np.log(np.exp(x_Nm - highest_N[:, None]).sum(axis=1))
    return result


# ---------------------------------------------------------------------------------------- drawing


def _words(encoding: SparseEncoding, view: int, samples_N: Ints) -> Words:
    """A row's random words, one for each class of its sample: [N, tail]."""
    return word_table(encoding.seed, view, samples_N, _FIRST_SLOT + np.arange(encoding.tail))


def _largest(logits_NC: Float32, count: int) -> Ints:
    """Classes of the largest logits, in descending order, the smaller class first where they are equal."""
    some_Nk = np.sort(np.argpartition(logits_NC, -count, axis=1)[:, -count:], axis=1)
    descending_Nk = np.argsort(-np.take_along_axis(logits_NC, some_Nk, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some_Nk, descending_Nk, axis=1)


def _draw_first(
    logits_NC: Float32, own_NX: Ints, temperature: float, words_N: Words
) -> tuple[Ints, NDArray[np.float64]]:
    """A tail class [N] with probability e_c / M, by the inverse of the cumulated e; and log M [N]."""
    z_NC = logits_NC.astype(np.float64) / temperature
    np.put_along_axis(z_NC, own_NX, -np.inf, axis=1)
    highest_N = z_NC.max(axis=1)
    cumulated_NC = np.exp(z_NC - highest_N[:, None]).cumsum(axis=1)
    mass_N = cumulated_NC[:, -1]
    # Rounded, the product may reach the mass, beyond which there is no class.
    point_N = np.minimum(unit(words_N) * mass_N, np.nextafter(mass_N, 0.0))
    first_N = (cumulated_NC > point_N[:, None]).argmax(axis=1)
    return first_N, highest_N + np.log(mass_N)


def _draw_others(own_NX: Ints, classes: int, words_Ns: Words) -> Ints:
    """The sample but for its first class, [N, s]: a simple random sample of the classes that are not in own_NX."""
    taken_NX = own_NX.copy()
    # A label that is among the largest is excluded once; its second mention goes where no class is.
    twice_N = label_is_among_largest(own_NX)
    taken_NX[twice_N, -2] = classes
    taken_NX.sort(axis=1)
    left_N = classes - own_NX.shape[1] + twice_N
    drawn_sN = _floyd(words_Ns.T, left_N)
    # The r-th class that is left: step over each excluded one, in ascending order.
    for column_N in taken_NX.T.astype(np.int32):
        drawn_sN += drawn_sN >= column_N
    return drawn_sN.T.astype(np.int64)


def _floyd(words_sN: Words, count_N: Ints) -> NDArray[np.int32]:
    """Draw s different integers in [0, count), s being the words of a row, every set equally likely: [s, N].

    Floyd's algorithm (Bentley & Floyd, "A sample of brilliance", CACM 1987): step i draws from [0, top] with
    top = count - s + i, and takes top itself, which no earlier step could draw, if that one was drawn before.
    """
    size = len(words_sN)
    top_sN = count_N - size + np.arange(size)[:, None]
    drawn_sN = below(words_sN, top_sN + 1).astype(np.int32)
    for step in range(1, size):
        known_N = (drawn_sN[:step] == drawn_sN[step]).any(axis=0)
        np.copyto(drawn_sN[step], top_sN[step].astype(np.int32), where=known_N)
    return drawn_sN
