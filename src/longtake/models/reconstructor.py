"""ReCoT's decoder: from one frame's compressed tokens back to the tower's tokens of all frames of its group.

Paper: Video-XL-Pro, arXiv 2503.18478, section 3.1: the decoder has half of the encoder's parameters; its layout is not
stated. Ours: it mirrors the DTS with one stage for every two of its own, so that at 4 frames it has half exactly.
G groups, T frames, R rows, C columns, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import init

from longtake.models.dts import NUM_NORM_GROUPS, SpatialAttention, TemporalAttention, keep_channels, zero_out


class Reconstructor(nn.Module):
    """One frame becomes ``frames_per_group``; the grid stays as it is. Thrown away after pre-training.

    Every two stages of the DTS are undone by one ``FourfoldStage``, an odd one by a lone ``Doubling``. Parameters, as
    a share of the DTS's, at width 1152: 0.5000 exactly for 4 frames (46,763,136: a stage of 46,760,832 like the
    DTS's, and 2 gains of 1152), as for any power of 4; 0.5109 for 2 frames; 0.5036 for 8.

    dim: width; a multiple of 32. frames_per_group: a power of two, 2 or more.
    """

    def __init__(self, dim: int, frames_per_group: int = 4) -> None:
        super().__init__()
        doublings = frames_per_group.bit_length() - 1
        if frames_per_group < 2 or 2**doublings != frames_per_group:
            raise ValueError(f"frames_per_group is {frames_per_group}; it must be a power of two, 2 or more")
        if dim % NUM_NORM_GROUPS:
            raise ValueError(f"dim is {dim}; it must be a multiple of {NUM_NORM_GROUPS}")
        self.frames_per_group = frames_per_group
        odd = [Doubling(dim)] if doublings % 2 else []
        self.stages = nn.Sequential(*odd, *(FourfoldStage(dim) for _ in range(doublings // 2)))

    @torch.no_grad()
    def start_as_copies(self) -> None:
        """Set the weights so that every frame of a group is about its one frame; ours, as ``start_as_mean`` is."""
        for stage in self.stages:
            if isinstance(stage, FourfoldStage):
                stage.spatial.add_nothing()
                zero_out(stage.conv)
                keep_channels(stage.conv, {1: 1.0, 2: 1.0})  # tap 0 would take from the frame behind
            elif isinstance(stage, Doubling):
                zero_out(stage.conv)
                keep_channels(stage.conv, {0: 1.0, 1: 1.0})

    def forward(self, tokens: Tensor) -> Tensor:
        """``(groups, rows, columns, dim)`` to ``(groups, frames_per_group, rows, columns, dim)``."""
        return self.stages(tokens[:, None])


class FourfoldStage(nn.Module):
    """Two copies of every frame, spatial attention, temporal attention, and a transposed convolution that doubles.

    Each copy is multiplied by gains of its own, a value for each channel. Without them both copies are equal in all
    but what temporal attention adds from its value table, which is the same few vectors at every place, and frames
    0 and 2 of a group come out almost alike whatever the tokens hold.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.empty(2, dim))
        self.spatial = SpatialAttention(dim)
        self.temporal = TemporalAttention(dim)
        self.conv = TwoFramesForOne(dim, taps=3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Copies start almost equal."""
        init.normal_(self.gains, mean=1.0, std=0.02)

    def forward(self, x_GTRCD: Tensor) -> Tensor:
        """``(groups, frames, rows, columns, dim)`` to ``(groups, 4 frames, rows, columns, dim)``."""
        copies_GTRCD = (x_GTRCD[:, :, None] * self.gains[:, None, None, :]).flatten(1, 2)
        mixed_GTRCD = self.temporal(self.spatial(copies_GTRCD))
        # As in the DTS the border is copied in space; in time one frame behind, where the DTS has one in front.
        padded_GDTRC = F.pad(mixed_GTRCD.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 0, 1), mode="replicate")
        return self.conv(padded_GDTRC).permute(0, 2, 3, 4, 1).contiguous()


class Doubling(nn.Module):
    """A transposed convolution alone, two frames for one, 3x3 in space: about half a stage's parameters."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = TwoFramesForOne(dim, taps=2)

    def forward(self, x_GTRCD: Tensor) -> Tensor:
        """``(groups, frames, rows, columns, dim)`` to ``(groups, 2 frames, rows, columns, dim)``."""
        padded_GDTRC = F.pad(x_GTRCD.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 0, 0), mode="replicate")
        return self.conv(padded_GDTRC).permute(0, 2, 3, 4, 1).contiguous()


class TwoFramesForOne(nn.ConvTranspose3d):
    """A transposed convolution that doubles the frames, worked out as one direct convolution for each of the two.

    As PyTorch's own works it out, most of it is of the border and of a frame behind that are cut off again.

    taps: frames of the kernel, which is 3x3 in space; with 3 it takes the frames and one behind them, with 2 the frames
    alone.
    """

    def __init__(self, dim: int, taps: int) -> None:
        super().__init__(dim, dim, kernel_size=(taps, 3, 3), stride=(2, 1, 1), padding=(taps - 2, 2, 2))

    def forward(self, x_GDTRC: Tensor) -> Tensor:  # type: ignore[override]  # no output size
        """``(groups, dim, frames (+ 1), rows + 2, columns + 2)`` to ``(groups, dim, 2 frames, rows, columns)``."""
        kernel = self.weight.transpose(0, 1).flip(2, 3, 4)  # taps back to front
        if self.kernel_size[0] == 3:  # the middle tap alone; a frame's last tap and the next one's first
            first = F.conv3d(x_GDTRC[:, :, :-1], kernel[:, :, 1:2], self.bias)
            second = F.conv3d(x_GDTRC, kernel[:, :, ::2], self.bias)
        else:
            second, first = (F.conv3d(x_GDTRC, tap, self.bias) for tap in kernel.split(1, dim=2))
        return torch.stack((first, second), dim=3).flatten(2, 3)
