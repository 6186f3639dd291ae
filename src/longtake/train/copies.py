"""Lessons in comparing, before puzzles: a frame before a gap, one after it, and a copy of one of the two. Which?

The pictures are noise, drawn anew at each showing, all of one size, so that nothing but comparing helps. Ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from longtake.backbones.base import Backbone, Part, Prompt
from longtake.data.probe_world.questions import normal
from longtake.train.rendering import Rendering, of_one_size, places, widened
from longtake.types import VisualTokens

SIDE, SIZE = 2, 2.0  # of a picture and its tokens, where the puzzles' rendering leaves them open
ANSWERS = ("before", "after")
LONGEST_SECONDS, GAP_SECONDS = 20.0, (0.4, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyLesson:
    """One lesson. number: even for a copy of the frame before the gap, odd for one of the frame after it.

    side, dims, size: of the pictures, as in ``Rendering``. seed: of what is drawn; another at each showing in training.
    """

    number: int
    side: int = SIDE
    dims: int = 0
    size: float = SIZE
    seed: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The lesson's number."""
        return f"copy-{self.number}"

    @property
    def level(self) -> str:
        """The same for all lessons."""
        return "copy"

    def prompt(self, backbone: Backbone) -> Prompt:
        """The two frames with their times and the gap between them, then the copy, which has no time."""
        rng = np.random.default_rng([*self.seed, self.number, 17])
        first = round(rng.uniform(0, LONGEST_SECONDS), 1)
        seconds = [first, round(first + rng.uniform(*GAP_SECONDS), 1)]
        dim = backbone.embed(torch.zeros(1, dtype=torch.int64)).shape[-1]
        drawn = torch.from_numpy(rng.standard_normal((2, self.side**2, self.dims or dim), np.float32))
        pair = [self._picture(own, second) for own, second in zip(drawn, seconds, strict=True)]
        before, after = of_one_size(widened(pair, dim), self.size)
        copy = self._picture((before, after)[self.number % 2].features, 0.0)
        parts = (
            Part(tokens=before, timed=True),
            Part(text="[1 missing]\n"),
            Part(tokens=after, timed=True),
            Part(text="Frame 1: ", tokens=copy, timed=False),
        )
        return Prompt(question="Does frame 1 stand before or after the gap? Answer with one word.", parts=parts)

    def reward(self, completion: str) -> dict[str, float]:
        """ "exact": 1 for the right word alone."""
        return {"exact": float(normal(completion) == self.solution())}

    def solution(self) -> str:
        """The right word."""
        return ANSWERS[self.number % 2]

    def guess(self, rng: np.random.Generator) -> str:
        """One of the two words."""
        return ANSWERS[int(rng.integers(2))]

    def varied(self, seed: Sequence[int]) -> Self:
        """The same answer about other pictures."""
        return dataclasses.replace(self, seed=tuple(seed))

    def _picture(self, features: Tensor, second: float) -> VisualTokens:
        """A picture of tokens ``(side x side, dim)`` at a time."""
        count = self.side**2
        return VisualTokens(
            features=features,
            position=places(self.side),
            seconds=torch.full((count,), second, dtype=torch.float64),
            weight=torch.ones(count),
            grid=(1, self.side, self.side),
        )


def copy_lessons(count: int, rendering: Rendering) -> list[CopyLesson]:
    """So many lessons whose pictures have the side, dimensions and size of the puzzles'."""
    side, size = rendering.side or SIDE, rendering.size or SIZE
    return [CopyLesson(number=number, side=side, dims=rendering.dims, size=size) for number in range(count)]
