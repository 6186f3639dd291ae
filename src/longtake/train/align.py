"""Align: the projector alone learns to speak the decoder's language. The first stage with words.

Paper: Video-XL-Pro, arXiv 2503.18478, section 4.2 ("only the projector is trained").
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from longtake.models.processor import VideoLLMProcessor
from longtake.models.video_llm import VideoLLM
from longtake.train import left_out
from longtake.train.answers import AnswerLoss
from longtake.train.dialogues import Desk, Material, Reading, held_loss, learn, loader
from longtake.train.run import Fit, Run, start_processes
from longtake.train.runlog import RunLog
from longtake.train.saving import write_model
from longtake.train.tuning import recompute_layers, train_only


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignRecipe:
    """Hyper-parameters of align."""

    fit: Fit
    reading: Reading = field(default_factory=Reading)


def train_align(
    recipe: AlignRecipe, model: VideoLLM, processor: VideoLLMProcessor, material: Material, folder: Path
) -> None:
    """Train the projector, resuming from ``folder``; the whole model is saved in ``folder/model``."""
    fit = recipe.fit
    accelerator = start_processes(fit)
    torch.manual_seed(fit.seed)
    only_projector(model)
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
            parts = [desk.whole(batch) for batch in micros]
            log.step(step + 1, **learn(run, micros, parts, rate))
            if held and fit.is_due(fit.eval_every, step + 1, steps):
                log.tell(step + 1, held_loss=held_loss(run, desk, held))
            left_out.share(run, books)
            if fit.is_due(fit.save_every, step + 1, steps):
                left_out.save(run, step + 1, books)
    left_out.tell(run, books)
    write_model(run, model, only_projector, lambda trained: None, processor, folder / "model")


def only_projector(model: VideoLLM) -> None:
    """Freeze everything but the projector."""
    train_only(model, ["projector"])
