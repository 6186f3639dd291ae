"""Prompts that have been read, ready for the first token of their completions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache as KeyValues

from longtake.backbones.attention import Abreast, Recorder
from longtake.backbones.base import Backbone, Cache, Inputs, Read
from longtake.backbones.keys import crop


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """Prompts of which completions go on.

    logits: ``(completions, vocabulary)``, of each one's last column. look: float32 ``(completions, columns of the
    inputs)``, where that looked. positions: int64 ``(batch, completions a row)``, of the first token. mask: bool
    ``(batch, keys)``. abreast: how the completions of a row go on side by side. keys: int64 ``(completions, columns)``,
    which key stands for a column of the inputs; None: each for its own.
    """

    key_values: KeyValues
    logits: Tensor
    look: Tensor
    positions: Tensor
    mask: Tensor | None
    abreast: Abreast | None
    keys: Tensor | None = None

    def aligned(self, recorder: Recorder) -> Tensor:
        """Where each completion's newest column looked, at the columns of the inputs, and any behind them."""
        looks = recorder.means().flatten(0, 1)
        return looks if self.keys is None else looks.gather(1, self.keys)


def cached(backbone: Backbone, read: Read, recorder: Recorder) -> Cache:
    """What was read, with what its last column gave."""
    logits = backbone.head(read.states[:, -1])
    return Cache(key_values=read.key_values, length=read.length, logits=logits, attention=recorder.mean())


def begin(backbone: Backbone, inputs: Inputs, cache: Cache | None, num_rollouts: int) -> Begun:
    """Read what is left of the prompts, for ``num_rollouts`` completions of each row."""
    rows = len(inputs.ids)
    if cache is not None and len(cache.logits) < rows:
        assert num_rollouts == 1, "rows that share a cache have one completion each"
        return _begin_side_by_side(backbone, inputs, cache)
    full = backbone.prefill(inputs, cache)
    return Begun(
        key_values=full.key_values,
        logits=full.logits.repeat_interleave(num_rollouts, dim=0),
        look=full.attention.repeat_interleave(num_rollouts, dim=0),
        positions=inputs.next_position[:, None].expand(-1, num_rollouts),
        mask=None if bool(inputs.mask.all()) else inputs.mask,
        abreast=Abreast(stem=full.length, count=num_rollouts) if num_rollouts > 1 else None,
    )


def _begin_side_by_side(backbone: Backbone, inputs: Inputs, prefix: Cache) -> Begun:
    """Read rows with one prefix, of which the cache is, as branches of it: a column of each, then the next of each."""
    stem, (rows, length), device = prefix.length, inputs.ids.shape, inputs.ids.device
    own = length - stem
    crop(prefix.key_values, stem)
    abreast, recorder, mask = Abreast(stem=stem, count=rows), backbone.recorder(), None
    if not bool(inputs.mask.all()):
        mask = torch.cat([inputs.mask[:1, :stem], inputs.mask[:, stem:].T.reshape(1, -1)], dim=1)
    states = backbone.run(
        inputs.embeddings[:, stem:].transpose(0, 1).flatten(0, 1)[None],
        inputs.positions[..., stem:].transpose(-1, -2).flatten(-2)[..., None, :],
        mask,
        prefix.key_values,
        recorder,
        abreast,
    )
    shared, behind = torch.arange(stem, device=device), torch.arange(own * rows, device=device).view(own, rows).T
    keys = torch.cat([shared.expand(rows, -1), behind + stem], dim=1)
    return Begun(
        key_values=prefix.key_values,
        logits=backbone.head(states[0, -rows:]),
        look=recorder.means()[0].gather(1, keys),
        positions=inputs.next_position[None],
        mask=mask,
        abreast=abreast,
        keys=keys,
    )
