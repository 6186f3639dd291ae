"""How long two arms learn until they are equally often right, from their accuracy while they learn. Ours.

What a step takes of anything (samples, operations, seconds) is the same from first to last, so that steps are all that
has to be found: a curve reaches a level where it first crosses it, linear between two evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from longtake.eval.ablation import Estimate, figure

ROUNDING = 1e-9  # by which a share that is level, as a mean over seeds, may be below
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the way from the start to the level that both reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Shares of right answers of one model after so many steps, ascending, the first before any."""

    steps: tuple[int, ...]
    right: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.right) or not self.steps:
            raise ValueError(f"{len(self.right)} shares at {len(self.steps)} steps; there must be one at each")
        if any(later <= earlier for earlier, later in pairwise(self.steps)):
            raise ValueError(f"steps are {self.steps}; they must ascend")

    def reaches(self, level: float) -> float | None:
        """The steps at which the level is first reached; None: never."""
        level -= ROUNDING
        if self.right[0] >= level:
            return float(self.steps[0])
        points = pairwise(zip(self.steps, self.right, strict=True))
        for (before, low), (after, high) in points:
            if high >= level:
                return before + (after - before) * (level - low) / (high - low)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """When an arm and another reach a level. None: never.

    share: of the way from the start to the lower end. arm, other: steps of the mean over seeds; by_seed: both of each.
    """

    share: float
    level: float
    arm: float | None
    other: float | None
    by_seed: tuple[tuple[float | None, float | None], ...]

    def times(self, unit: float) -> float | None:
        """How many times what the arm needs the other needs. unit: what the other's step takes, in steps of the arm."""
        return times(self.arm, self.other, unit)

    def times_by_seed(self, unit: float) -> list[float | None]:
        """``times`` of each seed."""
        return [times(arm, other, unit) for arm, other in self.by_seed]

    def spread(self, unit: float) -> Estimate | None:
        """The logarithm of ``times`` over seeds, with Student's interval; None where a seed has none."""
        found = [value for value in self.times_by_seed(unit) if value is not None]
        return figure(np.log(found)) if len(found) == len(self.by_seed) else None


def times(arm: float | None, other: float | None, unit: float) -> float | None:
    """other / arm x unit; None where one never arrives or was there before its first step."""
    return unit * other / arm if arm and other else None


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean curve of seeds, which are asked after the same steps."""
    if len({curve.steps for curve in curves}) != 1:
        raise ValueError(f"curves have {sorted({len(c.steps) for c in curves})} points; all must be at the same steps")
    return Curve(steps=curves[0].steps, right=tuple(np.mean([curve.right for curve in curves], axis=0).tolist()))


def equal_accuracy(arm: Sequence[Curve], other: Sequence[Curve]) -> list[Reached]:
    """When two arms, with paired seeds, reach the lower of their last accuracies, and parts of the way there.

    The way begins at the higher of their first accuracies; ends and beginnings are means over seeds. Empty where one
    of the two ends no higher than that.
    """
    if len(arm) != len(other):
        raise ValueError(f"arms have {len(arm)} and {len(other)} seeds; they must be paired")
    one, two = mean_curve(arm), mean_curve(other)
    start, end = max(one.right[0], two.right[0]), min(one.right[-1], two.right[-1])
    if end <= start or math.isclose(end, start):
        return []
    found = []
    for share in SHARES:
        level = end if share == 1 else start + share * (end - start)
        by_seed = tuple((a.reaches(level), b.reaches(level)) for a, b in zip(arm, other, strict=True))
        reached = {"arm": one.reaches(level), "other": two.reaches(level)}
        found.append(Reached(share=share, level=level, **reached, by_seed=by_seed))
    return found
