"""Supervised fine-tuning on conversations: everything, or the decoder by LoRA, learns to answer.

Paper: Video-XL-Pro, arXiv 2503.18478, section 4.2 ("all parameters are trained"), and 3.3 for the query-aware
selector, which drops 5 to 30% of a video's tokens while it trains. LoRA, a frozen tower and a frozen DTS are ours.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from longtake.models.processor import VideoLLMProcessor
from longtake.models.video_llm import VideoLLM
from longtake.train import left_out, lora
from longtake.train.answers import AnswerLoss
from longtake.train.dialogues import Desk, Material, Reading, held_loss, learn, loader
from longtake.train.run import Fit, Run, start_processes
from longtake.train.runlog import RunLog
from longtake.train.saving import write_model
from longtake.train.tuning import recompute_layers, train_only
from longtake.types import LongtakeError


@dataclass(frozen=True, slots=True, kw_only=True)
class SftRecipe:
    """Hyper-parameters of fine-tuning.

    drop: least and most share of a video's tokens that are dropped; (0.0, 0.0) keeps all.
    train_tower: False leaves the tower as it is, so that its features can come from a store.
    train_dts: False leaves the compressor as it is, so that with a frozen tower its tokens can come from a store.
    lora_rank: 0 trains the decoder's own weights; else these stay and low-rank ones beside them are trained, merged at
    the end. lora_alpha: what these are scaled by, over the rank. Everything beside the decoder trains as usual.
    """

    fit: Fit
    reading: Reading = field(default_factory=Reading)
    drop: tuple[float, float] = (0.05, 0.3)
    train_tower: bool = False
    train_dts: bool = True
    lora_rank: int = 0
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        if not 0 <= self.drop[0] <= self.drop[1] < 1:
            raise LongtakeError(f"drop is {self.drop}; give the least and the most share, for example (0.05, 0.3)")
        if self.lora_rank < 0:
            raise LongtakeError(f"lora_rank is {self.lora_rank}; it must be positive, or 0 for none")

    @property
    def frozen_before_projector(self) -> bool:
        """Whether nothing before the projector learns, so that what it takes can be kept."""
        return not (self.train_tower or self.train_dts)


def train_sft(
    recipe: SftRecipe, model: VideoLLM, processor: VideoLLMProcessor, material: Material, folder: Path
) -> None:
    """Fine-tune, resuming from ``folder``; the whole model is saved in ``folder/model``, LoRA merged.

    Raises LongtakeError where the material has stored features or tokens of a part that the recipe trains.
    """
    fit = recipe.fit
    if recipe.train_tower and material.store is not None:
        raise LongtakeError("train_tower is true, but features come from a store; a store needs a frozen tower")
    if material.groups is not None and not recipe.frozen_before_projector:
        raise LongtakeError(
            f"train_tower is {recipe.train_tower}, train_dts {recipe.train_dts}, but compressed tokens come from a "
            "store; set both to false"
        )
    accelerator = start_processes(fit)
    torch.manual_seed(fit.seed)
    prepare(recipe, model)
    if fit.checkpointing:
        recompute_layers(model)
    run, desk = Run(fit, accelerator, AnswerLoss(model, material.groups), folder), Desk(processor)
    data = loader(recipe.reading, fit, processor, material.sources, material.store, accelerator)
    held = material.held and loader(recipe.reading, fit, processor, [material.held], material.store, accelerator)
    steps = fit.steps or fit.epochs * data.order.steps_per_epoch
    books = left_out.books_of(data.broken, held.broken if held else None)
    start = left_out.resume(run, books)
    log = RunLog(folder, steps, start, every=fit.log_every, writes=run.is_main)
    with closing(data.steps(start, steps)) as batches, log:
        for step, micros in enumerate(batches, start):
            rate = fit.rate(step, steps)
            parts = [desk.thinned(batch, recipe.drop, (fit.seed, step)) for batch in micros]
            log.step(step + 1, **learn(run, micros, parts, rate))
            if held and fit.is_due(fit.eval_every, step + 1, steps):
                log.tell(step + 1, held_loss=held_loss(run, desk, held))
            left_out.share(run, books)
            if fit.is_due(fit.save_every, step + 1, steps):
                left_out.save(run, step + 1, books)
    left_out.tell(run, books)
    write_model(run, model, lambda fresh: prepare(recipe, fresh), lora.merge, processor, folder / "model")


def prepare(recipe: SftRecipe, model: VideoLLM) -> None:
    """Freeze what is not trained and put LoRA's weights beside the decoder's."""
    parts = ["projector"]
    parts += ["dts"] if recipe.train_dts else []
    parts += ["scorer"] if model.scorer is not None else []
    parts += ["vision_tower"] if recipe.train_tower else []
    if not recipe.lora_rank:
        train_only(model, [*parts, "language_model"])
        return
    train_only(model, parts)
    lora.add(model.language_model, recipe.lora_rank, recipe.lora_alpha)
