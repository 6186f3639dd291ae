"""What arms cost: floating-point operations, counted, and core-seconds, measured, on made-up features.

Operations are those of the passes forward and back of one batch, as PyTorch's counter sees them; the tower's are left
out, as its features are computed once for all arms. Seconds are the process's own, so that other work on the machine
hardly counts.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longtake.backbones.products import train_by_products
from longtake.data.clips import Clips
from longtake.data.probe_world.bank import BankRecipe, Placed, Unit, build_bank, plan_pair
from longtake.data.probe_world.haystack import drawn_clip
from longtake.data.probe_world.regroup import RegroupedMixer, group_frames
from longtake.model import Model
from longtake.tables.ablations.arms import Arm, Pretraining, decoder_recipe, new_compressor, new_recot, recot_step
from longtake.tables.ablations.data import SampleMixer
from longtake.tables.ablations.replies import remember
from longtake.tables.ablations.world import BLOCK, World
from longtake.tables.operations import Cost, Operations
from longtake.train.embedded.decoder import draw_lessons, train_step
from longtake.train.embedded.groups import BankGroups, LiveTokens, frozen_tokens
from longtake.train.embedded.ledger import Ledger
from longtake.train.embedded.optimiser import Optimiser
from longtake.train.embedded.rows import Text

BLOCKS = 64  # of made-up features
TIMED = 3  # batches, after a first one
ANSWER_TOKENS = 5  # about, of a trained model


class MadeUpClips:
    """Clips of random features, all of videos."""

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        self.shape = (BLOCK, *grid, dim)

    def draw(self, rng: np.random.Generator, clips: int) -> Clips:
        """A batch of clips."""
        features = torch.from_numpy(rng.standard_normal((clips, *self.shape), np.float32)).bfloat16()
        needles = torch.from_numpy(rng.random((clips, *self.shape[:-1])) < 0.2)
        return Clips(features=features, is_image=torch.zeros(clips, dtype=torch.bool), oracle=needles)


def pretraining_cost(world: World, frames_per_group: int, settings: Pretraining) -> Cost:
    """What one step of a pre-training costs."""
    model = new_recot(world.size, frames_per_group, settings, 0)
    clips = MadeUpClips(world.packaged.config.tower_grid, world.size.dim)
    optimiser = Optimiser({"recot": model}, 1e-3, 1e-3, 0.0)
    return _measured(lambda n: recot_step(model, clips, world.size.clips, [0, n]).loss, optimiser)


def arm_cost(world: World, arm: Arm) -> Cost:
    """What one step of an arm's training costs; once: the tokens of the whole bank, if its compressor is frozen."""
    bank = made_up_bank(world, arm)
    chosen = new_compressor(arm, world.size.dim, 0)
    model, ledger = world.fresh_model(0), Ledger(world.size.hidden)
    train_by_products(model.language_model)  # as in training
    modules = {"projector": model.projector, "decoder": model.language_model, "ledger": ledger}
    begun = time.process_time()
    with Operations() as counter:
        tokens = LiveTokens(bank, chosen, world.pool) if arm.trainable else frozen_tokens(bank, chosen, world.pool)
    spent = time.process_time() - begun
    if arm.trainable:
        modules["compressor"] = chosen
    recipe = decoder_recipe(world.size, 1, arm.frames, 0)
    mixer = RegroupedMixer(mixer=SampleMixer(made_up_units(), BLOCK), size=arm.size, every=arm.every)
    text = Text(world.tokenizer, model.config.video_token_id)

    def loss(number: int) -> Tensor:
        rng = np.random.default_rng([0, number, 9])
        lessons, columns = draw_lessons(recipe, recipe.phases[0], mixer, rng, tokens.shape[1])
        return train_step(recipe, model, ledger, text, tokens, 1.0, lessons, columns, rng)[0]

    cost = _measured(loss, Optimiser(modules, 1e-4, 1e-4, 0.0))
    banks = world.size.bank_videos * 5 / BLOCKS  # of 40 frames
    once = 0.0 if arm.trainable else spent * banks
    return dataclasses.replace(cost, once=once, once_operations=counter.total * banks)


def _measured(loss: Callable[[int], Tensor], optimiser: Optimiser) -> Cost:
    with Operations() as counter:
        loss(0).backward()
    spent = []
    for number in range(1, TIMED + 1):
        begun = time.process_time()
        optimiser.update(loss(number), 0.0)
        spent.append(time.process_time() - begun)
    return Cost(operations=counter.total, seconds=float(np.median(spent)))


def made_up_bank(world: World, arm: Arm) -> BankGroups:
    """Random features in an arm's groups."""
    rows, columns = world.packaged.config.tower_grid
    values = torch.randn(BLOCKS * BLOCK, rows * columns, world.size.dim, generator=torch.Generator().manual_seed(0))
    blocks = np.arange(BLOCKS * BLOCK).reshape(-1, BLOCK)
    return BankGroups(values.bfloat16().view(torch.int16).numpy(), group_frames(blocks, arm.size, arm.every))


def made_up_units() -> list[Unit]:
    """Blocks with what a bank's pairs of groups would show."""
    rng = np.random.default_rng(0)
    units = []
    for number in range(BLOCKS):
        planned = plan_pair(rng, "train", with_movers=number % 4 == 0)
        seen = tuple(_centred(event) for event in planned)
        units.append(Unit(first_group=number, groups=1, events=seen))
    return units


def _centred(event: Placed) -> Placed:
    return dataclasses.replace(event, centres=((0.5, 0.5),) * (event.stop - event.first))


def question_seconds(world: World, arm: Arm) -> float:
    """Core-seconds of one question about a test video, reading it included (an eighth)."""
    backbone = world.backbone(world.fresh_model(0))
    rows, columns = world.packaged.config.tower_grid
    features = torch.randn(arm.frames, rows * columns, world.size.dim).bfloat16()
    begun = time.process_time()
    memory = remember(backbone, new_compressor(arm, world.size.dim, 0), arm.sight, features)
    model = Model(backbone=backbone)
    model.ask_all(memory, ["What is on the red card?"] * 8, max_new_tokens=ANSWER_TOKENS)
    return (time.process_time() - begun) / 8


def video_seconds(world: World) -> float:
    """Core-seconds of rendering and encoding a video of the bank, on drawn scenes."""
    with tempfile.TemporaryDirectory() as name:
        recipe = BankRecipe(videos=2)
        clips = [drawn_clip(seed, 4.0) for seed in range(2)]
        begun = time.process_time()
        build_bank(recipe, clips, world.encode, Path(name), workers=0)
        return (time.process_time() - begun) / 2
