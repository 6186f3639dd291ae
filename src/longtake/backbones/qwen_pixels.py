"""Frames to the flattened patches that a Qwen2.5-VL vision encoder takes: batched tensor code, no torchvision."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longtake.models.preprocess import resize
from longtake.types import LongtakeError

# CLIP's mean and standard deviation of R, G and B, with which Qwen's encoder was trained
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def smart_size(height: int, width: int, *, side: int, min_tokens: int, max_tokens: int) -> tuple[int, int]:
    """The frame size nearest to the given one that divides into places of ``side`` pixels: Qwen's rule.

    The aspect is kept as nearly as whole places allow; places a frame stay within the two bounds.

    Raises LongtakeError when one side is more than 200 times the other.
    """
    if max(height, width) > 200 * min(height, width):
        raise LongtakeError(f"frames are {width}x{height}; one side may be 200 times the other at most: crop the video")
    rows, columns = round(height / side), round(width / side)
    if rows * columns > max_tokens:
        shrink = math.sqrt(height * width / (max_tokens * side**2))
        rows = max(1, math.floor(height / shrink / side))
        columns = max(1, math.floor(width / shrink / side))
    elif rows * columns < min_tokens:
        grow = math.sqrt(min_tokens * side**2 / (height * width))
        rows, columns = math.ceil(height * grow / side), math.ceil(width * grow / side)
    return rows * side, columns * side


def patches(pixels: Tensor, size: tuple[int, int], *, frames: int, patch: int, merge: int) -> Tensor:
    """uint8 ``(frames, 3, height, width)`` to float32 ``(groups x rows x columns x merge^2, 3 x frames x patch^2)``.

    Resized to ``size``, normalised, and cut into patches of ``frames`` x ``patch`` x ``patch``; the ``merge x merge``
    patches of one token stand together. The last frame is repeated to fill the last group, as Qwen's processor does.
    """
    missing = -len(pixels) % frames
    resized = resize(pixels, size)
    resized = torch.cat([resized, resized[-1:].expand(missing, -1, -1, -1)])
    mean, std = (torch.tensor(c, device=pixels.device)[:, None, None] for c in (MEAN, STD))
    values = (resized.float() / 255 - mean) / std
    rows, columns = size[0] // (merge * patch), size[1] // (merge * patch)
    cut = values.reshape(-1, frames, 3, rows, merge, patch, columns, merge, patch)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * frames * patch**2)
