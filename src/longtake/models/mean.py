"""The mean over a group's frames: compression without a trained part, the control beside the DTS."""

from __future__ import annotations

from torch import Tensor, nn


class TemporalMean(nn.Module):
    """The mean of a group's frames, where a ``DynamicTokenSynthesizer`` may stand; one frame stays as it is."""

    def __init__(self, frames_per_group: int) -> None:
        super().__init__()
        self.frames_per_group = frames_per_group

    def forward(self, features: Tensor) -> Tensor:
        """``(groups, frames_per_group, rows, columns, dim)`` to ``(groups, rows, columns, dim)``."""
        if features.shape[1] != self.frames_per_group:
            raise ValueError(f"a group holds {features.shape[1]} frames; it must hold {self.frames_per_group}")
        return features.mean(dim=1)
