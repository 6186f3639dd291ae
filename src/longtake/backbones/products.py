"""A decoder of transformers that trains on attention as products where they pay (``models/products.py``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longtake.models.products import by_products, causal, pays

NAME = "longtake_products"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: products where they pay, else its own fused attention."""
    if dropout or not pays(query, key) or (attention_mask is not None and attention_mask.dtype != torch.bool):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    allowed = causal(query.shape[2], key.shape[2]) if attention_mask is None else attention_mask
    output = by_products(query, key, value, allowed, scaling=scaling)
    return output.transpose(1, 2).contiguous(), None


def train_by_products(decoder: PreTrainedModel) -> None:
    """Let a decoder that attends by PyTorch's fused kernel train on products where they pay."""
    if decoder.config._attn_implementation == "sdpa":
        decoder.set_attn_implementation(NAME)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
