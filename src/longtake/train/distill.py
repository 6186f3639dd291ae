"""On-policy distillation: a teacher scores every token that the student sampled, and which samples to learn from.

Paper: Video-OPD, arXiv 2602.02994. Of it only the abstract could be read: reverse KL on the student's own samples, one
rollout a prompt, and TVDF, which keeps samples by the teacher's reliability and by disagreement. The forms are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longtake.types import LongtakeError


def teacher_advantages(teacher: Tensor, student: Tensor, mask: Tensor, *, largest: float = 10.0) -> Tensor:
    """log pi_teacher - log pi_student of the sampled tokens, ``(rows, tokens)``, without gradient, 0 off ``mask``.

    Its policy gradient is that of the reverse KL(student || teacher), token by token. largest: a token that the teacher
    holds impossible counts as much and no more (ours).
    """
    gap = (teacher - student).detach().clamp(-largest, largest)
    return torch.where(mask, gap, torch.zeros_like(gap))


def disagreement(advantages: Tensor, mask: Tensor) -> Tensor:
    """Mean |advantage| over a row's tokens, ``(rows,)``."""
    return torch.where(mask, advantages.abs(), torch.zeros_like(advantages)).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def kept_by_tvdf(reliability: Tensor, disagreements: Tensor, *, least: float = 0.5, share: float = 0.5) -> Tensor:
    """TVDF: of the samples with a reliable teacher, the share that it disagrees with most; bool ``(samples,)``.

    reliability: the teacher's own score at the task, ``(samples,)``, for example its reward; at least ``least`` is
    reliable. share: of the reliable ones, rounded up; ties go to the earlier sample. Thresholds are ours.
    """
    if not 0 < share <= 1:
        raise LongtakeError(f"share is {share}; it must be above 0 and at most 1")
    reliable = reliability >= least
    wanted = math.ceil(share * int(reliable.sum()))
    ranked = torch.where(reliable, disagreements, torch.full_like(disagreements, -math.inf))
    kept = torch.zeros_like(reliable)
    kept[ranked.argsort(descending=True, stable=True)[:wanted]] = True
    return kept
