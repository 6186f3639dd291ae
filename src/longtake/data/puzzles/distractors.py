"""Which other frames of a video stand beside the missing ones in the pool.

Paper: MVP, arXiv 2601.03781: l frames at random from the same temporal neighbourhood of the same video. Ours: how far
that reaches, that no distractor is a near-duplicate of what it is to be told from, and "near" and "far" picks.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longtake.data.puzzles.draws import uniform
from longtake.data.puzzles.likeness import Likeness

Pick = Literal["random", "near", "far"]
Numbers = NDArray[np.int64]

WIDTHS = (1, 2, 4)  # of the neighbourhood on each side, in lengths of the puzzle's own span, until there are enough
PICK = 10_000  # where these draws begin among a seed's numbers


def choose_distractors(
    likeness: Likeness,
    seeds: NDArray[np.uint64],
    kept: Numbers,
    missing: Numbers,
    low: Numbers,
    high: Numbers,
    *,
    near: float,
    count: int,
    pick: Pick,
) -> Numbers:
    """``count`` frames for each puzzle, int64 ``(puzzles, count)``; -1 throughout where there are not enough.

    kept ``(puzzles, frames)`` with -1 behind the last; missing ``(puzzles, masked)`` of them; low, high: the frames
    kept right before and after each missing one, or beyond the video's ends.

    A distractor is no kept frame, lies in no gap, and its cosine is at most ``near`` to every missing frame, to the
    context frames beside the gaps, and to the other distractors. pick: at random, or those most or least like a missing
    frame.
    """
    chosen = np.full((len(seeds), count), -1, np.int64)
    left = np.arange(len(seeds))
    for width in WIDTHS:
        rows = (seeds[left], kept[left], missing[left], low[left], high[left])
        if not len(left):
            break
        chosen[left] = _choose(likeness, *rows, width=width, near=near, count=count, pick=pick)
        left = left[chosen[left, -1] < 0]
    chosen[left] = -1
    return chosen


def _choose(
    likeness: Likeness,
    seeds: NDArray[np.uint64],
    kept: Numbers,
    missing: Numbers,
    low: Numbers,
    high: Numbers,
    *,
    width: int,
    near: float,
    count: int,
    pick: Pick,
) -> Numbers:
    frames, free = _neighbourhood(likeness, kept, missing, width)
    across = frames[:, None]
    free &= ~((across > low[:, :, None]) & (across < high[:, :, None])).any(axis=1)
    closest = likeness.of(across, missing[:, :, None]).max(axis=1)
    free &= closest <= near
    beside = np.concatenate([low, high], axis=1)
    context = (beside >= 0) & (beside < len(likeness)) & ~(beside[:, :, None] == missing[:, None]).any(axis=2)
    some = context.any(axis=0)
    alike = likeness.of(across, beside[:, some, None]) > near
    free &= ~(alike & context[:, some, None]).any(axis=1)
    wanted = {"near": closest, "far": -closest}[pick] if pick != "random" else uniform(seeds[:, None], PICK + frames)
    wanted = np.where(free, wanted, -np.inf)

    chosen = np.full((len(seeds), count), -1, np.int64)
    rows = np.arange(len(seeds))
    for place in range(count):
        best = wanted.argmax(axis=1)
        picked = frames[rows, best]
        chosen[:, place] = np.where(wanted[rows, best] > -np.inf, picked, -1)
        wanted[likeness.of(frames, picked[:, None]) > near] = -np.inf
        wanted[rows, best] = -np.inf  # even where near is 1
    return chosen


def _neighbourhood(
    likeness: Likeness, kept: Numbers, missing: Numbers, width: int
) -> tuple[Numbers, NDArray[np.bool_]]:
    """The frames around each puzzle, ``(puzzles, widest)``, and which of them are no kept ones and within reach."""
    first, last = kept[:, 0], kept.max(axis=1)
    around = width * (last - first)
    begin = np.maximum(np.maximum(first - around, missing[:, -1] - likeness.reach + 1), 0)
    end = np.minimum(np.minimum(last + around, missing[:, 0] + likeness.reach - 1), len(likeness) - 1)
    widest = max(1, int((end - begin).max()) + 1)
    frames = begin[:, None] + np.arange(widest)
    free = frames <= end[:, None]
    rows, places = np.nonzero((kept >= begin[:, None]) & (kept <= end[:, None]))
    free[rows, kept[rows, places] - begin[rows]] = False
    return np.asarray(np.minimum(frames, len(likeness) - 1), np.int64), free
