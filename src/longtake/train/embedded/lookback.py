"""Where a decoder's first layer looks: each head a fixed number of tokens back. Ours, not a paper's.

A stamp's last token must gather the digits before it, however long the video. From a random start a head learns to find
its neighbours among hundreds of tokens and loses them among thousands; rotary positions can say it exactly. Left to
training, the fourth head came to look three tokens back in one run, and times of 1,000 s and more were lost.
"""

from __future__ import annotations

from typing import cast

import torch
from transformers import Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

AMPLITUDE = 6.5  # a neighbour of the token looked at gets exp(-5) of its weight at a head size of 64
PAIRS = 8  # of a head's rotary pairs, the fastest; the others stay free for content


@torch.no_grad()
def look_back(decoder: Qwen2Model) -> None:
    """Set the first layer's query and key biases so that head n looks n + 1 tokens back, whatever stands there.

    With a query (a, 0) and a key turned by n + 1 places in each of some rotary pairs, the logit is a sum of
    a^2 cos(frequency x (distance - n - 1)), largest at that distance and nowhere near it in 8,192 places.

    Raises ValueError when heads share keys.
    """
    attention = cast(Qwen2Attention, decoder.layers[0].self_attn)
    size = attention.head_dim
    queries, keys = (layer.bias.view(-1, size) for layer in (attention.q_proj, attention.k_proj))
    if len(queries) != len(keys):
        raise ValueError(f"{len(queries)} heads share {len(keys)} keys; each needs its own")
    frequencies = cast(torch.Tensor, decoder.rotary_emb.inv_freq)[:PAIRS]
    for head, (query, key) in enumerate(zip(queries, keys, strict=True)):
        query[:PAIRS] = AMPLITUDE
        key[:PAIRS] = AMPLITUDE * torch.cos((head + 1) * frequencies)
        key[size // 2 : size // 2 + PAIRS] = AMPLITUDE * torch.sin((head + 1) * frequencies)
    keep_looking_back(decoder)


def keep_looking_back(decoder: Qwen2Model) -> None:
    """Freeze the first layer's queries and keys, so that no training turns them elsewhere."""
    attention = cast(Qwen2Attention, decoder.layers[0].self_attn)
    attention.q_proj.requires_grad_(False)
    attention.k_proj.requires_grad_(False)
