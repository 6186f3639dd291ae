"""Drawn videos of different scenes, and the puzzles made of them."""

from functools import partial
from pathlib import Path

import numpy as np

from longtake import video
from longtake.cli.synth import make_gatherer
from longtake.data.probe_world.haystack import drawn_clip
from longtake.data.puzzles.footage import find_footage
from longtake.data.puzzles.mvp import LEVELS
from longtake.data.puzzles.synth import Synthesis, synthesise
from longtake.types import Frames


def write_scene(path: Path, seed: int, seconds: float = 20.0) -> Path:
    """A drawn scene at 3 frames a second, and no other like it."""
    pixels = np.ascontiguousarray(drawn_clip(seed, seconds).pixels.transpose(0, 3, 1, 2))
    video.write(path, [Frames(pixels=pixels, seconds=np.arange(len(pixels)) / 3.0)], 3.0)
    return path


def make_puzzles(folder: Path, *, videos: int = 3, levels: tuple[str, ...] = ("L1", "L2"), mask: str = "contiguous"):
    """The folder of a synthesis from that many scenes and a twin of the first; each scene is one source."""
    media, output = folder / "media", folder / "puzzles"
    media.mkdir()
    for seed in range(videos):
        write_scene(media / f"scene{seed}.mp4", seed)
    write_scene(media / "twin.mp4", 0, 17.0)
    chosen = tuple(level for level in LEVELS if level.name in levels)
    make = partial(make_gatherer, None, "cpu", "pixels", output, 1.0, 64, "png")
    settings = Synthesis(levels=chosen, frames=8, per_minute=30.0, kappa=0.9999, near=0.9999, mask=mask)
    synthesise(find_footage([media]), output, settings, make)
    return output
