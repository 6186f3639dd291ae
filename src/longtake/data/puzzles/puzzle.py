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


def is_valid(numbers: Sequence[int] | None, wanted: int, pool: int) -> bool:
    """The gate: exactly ``wanted`` distinct numbers from 1 to ``pool``. Without it, listing the whole pool pays."""
    return numbers is not None and len(numbers) == wanted == len(set(numbers)) and all(1 <= n <= pool for n in numbers)


def selection(numbers: Sequence[int], truth: Sequence[int]) -> float:
    """Share of the true ones that were chosen; precision and recall are the same behind the gate."""
    return len(set(numbers) & set(truth)) / len(truth)


def ordered_pairs(numbers: Sequence[int], truth: Sequence[int]) -> float:
    """Pairs of rightly chosen ones that stand in the right order, over all pairs of the truth; selection for one."""
    if len(truth) == 1:
        return selection(numbers, truth)
    place = {number: at for at, number in enumerate(truth)}
    chosen = [place[number] for number in numbers if number in place]
    right = sum(first < second for first, second in combinations(chosen, 2))
    return right / (len(truth) * (len(truth) - 1) // 2)


def score(answer: Sequence[int], truth: Sequence[int], pool: int) -> PuzzleScore:
    """Score an answer: candidate numbers from 1 to ``pool``, in the order of time, as the truth."""
    if not is_valid(answer, len(truth), pool):
        return PuzzleScore(valid=False, selection=0.0, order=0.0, exact=0.0)
    return PuzzleScore(
        valid=True,
        selection=selection(answer, truth),
        order=ordered_pairs(answer, truth),
        exact=float(list(answer) == list(truth)),
    )


def chance(missing: int, pool: int) -> PuzzleScore:
    """What a valid answer drawn at random scores on average."""
    chosen = missing / pool
    return PuzzleScore(
        valid=True,
        selection=chosen,
        order=chosen * (missing - 1) / (pool - 1) / 2 if missing > 1 else chosen,
        exact=1 / math.perm(pool, missing),
    )
