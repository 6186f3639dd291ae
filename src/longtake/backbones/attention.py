"""Causal attention for long prompts: exact, in blocks of queries, and able to say where the last column looked.

Registered with transformers as ``longtake_sdpa``. Masks stay ``(batch, keys)``: what is causal is worked out a
block at a time, so nothing of the size queries x keys is built for a long prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface

from longtake.models.products import by_products, causal, pays

NAME = "longtake_sdpa"
BLOCK_QUERIES = 512  # a block's mask is BLOCK_QUERIES x keys; the block skips all keys after its last query


@dataclass(slots=True, kw_only=True)
class Recorder:
    """Collects where the last columns look, in the given layers, during one forward pass; of each branch abreast."""

    layers: frozenset[int]
    columns: int = 1
    rows: list[Tensor] = field(default_factory=list)  # (batch, columns, keys) a layer, the mean over its heads

    def mean(self) -> Tensor:
        """Where the last column looked, mean over the recorded layers: float32 ``(batch, keys)``, each row's sum 1."""
        return self.means()[:, -1]

    def means(self) -> Tensor:
        """Where all recorded columns looked, mean over the recorded layers: float32 ``(batch, columns, keys)``."""
        return torch.stack(self.rows).mean(dim=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Veil:
    """Columns that some other columns do not see, beside what is causal: bool ``(batch, all columns)`` each.

    hidden: not seen by the columns that are ``blind``. A column always sees itself.
    """

    hidden: Tensor
    blind: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Branches:
    """How a row's columns go on from one stem: ``stem`` columns, then ``count`` branches of equal length.

    A branch sees the stem and itself, so that completions of one prompt are run together and the prompt once, with its
    gradient: unlike a cache this also goes with layers that are computed again in the backward pass.
    """

    stem: int
    count: int

    def joined(self, rows: Tensor) -> Tensor:
        """Rows ``(batch x count, columns, ...)`` as stems with branches behind them, ``(batch, columns, ...)``."""
        own = rows[:, self.stem :].unflatten(0, (-1, self.count)).flatten(1, 2)
        return torch.cat([rows[:: self.count, : self.stem], own], dim=1)

    def parted(self, joined: Tensor) -> Tensor:
        """Each branch as a row again, behind a copy of its stem: ``(batch x count, columns, ...)``."""
        own = joined[:, self.stem :].unflatten(1, (self.count, -1)).flatten(0, 1)
        return torch.cat([joined[:, : self.stem].repeat_interleave(self.count, dim=0), own], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abreast:
    """``count`` branches a row that grow together, behind ``stem`` columns that are cached.

    A branch sees the stem and itself. The cache has the stem once, then a column of each branch, and so on; as many new
    columns of each are run at a time as one likes, in the same order.
    """

    stem: int
    count: int


def looks(query: Tensor, key: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """Where the last queries look, averaged over heads: float32 ``(batch, columns, keys)``.

    query: ``(batch, heads, queries, dim)``; key: ``(batch, key heads, keys, dim)``; seen: bool ``(batch or 1, columns,
    keys)``, of the last ``columns`` queries.
    """
    last = query[:, :, -seen.shape[1] :].unflatten(1, (key.shape[1], query.shape[1] // key.shape[1]))
    scores = (last @ key[:, :, None].transpose(-1, -2)).float() * scaling
    return scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(dim=-1).mean(dim=(1, 2))


def seen_last(columns: int, keys: int, mask: Tensor | None, device: torch.device) -> Tensor:
    """What the last columns see, causally: bool ``(batch or 1, columns, keys)``; mask: bool ``(batch, keys)``."""
    place = torch.arange(keys, device=device)
    seen = (place <= place[keys - columns :, None])[None]
    return seen if mask is None else seen & mask[:, None]


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scaling: float,
    dropout: float = 0.0,
    veil: Veil | None = None,
) -> Tensor:
    """Softmax attention in which query i of n sees keys up to ``keys - n + i``: ``(batch, heads, queries, dim)``.

    A query that padding or a veil leaves with nothing to see sees itself, so that neither ever makes a NaN.
    """
    queries, keys = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    attend = partial(F.scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    if not dropout and pays(query, key):
        allowed = causal(queries, keys)
        if mask is not None or veil is not None:
            allowed = visible(range(queries), queries, keys, mask, veil, query.device)[:, None]
        return by_products(query, key, value, allowed, scaling=scaling)
    if queries == 1 and veil is None:  # query heads that share a key head are rows of one product; keys are not copied
        rows = query.reshape(query.shape[0], key.shape[1], groups, query.shape[3])
        return attend(rows, key, value, attn_mask=None if mask is None else mask[:, None, None]).view_as(query)
    if mask is None and veil is None and queries == keys:
        return attend(query, key, value, is_causal=True, enable_gqa=groups > 1)
    if mask is None and veil is None and fuses(query, key, value, dropout):
        return attend(query, key, value, attn_mask=causal_lower_right(queries, keys), enable_gqa=groups > 1)
    if groups > 1:  # with a mask, grouped heads would leave CUDA only its slow kernel, which builds all scores
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    outputs = []
    for start in range(0, queries, BLOCK_QUERIES):
        stop = min(start + BLOCK_QUERIES, queries)
        seen = keys - queries + stop
        allowed = visible(range(start, stop), queries, keys, mask, veil, query.device)
        block = (query[:, :, start:stop], key[:, :, :seen], value[:, :, :seen])
        outputs.append(attend(*block, attn_mask=allowed[:, None]))
    return torch.cat(outputs, dim=2)


def visible(
    block: range, queries: int, keys: int, mask: Tensor | None, veil: Veil | None, device: torch.device
) -> Tensor:
    """What a block of the queries sees of the keys up to its last one's: bool ``(batch or 1, block, keys so far)``."""
    position = torch.arange(keys - queries + block.stop, device=device)
    own = position[-len(block) :, None]
    allowed = (position <= own)[None]
    if mask is not None:
        allowed = (allowed & mask[:, None, : len(position)]) | (position == own)
    if veil is not None:
        unseen = veil.blind[:, own] & veil.hidden[:, None, : len(position)]
        allowed = (allowed & ~unseen) | (position == own)
    return allowed


def branched_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    branches: Branches,
    *,
    scaling: float,
    dropout: float = 0.0,
    veil: Veil | None = None,
) -> Tensor:
    """Causal attention within the stem, and within each branch over stem and branch: ``(batch, heads, columns, dim)``.

    Keys and values of the stem are copied for each branch, in one layer at a time; nothing else of the stem is. veil:
    its rows are branches ``(batch x count, stem and branch)``; the stem is not blind.
    """
    stem, count = branches.stem, branches.count

    def alone(columns: Tensor) -> Tensor:
        """Branches as rows of their own: ``(batch x count, heads, branch columns, dim)``."""
        return columns[:, :, stem:].unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)

    def grown(columns: Tensor) -> Tensor:
        return torch.cat([columns[:, :, :stem].repeat_interleave(count, dim=0), alone(columns)], dim=2)

    attend = partial(causal_attention, scaling=scaling, dropout=dropout)
    below = None if mask is None else mask[:, :stem]
    first = attend(query[:, :, :stem], key[:, :, :stem], value[:, :, :stem], below)
    wider = None if mask is None else branches.parted(mask)
    rest = attend(alone(query), grown(key), grown(value), wider, veil=veil)
    return torch.cat([first, rest.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3)], dim=2)


def abreast_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, abreast: Abreast, *, scaling: float
) -> Tensor:
    """Attention of the newest columns of each branch over the stem and its own branch: ``(batch, heads, new, dim)``.

    query: ``(batch, heads, new, dim)``, new being a multiple of ``count``; key, value: ``(batch, key heads, keys,
    dim)``, of stem and branches as ``Abreast`` says; mask: bool ``(batch, keys)``. All branches of a row are queries of
    one product, so that the stem is read once for all of them.
    """
    (heads, new, dim), key_heads = query.shape[1:], key.shape[1]
    groups = heads // key_heads  # query heads that share a key head are rows of one product; keys are not copied
    rows = query.reshape(query.shape[0], key_heads, groups * new, dim)
    seen = seen_abreast(new, key.shape[2], mask, abreast, query.device).repeat(1, groups, 1)[:, None]
    return F.scaled_dot_product_attention(rows, key, value, attn_mask=seen, scale=scaling).reshape(query.shape)


def seen_abreast(new: int, keys: int, mask: Tensor | None, abreast: Abreast, device: torch.device) -> Tensor:
    """What the newest columns see of the keys, bool ``(batch or 1, new, keys)``."""
    place = torch.arange(keys - abreast.stem, device=device)
    own = place[-new:, None]
    seen = F.pad((place % abreast.count == own % abreast.count) & (place <= own), (abreast.stem, 0), value=True)[None]
    return seen if mask is None else seen & mask[:, None]


def fuses(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether CUDA's flash kernel takes these, which knows what is causal by itself: half precision, no padding.

    It reads grouped keys as they are and builds no mask, so that a long prompt's next columns cost products alone.
    """
    grouped = query.shape[1] != key.shape[1]
    return query.is_cuda and bool(can_use_flash_attention(SDPAParams(query, key, value, None, dropout, False, grouped)))


def longtake_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    recorder: Recorder | None = None,
    branches: Branches | Abreast | None = None,
    veil: Veil | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention signature; the last three arrive as keywords of the model's forward."""
    if recorder is not None and module.layer_idx in recorder.layers:
        keys, device = key.shape[2], key.device
        if isinstance(branches, Abreast):
            seen = seen_abreast(branches.count, keys, attention_mask, branches, device)
        else:
            seen = seen_last(recorder.columns, keys, attention_mask, device)
        recorder.rows.append(looks(query, key, seen, scaling))
    if branches is None:
        output = causal_attention(query, key, value, attention_mask, scaling=scaling, dropout=dropout, veil=veil)
    elif isinstance(branches, Abreast):
        output = abreast_attention(query, key, value, attention_mask, branches, scaling=scaling)
    else:
        output = branched_attention(
            query, key, value, attention_mask, branches, scaling=scaling, dropout=dropout, veil=veil
        )
    return output.transpose(1, 2).contiguous(), None


def key_mask(*, attention_mask: Tensor | None = None, **kwargs: object) -> Tensor | None:
    """transformers' mask signature: the padding mask as it is, or None where nothing is padded."""
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask


AttentionInterface.register(NAME, longtake_sdpa)
AttentionMaskInterface.register(NAME, key_mask)
