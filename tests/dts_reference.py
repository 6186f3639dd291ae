"""The DTS written a second time, from its formulas: numpy, float64, loops over groups, places and moments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]


def dts(x: Array, weights: Weights, stages: int, *, legacy: bool = False) -> Array:
    """``(groups, frames, rows, columns, dim)`` to ``(groups, rows, columns, dim)``."""
    if legacy:
        x = legacy_layout(x)
    return np.stack([group(one, weights, stages) for one in x])


def legacy_layout(x: Array) -> Array:
    """The released re-view, one by one: slot (t, c) reads flat index n = frames * c + t over (frame, channel)."""
    out = np.empty_like(x)
    frames, dim = x.shape[1], x.shape[4]
    for t in range(frames):
        for c in range(dim):
            n = frames * c + t
            out[:, t, :, :, c] = x[:, n // dim, :, :, n % dim]
    return out


def group(x: Array, weights: Weights, stages: int) -> Array:
    x = x + weights["temporal_encoding"][:, None, None, :]
    for s in range(stages):
        part = {name.removeprefix(f"stages.{s}."): value for name, value in weights.items()}
        x = spatial(x, part)
        x = temporal(x, part)
        x = convolution(x, part["conv.weight"], part["conv.bias"])
    assert x.shape[0] == 1
    return x[0]


def norm(x: Array, weight: Array, bias: Array) -> Array:
    """GroupNorm with 32 groups of channels over everything else; channels last."""
    out = np.empty_like(x)
    width = x.shape[-1] // 32
    for g in range(32):
        block = x[..., g * width : (g + 1) * width]
        out[..., g * width : (g + 1) * width] = (block - block.mean()) / np.sqrt(block.var() + 1e-6)
    return out * weight + bias


def softmax(logits: Array) -> Array:
    power = np.exp(logits - logits.max())
    return power / power.sum()


def spatial(x: Array, w: Weights) -> Array:
    frames, rows, columns, dim = x.shape
    normed = norm(x, w["spatial.norm.weight"], w["spatial.norm.bias"])
    out = x.copy()
    for t in range(frames):
        places = normed[t].reshape(-1, dim)
        q, k, v = (places @ w[f"spatial.{n}.weight"].T + w[f"spatial.{n}.bias"] for n in "qkv")
        for p in range(len(places)):
            mixed = softmax(np.array([q[p] @ k[o] for o in range(len(places))]) / np.sqrt(dim)) @ v
            out[t, p // columns, p % columns] += w["spatial.proj_out.weight"] @ mixed + w["spatial.proj_out.bias"]
    return out


def temporal(x: Array, w: Weights) -> Array:
    frames, rows, columns, dim = x.shape
    key_table = w["temporal.relative_position_k.embeddings_table"]
    value_table = w["temporal.relative_position_v.embeddings_table"]
    out = x.copy()
    for r in range(rows):
        for c in range(columns):
            normed = norm(x[:, r, c], w["temporal.norm.weight"], w["temporal.norm.bias"])
            qkv = normed @ w["temporal.qkv.weight"].T + w["temporal.qkv.bias"]
            q, k, v = qkv[:, :dim], qkv[:, dim : 2 * dim], qkv[:, 2 * dim :]
            for i in range(frames):
                logits = [q[i] @ k[j] / dim**0.5 + dim**-0.25 * q[j] @ key_table[i - j + 64] for j in range(frames)]
                weights = softmax(np.array(logits))
                mixed = sum(weights[j] * (v[j] + value_table[j - i + 64]) for j in range(frames))
                out[i, r, c] += w["temporal.proj_out.weight"] @ mixed + w["temporal.proj_out.bias"]
    return out


def convolution(x: Array, weight: Array, bias: Array) -> Array:
    """3x3x3, stride 2 in time; outside the grid the nearest place counts, before the first frame the first frame."""
    frames, rows, columns, dim = x.shape
    out = np.zeros((frames // 2, rows, columns, len(bias)))
    for t in range(frames // 2):
        for r in range(rows):
            for c in range(columns):
                out[t, r, c] = bias
                for a in range(3):
                    for b in range(3):
                        for d in range(3):
                            near = (
                                max(2 * t + a - 1, 0),
                                min(max(r + b - 1, 0), rows - 1),
                                min(max(c + d - 1, 0), columns - 1),
                            )
                            out[t, r, c] += weight[:, :, a, b, d] @ x[near]
    return out
