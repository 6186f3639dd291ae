"""First lessons for the tower: cards that fill a few patches; stage 0 of the embedded model.

Reading emerges late when a card is a small part of a picture and most patches show background. Here a picture is a
window of 3 x 3 patches anywhere on the tower's grid with a card, stretched and shifted at random, inside it: seven
times cheaper a picture, and made by tensor operations from a pool of drawn cards, so that rendering costs little.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from longtake.data.probe_world.haystack import Clip, random_shot
from longtake.data.probe_world.needles import (
    Split,
    card_picture,
    draw_card_choice,
    draw_mover_choice,
    fonts,
    mover_picture,
)
from longtake.models.preprocess import normalise
from longtake.train import checkpoint
from longtake.train.embedded.optimiser import Optimiser
from longtake.train.embedded.reading import AttributeHeads, ReadingHead, labels, reading_accuracy, reading_loss
from longtake.train.embedded.tower import new_tower
from longtake.types import IGNORE

WINDOW = 3  # patches on a side


@dataclass(frozen=True, slots=True, kw_only=True)
class SchoolRecipe:
    """Hyper-parameters of stage 0."""

    vision: SiglipVisionConfig
    cards: int = 20_000
    backgrounds: int = 1500
    side: int = 64  # pixels of a card in the pool
    steps: int = 3500
    batch: int = 384
    lr: float = 1.5e-3
    muon_lr: float = 5e-3
    weight_decay: float = 0.05
    warmup: int = 50
    seed: int = 0
    log_every: int = 50
    save_every: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Drawn cards and movers, uint8 RGBA ``(cards, 4, side, side)``, their labels, and backgrounds ``(n, 3, h, w)``."""

    pictures: Tensor
    targets: Tensor
    backgrounds: Tensor


def draw_pool(recipe: SchoolRecipe, clips: list[Clip], split: Split = "train") -> Pool:
    """Draw the pool of one seed: cards with all fonts of a split, one in eight a mover, and backgrounds."""
    rng = np.random.default_rng([recipe.seed, 21])
    pictures, targets = [], []
    for number in range(recipe.cards):
        if number % 8 == 0:
            mover = draw_mover_choice(rng, split)
            drawn, target = mover_picture(mover, recipe.side, rng), labels(mover)
        else:
            card = draw_card_choice(rng, split)
            drawn, target = card_picture(card, recipe.side, str(rng.choice(fonts(split))), rng), labels(card)
        pictures.append(np.asarray(drawn))
        targets.append(target)
    backs = [np.asarray(random_shot(rng, clips, 0.0).picture(0.0, (96, 96))) for _ in range(recipe.backgrounds)]
    return Pool(
        pictures=torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2),
        targets=torch.tensor(targets),
        backgrounds=torch.from_numpy(np.stack(backs)).permute(0, 3, 1, 2),
    )


def windows(pool: Pool, batch: int, patch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw windows: uint8-valued float ``(batch, 3, px, px)``, their targets, and covered patches ``(batch, 9)``."""
    pixels = WINDOW * patch
    rows = torch.randint(len(pool.pictures), (batch,), generator=generator)
    cards = pool.pictures[rows].float()
    size = 0.74 + 0.25 * torch.rand(batch, generator=generator)  # of the window, the longer side of the card
    squash = 0.56 + 0.44 * torch.rand(batch, generator=generator)
    tall = torch.rand(batch, generator=generator) < 0.5
    height, width = torch.where(tall, size, size * squash), torch.where(tall, size * squash, size)
    x, y = ((1 - s) * (2 * torch.rand(batch, generator=generator) - 1) for s in (width, height))
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = 1 / width, -x / width
    theta[:, 1, 1], theta[:, 1, 2] = 1 / height, -y / height
    grid = F.affine_grid(theta, [batch, 4, pixels, pixels], align_corners=False)
    shown = F.grid_sample(cards, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    chosen = pool.backgrounds[torch.randint(len(pool.backgrounds), (batch,), generator=generator)]
    top, left = torch.randint(chosen.shape[2] - pixels + 1, (2,), generator=generator).tolist()
    behind = chosen[:, :, top : top + pixels, left : left + pixels].float()
    alpha = shown[:, 3:] / 255
    mixed = shown[:, :3] * alpha + behind * (1 - alpha)
    middle = (2 * torch.arange(WINDOW) + 1) / WINDOW - 1
    across = (middle[None] - x[:, None]).abs() < width[:, None]
    down = (middle[None] - y[:, None]).abs() < height[:, None]
    return mixed, pool.targets[rows], (down[:, :, None] & across[:, None, :]).flatten(1)


def window_states(tower: SiglipVisionModel, pixels: Tensor, grid: int, generator: torch.Generator) -> Tensor:
    """The tower's states on windows that each stand somewhere on its grid: ``(batch, 9, dim)``."""
    embeddings = tower.embeddings
    patches = embeddings.patch_embedding(normalise(pixels)).flatten(2).transpose(1, 2)
    corner = torch.randint(grid - WINDOW + 1, (2, len(pixels)), generator=generator)
    step = torch.arange(WINDOW)
    places = (corner[0][:, None, None] + step[:, None]) * grid + corner[1][:, None, None] + step
    states = patches + embeddings.position_embedding(places.flatten(1))
    return tower.post_layernorm(tower.encoder(inputs_embeds=states).last_hidden_state)


def train_school(recipe: SchoolRecipe, clips: list[Clip], folder: Path) -> SiglipVisionModel:
    """Train, resuming from ``folder``; the tower and its heads go on to stage 1."""
    torch.manual_seed(recipe.seed)
    tower = new_tower(recipe.vision)
    dim = recipe.vision.hidden_size
    modules = {"tower": tower, "head": ReadingHead(dim), "patch_head": AttributeHeads(dim)}
    optimiser = Optimiser(modules, recipe.lr, recipe.muon_lr, recipe.weight_decay)
    start = checkpoint.resume(folder, modules, optimiser)
    log = checkpoint.Log(folder / "log.jsonl", recipe.steps, start)
    pool = draw_pool(recipe, clips)
    patch = cast(int, recipe.vision.patch_size)
    side = cast(int, recipe.vision.image_size) // patch
    for step in range(start, recipe.steps):
        generator = torch.Generator().manual_seed(recipe.seed * 10**6 + step)
        pixels, targets, covered = windows(pool, recipe.batch, patch, generator)
        with torch.autocast("cpu", torch.bfloat16):
            states = window_states(tower, pixels, side, generator)
            logits, patch_logits = modules["head"](states), modules["patch_head"](states.flatten(0, 1))
        patch_targets = torch.where(covered[..., None], targets[:, None], IGNORE).flatten(0, 1)
        loss = reading_loss(logits, targets) + reading_loss(patch_logits, patch_targets)
        share = checkpoint.cosine(step, recipe.steps, recipe.warmup, floor=0.3)
        optimiser.update(loss, share)
        log.add(loss=loss.item(), **reading_accuracy(logits, targets))
        if (step + 1) % recipe.log_every == 0:
            log.write(step + 1)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            checkpoint.save(folder, step + 1, modules, optimiser)
    return tower
