"""The tokens of time groups that are known to matter: the bound above every method that has to find them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from longtake.types import VisualTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """All tokens of the groups that matter, then others at random; where those are too many, some of them at random."""

    groups: tuple[int, ...]
    seed: int = 0

    @property
    def needs_scores(self) -> bool:
        return False

    def select(self, tokens: VisualTokens, budget: int, scores: Tensor | None = None) -> Tensor:
        import torch

        drawn = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(self.seed))
        matters = torch.isin(tokens.position[:, 0].cpu(), torch.tensor(self.groups, dtype=torch.int64))[drawn]
        return torch.cat([drawn[matters], drawn[~matters]])[:budget].sort().values
