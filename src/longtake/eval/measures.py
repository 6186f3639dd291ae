"""Measures beside accuracy: how well spans of time overlap, and how well scores find what they should."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RECALLS = (0.3, 0.5, 0.7)
Span = tuple[float, float]  # half-open, seconds


def overlap(one: Span | None, other: Span) -> float:
    """Intersection over union of two spans; 0 for none."""
    if one is None:
        return 0.0
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, shared) / (one[1] - one[0] + other[1] - other[0] - max(0.0, shared))


def auroc(scores: NDArray[np.floating], wanted: NDArray[np.bool_]) -> float:
    """How likely a wanted item scores above another: the area under the curve of hits over false alarms.

    scores, wanted: ``(items,)``. Equal scores count half. nan where all or none are wanted.
    """
    positives, negatives = int(wanted.sum()), int((~wanted).sum())
    if not positives or not negatives:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # of equal scores the mean rank, from 1
    return float((ranks[wanted].sum() - positives * (positives + 1) / 2) / (positives * negatives))
