"""Grounding: while an answer is said, one layer is taught to look at what is asked about. Ours, not a paper's.

Needles have known places, so the attention of the rows that predict an answer's tokens can be supervised in one layer.
Binding ("the number on the red card") emerges sooner, a question about what is not there learns to look at nothing,
and the layer's attention is evidence that means something.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from longtake.train.embedded.rows import Batch, Lesson, looked_at_groups
from longtake.types import IGNORE


def grounding_loss(
    decoder: Qwen2ForCausalLM,
    layer: int,
    states: Tensor,
    batch: Batch,
    lessons: list[Lesson],
    per_group: int,
    comma: int,
) -> Tensor:
    """Mean over answer rows of -log(attention to the event the token is read from), attention averaged over heads.

    states: what goes into the layer, ``(batch, columns, hidden)``. comma: the token between an answer's parts. What is
    absent is to be looked for in no group: there the attention belongs on text.
    """
    rows, columns, wanted = answer_rows(batch, lessons, per_group, comma)
    if not len(rows):
        return states.sum() * 0
    attention = row_attention(decoder, layer, states, batch, rows, columns)
    mass = (attention.mean(dim=1) * wanted.to(attention.device)).sum(dim=1)
    return -torch.log(mass.clamp_min(1e-6)).mean()


def answer_rows(batch: Batch, lessons: list[Lesson], per_group: int, comma: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that predict tokens of answers.

    Returns their place in the batch and their column, int64 ``(rows,)`` each, and the columns they should look at, bool
    ``(rows, columns)``. A comma begins the next part of an answer; the end token counts in an order only.
    """
    places, columns, wanted = [], [], []
    for place, (mix, questions) in enumerate(lessons):
        visual = batch.visual[place]
        group = torch.where(visual >= 0, visual // per_group, len(mix.groups))
        for number, question in enumerate(questions, start=1):
            parts = looked_at_groups(mix, question)
            seen = [visual < 0 if not p.any() else torch.from_numpy(np.append(p, False))[group] for p in parts]
            answer = ((batch.turn[place] == number) & (batch.labels[place] != IGNORE)).nonzero()[:, 0]
            part = (batch.labels[place, answer] == comma).cumsum(0)
            part[-1] = len(parts) - 1
            if question.task != "order":
                answer, part = answer[:-1], part[:-1]
            for column, which in zip((answer - 1).tolist(), part.tolist(), strict=True):
                if seen[which].any():  # not when the video, or just these tokens, were left out
                    places.append(place)
                    columns.append(column)
                    wanted.append(seen[which])
    if not places:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.bool)
    return torch.tensor(places), torch.tensor(columns), torch.stack(wanted)


def row_attention(
    decoder: Qwen2ForCausalLM, layer: int, states: Tensor, batch: Batch, rows: Tensor, columns: Tensor
) -> Tensor:
    """Attention of some rows in one layer, float32 ``(rows, heads, columns)``, without the full matrix.

    rows: their places in the batch, ascending.
    """
    block = decoder.model.layers[layer]
    attention = block.self_attn
    normed = block.input_layernorm(states)
    shape = (*normed.shape[:2], -1, attention.head_dim)
    query = attention.q_proj(normed).view(shape).transpose(1, 2)
    key = attention.k_proj(normed).view(shape).transpose(1, 2)
    cos, sin = decoder.model.rotary_emb(normed, batch.positions.to(normed.device))
    query, key = apply_rotary_pos_emb(query, key, cos, sin)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    queries, keys = query.unbind(), key.unbind()  # query[place] would cost a zeroed gradient of everything each time
    at = {place: columns[rows == place].to(normed.device) for place in sorted(set(rows.tolist()))}
    logits = [
        torch.einsum("hrd,hld->rhl", queries[place].index_select(1, own), keys[place]).float()
        for place, own in at.items()  # one by one: an index into all at once has no repeatable gradient
    ]
    turn = batch.turn[rows]
    own = turn.gather(1, columns[:, None])
    places = torch.arange(turn.shape[1])
    seen = ((turn == 0) | (turn == own)) & (places[None] <= columns[:, None])
    scaled: Tensor = torch.cat(logits) * float(attention.scaling)
    return scaled.masked_fill(~seen[:, None].to(normed.device), float("-inf")).softmax(dim=-1)
