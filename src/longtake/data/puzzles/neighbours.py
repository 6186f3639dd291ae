"""Retrieval of temporal neighbours: is the frame that looks most like a frame one that stands beside it in time?

A measure of how well an embedding tells a video's frames apart, for which no label is needed. Ours, as exactly defined
here; that nearness in time is a lesson without labels is older (Time-Contrastive Networks, arXiv 1704.06888).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longtake.data.probe_world.haystack import Clip
from longtake.types import Frames, LongtakeError

FEWEST_FRAMES = 8  # of a video that is measured; shorter ones leave too little to choose from
EQUAL = 1e-9  # cosines that differ by less are equal


def hits(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 for each frame whose nearest among the others is the one before or after it, else 0.

    vectors: ``(frames, dim)``, of one video in the order of time; the nearest is that of the greatest cosine. Where
    several are equally near, the share of them that stand beside it.
    """
    wide = vectors.astype(np.float64)
    units = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    cosines = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = cosines >= cosines.max(axis=1, keepdims=True) - EQUAL
    place = np.arange(len(units))
    beside = np.abs(place[:, None] - place) == 1
    return np.asarray((nearest & beside).sum(axis=1) / nearest.sum(axis=1), np.float64)


def chance(frames: int) -> float:
    """What a random choice is worth: inner frames have two neighbours, the ends one."""
    return 2 / frames


def takes(clip: Clip, fps: float) -> list[Frames]:
    """A clip at ``fps``, by the stored frames nearest in time, once from each that comes before its second frame.

    So a clip kept at 3 fps is seen three times at 1 fps, by other frames each time, and what a short clip has to tell
    is not left to where it happens to begin. Raises LongtakeError above what is stored.
    """
    if not 0 < fps <= clip.fps:
        raise LongtakeError(f"fps is {fps:g}; it must be above 0 and at most {clip.fps:g}, at which footage is kept")
    apart = clip.fps / fps
    shown = [np.rint(np.arange(first, len(clip.pixels), apart)).astype(np.int64) for first in range(int(apart))]
    return [_stored(clip, rows[rows < len(clip.pixels)]) for rows in shown]


def long_takes(clip: Clip, fps: float) -> list[Frames]:
    """Those of ``takes`` that have enough frames to be measured."""
    return [frames for frames in takes(clip, fps) if len(frames) >= FEWEST_FRAMES]


def _stored(clip: Clip, rows: NDArray[np.int64]) -> Frames:
    return Frames(pixels=np.ascontiguousarray(clip.pixels[rows].transpose(0, 3, 1, 2)), seconds=rows / clip.fps)
