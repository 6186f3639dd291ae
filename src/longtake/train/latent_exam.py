"""Held-out questions asked with latents: right answers, and those lost when the latents are another video's.

That latents of another video must cost answers, or they do nothing, is the control that studies of published latents
found missing (arXiv 2602.22766, 2606.01287).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.backbones.base import Backbone
from longtake.backbones.thinking import think
from longtake.models.latent import Thinking
from longtake.train.puzzles import QuestionPuzzle
from longtake.train.run import Run


def partners(puzzles: Sequence[QuestionPuzzle]) -> list[int | None]:
    """For each the next one, around the end, with the same question and no answer in common; None where none is."""
    found: list[int | None] = []
    for number, own in enumerate(puzzles):
        others = (*range(number + 1, len(puzzles)), *range(number))
        fits = (
            other
            for other in others
            if puzzles[other].question == own.question and not set(puzzles[other].answers) & set(own.answers)
        )
        found.append(next(fits, None))
    return found


@torch.no_grad()
def asked(
    backbone: Backbone, puzzle: QuestionPuzzle, thinking: Thinking, longest: int, given: Tensor | None = None
) -> tuple[float, Tensor]:
    """Whether the greedy answer is right, 1 or 0, and the latents it was given with, ``(latents, dim)``."""
    thought = think(backbone, backbone.prepare([puzzle.prompt(backbone)]), thinking=thinking, given=given)
    (rollout,) = backbone.generate(thought.inputs, thought.cache, max_new_tokens=longest)
    return puzzle.reward(rollout.text)["exact"], thought.latents[0]


@torch.no_grad()
def held_figures(
    run: Run, backbone: Backbone, held: Sequence[QuestionPuzzle], thinking: Thinking, longest: int
) -> dict[str, float]:
    """Over all held questions: the share right; of those with a partner, the share lost with its latents.

    Every process must call it. The latter is left out where no question has a partner, and without latents.
    """
    run.module.eval()
    other = partners(held)
    right, paired, lost = 0.0, 0, 0.0
    for number in range(run.accelerator.process_index, len(held), run.accelerator.num_processes):
        partner = other[number]
        with run.accelerator.autocast():
            exact, _ = asked(backbone, held[number], thinking, longest)
            right += exact
            if thinking.latents and partner is not None:
                _, foreign = asked(backbone, held[partner], thinking, 1)
                paired += 1
                lost += exact - asked(backbone, held[number], thinking, longest, foreign)[0]
    right, pairs, lost = run.total(right, paired, lost)
    run.module.train()
    figures = {"held_exact": right / len(held)}
    return figures | ({"held_lost": lost / pairs, "held_pairs": pairs} if pairs else {})
