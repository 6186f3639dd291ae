"""How right an answer to a masked-frames puzzle is: which frames, in which order, all of it.

The form is ours (the paper's fine-grained reward could not be found): selection, order and exactness apart, and nothing
at all for an answer that is not as many different candidates as frames are missing, or listing the pool would pay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, slots=True, kw_only=True)
class PuzzleScore:
    """All from 0 to 1; all 0 for an answer that is not valid.

    valid: as many different candidates as frames are missing. selection: the F1 of the chosen set, which for a valid
    answer is the share that is right. order: the share of the truth's pairs that are both chosen and the right way
    round; selection when one frame is missing. exact: everything right.
    """

    valid: bool
    selection: float
    order: float
    exact: float


def score(answer: Sequence[int], truth: Sequence[int], pool: int) -> PuzzleScore:
    """Score an answer: candidate numbers from 1 to ``pool``, in the order of time, as the truth."""
    if len(answer) != len(truth) or len(set(answer)) != len(answer) or not all(1 <= n <= pool for n in answer):
        return PuzzleScore(valid=False, selection=0.0, order=0.0, exact=0.0)
    place = {number: at for at, number in enumerate(answer)}
    selection = sum(number in place for number in truth) / len(truth)
    pairs = list(combinations(truth, 2))
    right = sum(a in place and b in place and place[a] < place[b] for a, b in pairs)
    return PuzzleScore(
        valid=True,
        selection=selection,
        order=right / len(pairs) if pairs else selection,
        exact=float(list(answer) == list(truth)),
    )


def chance(missing: int, pool: int) -> PuzzleScore:
    """What a valid answer drawn at random scores on average."""
    selection = missing / pool
    return PuzzleScore(
        valid=True,
        selection=selection,
        order=selection * (missing - 1) / (pool - 1) / 2 if missing > 1 else selection,
        exact=1 / math.perm(pool, missing),
    )
