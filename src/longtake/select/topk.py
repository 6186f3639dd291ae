"""The tokens most relevant to the question, whatever their place in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from longtake.types import VisualTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The ``budget`` highest scores, put back in time order; of equal scores the earlier token stays."""

    @property
    def needs_scores(self) -> bool:
        return True

    def select(self, tokens: VisualTokens, budget: int, scores: Tensor | None = None) -> Tensor:
        if scores is None or tuple(scores.shape) != (len(tokens),):
            got = None if scores is None else tuple(scores.shape)
            raise ValueError(f"top-k needs scores of shape ({len(tokens)},), got {got}")
        best = scores.sort(descending=True, stable=True).indices[:budget]
        return best.sort().values.cpu()
