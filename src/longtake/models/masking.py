"""Semantic-Guided Masking (SGM) and what it is compared with: which tokens are hidden from the compressor in training.

Paper: Video-XL-Pro, arXiv 2503.18478, section 3.2. A Temp Query times the previous frame's tokens and a Spatio Query
times the mean of the frame's own tokens are each attended with the frame's tokens; the two scores are summed, and
low-scoring tokens are masked at random. The forms follow a scorer that the released code keeps switched off. The
shares, the number of queries, the layer norm, the scale and the gradient's path are ours.

B clips, T frames, R rows, C columns, D channels; places are R x C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import init

from longtake.models.dts import at_least_float32
from longtake.models.scorer import straight_through
from longtake.types import LongtakeError

Policy = Literal["semantic", "random", "tube", "none", "oracle"]

FLAT = 1e-6  # a clip whose scores differ by less has no ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """Clips with some tokens hidden.

    tokens: ``(clips, frames, rows, columns, dim)``. mask: bool, its leading shape, True where a token was replaced.
    scores: float32 or wider, the same shape, 0 to 1 over each clip; differentiable. num_masked: tokens of each clip.
    """

    tokens: Tensor
    mask: Tensor
    scores: Tensor
    num_masked: int


class Masking(nn.Module):
    """Scores tokens, hides some of them behind a learned vector, and lets a gradient reach the scores.

    Hard masking gives the queries no gradient. So every token that stays visible is multiplied by one plus its score
    minus the same score cut off from the gradient (``straight_through``): its value does not change by a bit, so all
    policies show the compressor the tower's own tokens and differ in the places alone; and the score's gradient is
    the loss's change if its token were made larger. Ours: the released code's selector adds the score to the
    token, which shifts all channels of whatever the compressor sees. For the same reason the path is there under
    every policy: it costs the compressor nothing, and the queries of all can be compared.

    An image is its frame repeated; each copy is scored like a first frame, and masked for itself.
    In eval mode nothing is masked.

    dim: width of the tokens. policy: what is masked; see ``places_to_mask``. mask_ratio: share of the tokens.
    candidates: share from which "semantic" draws them, the lowest-scoring. frames_per_group: a tube's length.
    queries: vectors of each kind. Raises LongtakeError for shares out of order and an unknown policy.
    """

    def __init__(
        self,
        dim: int,
        policy: Policy = "semantic",
        *,
        mask_ratio: float = 0.5,
        candidates: float = 0.75,
        frames_per_group: int = 4,
        queries: int = 2,
    ) -> None:
        super().__init__()
        if policy not in get_args(Policy):
            raise LongtakeError(f"the masking policy is {policy!r}; it must be one of {', '.join(get_args(Policy))}")
        if not 0 <= mask_ratio <= candidates <= 1:
            raise LongtakeError(
                f"mask_ratio is {mask_ratio} and candidates {candidates}; masked tokens are drawn from the candidates, "
                "so give 0 <= mask_ratio <= candidates <= 1"
            )
        self.policy = policy
        self.mask_ratio = mask_ratio
        self.candidates = candidates
        self.frames_per_group = frames_per_group
        self.temp_query = nn.Parameter(torch.empty(queries, dim))
        self.spatio_query = nn.Parameter(torch.empty(queries, dim))
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw small vectors; ours.

        Scores are stretched to 0 to 1, so the queries' size changes their pace and not the ranking.
        """
        for parameter in (self.temp_query, self.spatio_query, self.mask_token):
            init.normal_(parameter, std=0.02)

    def forward(
        self,
        features: Tensor,
        is_image: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        oracle: Tensor | None = None,
    ) -> Masked:
        """``(clips, frames, rows, columns, dim)``, frames a multiple of a group's, to what the compressor sees.

        is_image: bool ``(clips,)``; None means that all are videos. generator: the same one masks the same places.
        oracle: bool ``(clips, frames, rows, columns)``, True where a needle is; "oracle" wants it.
        """
        scores = min_max_of_clips(token_scores(features, self.temp_query, self.spatio_query, is_image))
        num_masked = self.num_masked(features.shape[1], features.shape[2] * features.shape[3])
        if not num_masked:
            mask = torch.zeros_like(scores, dtype=torch.bool)
        else:
            mask = self.places_to_mask(scores.detach(), num_masked, generator, oracle)
        gated = straight_through(features.flatten(0, 3), scores.flatten()).view(features.shape).to(features.dtype)
        tokens = torch.where(mask[..., None], self.mask_token.to(features.dtype), gated)
        return Masked(tokens=tokens, mask=mask, scores=scores, num_masked=num_masked)

    def num_masked(self, frames: int, places: int) -> int:
        """How many tokens of a clip are masked: as many under every policy but "none"; 0 in eval mode.

        The share is rounded for a frame, so that a tube has a whole number of places.
        """
        return round(self.mask_ratio * places) * frames if self.training and self.policy != "none" else 0

    def places_to_mask(
        self, scores: Tensor, count: int, generator: torch.Generator | None, oracle: Tensor | None
    ) -> Tensor:
        """Bool ``(clips, frames, rows, columns)`` with ``count`` True a clip, by the policy.

        "semantic": drawn from the lowest-scoring. "random": from all. "tube": the same places on all frames of a
        group, drawn for each group. "oracle": from where no needle is, and of needles only what is still missing.
        """
        match self.policy:
            case "semantic":
                return semantic_places(scores, count, self.candidates, generator)
            case "tube":
                return tube_places(scores, count, self.frames_per_group, generator)
            case "oracle":
                if oracle is None:
                    raise ValueError('the policy "oracle" needs to know where needles are; pass oracle')
                return lowest(oracle.to(scores), count, generator)
            case _:
                return lowest(torch.zeros_like(scores), count, generator)


