"""Supervised learning on puzzles, for policy optimisation to begin from or to be compared with.

One visible loop on the adapter, so that both families learn, whole or by LoRA. Ours, as are its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from longtake.backbones.base import Backbone
from longtake.train.beside import Beside
from longtake.train.curriculum import Curriculum, CurriculumRecipe
from longtake.train.exam import Summary, held_figures
from longtake.train.puzzles import Puzzle, QuestionPuzzle
from longtake.train.rewards import WEIGHTS
from longtake.train.run import Fit, Run, start_processes
from longtake.train.runlog import RunLog
from longtake.train.saving import write_backbone
from longtake.train.tuning import idle, train_language_model, train_video_parts
from longtake.types import LongtakeError


class Lesson(Puzzle, Protocol):
    """A puzzle whose answer can be said."""

    def solution(self) -> str:
        """The right completion."""

    def guess(self, rng: np.random.Generator) -> str:
        """A completion of the asked form that knows nothing of the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImitateRecipe:
    """Hyper-parameters of supervised learning.

    fit: ``batch`` is puzzles a step over all processes, ``micro_batch`` those of one pass.
    target: "form": random answers of the asked form, which teach how to answer and no more. "truth": the right ones.
    lora_rank, lora_alpha, train_video: as in ``GrpoRecipe``. weights: of the reward that held puzzles are measured by.
    max_new_tokens: of their answers.
    """

    fit: Fit
    target: Literal["form", "truth"] = "truth"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    train_video: bool = False
    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if self.target not in ("form", "truth"):
            raise LongtakeError(f"target is {self.target!r}; it must be 'form' or 'truth'")
        if self.lora_rank < 0 or self.max_new_tokens < 1:
            raise LongtakeError(
                f"lora_rank is {self.lora_rank}, max_new_tokens {self.max_new_tokens}; lora_rank must not be negative, "
                "max_new_tokens at least 1"
            )
        self.fit.refuse_sharding("held puzzles are sampled from whole weights")


Taught = tuple[Lesson, tuple[int, ...]]  # a puzzle, and the tokens of what is to be said


def train_imitation(
    recipe: ImitateRecipe,
    backbone: Backbone,
    puzzles: Sequence[Lesson],
    folder: Path,
    *,
    held: Sequence[Puzzle] = (),
    beside: Beside | None = None,
    summary: Summary | None = None,
) -> None:
    """Train, resuming from ``folder``; the model is saved in ``folder/model``, LoRA merged.

    beside: questions among the puzzles (``with_questions``), ``count`` for every ``fit.batch`` of these; a step stays
    as large. summary: of the held puzzles' answers.

    Raises LongtakeError for a batch that does not divide among the processes.
    """
    fit, accelerator = recipe.fit, start_processes(recipe.fit)
    if fit.batch % accelerator.num_processes:
        raise LongtakeError(
            f"batch is {fit.batch}; it must be a multiple of {accelerator.num_processes}, the number of processes"
        )
    torch.manual_seed(fit.seed)
    if beside is not None:
        puzzles = with_questions(puzzles, beside, fit.batch)
    order = CurriculumRecipe(by_success=False)
    curriculum = Curriculum(recipe=order, levels=[puzzle.level for puzzle in puzzles], seed=fit.seed)
    train_language_model(backbone, recipe.lora_rank, recipe.lora_alpha, checkpointing=fit.checkpointing)
    if recipe.train_video:
        train_video_parts(backbone)
    backbone.model.to(accelerator.device)
    run = Run(fit, accelerator, Imitation(backbone), folder)
    start = run.resume()
    if start:
        curriculum.load(run.more["curriculum"])
    steps = fit.steps_for(len(puzzles))
    with RunLog(folder, steps, start, every=fit.log_every, writes=run.is_main) as log:
        for step in range(start, steps):
            numbers = curriculum.draw(step, fit.batch)
            places = range(accelerator.process_index, fit.batch, accelerator.num_processes)
            lessons = [
                draw_target(recipe, backbone, puzzles[numbers[place]], (fit.seed, step, place)) for place in places
            ]
            log.step(step + 1, **learn(run, lessons, fit.rate(step, steps)))
            if held and fit.is_due(fit.eval_every, step + 1, steps):
                longest = recipe.max_new_tokens
                log.tell(step + 1, **held_figures(run, backbone, held, recipe.weights, longest, summary=summary))
                if beside is not None and beside.held:
                    kept = held_figures(run, backbone, beside.held, beside.weights, longest)
                    log.tell(step + 1, **{f"{beside.name}_{name}": value for name, value in kept.items()})
            if fit.is_due(fit.save_every, step + 1, steps):
                run.save(step + 1, curriculum=curriculum.state())
    write_backbone(run, backbone, folder / "model")


class Imitation(nn.Module):
    """The summed negative log-probability of what is to be said, as one module that can be spread over processes."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model = backbone.model
        self.backbone = backbone

    def forward(self, lessons: Sequence[Taught]) -> Tensor:
        """The summed loss, a scalar. Every trained weight has a gradient afterwards, zero where no prompt uses it."""
        inputs = self.backbone.prepare([puzzle.prompt(self.backbone) for puzzle, _ in lessons])
        loss = -self.backbone.logprobs(inputs, [ids for _, ids in lessons]).sum()
        return loss + idle(self.backbone.video_parts)


def with_questions(puzzles: Sequence[Lesson], beside: Beside, batch: int) -> list[Lesson]:
    """The puzzles, and for every ``batch`` of them ``count`` questions, spread over all that there are."""
    wanted = max(1, round(len(puzzles) * beside.count / batch))
    places = np.linspace(0, len(beside.puzzles) - 1, wanted).astype(int)
    asked = [beside.puzzles[place] for place in places.tolist()]
    return [*puzzles, *(question for question in asked if isinstance(question, QuestionPuzzle))]


def draw_target(recipe: ImitateRecipe, backbone: Backbone, puzzle: Lesson, seed: tuple[int, ...]) -> Taught:
    """A puzzle as it is shown now, and what is to be said: its truth or, for "form", a guess; the end token is last."""
    said = puzzle.solution() if recipe.target == "truth" else puzzle.guess(np.random.default_rng(seed))
    ids = backbone.tokenizer(said, add_special_tokens=False)["input_ids"]
    return puzzle.varied(seed), (*ids, int(backbone.tokenizer.eos_token_id))


def learn(run: Run, lessons: Sequence[Taught], rate: float) -> dict[str, float]:
    """Do one optimiser step on this process's lessons; returns figures for the log. Every process must call it."""
    size = run.fit.micro_batch
    parts = [lessons[begin : begin + size] for begin in range(0, len(lessons), size)]
    done = run.update(parts, lambda part: run.module(part), sum(len(ids) for _, ids in lessons), rate)
    return {"loss": done.loss, "norm": done.norm, "rate": rate, "learned": done.counted}
