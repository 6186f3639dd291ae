"""Latent self-forcing: a model learns to think in latents from questions and answers alone.

It is trained on its own latents, made as they are made when it is asked: answers teach them, alignment keeps them where
making them once more would leave them, diversity keeps them from being all the same. In a first stretch of the steps
answers see the video through the latents alone.

Paper: VideoLatent, arXiv 2606.22870, of which the abstract alone could be read: self-forcing, alignment, diversity and
training on plain triplets are named there; all forms, weights and the schedule are ours. A bottleneck before joint
training is in LIVR, arXiv 2512.21218.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longtake.backbones.base import Backbone
from longtake.models.latent import Thinking
from longtake.train.forcing import FIGURES, Forcing, Rows
from longtake.train.latent_exam import held_figures
from longtake.train.latent_recipe import LatentRecipe, check, prepare
from longtake.train.puzzles import QuestionPuzzle
from longtake.train.run import Run, gathered, start_processes
from longtake.train.runlog import RunLog
from longtake.train.saving import write_backbone
from longtake.types import VisualTokens

LONGEST_ANSWER = 24  # tokens of a held question's answer


def train_latent(
    recipe: LatentRecipe,
    backbone: Backbone,
    puzzles: Sequence[QuestionPuzzle],
    folder: Path,
    *,
    held: Sequence[QuestionPuzzle] = (),
    dense: Mapping[str, VisualTokens] | None = None,
    exam: Callable[[], Mapping[str, float]] | None = None,
) -> None:
    """Train, resuming from ``folder``; the model is saved in ``folder/model``, LoRA merged.

    A puzzle's first answer is learned. dense: denser videos by the puzzle's name, for that teacher. exam: figures of
    the backbone as it is, for the log, before the first step and every ``eval_every``; all processes call it.
    """
    fit, accelerator = recipe.fit, start_processes(recipe.fit)
    torch.manual_seed(fit.seed)
    check(recipe, backbone, puzzles, dense, accelerator.num_processes)
    prepare(recipe, backbone)
    backbone.model.to(accelerator.device)
    faster = {"model.latent": recipe.times} if recipe.thinks else {}
    run = Run(fit, accelerator, Forcing(backbone, recipe), folder, faster=faster)
    start = run.resume()
    queue = Queue(recipe.queue, run.more.get("names", []), run.more.get("contents"))
    thinking = Thinking(latents=0)
    if recipe.thinks and backbone.latent is not None:
        thinking = backbone.latent.settings.thinking
    groups = groups_of(puzzles, recipe.together)
    steps = fit.steps_for(len(groups) * recipe.together)
    with RunLog(folder, steps, start, every=fit.log_every, writes=run.is_main) as log:
        if exam is not None and not start:
            log.tell(0, **run_exam(run, exam))
        for step in range(start, steps):
            drawn = draw_questions(step, fit.batch // recipe.together, len(groups), fit.seed)
            chosen = [puzzles[number] for place in drawn for number in groups[place]]
            veiled = step < recipe.bottleneck * steps
            rate = fit.rate(step, steps)
            log.step(step + 1, **learn(recipe, run, backbone, chosen, queue, dense or {}, veiled=veiled, rate=rate))
            if held and fit.is_due(fit.eval_every, step + 1, steps):
                log.tell(step + 1, **held_figures(run, backbone, held, thinking, LONGEST_ANSWER))
            if exam is not None and fit.is_due(fit.eval_every, step + 1, steps):
                log.tell(step + 1, **run_exam(run, exam))
            if fit.is_due(fit.save_every, step + 1, steps):
                run.save(step + 1, names=queue.names, contents=queue.contents)
    write_backbone(run, backbone, folder / "model")


def run_exam(run: Run, exam: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
    """Run an exam in eval mode; returns its figures."""
    run.module.eval()
    figures = exam()
    run.module.train()
    return figures


class Queue:
    """Contents of the last samples of all processes, by their puzzle's name, oldest first."""

    def __init__(self, size: int, names: Sequence[str] = (), contents: Tensor | None = None) -> None:
        """contents: float32 ``(samples, latents, dim)``, on the CPU; None: none yet."""
        self.size, self.names, self.contents = size, list(names), contents

    def put(self, name: str, content: Tensor) -> None:
        """Add one sample's contents ``(latents, dim)``; the oldest goes where there are more than ``size``."""
        row = content[None].float().cpu()
        whole = row if self.contents is None else torch.cat([self.contents, row])
        self.names = [*self.names, name][len(whole) - min(len(whole), self.size) :]
        self.contents = whole[len(whole) - min(len(whole), self.size) :].clone()

    def beside(self, names: Sequence[str], like: Tensor) -> tuple[Tensor, Tensor]:
        """The contents kept, and bool ``(names, samples)``: whether each is another puzzle's than the named one.

        like: ``(any, latents, dim)``, whose shape the contents have while nothing is kept.
        """
        kept = like[:0].float() if self.contents is None else self.contents
        rows = [[other != name for other in self.names] for name in names]
        return kept, torch.tensor(rows, dtype=torch.bool).view(len(names), len(kept))


