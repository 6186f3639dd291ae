"""Which visual tokens to keep for a question: one method per file, each a frozen dataclass with one verb."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from longtake.select.oracle import Oracle
from longtake.select.random import Random
from longtake.select.topk import TopK
from longtake.select.uniform import Uniform

if TYPE_CHECKING:
    from torch import Tensor

    from longtake.types import VisualTokens

__all__ = ["Oracle", "Random", "Selector", "TopK", "Uniform"]


class Selector(Protocol):
    """Chooses at most ``budget`` of a video's tokens.

    Every method is deterministic, keeps the order of time, row and column, and keeps all tokens when the budget allows.
    """

    @property
    def needs_scores(self) -> bool:
        """Whether ``select`` must be given the relevance of each token to the question."""

    def select(self, tokens: VisualTokens, budget: int, scores: Tensor | None = None) -> Tensor:
        """The kept tokens' indices, int64 ``(kept,)``, ascending; scores are ``(tokens,)``, higher is kept first."""
