"""A backbone and its policy loss, as one module that can be spread over processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longtake.backbones.base import Backbone
from longtake.train import lora
from longtake.train.losses import Objective, policy_loss
from longtake.train.rollouts import Draw, Experience, Group
from longtake.train.tuning import idle


class Policy(nn.Module):
    """Scores sampled groups: the prompt is run once with its gradient, its completions go on from it together.

    A cached prompt without gradient would give the same loss and wrong gradients: what a completion reads of the prompt
    depends on the weights too.
    """

    def __init__(self, backbone: Backbone, objective: Objective, draw: Draw) -> None:
        super().__init__()
        self.model = backbone.model
        self.backbone, self.objective, self.draw = backbone, objective, draw

    def forward(self, experience: Experience) -> tuple[Tensor, ...]:
        """Summed loss, then the sums that ``Loss`` lists: clipped, kl, surprise, tokens.

        Every trained weight has a gradient afterwards, zero where the prompt does not use it.
        """
        logprobs = self.logprobs(experience.group)
        device = logprobs.device
        old, reference = experience.old, experience.reference
        found = policy_loss(
            logprobs,
            logprobs.detach() if old is None else old.to(device),
            experience.advantages.to(device),
            experience.mask.to(device),
            self.objective,
            longest=self.draw.max_new_tokens,
            reference=None if reference is None else reference.to(device),
        )
        return found.loss + idle(self.backbone.video_parts), found.clipped, found.kl, found.surprise, found.tokens

    def logprobs(self, group: Group) -> Tensor:
        """Log-probabilities of the sampled tokens at the sampling temperature, float32 ``(group, longest)``.

        Differentiable.
        """
        inputs = self.backbone.prepare([group.puzzle.prompt(self.backbone)])
        return self.backbone.logprobs(
            inputs, [rollout.ids for rollout in group.rollouts], temperature=self.draw.temperature
        )

    @torch.no_grad()
    def reference_logprobs(self, group: Group) -> Tensor:
        """Log-probabilities as in ``logprobs``, without gradient and with LoRA switched off."""
        with lora.switched_off(self.model):
            return self.logprobs(group)
