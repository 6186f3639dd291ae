"""Puzzles, which policy optimisation learns from: a prompt, and the parts of a completion's reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from longtake.backbones.base import Backbone, Prompt
from longtake.data.probe_world.questions import normal
from longtake.types import LongtakeError, VisualTokens


class Puzzle(Protocol):
    """One prompt with a verifiable answer. A masked stretch of video, a question, anything that can be scored."""

    @property
    def name(self) -> str:
        """The puzzle's name in logs and samples."""

    @property
    def level(self) -> str:
        """The level of difficulty, by which the curriculum tells puzzles apart."""

    def prompt(self, backbone: Backbone) -> Prompt:
        """The question with the video's tokens: of a memory, or from stored features by ``encode_features``.

        Called again for the update, with gradient: so the parts between tower and language model can learn. Whatever
        is constant (decoded frames, features) is the puzzle's to keep.
        """

    def reward(self, completion: str) -> Mapping[str, float]:
        """The parts of the reward by name, the same names for every puzzle of a run."""

    def varied(self, seed: Sequence[int]) -> Self:
        """The puzzle as it is shown at one step of training, by that step's seed; itself where nothing varies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionPuzzle:
    """A question with a short answer about a watched video, or about none.

    answers: texts that are right, compared as those of the probe world are (``data.probe_world.questions.normal``).
    tokens: of the model that learns. watched: in their place, what gives the tokens of whichever model is asked, so
    that a teacher sees with its own eyes, or more frames. steps: words for what is found on the way to the answer, that
    latents may be taught to say.
    """

    name: str
    question: str
    answers: tuple[str, ...]
    tokens: VisualTokens | None = None
    level: str = "question"
    watched: Callable[[Backbone], VisualTokens] | None = None
    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(map(normal, self.answers)):
            raise LongtakeError(f"{self.name} has no answer; give at least one that is not empty")

    def prompt(self, backbone: Backbone) -> Prompt:
        """The question after the video."""
        tokens = self.tokens if self.watched is None else self.watched(backbone)
        return Prompt(question=self.question, tokens=tokens)

    def reward(self, completion: str) -> dict[str, float]:
        """ "exact": 1 for the whole of an answer. A right answer among others ("red or blue") is wrong."""
        return {"exact": float(normal(completion) in {normal(answer) for answer in self.answers} - {""})}

    def solution(self) -> str:
        """A right answer; of several (the seconds near a time) the middle one."""
        return self.answers[len(self.answers) // 2]

    def guess(self, rng: np.random.Generator) -> str:
        """The right answer: other than of a puzzle, what is right is to be kept, not only the form."""
        del rng
        return self.solution()

    def varied(self, seed: Sequence[int]) -> Self:
        """Itself: a question is always shown alike."""
        return self
