"""Train the embedded tower on, on small cards above all; a stage for a model whose other parts are trained already.

Small cards are what it misreads most. Where there is nothing to read it must stay what it was, and on cards it may go
a little away, so that a DTS and a decoder that learned from it need little to follow. Ours.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import SiglipVisionModel

from longtake.data.probe_world.haystack import Clip
from longtake.models.preprocess import normalise
from longtake.train import checkpoint
from longtake.train.checkpoint import Cycle
from longtake.train.embedded.optimiser import Optimiser
from longtake.train.embedded.reading import AttributeHeads, ReadingHead, reading_accuracy
from longtake.train.embedded.tower import SingleFrames, evaluate, picture_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class SharpenRecipe:
    """Hyper-parameters. The first cycle is of the reading heads alone, which begin anew.

    batch: pictures a step. small: share of the cards that are small. near: weight of the squared distance from what
    the tower gave before, in units of its variance; near_card: how much of it counts on patches that tell something.
    held_out: pictures in each of two batches, one of small cards alone.
    """

    cycles: tuple[Cycle, ...] = (Cycle(until_step=600), Cycle(until_step=3600, peak=0.3))
    batch: int = 64
    small: float = 0.6
    near: float = 5.0
    near_card: float = 0.1
    lr: float = 1e-3
    muon_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 100
    held_out: int = 500
    seed: int = 77
    workers: int = 1
    log_every: int = 100
    save_every: int = 200

    @property
    def steps(self) -> int:
        """How many steps all cycles take together."""
        return self.cycles[-1].until_step


def sharpen_tower(
    recipe: SharpenRecipe, tower: SiglipVisionModel, train: list[Clip], test: list[Clip], folder: Path
) -> SiglipVisionModel:
    """Train a tower from what it is, in place, resuming from ``folder``, where it is saved when done.

    test: clips of other sources, for the log.
    """
    torch.manual_seed(recipe.seed)
    tower.set_attn_implementation("eager")  # as ``new_tower`` has it
    before = copy.deepcopy(tower).requires_grad_(False)
    side, hidden = cast(int, tower.config.image_size), tower.config.hidden_size
    head, patch_head = ReadingHead(hidden), AttributeHeads(hidden)
    modules = {"tower": tower, "head": head, "patch_head": patch_head}
    tower.requires_grad_(True)
    optimiser = Optimiser(modules, recipe.lr, recipe.muon_lr, recipe.weight_decay)
    start = checkpoint.resume(folder, modules, optimiser)
    pictures = SingleFrames(train, "train", side, recipe.batch, recipe.seed, start, small=recipe.small)
    batches = iter(DataLoader(pictures, batch_size=None, num_workers=recipe.workers, generator=torch.Generator()))
    held_out = {
        name: list(islice(SingleFrames(test, "test", side, recipe.held_out, recipe.seed, small=share), 1))
        for name, share in (("test", 0.0), ("small", 1.0))
    }
    log = checkpoint.Log(folder / "log.jsonl", recipe.steps, start)
    for step in range(start, recipe.steps):
        pixels, targets, telling = next(batches)
        within, length, peak = checkpoint.in_cycle(recipe.cycles, step)
        tower.requires_grad_(step >= recipe.cycles[0].until_step)
        with torch.autocast("cpu", torch.bfloat16):
            states = tower(normalise(pixels)).last_hidden_state
            loss, logits = picture_loss(head, patch_head, states, targets, telling)
            with torch.no_grad():
                as_before = before(normalise(pixels)).last_hidden_state
        away = distance(states, as_before, torch.where(telling, recipe.near_card, 1.0))
        optimiser.update(loss + recipe.near * away, peak * checkpoint.cosine(within, length, recipe.warmup))
        log.add(loss=loss.item(), away=away.item(), **reading_accuracy(logits, targets))
        if (step + 1) % recipe.log_every == 0:
            log.write(step + 1)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            checkpoint.save(folder, step + 1, modules, optimiser)
            figures = [(name, evaluate(tower, head, batch)) for name, batch in held_out.items()]
            log.write(step + 1, **{f"{name}_{key}": value for name, found in figures for key, value in found.items()})
    tower.save_pretrained(folder)
    return tower


def distance(states: Tensor, before: Tensor, weights: Tensor) -> Tensor:
    """Mean over patches of the squared distance between two towers' states, in units of the second's variance.

    states, before: ``(pictures, patches, dim)``. weights: of each patch, ``(pictures, patches)``.
    """
    before = before.float()
    return ((states.float() - before).square().mean(dim=-1) / before.var() * weights).mean()