def token_scores(
    features: Tensor, temp_query: Tensor, spatio_query: Tensor, is_image: Tensor | None = None
) -> Tensor:
    """The raw score of each token, ``(clips, frames, rows, columns)``, at least float32.

    score_tn = (sum_k <x_tn, p_k x_(t-1)n> + mean_k <x_tn, s_k mean_m x_tm>) / sqrt(D), over tokens x that are
    layer-normed without weights; p_k is a Temp Query, s_k a Spatio Query, and the products are elementwise. The frame
    before the first is zero; so is the frame before any of an image. <x, q y> is linear in q, so the queries of a
    kind rank tokens as their sum does, and that is what is computed.

    features: ``(clips, frames, rows, columns, dim)``. Queries: ``(queries, dim)``. is_image: bool ``(clips,)``.
    """
    dim = features.shape[-1]
    normed_BTRCD = F.layer_norm(at_least_float32(features), (dim,))
    previous_BTRCD = F.pad(normed_BTRCD[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    if is_image is not None:
        previous_BTRCD = previous_BTRCD * ~is_image[:, None, None, None, None]
    mean_BTRCD = normed_BTRCD.mean(dim=(2, 3), keepdim=True)
    against_BTRCD = temp_query.sum(0) * previous_BTRCD + spatio_query.mean(0) * mean_BTRCD
    return (normed_BTRCD * against_BTRCD).sum(-1) * dim**-0.5


def min_max_of_clips(scores: Tensor) -> Tensor:
    """Scores ``(clips, frames, rows, columns)`` stretched to 0 to 1 over each clip; all 0 where they do not differ."""
    low, high = (extreme(dim=(1, 2, 3), keepdim=True) for extreme in (scores.amin, scores.amax))
    spread = high - low
    return torch.where(spread > FLAT, (scores - low) / spread.clamp_min(FLAT), 0.0)


def semantic_places(
    scores: Tensor, count: int, candidates: float, generator: torch.Generator | None = None
) -> Tensor:
    """``count`` places a clip, at random among the lowest-scoring share ``candidates``."""
    pool = max(count, round(candidates * scores[0].numel()))
    return lowest((~lowest(scores, pool, generator)).to(scores), count, generator)


def tube_places(
    scores: Tensor, count: int, frames_per_group: int, generator: torch.Generator | None = None
) -> Tensor:
    """``count`` places a clip, at random, the same on all frames of a group (VideoMAE, arXiv 2203.12602)."""
    clips, frames, rows, columns = scores.shape
    flat = torch.zeros(clips * (frames // frames_per_group), 1, rows, columns, device=scores.device)
    tubes = lowest(flat, count // frames, generator)
    return tubes.expand(-1, frames_per_group, -1, -1).reshape(scores.shape)


def lowest(keys: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Bool ``(clips, ...)``, True at the ``count`` smallest keys of each clip; ties are broken at random.

    Drawn on the generator's own device, so that one generator gives the same places on every device.
    """
    flat = keys.flatten(1)
    device = flat.device if generator is None else generator.device
    shuffled = torch.rand(flat.shape, generator=generator, device=device).argsort(dim=1).to(flat.device)
    order = shuffled.gather(1, flat.gather(1, shuffled).argsort(dim=1, stable=True))
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order[:, :count], True)
    return chosen.view(keys.shape)
