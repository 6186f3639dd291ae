"""Tokens of many short videos of one length, made once and kept as files of a hundred videos each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from longtake.backbones.base import Backbone
from longtake.data.probe_world.probe import ProbeVideo
from longtake.outputs import replaced
from longtake.types import VisualTokens

SHARD = 100  # videos in a file


def token_files(folder: Path, videos: int) -> list[Path]:
    """The files of so many videos, in their order; the last may hold fewer."""
    return [folder / f"{first:06}-{min(first + SHARD, videos):06}.pt" for first in range(0, videos, SHARD)]


def videos_of(number: int, videos: int) -> range:
    """The videos of the file of this number."""
    return range(number * SHARD, min((number + 1) * SHARD, videos))


@torch.no_grad()
def encoded(backbone: Backbone, video: ProbeVideo) -> VisualTokens:
    """A short video's tokens, bf16."""
    (frames,) = video.frames(video.num_frames)
    made = backbone.encode(frames)
    return dataclasses.replace(made, features=made.features.bfloat16())


def write_tokens(tokens: Sequence[VisualTokens], file: Path) -> None:
    """Tokens of videos of one length as one file, whole or not at all."""
    first = tokens[0]
    state: dict[str, Tensor | tuple[int, int, int]] = {
        "features": torch.stack([own.features for own in tokens]),
        "position": first.position,
        "seconds": first.seconds,
        "weight": first.weight,
        "grid": first.grid,
    }
    with replaced(file, make_folder=True) as scratch, scratch.open("wb") as sink:
        torch.save(state, sink)


def read_tokens(file: Path) -> list[VisualTokens]:
    """What ``write_tokens`` wrote, as float32."""
    state = torch.load(file, weights_only=True)
    features = state.pop("features").float()
    return [VisualTokens(features=own, **state) for own in features]
