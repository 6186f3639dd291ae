"""The Dynamic Token Synthesizer (DTS): a few frames' visual tokens in, one frame's tokens out.

Each stage attends within every frame, attends over time at every place, and halves the number of frames with
a strided 3-D convolution. Paper: Video-XL-Pro, arXiv 2503.18478, section 3.1; the exact forms follow the
released code. Everything here is channels-last: G groups, T frames, R rows, C columns, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import init
from transformers.modeling_layers import GradientCheckpointingLayer

from longtake.models.group_norm import group_norm
from longtake.models.products import by_products, pays

Layout = Literal["correct", "legacy"]

NUM_NORM_GROUPS = 32
NORM_EPS = 1e-6
MAX_RELATIVE_STEPS = 64


class DynamicTokenSynthesizer(nn.Module):
    """``frames_per_group`` frames become one, in log2(frames_per_group) stages; the grid stays as it is.

    At width 1152 with 4 frames it has 93,526,272 parameters.

    dim: width; a multiple of 32 (the norms' groups).
    frames_per_group: a power of two, 2 or more.
    layout: "legacy" scrambles frames with channels as the published code does (see ``scramble``).
    """

    def __init__(self, dim: int, frames_per_group: int = 4, layout: Layout = "correct") -> None:
        super().__init__()
        stages = frames_per_group.bit_length() - 1
        if frames_per_group < 2 or 2**stages != frames_per_group:
            raise ValueError(f"frames_per_group is {frames_per_group}; it must be a power of two, 2 or more")
        if dim % NUM_NORM_GROUPS:
            raise ValueError(f"dim is {dim}; it must be a multiple of {NUM_NORM_GROUPS}")
        self.frames_per_group = frames_per_group
        self.layout = layout
        self.temporal_encoding = nn.Parameter(torch.empty(frames_per_group, dim))
        self.stages = nn.ModuleList(DTSStage(dim) for _ in range(stages))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw small weights; ours (the released code starts from a unit normal)."""
        init.normal_(self.temporal_encoding, std=0.02)

    @torch.no_grad()
    def start_as_mean(self, *, alone: bool = True) -> None:
        """Set the weights so that a group's tokens are the mean of its frames', but for the temporal encoding.

        Ours: from random weights training must first learn to pass tokens through at all (``docs/log.md``). For the
        layout "correct" only. alone: False adds the mean to the random weights instead.
        """
        for stage in self.stages:
            assert isinstance(stage, DTSStage)
            if alone:
                stage.spatial.add_nothing()
                zero_out(stage.conv)
            keep_channels(stage.conv, {1: 0.5, 2: 0.5})  # tap 0 is the frame before the two that become one

    def forward(self, features: Tensor) -> Tensor:
        """``(groups, frames_per_group, rows, columns, dim)`` to ``(groups, rows, columns, dim)``."""
        if features.shape[1] != self.frames_per_group:
            raise ValueError(f"a group holds {features.shape[1]} frames; it must hold {self.frames_per_group}")
        if self.layout == "legacy":
            features = scramble(features)
        hidden = features + self.temporal_encoding[:, None, None, :]
        for stage in self.stages:
            hidden = stage(hidden)
        return hidden.squeeze(1)


class DTSStage(GradientCheckpointingLayer):
    """Spatial attention, temporal attention, and a convolution that halves the number of frames."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spatial = SpatialAttention(dim)
        self.temporal = TemporalAttention(dim)
        self.conv = nn.Conv3d(dim, dim, kernel_size=3, stride=(2, 1, 1))

    def forward(self, x_GTRCD: Tensor) -> Tensor:
        """``(groups, frames, rows, columns, dim)`` to ``(groups, frames / 2, rows, columns, dim)``."""
        x_GTRCD = self.temporal(self.spatial(x_GTRCD))
        # A copy of the border on every side in space; in time one frame in front only, so that 4 give 2 give 1.
        padded_GDTRC = F.pad(x_GTRCD.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 1, 0), mode="replicate")
        return self.conv(padded_GDTRC).permute(0, 2, 3, 4, 1).clone(memory_format=torch.contiguous_format)


class SpatialAttention(nn.Module):
    """Single-head attention over the places of each frame, with the norm's statistics over the whole group."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NUM_NORM_GROUPS, dim, eps=NORM_EPS)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj_out = nn.Linear(dim, dim)

    def add_nothing(self) -> None:
        """Start as the identity, as temporal attention does."""
        zero_out(self.proj_out)

    def forward(self, x_GTRCD: Tensor) -> Tensor:
        """Residual; the shape stays ``(groups, frames, rows, columns, dim)``."""
        normed = group_norm(x_GTRCD.flatten(1, 3), self.norm)
        normed_FND = normed.reshape(-1, 1, x_GTRCD.shape[2] * x_GTRCD.shape[3], x_GTRCD.shape[4])
        attended = attend(self.q(normed_FND), self.k(normed_FND), self.v(normed_FND))
        return x_GTRCD + self.proj_out(attended).view_as(x_GTRCD)


class TemporalAttention(nn.Module):
    """Single-head attention over time at every place, with learned relative positions.

    logit_ij = q_i·k_j / sqrt(D) + q_j·EK[i - j] / D^(1/4);  out_i = sum_j softmax_j(logit_ij) (v_j + EV[j - i]).
    The released code's relative term is transposed against the usual form (q_j where q_i is usual), and stays so.
    The block starts as the identity: its projections are zero, and the value table lets the first gradient through.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NUM_NORM_GROUPS, dim, eps=NORM_EPS)
        self.qkv = ZeroLinear(dim, 3 * dim)
        self.relative_position_k = RelativePosition(dim)
        self.relative_position_v = RelativePosition(dim)
        self.proj_out = ZeroLinear(dim, dim)

    def forward(self, x_GTRCD: Tensor) -> Tensor:
        """Residual; the shape stays ``(groups, frames, rows, columns, dim)``."""
        groups, frames, rows, columns, dim = x_GTRCD.shape
        x_STD = x_GTRCD.flatten(2, 3).transpose(1, 2).reshape(-1, frames, dim)  # S sequences: one per group and place
        q, k, v = self.qkv(group_norm(x_STD, self.norm)).chunk(3, dim=-1)
        key_JID = self.relative_position_k(frames)
        value_IJD = self.relative_position_v(frames)
        relative_SIJ = torch.einsum("sjd,jid->sij", q, key_JID) * dim**-0.25
        logits_SIJ = q @ k.transpose(1, 2) * dim**-0.5 + relative_SIJ
        weights_SIJ = at_least_float32(logits_SIJ).softmax(dim=-1).to(v.dtype)
        attended_STD = weights_SIJ @ v + torch.einsum("sij,ijd->sid", weights_SIJ, value_IJD)
        out_GNTD = self.proj_out(attended_STD).view(groups, rows * columns, frames, dim)
        return x_GTRCD + out_GNTD.transpose(1, 2).reshape(x_GTRCD.shape)


class ZeroLinear(nn.Linear):
    """A linear map that starts at zero."""

    def reset_parameters(self) -> None:
        """Zero weight and bias."""
        zero_out(self)


class RelativePosition(nn.Module):
    """A learned vector for every step between two frames, up to 64 either way."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embeddings_table = nn.Parameter(torch.empty(2 * MAX_RELATIVE_STEPS + 1, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors as the released code does."""
        init.xavier_uniform_(self.embeddings_table)

    def forward(self, frames: int) -> Tensor:
        """``(frames, frames, dim)``: at [a, b] the vector of the step b - a."""
        moment = torch.arange(frames, device=self.embeddings_table.device)
        return self.embeddings_table[moment[None, :] - moment[:, None] + MAX_RELATIVE_STEPS]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of every place to every place, ``(batch, heads, places, dim)``."""
    if pays(query, key):
        return by_products(query, key, value, None, scaling=query.shape[-1] ** -0.5)
    return F.scaled_dot_product_attention(query, key, value)


def zero_out(layer: nn.Module) -> None:
    """Set all of a layer's weights to zero."""
    for parameter in layer.parameters():
        init.zeros_(parameter)


def keep_channels(conv: nn.Conv3d | nn.ConvTranspose3d, taps: Mapping[int, float]) -> None:
    """Add to a convolution's weight ``(dim, dim, frames, 3, 3)``: each channel from itself.

    taps: what is added in the middle, by the place among the kernel's frames.
    """
    same = torch.arange(len(conv.weight))
    for tap, share in taps.items():
        conv.weight[same, same, tap, 1, 1] += share


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32 if it is in half precision; a wider type stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def scramble(features: Tensor) -> Tensor:
    """``(groups, frames, rows, columns, dim)`` re-read as if channels came first: the released code's layout.

    It views ``(groups * T, D, rows, columns)`` as ``(groups, D, T, rows, columns)`` without a permute, so that
    channel c of frame slot t is source channel n % D of source frame n // D, with n = T c + t. Weights trained
    that way need it; nothing else does.
    """
    frames = features.shape[1]
    flat_GRCN = features.permute(0, 2, 3, 1, 4).flatten(3)
    return flat_GRCN.unflatten(3, (-1, frames)).permute(0, 4, 1, 2, 3)
