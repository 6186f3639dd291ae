"""GroupNorm of channels-last tensors, forward and backward in few passes over memory.

``nn.GroupNorm`` wants channels first, which takes two transposed copies, and autograd through a norm that is written
out passes over its input a dozen times more: ``python benchmarks/training.py compressor`` compares the three.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def group_norm(x_BLD: Tensor, norm: nn.GroupNorm) -> Tensor:
    """``norm`` of ``(batch, length, dim)``: statistics over the length and each block of channels.

    They are computed in float32 at least; the output has the input's type.
    """
    return _ChannelsLastNorm.apply(x_BLD, norm.weight, norm.bias, norm.num_groups, norm.eps)


class _ChannelsLastNorm(torch.autograd.Function):
    """Sums over the length come first and leave ``(batch, dim)``; what is of blocks is worked out on these."""

    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, weight: Tensor, bias: Tensor, blocks: int, eps: float) -> Tensor:
        wide = x_BLD.to(torch.promote_types(x_BLD.dtype, torch.float32))
        centred = wide - _block_means(wide.mean(dim=1), blocks)[:, None]
        del wide  # of a half precision a copy
        rstd_BD = torch.rsqrt(_block_means(centred.square().mean(dim=1), blocks) + eps)
        ctx.save_for_backward(centred, rstd_BD, weight)
        ctx.blocks = blocks
        return torch.addcmul(bias.to(centred.dtype), centred, (rstd_BD * weight)[:, None]).to(x_BLD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """With n = centred / std: ``rstd (g w - mean(g w) - n mean(g w n))``, means over a block."""
        centred, rstd_BD, weight = ctx.saved_tensors
        length = centred.shape[1]
        grad = grad_BLD.to(centred.dtype)
        grads_BD, along_BD = grad.sum(dim=1), (grad * centred).sum(dim=1) * rstd_BD
        mean_BD, slope_BD = (_block_means(total * weight, ctx.blocks) / length for total in (grads_BD, along_BD))
        x_grad = torch.addcmul((-mean_BD * rstd_BD)[:, None], grad, (rstd_BD * weight)[:, None])
        x_grad.addcmul_(centred, (-slope_BD * rstd_BD.square())[:, None])
        weight_grad, bias_grad = (total.sum(dim=0).to(weight.dtype) for total in (along_BD, grads_BD))
        return x_grad.to(grad_BLD.dtype), weight_grad, bias_grad, None, None


def _block_means(values_BD: Tensor, blocks: int) -> Tensor:
    """Each channel's block's mean, ``(batch, dim)``."""
    split = values_BD.unflatten(1, (blocks, -1))
    return split.mean(dim=2, keepdim=True).expand_as(split).flatten(1)
