"""How right an answer to a masked-frames puzzle is: which frames, in which order, all of it.

The form is ours (the paper's fine-grained reward could not be found): selection, order and exactness apart, and nothing
at all for an answer that is not as many different candidates as frames are missing, or listing the pool would pay.
Rewards, baselines and tables all score by this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Order = Literal["pairs", "position", "footrule", "kendall"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PuzzleScore:
    """All from 0 to 1, but for tau; all 0 for an answer that is not valid.

    valid: as many different candidates as frames are missing. selection: the F1 of the chosen set, which for a valid
    answer is the share that is right. order: the share of the truth's pairs that are both chosen and the right way
    round, or another of ``ORDERS``; selection when one frame is missing. exact: everything right.

    pairs: the share of the truth's pairs that are both chosen. tau: Kendall's tau-a over the truth's pairs, those not
    chosen counting as ties: from -1 (all reversed) to 1, and 0 on average for an order drawn at random. Both are 0 when
    one frame is missing.
    """

    valid: bool
    selection: float
    order: float
    exact: float
    pairs: float
    tau: float

    def parts(self) -> dict[str, float]:
        """The measures as rewards and files name them: tau is "kendall"."""
        return {
            "valid": float(self.valid),
            "selection": self.selection,
            "order": self.order,
            "exact": self.exact,
            "pairs": self.pairs,
            "kendall": self.tau,
        }


def score(answer: Sequence[int], truth: Sequence[int], pool: int, order: Order = "pairs") -> PuzzleScore:
    """Score an answer: candidate numbers from 1 to ``pool``, in the order of time, as the truth."""
    if not is_valid(answer, len(truth), pool):
        return PuzzleScore(valid=False, selection=0.0, order=0.0, exact=0.0, pairs=0.0, tau=0.0)
    chosen, right = chosen_pairs(answer, truth)
    pairs = max(1, math.comb(len(truth), 2))
    return PuzzleScore(
        valid=True,
        selection=selection(answer, truth),
        order=ORDERS[order](answer, truth),
        exact=float(list(answer) == list(truth)),
        pairs=chosen / pairs,
        tau=(2 * right - chosen) / pairs,
    )


def is_valid(numbers: Sequence[int], wanted: int, pool: int) -> bool:
    """The gate: exactly ``wanted`` distinct numbers from 1 to ``pool``. Without it, listing the whole pool pays."""
    return len(numbers) == wanted == len(set(numbers)) and all(1 <= n <= pool for n in numbers)


def selection(numbers: Sequence[int], truth: Sequence[int]) -> float:
    """Share of the true ones that were chosen; precision and recall are the same behind the gate."""
    return len(set(numbers) & set(truth)) / len(truth)


def chosen_pairs(numbers: Sequence[int], truth: Sequence[int]) -> tuple[int, int]:
    """How many pairs of the truth were chosen, and how many of these are the right way round."""
    place = {number: at for at, number in enumerate(truth)}
    pairs = list(combinations([place[number] for number in numbers if number in place], 2))
    return len(pairs), sum(first < second for first, second in pairs)


def ordered_pairs(numbers: Sequence[int], truth: Sequence[int]) -> float:
    """Pairs of rightly chosen ones that stand in the right order, over all pairs of the truth; selection for one."""
    if len(truth) == 1:
        return selection(numbers, truth)
    return chosen_pairs(numbers, truth)[1] / math.comb(len(truth), 2)


def position_match(numbers: Sequence[int], truth: Sequence[int]) -> float:
    """Share of places that hold the right number, as in Visual Jigsaw (arXiv 2509.25190) without its discount."""
    return sum(a == b for a, b in zip(numbers, truth, strict=True)) / len(truth)


def footrule(numbers: Sequence[int], truth: Sequence[int]) -> float:
    """1 - sum of |place - true place| / floor(m^2 / 2), as VideoSSR (arXiv 2511.06281); 0 for a wrong choice."""
    if set(numbers) != set(truth):
        return 0.0
    place = {number: at for at, number in enumerate(truth)}
    apart = sum(abs(at - place[number]) for at, number in enumerate(numbers))
    return 1.0 - apart / max(1, len(truth) ** 2 // 2)


def tau_from_zero(numbers: Sequence[int], truth: Sequence[int]) -> float:
    """Kendall's tau mapped to 0 to 1, (tau + 1) / 2; 0 for a wrong choice."""
    return ordered_pairs(numbers, truth) if set(numbers) == set(truth) else 0.0


ORDERS: dict[Order, Callable[[Sequence[int], Sequence[int]], float]] = {
    "pairs": ordered_pairs,
    "position": position_match,
    "footrule": footrule,
    "kendall": tau_from_zero,
}


def pairwise(tau: NDArray[np.float64], pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share in the right order of all pairs that were rightly chosen, of mean tau and pairs; 0.5 where none was."""
    return 0.5 + np.divide(tau, pairs, out=np.zeros_like(pairs), where=pairs > 0) / 2


def chance(missing: int, pool: int) -> PuzzleScore:
    """What a valid answer drawn at random scores on average."""
    chosen, several = missing / pool, missing > 1
    return PuzzleScore(
        valid=True,
        selection=chosen,
        order=chosen * (missing - 1) / (pool - 1) / 2 if several else chosen,
        exact=1 / math.perm(pool, missing),
        pairs=missing * (missing - 1) / (pool * (pool - 1)) if several else 0.0,
        tau=0.0,
    )
