"""Whole time groups at even steps: what watching fewer frames would have kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from longtake.types import VisualTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Groups taken from the middle of equal stretches of the video.

    A budget below one group keeps the first tokens of the middle group; up to a group of the budget stays unused.
    """

    @property
    def needs_scores(self) -> bool:
        return False

    def select(self, tokens: VisualTokens, budget: int, scores: Tensor | None = None) -> Tensor:
        import torch

        if budget >= len(tokens):
            return torch.arange(len(tokens))
        group = tokens.position[:, 0].cpu()
        sizes = torch.bincount(group)
        groups = sizes.nonzero()[:, 0]
        num_kept = max(1, budget // int(sizes.max()))
        middles = (2 * torch.arange(num_kept) + 1) * len(groups) // (2 * num_kept)
        kept = torch.isin(group, groups[middles]).nonzero()[:, 0]
        return kept[:budget]
