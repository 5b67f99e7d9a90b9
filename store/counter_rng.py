"""Counter-based random numbers: the draw for a row depends on its own integers and nothing else.

There is no state to seed, split or restore. Integers are absorbed one by one, ``h <- mix(h + (x + 1) * GOLDEN)``
modulo 2**64 starting from 0, where ``mix`` is SplitMix64's finaliser (Steele, Lea & Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014, with the constants of Stafford's variant 13). Absorbing (seed, view,
sample, slot) gives word ``slot`` of a sample, so a sample's words are a SplitMix64 sequence, the same on every machine,
in every order and for every split into batches.

Each user has slots of its own: augmentations those from 0, the sparse encoding those from 2**32, so that equal seeds of
both have nothing in common.

Legend: N samples, S slots.
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Floats = NDArray[np.float64]


def _mix(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _absorb(state: Words, value: Words) -> Words:
    return _mix(state + (value + np.uint64(1)) * _GOLDEN)


def word_table(seed: int, view: int, index_N: Ints, slots_S: Ints) -> Words:
    """Random words of several slots of each sample, uint64 [N, S]."""
    # Arrays of one element, because NumPy warns about the wanted overflow of scalars.
    state = np.zeros(1, dtype=np.uint64)
    for value in (seed, view):
        state = _absorb(state, np.array([value], dtype=np.uint64))
    state = _absorb(state, index_N.astype(np.uint64))
    return _absorb(state[:, None], slots_S.astype(np.uint64))


def hash_words(seed: int, view: int, index_N: Ints, slot: int) -> Words:
    """Random word ``slot`` of each sample, uint64 [N]: a pure function of the four integers."""
    return word_table(seed, view, index_N, np.array([slot]))[:, 0]


def below(words: Words, count: int | Ints) -> Ints:
    """Uniform integers in [0, count): the high half of a 32 x 32 bit product, bias below 2**-32."""
    scaled = (words >> np.uint64(32)) * np.asarray(count).astype(np.uint64)
    return (scaled >> np.uint64(32)).astype(np.int64)


def unit(words: Words) -> Floats:
    """Uniform float64 in [0, 1), multiples of 2**-53."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
