"""Puzzles from raw video: frames of a stretch are taken out, and must be found among others and put in order.

Paper: MVP (Masked Video Prediction), arXiv 2601.03781: frames at 1 fps from a random start, greedy de-duplication until
N are kept, m of them masked, l distractors from the same neighbourhood, all shuffled into a pool. No more of it could
be found: the levels, all numbers, and what is said below to be ours are not the paper's.

Everything here works on frame numbers of one video's stream and a seed for each puzzle; all puzzles at once, as arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longtake.data.puzzles.distractors import Pick, choose_distractors
from longtake.data.puzzles.draws import uniform
from longtake.data.puzzles.likeness import Likeness
from longtake.types import LongtakeError

Mask = Literal["contiguous", "scattered", "before", "after"]
Numbers = NDArray[np.int64]

STARTS = 4  # tries of where a puzzle begins. Ours, as all below
BATCH = 256  # puzzles at once
# where each kind of draw begins among a seed's numbers
START, MASK, SHUFFLE = 0, 100, 1000

FEW_FRAMES = "too few distinct frames"
LONG_GAP = "missing frames too far apart"
REPEATED = "a missing frame repeats another"
FEW_DISTRACTORS = "too few distractors"
SAME = "same puzzle as another"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How hard a puzzle is. masked: missing frames. distractors: beside them in the pool; pick: which of them."""

    name: str
    masked: int
    distractors: int
    pick: Pick


