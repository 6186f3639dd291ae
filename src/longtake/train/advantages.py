"""Rewards of sampled groups to advantages: pure functions, one a method.

Shapes: ``prompts`` groups of ``group`` completions, each scored in ``parts``. No gradient passes here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from longtake.types import LongtakeError

Baseline = Literal["mean", "leave_one_out"]
Scale = Literal["group", "batch", "none"]

EPSILON = 1e-4  # beside a deviation, as in TRL
FLAT = 1e-3  # a group with a smaller deviation teaches nothing: its rewards differ by rounding (NeMo-RL's floor)


def group_advantages(rewards: Tensor, *, baseline: Baseline = "mean", scale: Scale = "group") -> Tensor:
    """Rewards ``(prompts, group)`` to advantages of the same shape; 0 in flat groups.

    baseline: "mean" of the group: GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2). "leave_one_out": the mean of
    the others: RLOO (arXiv 2402.14740; Kool et al., 2019); it is the former times group / (group - 1).
    scale: over the deviation (n - 1) of the "group" (GRPO), of the whole "batch" (arXiv 2508.08221), or "none": Dr.
    GRPO (arXiv 2503.20783, section 3).

    Raises LongtakeError for a group of one, which has nothing to be compared with.
    """
    _check_group(rewards)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if baseline == "leave_one_out":
        centred = centred * rewards.shape[1] / (rewards.shape[1] - 1)
    if scale == "group":
        centred = centred / (rewards.std(dim=1, keepdim=True) + EPSILON)
    elif scale == "batch":
        centred = centred / (rewards.std() + EPSILON)
    return centred * (~is_flat(rewards))[:, None]


def decoupled_advantages(parts: Tensor, weights: Tensor) -> Tensor:
    """GDPO: each part normalised in its group, weighed, summed, then normalised over the batch.

    parts: ``(prompts, group, parts)``; weights: ``(parts,)``; returns ``(prompts, group)``. Summed first, different
    mixtures of parts would collapse to one advantage. A part that is flat in a group counts 0 there.
    Source: arXiv 2601.05242, section 3.
    """
    _check_group(parts)
    centred = parts - parts.mean(dim=1, keepdim=True)
    deviation = parts.std(dim=1, keepdim=True)
    each = torch.where(deviation < FLAT, torch.zeros_like(centred), centred / (deviation + EPSILON))
    summed = (each * weights).sum(dim=2)
    return (summed - summed.mean()) / (summed.std() + EPSILON)


def is_flat(rewards: Tensor) -> Tensor:
    """Groups whose rewards ``(prompts, group)`` do not differ, bool ``(prompts,)``: all right, or all wrong.

    With ``(prompts, group, parts)``: groups that are flat in every part. DAPO leaves them out (arXiv 2503.14476,
    equation 11: 0 < number of right ones < group).
    """
    flat = rewards.std(dim=1) < FLAT
    return flat if flat.ndim == 1 else flat.all(dim=1)


def segment_advantages(before: Tensor, after: Tensor, split: Tensor, length: int) -> Tensor:
    """Advantages by token, ``(rows, length)``: ``before`` for the first ``split`` tokens of a row, then ``after``.

    before, after: ``(rows,)``. split: int64 ``(rows,)``; 0 where a row has no first segment, so that all of it gets the
    second. SD-GRPO of DynFrame (arXiv 2605.26680): what samples the video is judged by the sampling, the answer by its
    correctness. Written from its description; the released trainer has one advantage a row.
    """
    if bool((split < 0).any()) or bool((split > length).any()):
        raise ValueError(f"splits {split.tolist()} must lie from 0 to {length}")
    first = torch.arange(length, device=split.device)[None] < split[:, None]
    return torch.where(first, before[:, None], after[:, None])


def temporal_bonus(
    ordered: Tensor, shuffled: Tensor, *, bonus: float = 0.3, ratio: float = 0.8, above: float = 0.1
) -> Tensor:
    """T-GRPO's bonus on the rewards: ``bonus`` for right answers of a prompt that frames in order answer better.

    ordered: rewards of correctness ``(prompts, group)``. shuffled: of the same prompts with shuffled frames,
    ``(prompts, shuffled group)``. A prompt earns it where mean(ordered) >= ratio x mean(shuffled), and its answers
    where they are above ``above``. Source: Video-R1, arXiv 2503.21776, and its code (0.3, 0.8, 0.1).
    """
    better = ordered.mean(dim=1, keepdim=True) >= ratio * shuffled.mean(dim=1, keepdim=True)
    return bonus * (better & (ordered > above)).to(ordered.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """How a group's rewards become advantages. decoupled: GDPO, whose parts are normalised one by one."""

    baseline: Baseline = "mean"
    scale: Scale = "group"
    decoupled: bool = False

    def __post_init__(self) -> None:
        if self.decoupled and (self.baseline, self.scale) != ("mean", "group"):
            raise LongtakeError("decoupled is true; it has its own normalisation: leave baseline and scale as they are")

    def advantages(self, parts: Tensor, weights: Tensor) -> Tensor:
        """Parts ``(prompts, group, parts)`` and weights ``(parts,)`` to ``(prompts, group)``."""
        if self.decoupled:
            return decoupled_advantages(parts, weights)
        return group_advantages((parts * weights).sum(dim=2), baseline=self.baseline, scale=self.scale)

    def is_flat(self, parts: Tensor, weights: Tensor) -> Tensor:
        """Groups that teach nothing, bool ``(prompts,)``."""
        if self.decoupled:
            return is_flat(parts[..., weights != 0])
        return is_flat((parts * weights).sum(dim=2))


def _check_group(rewards: Tensor) -> None:
    if rewards.shape[1] < 2:
        raise LongtakeError(f"the group has {rewards.shape[1]} completion; it must have at least 2 to compare them")
