"""Policy losses as pure functions: one formula with switches for the ratio, the surrogate and the average.

Shapes: ``rows`` completions padded on the right to ``tokens``. Log-probabilities are float32. Everything is summed, and
``count`` says by what: so passes and processes of unequal size add up to the same mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from longtake.types import LongtakeError

Ratio = Literal["token", "sequence", "product"]
Surrogate = Literal["clip", "weight"]
Average = Literal["sequence", "token", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Which policy loss: its ratio, its surrogate, and how it is averaged.

    ratio: of the new to the old policy: of each "token"; of a "sequence" as the geometric mean over its tokens (GSPO,
        arXiv 2507.18071, equation 7); or the "product" over them, a sequence's own ratio (RLOO in TRL).
    surrogate: "clip": min(ratio A, clip(ratio) A), as in PPO. "weight": the ratio clipped from above, without gradient,
        times A log pi, so that no token loses its gradient (CISPO, arXiv 2506.13585, equations 4 and 5).
    clip_low, clip_high: the ratio is kept from 1 - clip_low to 1 + clip_high; they differ in DAPO (equation 10).
    average: "sequence": over a row's tokens, then over rows (GRPO, arXiv 2402.03300, equation 3). "token": over all
        tokens (DAPO, arXiv 2503.14476, equation 12). "constant": over rows x the longest that may be sampled (Dr. GRPO,
        arXiv 2503.20783).
    kl: weight of the k3 estimate of the divergence from a reference policy.
    """

    ratio: Ratio = "token"
    surrogate: Surrogate = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    average: Average = "sequence"
    kl: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1 or not self.clip_high >= 0:
            raise LongtakeError(
                f"clip_low is {self.clip_low} and clip_high {self.clip_high}; clip_low must be from 0 to 1 and "
                "clip_high not negative"
            )
        if self.kl < 0:
            raise LongtakeError(f"kl is {self.kl}; it must be positive, or 0 for none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Sums over rows and tokens; divide ``loss`` by ``count``, the others by ``tokens``.

    loss: a scalar that carries the gradient. clipped: tokens whose gradient the clipping took, or, with a "weight",
    whose weight it cut. kl: k3 against the reference. surprise: -log pi of the sampled tokens, whose mean estimates the
    entropy. tokens: how many count.
    """

    loss: Tensor
    clipped: Tensor
    kl: Tensor
    surprise: Tensor
    tokens: Tensor


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Per-token estimate exp(d) - d - 1 of KL(pi || reference), d = log reference - log pi; same shape, >= 0.

    Source: DeepSeekMath, arXiv 2402.03300, equation 4 (Schulman, 2020).
    """
    gap = reference - logprobs
    return gap.exp() - gap - 1


def ratios(logprobs: Tensor, old: Tensor, mask: Tensor, kind: Ratio) -> Tensor:
    """pi / pi_old, ``(rows, tokens)`` by token or ``(rows, 1)``; ``mask`` says which tokens count."""
    gap = torch.where(mask, logprobs - old, torch.zeros_like(logprobs))
    if kind == "token":
        return gap.exp()
    summed = gap.sum(dim=1, keepdim=True)
    return summed.exp() if kind == "product" else (summed / _lengths(mask)[:, None]).exp()


def policy_loss(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    objective: Objective,
    *,
    longest: int,
    reference: Tensor | None = None,
) -> Loss:
    """The summed policy loss, to be made smaller, and sums for figures.

    logprobs, old, reference: ``(rows, tokens)``, of the sampled tokens under the policy, under that which sampled them,
    and under the reference. advantages: ``(rows,)`` or ``(rows, tokens)``. mask: bool ``(rows, tokens)``. longest: the
    most tokens that might have been sampled, for the "constant" average; the loss is to be divided by ``count``.
    """
    if objective.kl and reference is None:
        raise ValueError(f"kl is {objective.kl}, but there are no log-probabilities of a reference")
    nothing = torch.zeros_like(logprobs)
    logprobs = torch.where(mask, logprobs, nothing)  # padding may be infinite; no gradient reaches it
    gain = advantages if advantages.ndim == 2 else advantages[:, None]
    ratio = ratios(logprobs, old, mask, objective.ratio)
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    if objective.surrogate == "weight":
        each = -ratio.clamp(max=high).detach() * gain * logprobs
        clipped = ratio > high
    else:
        each = -torch.minimum(ratio * gain, ratio.clamp(low, high) * gain)
        clipped = ((ratio < low) & (gain < 0)) | ((ratio > high) & (gain > 0))
    divergence = nothing
    if reference is not None:
        divergence = k3(logprobs, torch.where(mask, reference, nothing))
        each = each + objective.kl * divergence
    return Loss(
        loss=_summed(each, mask, objective.average),
        clipped=_total(clipped.to(logprobs.dtype), mask),
        kl=_total(divergence.detach(), mask),
        surprise=_total(-logprobs.detach(), mask),
        tokens=mask.sum(),
    )


def count(mask: Tensor, average: Average, longest: int) -> int:
    """The number that a summed loss is divided by: rows, tokens, or rows x ``longest``. A row of no tokens counts."""
    return {"sequence": len(mask), "token": int(mask.sum()), "constant": len(mask) * longest}[average]


def _summed(each: Tensor, mask: Tensor, average: Average) -> Tensor:
    """Per-token values ``(rows, tokens)`` or ``(rows, 1)`` summed; each row's mean where rows are averaged."""
    values = torch.where(mask, each, torch.zeros_like(each))  # a row's own value stands at each of its tokens
    by_row = values.sum(dim=1)
    return (by_row / _lengths(mask)).sum() if average == "sequence" else by_row.sum()


def _total(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def _lengths(mask: Tensor) -> Tensor:
    return mask.sum(dim=1).clamp(min=1)
