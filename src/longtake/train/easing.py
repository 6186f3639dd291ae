"""Puzzles made easy enough to begin with: the frames beside the gap, the missing ones, and these moved towards those.

In a step's showings each missing frame is mixed with what stands beside its gap, so that at first it is a copy, and
comparing, which is learned on copies (``train/copies.py``), is asked of frames that are ever less alike. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from longtake.data.puzzles.puzzle_file import PuzzleRecord
from longtake.types import VisualTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Easing:
    """How far missing frames are moved towards the frames beside their gap, in training.

    steps: after so many the least share has fallen from 1 to 0. A showing's share is drawn evenly from there to 1.
    """

    steps: int

    def drawn(self, seed: Sequence[int]) -> float:
        """The share (0 to 1) of one showing, by its seed: (seed, step, place)."""
        least = max(0.0, 1 - seed[1] / self.steps)
        return float(np.random.default_rng([*seed, 2]).uniform(least, 1.0))


def only_order(record: PuzzleRecord) -> PuzzleRecord:
    """The record with the context beside its gaps alone and no distractors: what is left to find is the order."""
    hidden, shown = set(record.masked), iter(zip(record.context, record.context_seconds, strict=True))
    sequence = [None if place in hidden else next(shown) for place in range(len(hidden) + len(record.context))]
    beside = {place + step for place in hidden for step in (-1, 1)}
    kept = [one for place, one in enumerate(sequence) if place in hidden or place in beside]
    pool = [name for number, name in enumerate(record.candidates, start=1) if number in record.truth]
    truth = np.argsort(np.argsort(record.truth)) + 1
    context = [one for one in kept if one is not None]
    return replace(
        record,
        context=tuple(name for name, _ in context),
        context_seconds=tuple(second for _, second in context),
        masked=tuple(place for place, one in enumerate(kept) if one is None),
        candidates=tuple(pool),
        truth=tuple(truth.tolist()),
    )


def eased(
    record: PuzzleRecord, context: Sequence[VisualTokens], pool: Sequence[VisualTokens], share: float
) -> list[VisualTokens]:
    """The pool with each missing frame moved by ``share`` (0 to 1) towards what stands beside its gap.

    context, pool: pictures of one shape, ``(rows x columns, dim)``, in the record's order.
    The first of a gap goes to the frame before it, the last to the frame after it, those between to a mixture by their
    place, and so does a single one. A gap at an end has one side alone and stays as it is.
    """
    moved, hidden = list(pool), set(record.masked)
    number = before = 0  # of the next missing frame, and how many of the context stand before it
    for missing, places in groupby(range(len(context) + len(hidden)), key=hidden.__contains__):
        count = len(list(places))
        if not missing:
            before += count
            continue
        own = [record.truth[number + place] - 1 for place in range(count)]
        number += count
        if 0 < before < len(context):
            for candidate, later in zip(own, np.linspace(0, 1, count) if count > 1 else [0.5], strict=True):
                target = context[before - 1].features * (1 - later) + context[before].features * later
                features = pool[candidate].features * (1 - share) + target * share
                moved[candidate] = replace(pool[candidate], features=features)
    return moved
