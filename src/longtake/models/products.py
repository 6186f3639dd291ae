"""Attention of short rows written out as products, which a CPU trains on faster than on the fused kernel.

In bfloat16 the fused kernel's backward pass is slow on a CPU where rows are short: ``python benchmarks/training.py
attention`` compares the two. Scores are rounded to bfloat16 when they are written out, as in transformers' eager
attention. Without a gradient nothing changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_SCORES = 1 << 20  # of a head; above, computing what a causal mask hides costs more than is gained
SCORES_AT_ONCE = 1 << 20  # of some rows' heads together, so that they stay in the cache


def pays(query: Tensor, key: Tensor) -> bool:
    """Whether products are faster: bfloat16 rows of a thousand columns at most that are trained on, on a CPU."""
    trained = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    short = query.shape[2] * key.shape[2] <= MOST_SCORES
    return trained and short and dtype == torch.bfloat16 and query.device.type == "cpu"


def by_products(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, *, scaling: float) -> Tensor:
    """Softmax attention in bfloat16, a few rows at a time: ``(batch, heads, queries, dim)``.

    allowed: bool ``(batch or 1, 1, queries, keys)``, of which every query has one; None lets every query see all keys.
    key, value: ``(batch, key heads, keys, dim)``; heads that share a key stand side by side.
    """
    batch, heads, queries, _ = query.shape
    keys, groups = key.shape[2], heads // key.shape[1]
    query, key, value = (states.bfloat16() for states in (query, key, value))
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    bias = None
    if allowed is not None:
        bias = torch.zeros(allowed.shape, dtype=torch.bfloat16).masked_fill(~allowed, float("-inf"))
    rows = max(1, SCORES_AT_ONCE // (heads * queries * keys))
    outputs = []
    for start in range(0, batch, rows):
        own = slice(start, start + rows)
        scores = (query[own] * scaling) @ key[own].transpose(-1, -2)
        if bias is not None:
            scores = scores + (bias if len(bias) == 1 else bias[own])
        outputs.append(scores.softmax(dim=-1) @ value[own])
    return torch.cat(outputs)


def causal(queries: int, keys: int) -> Tensor:
    """Which keys each of the last ``queries`` of them sees: itself and those before, bool ``(1, 1, queries, keys)``."""
    return torch.ones(1, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
