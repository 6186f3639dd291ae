"""Tokens drawn at random: the control beside every other method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from longtake.types import VisualTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """Tokens drawn without replacement; with one seed a smaller budget's tokens are among a larger one's."""

    seed: int = 0

    @property
    def needs_scores(self) -> bool:
        return False

    def select(self, tokens: VisualTokens, budget: int, scores: Tensor | None = None) -> Tensor:
        import torch

        drawn = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(self.seed))[:budget]
        return drawn.sort().values
