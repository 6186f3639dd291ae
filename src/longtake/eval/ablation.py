"""What an ablation shows: differences between arms, their intervals, and what may be said of them. Ours.

Arms answer the same questions about the same videos, and training is repeated with paired seeds. Two things make a
difference uncertain: the seeds, and which videos were asked about. Its variance is taken as the sum of two estimates,
the variance of the mean over seeds (S seeds: S - 1 degrees of freedom) and that of resampling whole videos with the
answers averaged over seeds (V videos: V - 1); the interval is Student's with Welch and Satterthwaite's degrees of
freedom. Noise that belongs to one seed and one question is counted by both, so most intervals are a little wide; where
seeds alone differ they are a little narrow: in the tests' simulations 93 to 98 of 100 hold the truth, and of
differences that are none 2 to 7 of 100 "hold". With one seed the second part stands alone. Where seeds and videos all
say the same the error is not 0 but unknown, and nothing holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
MARGIN = 0.10  # the starting model must be this much above the best guess without video
CEILING = 0.90
CONFIDENCE = 0.95
POWER = 0.80  # of the difference that could have been detected
SEEDS = 3  # fewer are exploratory

Verdict = Literal["holds", "undetermined", "exploratory"]
Standing = Literal["open", "floor", "ceiling"]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over seeds and questions, or a difference of two such means, with what is known of its error.

    degrees: of freedom of Student's distribution; inf where the error is known.
    """

    mean: float
    by_seed: tuple[float, ...]
    standard_error: float
    degrees: float

    @property
    def low(self) -> float:
        """Lower end of the 95% interval."""
        return self.mean - self._reach

    @property
    def high(self) -> float:
        """Upper end of the 95% interval."""
        return self.mean + self._reach

    @property
    def detectable(self) -> float:
        """The true difference that would have been found in 80% of such experiments (two-sided, 5%); inf: unknown."""
        if not self.standard_error:
            return math.inf
        quantiles = student_quantile(0.5 + CONFIDENCE / 2, self.degrees) + student_quantile(POWER, self.degrees)
        return quantiles * self.standard_error

    @property
    def verdict(self) -> Verdict:
        """Whether a difference holds: the same sign in at least three paired seeds, and an interval that excludes 0.

        Without a measured error nothing holds.
        """
        if len(self.by_seed) < SEEDS:
            return "exploratory"
        one_sign = all(d > 0 for d in self.by_seed) or all(d < 0 for d in self.by_seed)
        apart = self.standard_error > 0 and (self.low > 0 or self.high < 0)
        return "holds" if one_sign and apart else "undetermined"

    @property
    def _reach(self) -> float:
        if not self.standard_error:
            return 0.0
        return student_quantile(0.5 + CONFIDENCE / 2, self.degrees) * self.standard_error


def estimate(values: Array, videos: NDArray[np.int64] | None = None, seed: int = 0) -> Estimate:
    """The mean of values, ``(seeds, questions)``: right or wrong, an overlap, or the difference of two arms' values.

    videos: which video each question is about, ``(questions,)``; None: each is of its own. Of a single video nothing is
    known of the error. seed: of the resampling.
    """
    videos = np.arange(values.shape[-1]) if videos is None else videos
    if values.ndim != 2 or videos.shape != values.shape[1:] or not values.size:
        raise ValueError(f"values {values.shape} must be (seeds, questions) for videos {videos.shape}, at least one")
    by_seed = values.mean(axis=1)
    parts = [(_variance_by_video(values.mean(axis=0), videos, seed), len(np.unique(videos)) - 1)]
    if len(by_seed) > 1:
        parts.append((float(by_seed.var(ddof=1)) / len(by_seed), len(by_seed) - 1))
    return _joined(by_seed, parts)


def difference(arm: Array, other: Array, videos: NDArray[np.int64], seed: int = 0) -> Estimate:
    """Arm minus other, both ``(seeds, questions)`` on the same questions with paired seeds."""
    if arm.shape != other.shape:
        raise ValueError(f"arms answered {arm.shape} and {other.shape} (seeds, questions); they must be paired")
    return estimate(arm - other, videos, seed)


def figure(values: Array) -> Estimate:
    """The mean of one figure a seed, ``(seeds,)``: Student's t alone. With one seed nothing is known of the error."""
    spread = float(values.var(ddof=1)) if len(values) > 1 else math.inf
    return _joined(values, [(spread / len(values), len(values) - 1)])


def _joined(by_seed: Array, parts: list[tuple[float, int]]) -> Estimate:
    """Variances with their degrees of freedom as one error (Welch and Satterthwaite).

    A part without a degree of freedom, of one video, says nothing, and so nothing is known of the error.
    """
    variance, degrees = math.inf, math.inf
    if all(free for _, free in parts):
        variance = sum(part for part, _ in parts)
        known = sum(part**2 / free for part, free in parts)
        degrees = variance**2 / known if known else math.inf
    return Estimate(
        mean=float(by_seed.mean()),
        by_seed=tuple(float(value) for value in by_seed),
        standard_error=math.sqrt(variance),
        degrees=degrees,
    )


def _variance_by_video(values: Array, videos: NDArray[np.int64], seed: int) -> float:
    """Variance of the mean of values ``(questions,)`` when whole videos are drawn again, with replacement."""
    _, place = np.unique(videos, return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    drawn = np.random.default_rng([seed, 31]).integers(0, len(sums), (RESAMPLES, len(sums)))
    return float((sums[drawn].sum(1) / counts[drawn].sum(1)).var(ddof=1))


def standing(start: float, blind: float, majority: float) -> Standing:
    """Whether arms may be compared on a task, from the starting model's accuracy and its best guess without video.

    blind: the starting model's accuracy without the video. majority: that of always giving the same answer.
    """
    if start >= CEILING:
        return "ceiling"
    return "floor" if start - max(blind, majority) < MARGIN - 1e-9 else "open"


def standing_of_all(reached: Sequence[float], guess: float) -> Standing:
    """Whether arms may be compared where none of them is the start: "floor" if no arm is high enough, "ceiling" if all
    are too high."""
    low, high = (standing(value, guess, guess) for value in (min(reached), max(reached)))
    return "ceiling" if low == "ceiling" else "open" if high == "ceiling" else high


@lru_cache(maxsize=256)
def student_quantile(share: float, degrees: float) -> float:
    """The point with a share (above 0.5) of Student's distribution below it; the normal one's for infinite degrees."""
    low, high = 0.0, 1.0
    while _student_mass(high, degrees) < share:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_mass(middle, degrees) < share else (low, middle)
    return (low + high) / 2


def _student_mass(at: float, degrees: float) -> float:
    """Mass below a point that is at least 0, by Simpson's rule in the angle: t = sqrt(degrees) tan(angle)."""
    if math.isinf(degrees) or degrees > 1e6:
        return 0.5 * (1 + math.erf(at / math.sqrt(2)))
    angles = np.linspace(0, math.atan(at / math.sqrt(degrees)), 2001)
    weights = np.ones(2001)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    whole = float((weights * np.cos(angles) ** (degrees - 1)).sum() * angles[1] / 3)
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    return 0.5 + whole * math.exp(log_scale) / math.sqrt(math.pi)
