"""Frames to the pixel values that a SigLIP tower wants, for a whole batch at once and without torchvision."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def normalised_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 RGB ``(frames, 3, height, width)`` to float32 ``(frames, 3, *size)`` in [-1, 1].

    Bicubic with antialiasing, whatever the frame's shape; then / 255, mean and standard deviation 0.5: as Hugging
    Face's SigLIP image processor does with PIL, to the rounding of its two 8-bit passes.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels must be uint8 (frames, 3, height, width), got {pixels.dtype} {tuple(pixels.shape)}")
    return normalise(resize(pixels, size))


def normalise(pixels: Tensor) -> Tensor:
    """uint8 to float32 in SigLIP's range of -1 to 1."""
    return pixels.to(torch.float32) / 127.5 - 1


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 ``(frames, channels, height, width)`` to uint8 ``(frames, channels, *size)``, bicubic, antialiased.

    In two passes, the one first that leaves less for the other, each rounded to 8 bits: PIL's own order.
    """
    height, width = pixels.shape[2:]
    between = (height, size[1]) if height * size[1] <= size[0] * width else (size[0], width)
    return _resize_once(_resize_once(pixels, between), size)


def _resize_once(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pixels.shape[2:]) == size:
        return pixels
    if pixels.device.type == "cpu":  # the 8-bit kernel, 20 times as fast as the float one, exists on CPU only
        return F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
    resized = F.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
