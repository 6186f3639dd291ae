"""How much the frames of a video repeat each other, and which videos of a subset repeat themselves most.

Paper: Video-XL-Pro, section 3.3, "Video Dataset Pruning": 20 uniform frames a video, SigLIP features, cosine similarity
between frames, and a threshold for each task type above which videos are dropped. It does not say which pairs of
frames, which features or which threshold; all defaults for these are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longtake.types import LongtakeError

Pairs = Literal["adjacent", "all"]
Feature = Literal["pooled", "patch"]

FRAMES = 20  # a video; the paper's


def similarity(features: NDArray[np.floating], pairs: Pairs = "adjacent", feature: Feature = "pooled") -> float:
    """The mean cosine similarity of pairs of frames: 1.0 exactly for equal features, never more.

    features: the tower's, ``(frames, places, dim)``. pairs: of neighbours (19 of 20 frames) or every two frames (190).
    feature: "pooled" compares the means over places; "patch" compares each place with itself and takes the mean.

    Raises ValueError for fewer than two frames, and for features without direction (zero) or that are not finite.
    """
    if features.ndim != 3 or len(features) < 2:
        raise ValueError(f"features must be (frames, places, dim) of at least 2 frames, got {features.shape}")
    wide = features.astype(np.float64)
    vectors = wide.mean(axis=1, keepdims=True) if feature == "pooled" else wide
    units = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.isfinite(units).all():
        raise ValueError("some features are zero or not finite, so they have no direction to compare")
    if pairs == "adjacent":
        return float(cosine(units[:-1], units[1:]).mean())
    return float(np.concatenate([cosine(units[i], units[i + 1 :]) for i in range(len(units) - 1)]).mean())


def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cosine of the angles between unit vectors ``(..., dim)``, from the chord: ``1 - |one - other|^2 / 2``.

    Unlike the dot product it is exactly 1 for equal vectors, never above, and keeps small differences near 1.
    """
    return np.asarray(1.0 - 0.5 * np.square(one - other).sum(axis=-1), np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where a subset is cut: by the share to keep or by a threshold. Exactly one is set.

    keep: the share of the samples with the lowest scores that stays, rounded to the nearest number of samples.
    threshold: samples with this score or a higher one are dropped.
    """

    keep: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.threshold is None):
            raise LongtakeError("give exactly one of keep and threshold for a subset")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise LongtakeError(f"keep is {self.keep:g}; it must be a share above 0 and up to 1, for example 0.5")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise LongtakeError(f"threshold is {self.threshold:g}; it must be a cosine, -1 to 1, for example 0.95")

    def kept(self, scores: Sequence[float], names: Sequence[str]) -> list[bool]:
        """Which samples stay. The most redundant go first; of equal ones those first whose names sort first."""
        if self.threshold is not None:
            return [score < self.threshold for score in scores]
        assert self.keep is not None
        num_dropped = len(scores) - math.floor(self.keep * len(scores) + 0.5)
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], names[i], i))
        dropped = set(order[:num_dropped])
        return [i not in dropped for i in range(len(scores))]

    def line(self, scores: Sequence[float], kept: Sequence[bool]) -> float | None:
        """The score from which on samples are dropped; None where nothing is."""
        if self.threshold is not None:
            return self.threshold
        return min((score for score, stays in zip(scores, kept, strict=True) if not stays), default=None)
