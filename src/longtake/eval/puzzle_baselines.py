"""Answers to puzzles that need no understanding: a model counts as better only if it beats the best of them.

All work on distances between the pool's frames and the context frames beside the gap; which vectors those come from
(pixels, a random tower, the model's own) is for the caller to say. Ours, as are all of these rules.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Baseline = Callable[[Floats, int], list[int]]


def distances(vectors: NDArray[np.floating]) -> Floats:
    """One minus the cosine of every two of ``(frames, dim)``: float64 ``(frames, frames)``."""
    wide = vectors.astype(np.float64)
    units = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(1 - units @ units.T, np.float64)


def pool_order(apart: Floats, missing: int) -> list[int]:
    """The first candidates of the pool, as they lie there."""
    return list(range(1, missing + 1))


def nearest_to_boundary(apart: Floats, missing: int) -> list[int]:
    """The candidates most like a context frame beside the gap; first those that are more like the one before it.

    apart: ``(pool + 2, pool + 2)``, the frame before the gap and the one after it last; nan for one that is not there.
    """
    before, after = _beside(apart)
    closest = np.fmin(before, after).argsort(kind="stable")[:missing]
    return _by_side(apart, closest)


def most_alike(apart: Floats, missing: int) -> list[int]:
    """The candidates that are most like each other; first those that are more like the frame before the gap."""
    sets, cost = _spread(apart, missing)
    return _by_side(apart, sets[cost.argmin()])


def least_alike(apart: Floats, missing: int) -> list[int]:
    """The candidates that are least like each other: distractors that were picked for likeness may crowd."""
    sets, cost = _spread(apart, missing)
    return _by_side(apart, sets[cost.argmax()])


def shortest_path(apart: Floats, missing: int) -> list[int]:
    """The shortest way from the frame before the gap over that many candidates to the frame after it."""
    ways = _ways(len(apart) - 2, missing)
    before, after = (np.nan_to_num(side) for side in _beside(apart))
    cost = before[ways[:, 0]] + after[ways[:, -1]]
    for place in range(missing - 1):
        cost += apart[ways[:, place], ways[:, place + 1]]
    return [int(number) + 1 for number in ways[cost.argmin()]]


BASELINES: dict[str, Baseline] = {
    "nearest to the boundary": nearest_to_boundary,
    "most alike": most_alike,
    "least alike": least_alike,
    "shortest path": shortest_path,
}


def _beside(apart: Floats) -> tuple[Floats, Floats]:
    return apart[-2, :-2], apart[-1, :-2]


def _spread(apart: Floats, missing: int) -> tuple[NDArray[np.int8], Floats]:
    """All sets of that many candidates, and how far apart each one's are in all."""
    sets = _sets(len(apart) - 2, missing)
    one, other = np.triu_indices(missing, 1)
    return sets, np.asarray(apart[sets[:, one], sets[:, other]].sum(axis=1), np.float64)


def _by_side(apart: Floats, chosen: NDArray[np.integer]) -> list[int]:
    before, after = (np.nan_to_num(side[chosen]) for side in _beside(apart))
    return [int(number) + 1 for number in chosen[(before - after).argsort(kind="stable")]]


@lru_cache
def _sets(pool: int, missing: int) -> NDArray[np.int8]:
    return np.array(list(combinations(range(pool), missing)), np.int8)


@lru_cache
def _ways(pool: int, missing: int) -> NDArray[np.int8]:
    return np.array(list(permutations(range(pool), missing)), np.int8)
