"""Groups of a bank's frames and their tokens: computed once where a compressor is frozen, made when asked for else."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longtake.train.embedded.compressor import CPU, compress

GROUPS_PER_PASS = 128


class BankGroups:
    """Tower features of a bank's groups.

    features: bf16 as int16, memory-mapped, ``(frames, tokens, dim)``.
    frames: which of them make each group, int64 ``(groups, frames_per_group)``; see ``regroup.group_frames``.
    """

    def __init__(self, features: NDArray[np.int16], frames: NDArray[np.int64]) -> None:
        self.features, self.frames = features, frames

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, groups: Tensor) -> Tensor:
        """Features of these groups, bf16 ``(groups, frames_per_group, tokens, dim)``."""
        return torch.from_numpy(self.features[self.frames[groups.numpy()]]).view(torch.bfloat16)


class LiveTokens:
    """A bank's tokens by a compressor that is being trained: made when they are asked for, with their gradient.

    device: where the compressor is, and its tokens will be.
    """

    def __init__(self, groups: BankGroups, compressor: nn.Module, pool: int, device: torch.device = CPU) -> None:
        self.groups, self.compressor, self.pool, self.device = groups, compressor, pool, device

    @property
    def shape(self) -> torch.Size:
        """The shape of all tokens, (groups, tokens, dim)."""
        _, tokens, dim = self.groups.features.shape
        return torch.Size((len(self.groups), tokens // self.pool**2, dim))

    def __getitem__(self, groups: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return compress(self.compressor, self.groups.read(groups).to(self.device), self.pool)


@torch.no_grad()
def frozen_tokens(groups: BankGroups, compressor: nn.Module, pool: int, device: torch.device = CPU) -> Tensor:
    """The tokens of all groups by a compressor that stays as it is, bf16 ``(groups, tokens, dim)`` on its device."""
    live = LiveTokens(groups, compressor, pool, device)
    return torch.cat([live[part].bfloat16() for part in torch.split(torch.arange(len(groups)), GROUPS_PER_PASS)])