LEVELS = (
    Level(name="L1", masked=2, distractors=2, pick="far"),
    Level(name="L2", masked=3, distractors=3, pick="far"),
    Level(name="L3", masked=4, distractors=4, pick="random"),
    Level(name="L4", masked=4, distractors=6, pick="near"),
    Level(name="L5", masked=5, distractors=8, pick="near"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for all levels.

    kappa: a frame goes when its cosine to the last kept one is above this; missing frames are as different from each
    other, or a repeated shot would have no order. near: the cosine above which a frame is a near-duplicate, and no
    distractor, of a missing frame, of a context frame beside the gap, or of another distractor. frames: of a puzzle,
    context and missing; fewer where a video has no more. context: kept frames on each side of the gap, at least.
    mask: "contiguous" inside the sequence, "scattered" over it, or extrapolation, at its begin ("before") or end
    ("after").
    """

    kappa: float
    near: float
    frames: int = 16
    context: int = 2
    mask: Mask = "contiguous"

    def __post_init__(self) -> None:
        if self.context < 1:
            raise LongtakeError(f"context is {self.context}; at least 1 frame must stand beside the gap")
        for name, value in (("kappa", self.kappa), ("near", self.near)):
            if not -1 <= value <= 1:
                raise LongtakeError(f"the {name} threshold is {value:g}; it must be a cosine, -1 to 1")

    def least_frames(self, level: Level) -> int:
        """How many frames a puzzle of the level has at least."""
        sides = 2 if self.mask in ("contiguous", "scattered") else 1
        return level.masked + sides * self.context

    def check(self, level: Level) -> None:
        """Raises LongtakeError when a puzzle's frames are too few for a level."""
        if self.frames < self.least_frames(level):
            raise LongtakeError(
                f"frames is {self.frames}; level {level.name} needs {self.least_frames(level)}, "
                "give more or leave the level out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzles:
    """Puzzles of one level, by frame number. All int64 but the seeds, uint64 ``(puzzles,)``.

    kept: ``(puzzles, frames)``, context and missing frames in the order of time, -1 behind the last of a shorter one.
    masked: ``(puzzles, masked)``, the places in ``kept`` of the missing ones, ascending.
    candidates: ``(puzzles, masked + distractors)``. truth: ``(puzzles, masked)``, places in the candidates from 0, in
    the order of time.
    """

    seeds: NDArray[np.uint64]
    kept: Numbers
    masked: Numbers
    candidates: Numbers
    truth: Numbers

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Puzzles:
        return Puzzles(
            seeds=self.seeds[rows],
            kept=self.kept[rows],
            masked=self.masked[rows],
            candidates=self.candidates[rows],
            truth=self.truth[rows],
        )


def make_puzzles(
    likeness: Likeness, rules: Rules, level: Level, seeds: NDArray[np.uint64]
) -> tuple[Puzzles, Mapping[str, int]]:
    """A puzzle for each seed that gives one, in the order of seeds, and how many did not, by reason.

    A puzzle depends on its seed and the video alone, except that of equal ones the first stays.
    """
    rejects = dict.fromkeys((FEW_FRAMES, LONG_GAP, REPEATED, FEW_DISTRACTORS, SAME), 0)
    batches = [
        _make_batch(likeness, rules, level, seeds[begin : begin + BATCH], rejects)
        for begin in range(0, len(seeds), BATCH)
    ]
    made = _joined(batches, rules, level)
    first: dict[bytes, int] = {}
    for number, frames in enumerate(np.concatenate([made.kept, made.masked], axis=1)):
        first.setdefault(frames.tobytes(), number)
    rejects[SAME] += len(made) - len(first)
    return made[np.fromiter(first.values(), np.int64)], rejects


def _make_batch(
    likeness: Likeness, rules: Rules, level: Level, seeds: NDArray[np.uint64], rejects: dict[str, int]
) -> Puzzles:
    kept, lengths = draw_sequences(likeness.sequences(rules.kappa, rules.frames), seeds)
    good = np.asarray(lengths >= rules.least_frames(level))
    rejects[FEW_FRAMES] += int((~good).sum())
    seeds, kept, lengths = seeds[good], kept[good], lengths[good]

    masked = draw_masks(seeds, lengths, level.masked, rules)
    missing = kept[np.arange(len(kept))[:, None], masked]
    together = np.asarray(missing[:, -1] - missing[:, 0] < likeness.reach)
    rejects[LONG_GAP] += int((~together).sum())
    alike = likeness.of(missing[:, :, None], missing[:, None]) > rules.kappa
    distinct = ~np.asarray((alike & ~np.eye(level.masked, dtype=bool)).any(axis=(1, 2)))
    rejects[REPEATED] += int((together & ~distinct).sum())
    good = together & distinct
    seeds, kept, lengths, masked, missing = seeds[good], kept[good], lengths[good], masked[good], missing[good]

    low, high = gaps(kept, lengths, masked)
    distractors = choose_distractors(
        likeness, seeds, kept, missing, low, high, near=rules.near, count=level.distractors, pick=level.pick
    )
    good = np.asarray((distractors >= 0).all(axis=1))
    rejects[FEW_DISTRACTORS] += int((~good).sum())
    seeds, kept, masked = seeds[good], kept[good], masked[good]
    pool = np.concatenate([missing[good], distractors[good]], axis=1)
    order = uniform(seeds[:, None], SHUFFLE + np.arange(pool.shape[1])).argsort(axis=1)
    return Puzzles(
        seeds=seeds,
        kept=kept,
        masked=masked,
        candidates=pool[np.arange(len(pool))[:, None], order],
        truth=order.argsort(axis=1)[:, : level.masked],
    )


def draw_sequences(sequences: Numbers, seeds: NDArray[np.uint64]) -> tuple[Numbers, Numbers]:
    """De-duplicated sequences from random starts, -1 behind their ends ``(seeds, frames)``, and lengths ``(seeds,)``.

    sequences: those of all starts, from ``Likeness.sequences``. Of ``STARTS`` starts the first that gives all frames
    counts, else the one that gives most.
    """
    starts = (uniform(seeds[:, None], START + np.arange(STARTS)) * len(sequences)).astype(np.int64)
    tried = sequences[starts]
    lengths = (tried >= 0).sum(axis=2)
    best = np.arange(len(seeds)), lengths.argmax(axis=1)
    return tried[best], lengths[best]


def draw_masks(seeds: NDArray[np.uint64], lengths: Numbers, count: int, rules: Rules) -> Numbers:
    """The places that are masked in sequences of these lengths, ascending: int64 ``(seeds, count)``."""
    if rules.mask == "before":
        return np.broadcast_to(np.arange(count), (len(seeds), count))
    if rules.mask == "after":
        return np.asarray(lengths[:, None] - count + np.arange(count))
    inside = lengths - 2 * rules.context
    if rules.mask == "contiguous":
        begins = (uniform(seeds, np.array([MASK])) * (inside - count + 1)).astype(np.int64)
        return np.asarray(rules.context + begins[:, None] + np.arange(count))
    places = np.arange(rules.frames)
    order = uniform(seeds[:, None], MASK + places)
    order[places >= inside[:, None]] = 2.0
    return np.asarray(rules.context + np.sort(order.argsort(axis=1)[:, :count], axis=1))


def gaps(kept: Numbers, lengths: Numbers, masked: Numbers) -> tuple[Numbers, Numbers]:
    """The frames kept right before and after each masked place; -1 before the begin, the largest number after the end.

    Both int64 ``(puzzles, masked)``.
    """
    ends = np.iinfo(np.int64).max
    rows = np.arange(len(kept))[:, None]
    before = kept[rows, np.maximum(masked - 1, 0)]
    after = kept[rows, np.minimum(masked + 1, lengths[:, None] - 1)]
    return np.where(masked > 0, before, -1), np.where(masked + 1 < lengths[:, None], after, ends)


def _joined(batches: list[Puzzles], rules: Rules, level: Level) -> Puzzles:
    def columns(name: str, width: int) -> Numbers:
        return np.concatenate([np.empty((0, width), np.int64), *(getattr(batch, name) for batch in batches)])

    return Puzzles(
        seeds=np.concatenate([np.empty(0, np.uint64), *(batch.seeds for batch in batches)]),
        kept=columns("kept", rules.frames),
        masked=columns("masked", level.masked),
        candidates=columns("candidates", level.masked + level.distractors),
        truth=columns("truth", level.masked),
    )
