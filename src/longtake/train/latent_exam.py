"""Held-out questions asked with latents: right answers, and those lost when the latents are another video's.

That latents of another video must cost answers, or they do nothing, is the control that studies of published latents
found missing (arXiv 2602.22766, 2606.01287).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.backbones.base import Backbone, Prompt
from longtake.backbones.thinking import think
from longtake.models.latent import Thinking
from longtake.train.puzzles import QuestionPuzzle
from longtake.train.run import Run
from longtake.types import VisualTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Partner:
    """Another puzzle, whose video's latents take the place of one's own. strict: same question, another answer."""

    number: int
    strict: bool


def partners(puzzles: Sequence[QuestionPuzzle]) -> list[Partner | None]:
    """Partners of the puzzles: the next, around the end, with the same question and no answer in common.

    Where there is none, the next one with another video. None where there is neither, and for a puzzle without a video.
    """
    found: list[Partner | None] = []
    for number, own in enumerate(puzzles):
        order = (*range(number + 1, len(puzzles)), *range(number))
        others = [other for other in order if puzzles[other].tokens is not own.tokens]
        others = [other for other in others if own.tokens is not None and puzzles[other].tokens is not None]
        fits = [
            other
            for other in others
            if puzzles[other].question == own.question and not set(puzzles[other].answers) & set(own.answers)
        ]
        chosen = (fits or others)[:1]
        found.append(Partner(number=chosen[0], strict=bool(fits)) if chosen else None)
    return found


@torch.no_grad()
def latents_of(backbone: Backbone, question: str, tokens: VisualTokens | None, thinking: Thinking) -> Tensor:
    """The latents of a question about a video, ``(latents, dim)``."""
    return think(backbone, backbone.prepare([Prompt(question=question, tokens=tokens)]), thinking=thinking).latents[0]


@torch.no_grad()
def exact(
    backbone: Backbone, puzzle: QuestionPuzzle, thinking: Thinking, longest: int, given: Tensor | None = None
) -> float:
    """Whether the greedy answer is right, 1 or 0. given: latents in place of its own."""
    made = think(backbone, backbone.prepare([puzzle.prompt(backbone)]), thinking=thinking, given=given)
    (rollout,) = backbone.generate(made.inputs, made.cache, max_new_tokens=longest)
    return puzzle.reward(rollout.text)["exact"]


@torch.no_grad()
def held_figures(
    run: Run, backbone: Backbone, held: Sequence[QuestionPuzzle], thinking: Thinking, longest: int
) -> dict[str, float]:
    """The share right of all held questions, and of those with a partner the share lost with latents of its video.

    held_pairs: how many partners are strict; without them, other videos may have the same answer, and less is lost.
    Every process must call it. Without latents there is the first figure only.
    """
    run.module.eval()
    other = partners(held)
    right, lost, asked, strict = 0.0, 0.0, 0, 0
    for number in range(run.accelerator.process_index, len(held), run.accelerator.num_processes):
        own, partner = held[number], other[number]
        with run.accelerator.autocast():
            score = exact(backbone, own, thinking, longest)
            right += score
            if thinking.latents and partner is not None:
                foreign = latents_of(backbone, own.question, held[partner.number].tokens, thinking)
                lost += score - exact(backbone, own, thinking, longest, foreign)
                asked, strict = asked + 1, strict + partner.strict
    right, lost, swapped, pairs = run.total(right, lost, asked, strict)
    run.module.train()
    figures = {"held_exact": right / len(held)}
    return figures | ({"held_lost": lost / swapped, "held_pairs": pairs} if swapped else {})
