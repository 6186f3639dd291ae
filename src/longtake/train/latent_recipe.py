"""Latent self-forcing's hyper-parameters, their checks, and which weights learn. All defaults are ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from longtake.backbones.base import Backbone, Prompt
from longtake.backbones.thinking import add_latents
from longtake.models.latent import LatentSettings
from longtake.train.dialogues import Reading
from longtake.train.puzzles import QuestionPuzzle
from longtake.train.run import Fit
from longtake.train.tuning import train_language_model
from longtake.types import LongtakeError, VisualTokens

Teacher = Literal["self", "video", "dense"]
Hides = Literal["video", "prompt"]
Begin = Literal["drawn", "answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentRecipe:
    """Hyper-parameters of latent self-forcing.

    fit: ``lr`` is the language model's; ``batch`` is questions a step over all processes.
    times: how many times that rate the latents' own weights learn at.
    settings: of the latents, where the model has none yet; a model that has some keeps its own.
    begin: how the slots of new latents begin: drawn, or near the embedding behind which an answer is said, so that
    states there are of use from the start.
    thinks: False trains on answers alone, without latents, on the same data: the control.
    teacher: what latents are aligned to. "self": what the forced pass would make of them, to what was injected;
    "video": to means of as many stretches of the video; "dense": the state before the answer, to that of the same model
    without latents on a denser video.
    spell: weight of what latents are taught to say: the state that each is made of says a word of the puzzle's
    ``steps``, in their order, and behind the last one how the answer begins. Annotation, where puzzles have steps.
    align, diverse: weights beside the answer's loss. margin, margin_across: cosines that are free of charge, between
    latents of a sample and of different samples at the same slot; across: the latter's share. queue: how many earlier
    samples are compared with.
    bottleneck: share of the steps, at the start, in which the answer sees the video through the latents alone (and
    alignment is left out). hides: what is hidden there, the video from question and answer, or the prompt from the
    answer.
    through: gradients go through all makings of the latents, each into those that it was made of, and not through the
    last alone; with several passes only then what the earlier ones find is taught by the answer.
    together: how many questions about one video are drawn together, and the video is run once for them. Where it has
    fewer, or a rest of them, some are asked again.
    lora_rank: 0 trains the whole language model; else low-rank weights beside it, merged at the end.
    reading: how videos are read, where the stage reads them.
    """

    fit: Fit
    times: float = 10.0
    settings: LatentSettings = field(default_factory=LatentSettings)
    begin: Begin = "drawn"
    thinks: bool = True
    teacher: Teacher = "self"
    align: float = 0.1
    diverse: float = 0.1
    margin: float = 0.2
    margin_across: float = 0.5
    across: float = 0.5
    queue: int = 256
    bottleneck: float = 0.15
    spell: float = 0.0
    hides: Hides = "video"
    through: bool = False
    together: int = 1
    lora_rank: int = 0
    lora_alpha: float = 16.0
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        for name in ("align", "diverse", "spell", "across", "queue", "lora_rank"):
            if getattr(self, name) < 0:
                raise LongtakeError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not self.times > 0 or not 0 <= self.bottleneck <= 1:
            raise LongtakeError(
                f"times is {self.times}, bottleneck {self.bottleneck}; times must be positive, bottleneck from 0 to 1"
            )
        if self.together < 1 or self.fit.micro_batch % self.together:
            raise LongtakeError(
                f"together is {self.together}; it must divide fit.micro_batch ({self.fit.micro_batch}), as questions "
                "about one video are run together"
            )
        self.fit.refuse_sharding("thinking needs whole weights")


def check(
    recipe: LatentRecipe,
    backbone: Backbone,
    puzzles: Sequence[QuestionPuzzle],
    dense: Mapping[str, VisualTokens] | None,
    processes: int,
) -> None:
    """Raises LongtakeError for what cannot be trained."""
    if not puzzles:
        raise LongtakeError("there are no questions to learn from; give at least one with its answer")
    rows = recipe.fit.micro_batch * processes
    if recipe.fit.batch % rows:
        raise LongtakeError(
            f"batch is {recipe.fit.batch}; it must be a multiple of {rows}: micro_batch times {processes} processes"
        )
    if not recipe.thinks:
        if backbone.latent is not None:
            raise LongtakeError(
                "thinks is false, but the model has latents, which would be kept as they are and thought with; set "
                "thinks=true, or begin from a model without latents"
            )
        return
    settings = recipe.settings if backbone.latent is None else backbone.latent.settings
    mode = settings.thinking.mode
    if mode == "pause" and (recipe.align or recipe.diverse):
        raise LongtakeError("in mode pause nothing is fed back, so nothing is aligned or diverse; set both to 0")
    if mode == "autoregressive" and recipe.teacher == "self" and recipe.align:
        raise LongtakeError(
            "one by one, the forced pass makes the very latents that were injected: aligning them teaches nothing; "
            "set align to 0, or another teacher"
        )
    if recipe.teacher == "dense" and recipe.align:
        shown = [puzzle.name for puzzle in puzzles if puzzle.tokens is not None]
        if missing := [name for name in shown if name not in (dense or {})]:
            raise LongtakeError(f"the teacher is dense, but {missing[0]} has no denser video; give one for each")


def prepare(recipe: LatentRecipe, backbone: Backbone) -> None:
    """Give the model latents where it is to have some, and freeze what is not trained."""
    if recipe.thinks and backbone.latent is None:
        module = add_latents(backbone, recipe.settings, seed=recipe.fit.seed)
        if recipe.begin == "answer":
            module.stand_in_for(backbone.prepare([Prompt(question="")]).embeddings[0, -1])
    train_language_model(backbone, recipe.lora_rank, recipe.lora_alpha, checkpointing=recipe.fit.checkpointing)
    if recipe.thinks and backbone.latent is not None:
        backbone.latent.requires_grad_(True)
