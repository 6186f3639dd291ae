"""Train the embedded vision tower to read needles on single frames; stage 1 of the embedded model.

It plays the part that SigLIP's pre-training plays for a large model.

Run: python -m longtake.recipes.make_embedded tower
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import SiglipVisionConfig, SiglipVisionModel

from longtake.data.probe_world.decoys import vivid_shot
from longtake.data.probe_world.haystack import Clip, random_shot
from longtake.data.probe_world.needles import Card, Split, draw_card_choice, draw_mover_choice
from longtake.data.probe_world.probe import CARD_SIZE, SIZES, SMALL, Event, place_event
from longtake.models.preprocess import normalise
from longtake.train import checkpoint
from longtake.train.checkpoint import Cycle
from longtake.train.embedded.optimiser import Optimiser
from longtake.train.embedded.reading import AttributeHeads, ReadingHead, labels, reading_accuracy, reading_loss
from longtake.types import IGNORE

PATCHES = 8  # on a side
OLD_BATCHES = 400  # kept to be seen again
LARGE = (0.75, 1.0)  # a card's height as a share of the shorter side
Pictures = tuple[Tensor, Tensor, Tensor]  # as SingleFrames yields them


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerRecipe:
    """Hyper-parameters of stage 1."""

    vision: SiglipVisionConfig
    cycles: tuple[Cycle, ...] = (Cycle(until_step=2400), Cycle(until_step=5400), Cycle(until_step=7800, peak=0.5))
    batch: int = 32  # fresh pictures a step
    easy_steps: int = 300  # over which large cards give way to cards of all sizes
    whole_steps: int = 500  # at the end of each cycle; before them only some patches of a picture go in
    part_patches: int = 28
    repeats: tuple[int, int] = (3, 1)  # batches a step sees again beside its fresh one, of parts and of whole pictures
    lr: float = 8e-4
    muon_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 150
    held_out: int = 250  # pictures in each of four batches
    seed: int = 0
    workers: int = 1
    log_every: int = 100
    save_every: int = 400

    @property
    def steps(self) -> int:
        """How many steps all cycles take together."""
        return self.cycles[-1].until_step

    @property
    def side(self) -> int:
        """Height and width of a picture, pixels."""
        return cast(int, self.vision.image_size)


class SingleFrames(IterableDataset[Pictures]):
    """Batches of single pictures: a card on 70% of them, a mover on 15%, nothing on the rest.

    Over the first ``easy`` batches cards are large more often than not: reading emerges several times sooner.
    small: share of the cards that are small.

    Yields uint8 ``(batch, 3, side, side)``, int64 ``(batch, attributes)`` and which patches are to tell what there is,
    bool ``(batch, patches)``: those whose middle a card or mover covers; where there is nothing, some at random. Batch
    n depends on (seed, n) alone. Training pictures have decoys.
    """

    def __init__(
        self,
        clips: list[Clip],
        split: Split,
        side: int,
        batch: int,
        seed: int,
        start: int = 0,
        easy: int = 0,
        small: float = 0.0,
    ) -> None:
        self.clips, self.split, self.side, self.batch = clips, split, side, batch
        self.seed, self.start, self.easy, self.small = seed, start, easy, small

    def __iter__(self) -> Iterator[Pictures]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        number = self.start + first
        while True:
            rng = np.random.default_rng([self.seed, number, 11])
            share = max(0.0, 1 - number / self.easy) if self.easy else 0.0
            rows = [self._one(rng, self._card_size(rng, share)) for _ in range(self.batch)]
            pixels = torch.from_numpy(np.stack([row[0] for row in rows])).permute(0, 3, 1, 2)
            telling = torch.from_numpy(np.stack([row[2] for row in rows]))
            yield pixels, torch.tensor([row[1] for row in rows]), telling
            number += step

    def _card_size(self, rng: np.random.Generator, easy: float) -> tuple[float, float]:
        """Draw the range of a card's height. easy: the share of large ones."""
        if rng.random() < easy:
            return LARGE
        return SMALL if self.small and rng.random() < self.small else CARD_SIZE

    def _one(
        self, rng: np.random.Generator, card_size: tuple[float, float]
    ) -> tuple[NDArray[np.uint8], list[int], NDArray[np.bool_]]:
        """Draw one picture, its labels, and which patches are to tell what there is."""
        height, width = SIZES[int(rng.integers(len(SIZES)))]
        draw_shot = vivid_shot if self.split == "train" else random_shot
        picture = draw_shot(rng, self.clips, 0.0).picture(0.0, (height, width))
        dice = rng.random()
        what, telling = None, rng.random((PATCHES, PATCHES)) < 0.2
        if dice < 0.85:
            what = draw_card_choice(rng, self.split) if dice < 0.7 else draw_mover_choice(rng, self.split)
            if isinstance(what, Card) and what.kind != "number" and rng.random() < 0.35:
                what = draw_card_choice(rng, self.split)  # numbers are the hardest to read
            seed = int(rng.integers(2**31))
            event = Event(what=what, start_seconds=0.0, stop_seconds=1.0, seed=seed, card_size=card_size)
            drawn, x, y = place_event(event, float(rng.random()), (width, height), self.split)
            picture.paste(drawn, (x, y), drawn)
            middles = (np.arange(PATCHES) + 0.5) / PATCHES
            rows, columns = middles * height, middles * width
            across = (columns >= x) & (columns < x + drawn.width)
            telling = ((rows >= y) & (rows < y + drawn.height))[:, None] & across[None, :]
        if rng.random() < 0.3:
            picture = recompress(picture, int(rng.integers(25, 90)))
        pixels = np.asarray(picture.resize((self.side, self.side), Image.Resampling.BICUBIC))
        return pixels, labels(what), telling.ravel()


