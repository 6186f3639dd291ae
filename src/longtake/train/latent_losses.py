"""Losses on latents beside a right answer's, and figures that tell whether the latents do anything.

VideoLatent, arXiv 2606.22870, names "latent alignment" and "latent diversity"; the forms here are ours. All are of
contents ``(rows, latents, dim)``, before a slot's own vector is added: with it latents would agree, or differ, anyway.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.models.dts import at_least_float32 as wide


def disagreement(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over latents of 1 - cosine, ``(rows,)``; the target gets no gradient."""
    return 1 - F.cosine_similarity(wide(predicted), wide(target.detach()), dim=-1).mean(dim=-1)


def pair_cosines(content: Tensor) -> Tensor:
    """Cosines of all pairs of different latents of a row, ``(rows, latents x (latents - 1))``."""
    count = content.shape[1]
    unit = F.normalize(wide(content), dim=-1)
    different = ~torch.eye(count, dtype=torch.bool, device=content.device)
    with torch.autocast(unit.device.type, enabled=False):  # a product would lose digits that are compared with a margin
        return (unit @ unit.transpose(1, 2))[:, different]


def alike_within(content: Tensor, margin: float) -> Tensor:
    """Mean over a row's pairs of the squared cosine above the margin, ``(rows,)``; 0 with one latent."""
    if content.shape[1] < 2:
        return wide(content).sum(dim=(1, 2)) * 0.0
    return (pair_cosines(content) - margin).relu().square().mean(dim=-1)


def alike_across(content: Tensor, others: Tensor, counts: Tensor, margin: float) -> Tensor:
    """Mean over other samples' latents at the same slot of the squared cosine above the margin, ``(rows,)``.

    others: ``(others, latents, dim)``, without gradient. counts: bool ``(rows, others)``, which are other samples.
    The loss is 0 for a row without any.
    """
    unit = F.normalize(wide(content), dim=-1)
    other = F.normalize(others.detach().to(unit), dim=-1)
    with torch.autocast(unit.device.type, enabled=False):
        cosines = torch.einsum("rkd,okd->rok", unit, other)
    each = (cosines - margin).relu().square().mean(dim=-1) * counts.to(cosines.device)
    return each.sum(dim=-1) / counts.sum(dim=-1).clamp_min(1).to(each)


def effective_rank(latents: Tensor) -> Tensor:
    """The exponential of the entropy of a row's singular values, ``(rows,)``, 1 to the number of latents.

    Roy and Vetterli, "The effective rank" (2007). ``(rows, latents, dim)``.
    """
    values = torch.linalg.svdvals(wide(latents))
    shares = values / values.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum(dim=-1).exp()


def chunk_means(features: Tensor, chunks: int) -> Tensor:
    """A video's tokens ``(tokens, dim)`` as means of ``chunks`` equal stretches, less the mean of all, float32.

    Without the mean of all, chunks of a video are nearly parallel and would ask all latents to be one.
    """
    edges = [len(features) * number / chunks for number in range(chunks + 1)]
    means = [
        features[int(start) : max(int(stop), int(start) + 1)].float().mean(dim=0)
        for start, stop in zip(edges, edges[1:], strict=False)
    ]
    return torch.stack(means) - features.float().mean(dim=0)


def state_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over layers of the smooth L1 distance over the teacher's deviation in that layer, ``(rows,)``.

    student, teacher: ``(layers, rows, dim)``; the teacher gets no gradient. Form: CODI, arXiv 2502.21074.
    """
    teacher = wide(teacher.detach())
    spread = teacher.std(dim=-1, keepdim=True).clamp_min(1e-6)
    return (F.smooth_l1_loss(wide(student), teacher, reduction="none") / spread).mean(dim=(0, 2))
