"""Random numbers that depend on nothing but a seed and a place: any sample can be drawn again alone, or with others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def seeds_of(words: Sequence[object], count: int, first: int = 0) -> NDArray[np.uint64]:
    """``count`` seeds, from the ``first``-th on, of the stream that some words name: uint64 ``(count,)``."""
    digest = hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=8).digest()
    base = np.uint64(int.from_bytes(digest, "big"))
    return np.asarray(_mixed(base + _STEP * np.arange(first, first + count, dtype=np.uint64)) >> np.uint64(1))


def uniform(seeds: NDArray[np.uint64], places: NDArray[np.integer]) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each seed and place; the two are broadcast.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), seed by seed.
    """
    states = seeds + _STEP * (places.astype(np.uint64) + np.uint64(1))
    return np.asarray((_mixed(states) >> np.uint64(11)) * 2.0**-53)


def another_order(count: int, seed: int | Sequence[int]) -> NDArray[np.int64]:
    """The numbers below ``count`` in a random order that is never their own, but where there is no other."""
    drawn = np.random.default_rng(seed).permutation(count)
    return np.roll(drawn, 1) if (drawn == np.arange(count)).all() else drawn


def _mixed(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    states = (states ^ (states >> np.uint64(30))) * _MIX[0]
    states = (states ^ (states >> np.uint64(27))) * _MIX[1]
    return np.asarray(states ^ (states >> np.uint64(31)))