def recompress(picture: Image.Image, quality: int) -> Image.Image:
    """A picture after JPEG at some quality: what lossy video does to a card's edges."""
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def new_tower(config: SiglipVisionConfig) -> SiglipVisionModel:
    """A fresh tower with attention written out, whose backward pass on a CPU is the faster one for so few patches."""
    tower = SiglipVisionModel(config)
    tower.set_attn_implementation("eager")
    return tower


def train_tower(
    recipe: TowerRecipe, train: list[Clip], test: list[Clip], folder: Path, school: Path
) -> SiglipVisionModel:
    """Train on from what ``school`` taught, resuming from ``folder``; saves the tower there as a Hugging Face model."""
    torch.manual_seed(recipe.seed)
    tower = new_tower(recipe.vision)
    head = ReadingHead(recipe.vision.hidden_size)
    patch_head = AttributeHeads(recipe.vision.hidden_size)
    modules = {"tower": tower, "head": head, "patch_head": patch_head}
    optimiser = Optimiser(modules, recipe.lr, recipe.muon_lr, recipe.weight_decay)
    start = checkpoint.last_step(folder)
    batches = _batches(recipe, train, start)  # before resuming, because a loader draws from torch's random state
    seen = deque((next(batches) for _ in range(min(start, OLD_BATCHES - 1))), maxlen=OLD_BATCHES)
    checkpoint.resume(folder, modules, optimiser)
    if start == 0:
        taught = checkpoint.modules_of(school)
        for name, module in modules.items():
            module.load_state_dict(taught[name])
    log = checkpoint.Log(folder / "log.jsonl", recipe.steps, start)
    held_out = list(islice(SingleFrames(test, "test", recipe.side, recipe.held_out, recipe.seed), 4))
    for step in range(start, recipe.steps):
        fresh = next(batches)
        seen.append(fresh)
        within, length, peak = checkpoint.in_cycle(recipe.cycles, step)
        part = within < length - recipe.whole_steps
        again = torch.randint(len(seen), (recipe.repeats[0 if part else 1],)).tolist()
        pixels, targets, telling = (torch.cat(t) for t in zip(fresh, *(seen[n] for n in again), strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            if part:
                states, telling = some_states(tower, pixels, telling, recipe.part_patches)
            else:
                states = tower(normalise(pixels)).last_hidden_state
            loss, logits = picture_loss(head, patch_head, states, targets, telling)
        optimiser.update(loss, peak * checkpoint.cosine(within, length, recipe.warmup))
        log.add(loss=loss.item(), **reading_accuracy(logits, targets))
        if (step + 1) % recipe.log_every == 0:
            log.write(step + 1)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            checkpoint.save(folder, step + 1, modules, optimiser)
            log.write(step + 1, **{f"test_{k}": v for k, v in evaluate(tower, head, held_out).items()})
    tower.save_pretrained(folder)
    return tower


def picture_loss(
    head: ReadingHead, patch_head: AttributeHeads, states: Tensor, targets: Tensor, telling: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The reading loss of both heads, a scalar, and the logits of ``head``.

    ``head`` reads all patches together, ``patch_head`` single ones of those that are to tell what there is.
    """
    some = (telling * torch.rand(telling.shape)).topk(PATCHES, dim=1).indices  # a fixed number: shapes stay
    logits = head(states)
    patch_logits = patch_head(states.gather(1, some[..., None].expand(-1, -1, states.shape[2])).flatten(0, 1))
    patch_targets = torch.where(telling.gather(1, some)[..., None], targets[:, None], IGNORE).flatten(0, 1)
    return reading_loss(logits, targets) + reading_loss(patch_logits, patch_targets), logits


def _batches(recipe: TowerRecipe, clips: list[Clip], start: int) -> Iterator[Pictures]:
    """Training batches from step ``start`` on, after as many of those before it as are kept to be seen again."""
    first = max(0, start - OLD_BATCHES + 1)
    data = SingleFrames(clips, "train", recipe.side, recipe.batch, recipe.seed, first, recipe.easy_steps)
    return iter(DataLoader(data, batch_size=None, num_workers=recipe.workers, prefetch_factor=8))


def some_states(tower: SiglipVisionModel, pixels: Tensor, telling: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The tower's states on ``count`` patches a picture, telling ones first, and which of them are to tell something.

    Most patches show background only; leaving them out halves the cost of learning to read.
    """
    embedded = tower.embeddings(normalise(pixels))
    chosen = (telling + torch.rand(telling.shape)).topk(count, dim=1).indices
    embedded = embedded.gather(1, chosen[..., None].expand(-1, -1, embedded.shape[2]))
    states = tower.encoder(inputs_embeds=embedded).last_hidden_state
    return tower.post_layernorm(states), telling.gather(1, chosen)


@torch.no_grad()
def evaluate(tower: SiglipVisionModel, head: ReadingHead, batches: list[Pictures]) -> dict[str, float]:
    """Accuracy by attribute on pictures of the test split: other footage, fonts and triples."""
    figures: dict[str, list[float]] = {}
    for pixels, targets, _ in batches:
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(tower(normalise(pixels)).last_hidden_state)
        for name, value in reading_accuracy(logits, targets).items():
            figures.setdefault(name, []).append(value)
    return {name: round(sum(values) / len(values), 4) for name, values in figures.items()}
