"""Masked Video Prediction as puzzles to train on: context with its gap, numbered candidates, the answer's form.

Paper: MVP, arXiv 2601.03781, of which only the task is known: the prompt's words and forms are ours. Every picture is
shown by itself, in the context too: a group of several would join what is compared with single candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, Self

import numpy as np

from longtake.backbones.base import Backbone, Part, Prompt
from longtake.data.puzzles.draws import another_order
from longtake.data.puzzles.puzzle import pairwise
from longtake.data.puzzles.puzzle_file import PuzzleRecord
from longtake.train.album import Album, one_video
from longtake.train.easing import Easing, eased, only_order
from longtake.train.puzzles import Puzzle
from longtake.train.rendering import Rendering
from longtake.train.rewards import PuzzleReward
from longtake.types import LongtakeError, VisualTokens

PuzzleControl = Literal["none", "blind", "candidates", "foreign", "shuffled"]

FORMS = {
    "direct": "{list}, and nothing else",
    "answer": "<answer>{list}</answer>",
    "think": "<think>your reasons</think><answer>{list}</answer>",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MvpPuzzle:
    """One record as a puzzle.

    shown: the record whose context stands in the prompt: its own, or another video's as a control. times: whether the
    context's times are told; candidates never have any.
    control: "blind": the question alone. "candidates": no context. "foreign": another video's context, in ``shown``.
    "shuffled": the context's frames in another order, across the gap too, while times and gap stay.
    rendering, turn: of the pictures; the turn is of one showing in training.
    easing, share: how missing frames are moved towards their gap in training, and by how much in one showing.
    """

    record: PuzzleRecord
    album: Album
    shown: PuzzleRecord
    scoring: PuzzleReward = field(default_factory=PuzzleReward)
    control: PuzzleControl = "none"
    times: bool = True
    rendering: Rendering = field(default_factory=Rendering)
    turn: int | None = None
    easing: Easing | None = None
    share: float = 0.0

    def __post_init__(self) -> None:
        if (self.control == "foreign") != (self.shown.identity != self.record.identity):
            raise ValueError(f"{self.record.id}: control {self.control!r} with the context of {self.shown.id}")

    @property
    def name(self) -> str:
        """The record's id."""
        return self.record.id

    @property
    def level(self) -> str:
        """The record's level."""
        return self.record.level

    def prompt(self, backbone: Backbone) -> Prompt:
        """The frames before the gap, how many are missing, the frames after it; then the numbered candidates."""
        return Prompt(question=self.question, parts=tuple(self._parts(backbone)))

    @property
    def question(self) -> str:
        """The text of the question, with how many frames are missing and the form of the answer."""
        missing, pool = len(self.record.truth), len(self.record.candidates)
        form = FORMS[self.scoring.form].format(list=", ".join(["number"] * missing))
        return (
            f"{missing} frames are missing. Which of the frames 1 to {pool} are they, in the order of time? "
            f"Answer with {missing} different numbers: {form}"
        )

    def reward(self, completion: str) -> dict[str, float]:
        """The parts of a completion's reward, by ``PuzzleReward``."""
        return self.scoring.parts(completion, self.record.truth, len(self.record.candidates))

    def solution(self) -> str:
        """The right answer, in the asked form."""
        return self._said(self.record.truth)

    def guess(self, rng: np.random.Generator) -> str:
        """A valid answer drawn at random: it has the form and knows nothing."""
        drawn = rng.permutation(len(self.record.candidates))[: len(self.record.truth)] + 1
        return self._said(drawn.tolist())

    def varied(self, seed: Sequence[int]) -> Self:
        """As it is shown at one step of training: turned or not, eased or not."""
        share = self.easing.drawn(seed) if self.easing else 0.0
        return dataclasses.replace(self, turn=self.rendering.drawn_turn(seed), share=share)

    def _said(self, numbers: Sequence[int]) -> str:
        listed = ", ".join(map(str, numbers))
        thought = "I compare the frames." if self.scoring.form == "think" else ""
        form = FORMS[self.scoring.form].replace("your reasons", thought).removesuffix(", and nothing else")
        return form.format(list=listed)

    def _parts(self, backbone: Backbone) -> Iterator[Part]:
        if self.control == "blind":
            return
        names = mixed(self.shown) if self.control == "shuffled" else self.shown.context
        context = [] if self.control == "candidates" else self.album.tokens(backbone, self.shown.frames, names)
        pool = self.album.tokens(backbone, self.record.frames, self.record.candidates)
        if self.share:
            pool = eased(self.record, context, pool, self.share)
        pictures = self.rendering.of([*context, *pool], self.turn)
        if context:
            yield from self._context(pictures[: len(context)])
        for number, picture in enumerate(pictures[len(context) :], start=1):
            yield Part(text=f"Frame {number}: ", tokens=picture, timed=False)

    def _context(self, shown: Sequence[VisualTokens]) -> Iterator[Part]:
        """Runs of shown frames, each as one video of single frames, and between them how many are missing."""
        hidden, pictures, seconds = set(self.shown.masked), iter(shown), iter(self.shown.context_seconds)
        for missing, places in groupby(range(len(shown) + len(hidden)), key=hidden.__contains__):
            count = sum(1 for _ in places)
            if missing:
                yield Part(text=f"[{count} missing]\n")
            else:
                run = [next(pictures) for _ in range(count)]
                yield Part(tokens=one_video(run, [next(seconds) for _ in range(count)]), timed=self.times)


