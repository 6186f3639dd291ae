"""A backbone and its policy loss, as one module that can be spread over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longtake.backbones.base import Backbone
from longtake.train import lora
from longtake.train.losses import Objective, policy_loss
from longtake.train.rollouts import Draw, Experience, Group
from longtake.train.tuning import idle


class Policy(nn.Module):
    """Scores sampled groups: a prompt is run once with its gradient, its completions go on from it together.

    A cached prompt without gradient would give the same loss and wrong gradients: what a completion reads of the prompt
    depends on the weights too.
    """

    def __init__(self, backbone: Backbone, objective: Objective, draw: Draw) -> None:
        super().__init__()
        self.model = backbone.model
        self.backbone, self.objective, self.draw = backbone, objective, draw

    def forward(self, *experiences: Experience) -> tuple[Tensor, ...]:
        """Summed loss over all groups, then the sums that ``Loss`` lists: clipped, kl, surprise, tokens.

        Every trained weight has a gradient afterwards, zero where no prompt uses it.
        """
        logprobs = self.logprobs(*(own.group for own in experiences))
        longest = logprobs.shape[1]
        references = [own.reference for own in experiences if own.reference is not None]
        old = [own.old for own in experiences if own.old is not None]
        found = policy_loss(
            logprobs,
            rows_of(old, longest).to(logprobs) if old else logprobs.detach(),
            rows_of([own.advantages for own in experiences], longest).to(logprobs.device),
            rows_of([own.mask for own in experiences], longest).to(logprobs.device),
            self.objective,
            longest=self.draw.max_new_tokens,
            reference=rows_of(references, longest).to(logprobs) if references else None,
        )
        return found.loss + idle(self.backbone.video_parts), found.clipped, found.kl, found.surprise, found.tokens

    def logprobs(self, *groups: Group) -> Tensor:
        """Log-probabilities of the sampled tokens at the sampling temperature, float32, differentiable.

        Groups are equally large and one below the other, ``(groups x group, longest)``; padding is 0.
        """
        inputs = self.backbone.prepare([group.puzzle.prompt(self.backbone) for group in groups])
        ids = [rollout.ids for group in groups for rollout in group.rollouts]
        return self.backbone.logprobs(inputs, ids, temperature=self.draw.temperature)

    @torch.no_grad()
    def reference_logprobs(self, group: Group) -> Tensor:
        """Log-probabilities as in ``logprobs``, without gradient and with LoRA switched off."""
        with lora.switched_off(self.model):
            return self.logprobs(group)


def rows_of(parts: Sequence[Tensor], longest: int) -> Tensor:
    """Rows of several groups below each other, each ``(group,)``, or ``(group, tokens)`` padded by 0 to the longest."""
    if parts[0].ndim == 1:
        return torch.cat(list(parts))
    return torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts])
