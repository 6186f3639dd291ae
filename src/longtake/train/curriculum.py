"""Which puzzles come next: levels that are neither solved nor hopeless, by p (1 - p) of their success. Ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longtake.types import LongtakeError


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumRecipe:
    """How puzzles are drawn. by_success: False draws every puzzle equally often.

    memory: of the running mean of a level's success, a step. least: share of the largest p (1 - p), 1/4, that a level
    keeps, so that none is ever given up. A level begins at 1/2.
    """

    by_success: bool = True
    memory: float = 0.9
    least: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.memory < 1 or not 0 < self.least <= 1:
            raise LongtakeError(
                f"memory is {self.memory} and least {self.least}; memory must be from 0 to below 1, least above 0 to 1"
            )


@dataclass(slots=True, kw_only=True)
class Curriculum:
    """Draws puzzles by their numbers; the same on every process, from the seed and what it was told.

    levels: of each puzzle. Within a level every puzzle comes once before one comes again.
    """

    recipe: CurriculumRecipe
    levels: Sequence[str]
    seed: int
    success: dict[str, float] = field(init=False)
    drawn: dict[str, int] = field(init=False)  # puzzles taken of each level so far
    _members: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        if not self.levels:
            raise LongtakeError("there are no puzzles; give at least one to learn from")
        self._members = {}
        for number, level in enumerate(self.levels):
            self._members.setdefault(level, []).append(number)
        self.success = dict.fromkeys(self._members, 0.5)
        self.drawn = dict.fromkeys(self._members, 0)

    def shares(self) -> dict[str, float]:
        """The chance of each level; they add to 1."""
        if self.recipe.by_success:
            least = self.recipe.least / 4
            weights = {level: max(p * (1 - p), least) for level, p in self.success.items()}
        else:
            weights = {level: float(len(members)) for level, members in self._members.items()}
        whole = sum(weights.values())
        return {level: weight / whole for level, weight in weights.items()}

    def draw(self, step: int, count: int) -> list[int]:
        """Draw the numbers of the puzzles that a step takes."""
        shares = self.shares()
        rng = np.random.default_rng((self.seed, step))
        chosen = rng.choice(len(shares), size=count, p=list(shares.values()))
        return [self._next(list(shares)[place]) for place in chosen.tolist()]

    def _next(self, level: str) -> int:
        members, taken = self._members[level], self.drawn[level]
        self.drawn[level] += 1
        turn, place = divmod(taken, len(members))
        order = np.random.default_rng((self.seed, turn, *level.encode())).permutation(len(members))
        return members[int(order[place])]

    def learn(self, levels: Sequence[str], successes: Sequence[float]) -> None:
        """Take in the mean success (0 to 1) of some puzzles' groups."""
        for level in dict.fromkeys(levels):
            own = [success for at, success in zip(levels, successes, strict=True) if at == level]
            self.success[level] += (1 - self.recipe.memory) * (sum(own) / len(own) - self.success[level])

    def state(self) -> dict[str, Any]:
        """The state as plain values, to go on from."""
        return {"success": dict(self.success), "drawn": dict(self.drawn)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; levels that are new begin as ever."""
        self.success |= {level: p for level, p in state["success"].items() if level in self.success}
        self.drawn |= {level: n for level, n in state["drawn"].items() if level in self.drawn}