def draw_questions(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Draw the numbers of a step's questions out of ``count``: all once in random order, then again in another."""
    places = range(step * batch, (step + 1) * batch)
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(count) for epoch in {p // count for p in places}}
    return [int(orders[place // count][place % count]) for place in places]


def groups_of(puzzles: Sequence[QuestionPuzzle], size: int) -> list[list[int]]:
    """The numbers of puzzles about one video that follow each other, ``size`` at a time; a rest is repeated."""
    found: list[list[int]] = []
    for number, puzzle in enumerate(puzzles):
        if found and puzzles[found[-1][0]].tokens is puzzle.tokens and len(found[-1]) < size:
            found[-1].append(number)
        else:
            found.append([number])
    return [(group * size)[:size] for group in found]


def learn(
    recipe: LatentRecipe,
    run: Run,
    backbone: Backbone,
    chosen: Sequence[QuestionPuzzle],
    queue: Queue,
    dense: Mapping[str, VisualTokens],
    *,
    veiled: bool,
    rate: float,
) -> dict[str, float]:
    """Do one optimiser step on the chosen puzzles; returns figures for the log. Every process must call it.

    Puzzles that are run together follow each other. What is learned does not depend on the number of processes:
    samples are compared with those of earlier steps only.
    """
    index, processes = run.accelerator.process_index, run.accelerator.num_processes
    own = [place for place in range(len(chosen)) if place // recipe.together % processes == index]
    mine, micro = [chosen[place] for place in own], recipe.fit.micro_batch
    parts = [rows_of(recipe, backbone, mine[n : n + micro], queue, dense, veiled) for n in range(0, len(mine), micro)]
    contents: list[Tensor] = []

    def loss_of(rows: Rows) -> list[Tensor]:
        loss, figures, content = run.module(rows)
        contents.append(content)
        return [loss, *figures]

    done = run.update(parts, loss_of, len(mine), rate)
    if recipe.thinks and recipe.queue:
        made = dict(zip(own, torch.cat(contents).float().cpu(), strict=True))
        for puzzle, content in zip(chosen, gathered(made), strict=True):
            queue.put(puzzle.name, content)
    openness = backbone.latent.openness if recipe.thinks and backbone.latent is not None else torch.zeros(())
    told = {"loss": done.loss, "norm": done.norm, "rate": rate, "answer": done.more[0]}
    if not recipe.thinks:
        return told
    return told | dict(zip(FIGURES[1:], done.more[1:], strict=True)) | {
        "gate": float(openness.detach()), "veiled": float(veiled)
    }  # fmt: skip


def rows_of(
    recipe: LatentRecipe,
    backbone: Backbone,
    puzzles: Sequence[QuestionPuzzle],
    queue: Queue,
    dense: Mapping[str, VisualTokens],
    veiled: bool,
) -> Rows:
    """A micro-batch of these puzzles, with the contents of earlier samples beside it."""
    slots = backbone.latent.slots if backbone.latent is not None else torch.zeros(0, 0)
    others, counts = queue.beside([puzzle.name for puzzle in puzzles], slots.detach()[None])
    return Rows(
        prompts=tuple(puzzle.prompt(backbone) for puzzle in puzzles),
        answers=tuple(puzzle.answers[0] for puzzle in puzzles),
        others=others,
        counts=counts,
        veiled=veiled and recipe.thinks,
        steps=tuple(puzzle.steps for puzzle in puzzles),
        together=recipe.together,
        dense=tuple(dense.get(puzzle.name) for puzzle in puzzles) if recipe.teacher == "dense" and recipe.align else (),
    )