def order_alone(puzzles: Sequence[MvpPuzzle], easing: Easing | None = None) -> list[MvpPuzzle]:
    """The puzzles by ``only_order``, eased in training, which needs their own context."""
    return [
        dataclasses.replace(one, record=only_order(one.record), shown=only_order(one.shown), easing=easing)
        for one in puzzles
    ]


def mixed(record: PuzzleRecord) -> tuple[str, ...]:
    """The context's frames in another order, by the record's seed."""
    return tuple(record.context[place] for place in another_order(len(record.context), record.seed).tolist())


def foreign(
    records: Sequence[PuzzleRecord], pool: Sequence[PuzzleRecord], sources: Mapping[str, str]
) -> list[PuzzleRecord]:
    """Draw for each record one of the pool from another source, of the same level where there is one, by its seed.

    sources: by a video's identity. Raises LongtakeError where the pool has one source only.
    """
    others: dict[tuple[str, str], list[PuzzleRecord]] = {}
    for level, source in {(record.level, sources[record.identity]) for record in records}:
        apart = [one for one in pool if sources[one.identity] != source]
        others[level, source] = [one for one in apart if one.level == level] or apart
        if not apart:
            raise LongtakeError(
                f"all puzzles on this side are of {source}; another video's context needs a second source: "
                "give more footage, or leave the control out"
            )
    found = []
    for record in records:
        own = others[record.level, sources[record.identity]]
        found.append(own[record.seed % len(own)])
    return found


def under(
    puzzles: Sequence[MvpPuzzle], control: PuzzleControl, pool: Sequence[PuzzleRecord], sources: Mapping[str, str]
) -> list[MvpPuzzle]:
    """The puzzles under a control. pool, sources: as in ``foreign``, which they are for."""
    records = [puzzle.record for puzzle in puzzles]
    shown = foreign(records, pool, sources) if control == "foreign" else records
    return [
        dataclasses.replace(puzzle, control=control, shown=other)
        for puzzle, other in zip(puzzles, shown, strict=True)
    ]


def figures(puzzles: Sequence[Puzzle], parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over all puzzles, and again by level where there are several: ``L3_exact``.

    "exact", "selection", "kendall" and ``pairwise``; and whatever of "reward", "valid" and "format" the parts have.
    """
    found = _figures(parts)
    levels = sorted({puzzle.level for puzzle in puzzles})
    for level in levels if len(levels) > 1 else ():
        own = [each for puzzle, each in zip(puzzles, parts, strict=True) if puzzle.level == level]
        found |= {f"{level}_{name}": value for name, value in _figures(own).items()}
    return found


def _figures(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    told = ("reward", "valid", "format", "exact", "selection", "pairs", "kendall")
    found = {name: sum(each[name] for each in parts) / len(parts) for name in told if name in parts[0]}
    return found | {"pairwise": float(pairwise(np.array(found["kendall"]), np.array(found.pop("pairs"))))}
