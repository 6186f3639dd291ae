"""Train a vision tower on unlabelled footage to tell a video's frames apart.

A frame must be nearer to the one before or after it than to any other, of its own video or of others. Positives are
neighbours in time and negatives come from the same video too, as in Time-Contrastive Networks (Sermanet et al., arXiv
1704.06888, single view). The loss is InfoNCE (arXiv 1807.03748) with several positives summed within the logarithm, as
in MIL-NCE (Miech et al., arXiv 1912.06430, equation 1): the probability that what is drawn in proportion to exp(cosine
/ temperature) is a neighbour, the soft form of what ``data/puzzles/neighbours.py`` measures. The last layers are a head
that is dropped in the end, as SimCLR drops its own (Chen et al., arXiv 2002.05709): what stands below it tells frames
of other footage apart better. Ours: that layers which were there are the head; that all frames of a stretch share one
crop, flip and tint, so that where things stand and how light it is go on telling frames apart; and every number.

Run: python -m longtake.recipes.make_embedded eyes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SiglipVisionModel

from longtake.backbones.tower import Tower, by_places, lower_part, on_grid
from longtake.data.probe_world.haystack import Clip
from longtake.data.puzzles.footage import placed
from longtake.data.puzzles.neighbours import FEWEST_FRAMES, hits, long_takes
from longtake.models.preprocess import normalise, resize
from longtake.train import checkpoint
from longtake.train.embedded.optimiser import Optimiser
from longtake.types import LongtakeError


@dataclass(frozen=True, slots=True, kw_only=True)
class EyesRecipe:
    """Hyper-parameters; all are ours.

    places: a side of a frame, whose means are compared; the tower keeps them as its own.
    head: of the tower's layers, so many at its end are dropped when it is trained.
    stretches: of a step, each of at most ``frames`` frames, every ``strides``-th as stored, one of these at random.
    least_crop: the smallest share of width and height that is seen. temperature: of the softmax over cosines.
    cooldown: the share of the steps at the end over which the learning rate falls to 0.
    every: steps between two lines of the log, each with a checkpoint.
    """

    places: int = 4
    head: int = 2
    steps: int = 1000
    stretches: int = 4
    frames: int = 24
    strides: tuple[int, ...] = (1, 2, 3, 3)
    least_crop: float = 0.6
    temperature: float = 0.01
    lr: float = 4e-4
    muon_lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 20
    cooldown: float = 0.3
    seed: int = 0
    every: int = 100


def neighbour_loss(vectors: Tensor, stretch: Tensor, place: Tensor, temperature: float) -> Tensor:
    """Mean of -log(sum over neighbours / sum over all others of its stretch) of exp(cosine / temperature), float32.

    vectors: ``(frames, dim)``. stretch, place: int64 ``(frames,)``: frames of one stretch at places that differ by 1
    are neighbours; every frame must have one.
    """
    units = F.normalize(vectors.float(), dim=1)
    logits = units @ units.T / temperature
    apart = (place[:, None] - place).abs()
    same = stretch[:, None] == stretch
    others = logits.masked_fill(~same | (apart == 0), float("-inf")).logsumexp(dim=1)
    return (others - logits.masked_fill(~same | (apart != 1), float("-inf")).logsumexp(dim=1)).mean()


def draw_stretch(recipe: EyesRecipe, clips: Sequence[Clip], side: int, rng: np.random.Generator) -> Tensor:
    """Draw frames of one clip in time order, cropped, mirrored and tinted alike: uint8 ``(frames, 3, side, side)``.

    Clips are drawn in proportion to the square root of their length.
    """
    weights = np.sqrt([len(clip.pixels) for clip in clips])
    clip = clips[int(rng.choice(len(clips), p=weights / weights.sum()))]
    stride = min(int(rng.choice(recipe.strides)), (len(clip.pixels) - 1) // (FEWEST_FRAMES - 1))
    count = min(recipe.frames, (len(clip.pixels) - 1) // stride + 1)
    first = int(rng.integers(len(clip.pixels) - (count - 1) * stride))
    height, width = clip.pixels.shape[1:3]
    high, wide = (round(whole * rng.uniform(recipe.least_crop, 1.0)) for whole in (height, width))
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    cut = clip.pixels[first : first + count * stride : stride, top : top + high, left : left + wide]
    if rng.random() < 0.5:
        cut = cut[:, :, ::-1]
    shown = resize(torch.from_numpy(np.ascontiguousarray(cut)).permute(0, 3, 1, 2), (side, side))
    gains = torch.from_numpy(rng.uniform(0.8, 1.2) * rng.uniform(0.9, 1.1, 3)).float()
    return (shown * gains[:, None, None]).clamp(0, 255).byte()


def draw_batch(recipe: EyesRecipe, clips: Sequence[Clip], side: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a step's frames, their stretches and their places in these; depends on (seed, step) alone."""
    rng = np.random.default_rng([recipe.seed, step, 31])
    drawn = [draw_stretch(recipe, clips, side, rng) for _ in range(recipe.stretches)]
    stretch = torch.cat([torch.full((len(frames),), number) for number, frames in enumerate(drawn)])
    return torch.cat(drawn), stretch, torch.cat([torch.arange(len(frames)) for frames in drawn])


