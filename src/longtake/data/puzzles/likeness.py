"""How alike the frames of a video are, to the bit the same on every machine, and which of them stay when repeats go.

Paper: MVP, arXiv 2601.03781: greedy de-duplication, a frame goes when its similarity to the last kept one is above a
threshold kappa. That its embeddings are normalised (so the similarity is a cosine) is our reading, as is kappa: the
paper's number could not be found, and it would hold for its encoder only.

Embeddings are unit vectors rounded to whole numbers whose products add up exactly in float32, in any order: so
similarities do not depend on the library that multiplies, its threads or the number of processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from longtake.data.threads import one_thread

SCALE = 4000  # of a unit vector; squared, with room for rounding, it stays below 2^24
MOST_DIM = 36_000  # rounding may lengthen a vector by half the root of this
REACH_FRAMES = 128  # frames further apart are never compared
BLOCK_FRAMES = 64
HIGHEST = 0.999999  # of a threshold: equal frames are always near-duplicates


def rounded_units(vectors: NDArray[np.floating]) -> NDArray[np.int16]:
    """Embeddings ``(frames, dim)`` as unit vectors times ``SCALE``, rounded: int16 ``(frames, dim)``.

    Raises ValueError for too many dimensions, and for a vector without direction (zero or not finite).
    """
    if vectors.ndim != 2 or not 0 < vectors.shape[1] <= MOST_DIM:
        raise ValueError(f"vectors must be (frames, dim) with at most {MOST_DIM} dimensions, got {vectors.shape}")
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError("some embeddings are zero or not finite, so they have no direction to compare")
    return np.asarray(np.rint(vectors / lengths * SCALE), np.int16)


def neighbour_cosines(units: NDArray[np.int16], apart: int = 1) -> NDArray[np.float64]:
    """The cosine of each frame and the one ``apart`` frames later: float64 ``(frames - apart,)``."""
    wide = units.astype(np.int64)
    one, other = wide[:-apart], wide[apart:]
    squares = np.square(wide).sum(axis=1)
    return np.asarray((one * other).sum(axis=1) / np.sqrt(squares[:-apart] * squares[apart:]), np.float64)


def threshold_at(cosines: NDArray[np.float64], quantile: float) -> float:
    """The cosine below which that share of neighbouring frames lies that are not equal, to 6 digits; below 1."""
    unequal = cosines[cosines < 1]
    if not len(unequal):
        return HIGHEST
    return min(HIGHEST, round(float(np.quantile(unequal, quantile, method="lower")), 6))


def products(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """All rows' dot products, float32 ``(rows of one, rows of other)``; on one thread, as NumPy's would wait for each
    other in every process."""
    with one_thread():
        return np.asarray((torch.from_numpy(one) @ torch.from_numpy(other).T).numpy())


@dataclass(frozen=True)
class Likeness:
    """Cosines of a video's frames, as far as ``reach`` frames apart.

    units: int16 ``(frames, dim)``, from ``rounded_units``.
    """

    units: NDArray[np.int16]
    reach: int = REACH_FRAMES
    _sequences: dict[tuple[float, int], NDArray[np.int64]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.units)

    @cached_property
    def band(self) -> NDArray[np.float32]:
        """``band[i, k]`` is the cosine of frames i and i + k, 2 where there is none: float32 ``(frames, width + 1)``.

        The width is ``reach``, or the number of frames where that is less; the last column is 2 throughout.
        """
        frames, reach = len(self.units), min(self.reach, len(self.units))
        wide = self.units.astype(np.float32)
        lengths = np.sqrt(np.square(wide).sum(axis=1))
        band = np.full((frames, reach + 1), 2.0, np.float32)
        for start in range(0, frames, BLOCK_FRAMES):
            stop = min(start + BLOCK_FRAMES, frames)
            end = min(stop + reach - 1, frames)
            cosines = products(wide[start:stop], wide[start:end]) / (lengths[start:stop, None] * lengths[start:end])
            rows, apart = np.ogrid[: stop - start, :reach]
            inside = rows + apart < end - start
            found = cosines[rows, np.minimum(rows + apart, end - start - 1)]
            band[start:stop, :reach] = np.where(inside, found, 2.0)
        return band

    def of(self, one: NDArray[np.integer], other: NDArray[np.integer]) -> NDArray[np.float32]:
        """The cosines of frames and frames; the two are broadcast. 2 for frames out of reach of each other, and for a
        frame of the video and one outside."""
        apart = np.minimum(np.abs(one - other), self.band.shape[1] - 1)
        return np.asarray(self.band[np.minimum(one, other), apart])  # -1 is the last row: 2 from its second column on

    def following(self, kappa: float) -> NDArray[np.int64]:
        """The frame kept next after each one, were that kept: the first later one whose cosine is at most kappa.

        int64 ``(frames + 1,)``; ``frames`` stands for none within reach, and follows itself.
        """
        new = self.band <= kappa
        new[:, 0] = False
        first = new.argmax(axis=1)
        found = np.where(first > 0, np.arange(len(self)) + first, len(self))
        return np.append(found, len(self)).astype(np.int64)

    def sequences(self, kappa: float, length: int) -> NDArray[np.int64]:
        """What greedy de-duplication keeps from each frame on: int64 ``(frames, length)``, -1 behind the end."""
        if (kappa, length) not in self._sequences:
            following = self.following(kappa)
            kept = np.empty((len(self), length), np.int64)
            at = np.arange(len(self))
            for place in range(length):
                kept[:, place] = at
                at = following[at]
            self._sequences[kappa, length] = np.where(kept < len(self), kept, -1)
        return self._sequences[kappa, length]


def num_kept(following: NDArray[np.int64]) -> int:
    """How many frames of a video stay when it is de-duplicated from its first; where nothing new is in reach the next
    frame begins again."""
    frames, at, count = len(following) - 1, 0, 0
    while at < frames:
        count += 1
        after = int(following[at])
        at = after if after < frames else at + REACH_FRAMES
    return count


def apart_at(fps: float, base_fps: float) -> int:
    """How many frames of a stream at ``fps`` lie between two of one at ``base_fps``."""
    return max(1, math.floor(fps / base_fps + 0.5))
