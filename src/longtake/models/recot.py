"""Reconstructive Token Compression (ReCoT): from video alone the DTS learns what its tokens must keep of a group.

Paper: Video-XL-Pro, arXiv 2503.18478, sections 3.1 and 3.2. Tokens of the frozen tower, some of them masked, go through
the DTS; a decoder with half of its parameters must give back all of the tower's tokens. The masking and the decoder
are thrown away afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longtake.models.dts import DynamicTokenSynthesizer, at_least_float32
from longtake.models.masking import Masking, Policy
from longtake.models.reconstructor import Reconstructor
from longtake.types import LongtakeError

Target = Literal["raw", "normed"]
Weight = Literal["all", "masked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReCoTOutput:
    """A pass's loss, its reconstruction, and the errors of masked and visible tokens.

    loss: scalar, differentiable. reconstruction: ``(clips, frames, rows, columns, dim)``, in the target's space.
    mask: bool ``(clips, frames, rows, columns)``, True where the DTS did not see a token. scores: the masking's, same
    shape. masked_error, visible_error: mean squared error over these tokens, detached; None where there are none.
    """

    loss: Tensor
    reconstruction: Tensor
    mask: Tensor
    scores: Tensor
    masked_error: Tensor | None
    visible_error: Tensor | None


class ReCoT(nn.Module):
    """Masking, DTS and reconstructor with one loss; ``self.dts`` is what pre-training is for.

    The paper states a mean squared error against the tower's tokens. That it runs over all tokens, visible ones too,
    and against raw tokens is ours: a compressor must keep what it sees.

    dim: width of the tower's tokens. frames_per_group: frames that become one (the paper's stride: 2, 4 or 8).
    policy, mask_ratio, candidates, queries: as in ``Masking``. target: "normed" asks for layer-normed tokens (no
    weights). weight: "masked" counts masked tokens only, where there are any. dts: one to go on with; None: a new one.
    Raises LongtakeError for a choice that does not exist and for a DTS of another stride.
    """

    def __init__(
        self,
        dim: int,
        frames_per_group: int = 4,
        *,
        policy: Policy = "semantic",
        mask_ratio: float = 0.5,
        candidates: float = 0.75,
        queries: int = 2,
        target: Target = "raw",
        weight: Weight = "all",
        dts: DynamicTokenSynthesizer | None = None,
    ) -> None:
        super().__init__()
        for name, value, allowed in (("target", target, get_args(Target)), ("weight", weight, get_args(Weight))):
            if value not in allowed:
                raise LongtakeError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if dts is not None and dts.frames_per_group != frames_per_group:
            raise LongtakeError(
                f"the DTS takes groups of {dts.frames_per_group} frames but frames_per_group is {frames_per_group}; "
                "give both the same"
            )
        self.frames_per_group = frames_per_group
        self.target = target
        self.weight = weight
        self.masking = Masking(
            dim,
            policy,
            mask_ratio=mask_ratio,
            candidates=candidates,
            frames_per_group=frames_per_group,
            queries=queries,
        )
        self.dts = DynamicTokenSynthesizer(dim, frames_per_group) if dts is None else dts
        self.reconstructor = Reconstructor(dim, frames_per_group)

    @torch.no_grad()
    def start_at_means(self, features: Tensor, *, keep_dts: bool = False) -> None:
        """Begin where a group's tokens are its frames' mean and the masked token is that of ``features`` (..., dim).

        Ours; the paper is silent. The loss then begins near ``mean_frames`` and not at the features' variance, of which
        half is each channel's own mean: a small mask token would make visible tokens stand in for it.
        keep_dts: of one to go on with the weights stay.
        """
        if not keep_dts:
            self.dts.start_as_mean()
        self.reconstructor.start_as_copies()
        self.masking.mask_token.copy_(at_least_float32(features).flatten(0, -2).mean(0))

    def forward(
        self,
        features: Tensor,
        is_image: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        oracle: Tensor | None = None,
    ) -> ReCoTOutput:
        """One batch of clips and images, ``(clips, frames, rows, columns, dim)``, frames a multiple of a group's.

        is_image: bool ``(clips,)``, True where all frames are one image repeated; None: all are videos.
        generator: decides the mask. oracle: bool ``(clips, frames, rows, columns)``, True where a needle is.
        In eval mode nothing is masked, as when the DTS is used; to measure masked tokens, stay in train mode (there
        is no other randomness).
        """
        clips, frames = features.shape[:2]
        if frames % self.frames_per_group:
            raise ValueError(f"clips have {frames} frames; it must be a multiple of {self.frames_per_group}")
        seen = features.to(self.masking.mask_token.dtype)
        masked = self.masking(seen, is_image, generator=generator, oracle=oracle)
        groups = masked.tokens.unflatten(1, (-1, self.frames_per_group)).flatten(0, 1)
        reconstruction = self.reconstructor(self.dts(groups)).view(features.shape)
        errors = token_errors(reconstruction, target_tokens(features, self.target))
        of_masked, of_visible = errors * masked.mask, errors * ~masked.mask
        num_masked, num_visible = clips * masked.num_masked, errors.numel() - clips * masked.num_masked
        only_masked = self.weight == "masked" and num_masked > 0
        return ReCoTOutput(
            loss=of_masked.sum() / num_masked if only_masked else errors.mean(),
            reconstruction=reconstruction,
            mask=masked.mask,
            scores=masked.scores,
            masked_error=of_masked.sum().detach() / num_masked if num_masked else None,
            visible_error=of_visible.sum().detach() / num_visible if num_visible else None,
        )


def target_tokens(features: Tensor, target: Target) -> Tensor:
    """Targets of the reconstruction, at least float32: tower features as they are, or layer-normed."""
    features = at_least_float32(features)
    return features if target == "raw" else F.layer_norm(features, features.shape[-1:])


def token_errors(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each token: ``(..., dim)`` twice to ``(...)``, at least float32."""
    return (at_least_float32(reconstruction) - at_least_float32(target)).square().mean(-1)


def mean_frames(target: Tensor, frames_per_group: int) -> Tensor:
    """The mean of its group in place of every frame of ``(clips, frames, rows, columns, dim)``.

    The best that one frame's tokens can do for a group without telling its frames apart: a reconstruction has to beat
    ``token_errors(mean_frames(target, n), target)``.
    """
    groups = target.unflatten(1, (-1, frames_per_group))
    return groups.mean(dim=2, keepdim=True).expand_as(groups).reshape(target.shape)