@torch.no_grad()
def found_share(tower: SiglipVisionModel, clips: Sequence[Clip]) -> float:
    """How often a frame's nearest is its neighbour, at 1 fps: the mean over takes that are long enough."""
    shown = [frames for clip in clips for frames in long_takes(clip, 1.0)]
    features = Tower(model=tower).features  # in float32: a video's cosines differ by less than bfloat16 can tell
    return float(np.mean([hits(placed(features, frames)).mean() for frames in shown]))


def train_eyes(
    recipe: EyesRecipe, tower: SiglipVisionModel, clips: Sequence[Clip], held_out: Sequence[Clip], folder: Path
) -> None:
    """Train a tower from what it is, in place, resuming from ``folder``, where it is saved when done, without its head.

    held_out: clips of other sources, for the log. Raises LongtakeError where no clip is long enough to learn from, and
    where nothing is left below the head.
    """
    long = [clip for clip in clips if len(clip.pixels) >= FEWEST_FRAMES]
    if not long:
        raise LongtakeError(f"no clip has {FEWEST_FRAMES} stored frames; give longer footage")
    below = tower.config.num_hidden_layers - recipe.head
    lower_part(tower, below)  # to know before hours of training that there is such a part
    tower.set_attn_implementation("eager")  # as ``new_tower`` has it
    tower.train()
    tower.config.places = recipe.places
    modules = {"tower": tower}
    optimiser = Optimiser(modules, recipe.lr, recipe.muon_lr, recipe.weight_decay)
    begin = checkpoint.resume(folder, modules, optimiser)
    log = checkpoint.Log(folder / "log.jsonl", recipe.steps, begin)
    for step in range(begin, recipe.steps):
        pixels, stretch, place = draw_batch(recipe, long, cast(int, tower.config.image_size), step)
        with torch.autocast("cpu", torch.bfloat16):
            vectors = by_places(on_grid(tower, normalise(pixels)), recipe.places)
        loss = neighbour_loss(vectors, stretch, place, recipe.temperature)
        optimiser.update(loss, checkpoint.trapezoid(step, recipe.steps, recipe.warmup, recipe.cooldown))
        log.add(loss=loss.item())
        if (step + 1) % recipe.every == 0 or step + 1 == recipe.steps:
            checkpoint.save(folder, step + 1, modules, optimiser)
            tower.eval()
            log.write(step + 1, held_out=round(found_share(lower_part(tower, below), held_out), 4))
            tower.train()
    lower_part(tower.eval(), below).save_pretrained(folder)
