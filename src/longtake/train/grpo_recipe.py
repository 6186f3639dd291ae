"""Policy optimisation's hyper-parameters, their checks, and which weights learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from longtake.backbones.base import Backbone
from longtake.train.curriculum import CurriculumRecipe
from longtake.train.exam import Control
from longtake.train.methods import METHODS, Method
from longtake.train.puzzles import Puzzle, QuestionPuzzle
from longtake.train.rewards import WEIGHTS
from longtake.train.rollouts import Draw
from longtake.train.run import Fit
from longtake.train.tuning import train_language_model, train_video_parts
from longtake.types import LongtakeError

TEMPORAL = "temporal"  # the part that T-GRPO adds


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoRecipe:
    """Hyper-parameters of policy optimisation; all defaults are ours.

    fit: ``batch`` is puzzles a step over all processes, ``micro_batch`` those whose groups are one pass.
    weights: of the reward's parts, by name. success: the part (0 to 1) that the curriculum goes by.
    lora_rank: 0 trains the whole language model; else low-rank weights beside it, merged at the end.
    train_video: the parts between tower and language model learn too, where puzzles bring features.
    updates: optimiser steps on the same rollouts; with 1 the ratio is 1 and clipping does nothing.
    contrast: the weight of T-GRPO's bonus (0.3 in its paper), for which half as many completions with shuffled frames
    are sampled; 0 for none. controls: what held puzzles are asked under besides.
    samples_every: steps between two groups that are kept for reading.
    """

    fit: Fit
    method: Method = field(default_factory=lambda: METHODS["grpo"])
    draw: Draw = field(default_factory=Draw)
    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    success: str = "exact"
    curriculum: CurriculumRecipe = field(default_factory=CurriculumRecipe)
    lora_rank: int = 0
    lora_alpha: float = 16.0
    train_video: bool = False
    updates: int = 1
    contrast: float = 0.0
    controls: tuple[Control, ...] = ()
    samples_every: int = 10

    def __post_init__(self) -> None:
        if self.lora_rank < 0 or self.updates < 1 or self.samples_every < 1 or self.contrast < 0:
            raise LongtakeError(
                f"lora_rank is {self.lora_rank}, updates {self.updates}, samples_every {self.samples_every}, contrast "
                f"{self.contrast}; lora_rank and contrast must not be negative, the others at least 1"
            )
        self.fit.refuse_sharding("sampling needs whole weights")
        if self.method.objective.kl and not self.lora_rank:
            raise LongtakeError(
                f"kl is {self.method.objective.kl}, but the reference is the model without its LoRA; "
                "set lora_rank above 0, or kl to 0"
            )
        if self.method.objective.kl and self.train_video:
            raise LongtakeError(
                f"kl is {self.method.objective.kl} and train_video is true, but the reference would see the video "
                "through the parts that learn; set one of them to 0 or false"
            )
        if self.draw.group < 2 and self.method.teaching is None:
            raise LongtakeError(f"group is {self.draw.group}; it must be at least 2, so that completions are compared")
        if not any(self.weights.values()):
            raise LongtakeError("all weights are 0; give a part of the reward a weight")


def names_of(puzzles: Sequence[Puzzle]) -> tuple[str, ...]:
    """Names of the parts of the puzzles' rewards."""
    return tuple(puzzles[0].reward(""))


def check(
    recipe: GrpoRecipe, backbone: Backbone, puzzles: Sequence[Puzzle], teacher: Backbone | None, processes: int
) -> tuple[str, ...]:
    """Check a run; returns the reward's parts' names, T-GRPO's too. Raises LongtakeError for what cannot be trained."""
    names = names_of(puzzles)
    segments = recipe.method.segments
    for asked in (*recipe.weights, recipe.success, *(segments.before if segments else ())):
        if asked not in names:
            raise LongtakeError(f"a weight or success names {asked!r}; the rewards have the parts {', '.join(names)}")
    if recipe.fit.batch < processes:
        raise LongtakeError(f"batch is {recipe.fit.batch}; it must be at least 1 for each of {processes} processes")
    if recipe.train_video and not backbone.video_parts:
        raise LongtakeError("train_video is true, but this family stores features behind those parts; set it to false")
    if (teacher is None) != (recipe.method.teaching is None):
        raise LongtakeError("a teacher and a method with teaching go together; give both, or neither")
    if teacher is not None and teacher.tokenizer.get_vocab() != backbone.tokenizer.get_vocab():
        raise LongtakeError("the teacher's vocabulary is not the student's; give a teacher with the same tokenizer")
    for puzzle in puzzles if teacher is not None else ():
        if isinstance(puzzle, QuestionPuzzle) and puzzle.tokens is not None:
            raise LongtakeError(
                f"{puzzle.name} has tokens of one model, and the teacher would be shown them; give watched in "
                "their place, a function of the model"
            )
    return (*names, TEMPORAL) if recipe.contrast else names


def prepare(recipe: GrpoRecipe, backbone: Backbone) -> None:
    """Freeze what is not trained and put LoRA's weights beside the decoder's."""
    train_language_model(backbone, recipe.lora_rank, recipe.lora_alpha, checkpointing=recipe.fit.checkpointing)
    if recipe.train_video:
        train_video_parts(backbone)
