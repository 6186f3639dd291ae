"""Weights of the query-aware selector: how much each visual token matters to a question.

``QueryScorer`` fits the paper's description (Video-XL-Pro, arXiv 2503.18478, section 3.2: question tokens only);
its scaling, second layer and straight-through use are our own. ``LegacySelector`` does what the released code
does, for published checkpoints. Which tokens to keep, given scores, is decided in ``select/``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Reduce = Literal["mean", "max"]


class QueryScorer(nn.Module):
    """Scaled dot products between projected visual tokens and question tokens, reduced over the question."""

    def __init__(self, hidden: int, dim: int, reduce: Reduce = "mean") -> None:
        super().__init__()
        self.query = nn.Sequential(nn.Linear(hidden, dim), nn.GELU(), nn.Linear(dim, dim))
        self.visual = nn.Linear(hidden, dim)
        self.reduce = reduce

    def forward(self, tokens: Tensor, query: Tensor) -> Tensor:
        """Visual tokens ``(tokens, hidden)`` and question states ``(query tokens, hidden)`` to scores ``(tokens,)``.

        The products are in float32 at least: in bfloat16 so many scores are equal that the earlier tokens are kept.
        """
        seen, asked = self.visual(tokens), self.query(query)
        wide = torch.promote_types(seen.dtype, torch.float32)
        dots = seen.to(wide) @ asked.to(wide).T * self.visual.out_features**-0.5
        return dots.mean(dim=1) if self.reduce == "mean" else dots.amax(dim=1)


class LegacySelector(nn.Module):
    """The selector of the released code, for published checkpoints; its odd points are kept.

    Scores are taken on a copy of the visual tokens in which each is replaced by an attention over the time
    tokens of its own group (values are the time tokens' queries, not a value projection). The released code
    builds it as one masked matrix over the whole video; here each group is computed alone, which is the same.
    """

    def __init__(self, hidden: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.text_mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU())
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, hidden)

    def forward(self, block: Tensor, is_visual: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """A video's embeddings in the prompt, and the scores in [0, 1] of its visual tokens, ``(tokens,)``.

        block: ``(length, hidden)``, for each group the embeddings of its time text, then its visual tokens.
        is_visual: bool ``(length,)``. query: embeddings of all prompt text outside the block (system text and
        template included), ``(text tokens, hidden)``. The whole block is turned by ``rotate``, then each visual
        token's score is added to all of its channels.
        """
        scores = min_max(self.attend(block, is_visual) @ self.text_mlp(query).mean(dim=0))
        added = torch.zeros_like(block[:, 0]).masked_scatter(is_visual, scores)
        return rotate(block) + added[:, None], scores

    def attend(self, block: Tensor, is_visual: Tensor) -> Tensor:
        """Each visual token replaced by a mixture of its group's time tokens: ``(tokens, hidden)``."""
        starts = ~is_visual & torch.cat([is_visual.new_ones(1), is_visual[:-1]])
        group = starts.cumsum(0) - 1
        stamps, is_stamp = _by_group(block[~is_visual], group[~is_visual])
        places, is_place = _by_group(block[is_visual], group[is_visual])
        time = self.q_proj(stamps).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys = self.k_proj(places).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(keys, time, time, attn_mask=is_stamp[:, None, None, :])
        return self.out_proj(mixed.transpose(1, 2).flatten(2)[is_place])


def _by_group(rows: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(rows, dim)`` in the order of groups to ``(groups, most, dim)``, and a bool mask, False on padding."""
    counts = torch.bincount(group)
    padded = nn.utils.rnn.pad_sequence(rows.split(counts.tolist()), batch_first=True)
    return padded, torch.arange(padded.shape[1], device=rows.device) < counts[:, None]


def min_max(scores: Tensor) -> Tensor:
    """Scores of one video stretched to [0, 1]; all zero, without a gradient, when they do not differ."""
    low, high = scores.amin(), scores.amax()
    stretched = (scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).tiny)
    return torch.where(high > low, stretched, 0.0)


def straight_through(tokens: Tensor, scores: Tensor) -> Tensor:
    """Tokens ``(tokens, dim)`` unchanged in value, through which gradients reach the scores ``(tokens,)``.

    A score's gradient is the loss's change if its token were made larger. Ours; the released code adds the score.
    """
    return tokens * (1 + (scores - scores.detach()))[:, None]


def rotate(embeddings: Tensor, theta: float = 1e6) -> Tensor:
    """A rotary turn of whole embeddings ``(length, dim)`` by their place, in interleaved pairs of channels."""
    length, dim = embeddings.shape
    frequency = theta ** (-torch.arange(0, dim, 2, device=embeddings.device, dtype=torch.float32) / dim)
    angle = torch.arange(length, device=embeddings.device, dtype=torch.float32)[:, None] * frequency
    even, odd = embeddings[:, 0::2].float(), embeddings[:, 1::2].float()
    turned = torch.stack([even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()], dim=-1)
    return turned.flatten(1).to(embeddings.dtype)
