"""Train the embedded model's DTS to keep what the tower read; stage 2 of the embedded model.

The tower is frozen: groups of its features come from a bank. After the DTS and the 2x2 pool, two reading heads (one
for cards, one for movers) must still tell content, colour, onset within the group and direction of motion.
(ReCoT, the paper's self-supervised stage, is a stage of its own.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longtake.data.bank import GROUP, Placed, read_events
from longtake.data.needles import Card, Mover
from longtake.models.dts import DynamicTokenSynthesizer
from longtake.models.video_llm import average_pool
from longtake.train import checkpoint
from longtake.train.optimiser import Optimiser
from longtake.train.reading import ATTRIBUTES, IGNORE, ReadingHead, labels, reading_accuracy, reading_loss

Targets = tuple[Tensor, Tensor]  # labels for the card head and the mover head, int64 (rows, attributes) each


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorRecipe:
    """Hyper-parameters of stage 2."""

    dim: int = 192
    pool: int = 2
    steps: int = 1600
    batch: int = 64  # windows of four frames
    plain: float = 0.15  # share of windows with nothing in them
    noise: float = 0.2  # of a feature's standard deviation
    reverse: float = 0.5  # share of windows that run backwards
    lr: float = 1.0e-3
    muon_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 100
    seed: int = 0
    log_every: int = 50
    save_every: int = 300


class FeatureBank:
    """Features of a bank on disk, memory-mapped, and the labels of every window of four frames of a video.

    Windows count from the first video's first frame on, one for each frame that can begin one.

    features: bf16 as int16, ``(videos, frames, tokens, dim)``. card_targets, mover_targets: ``(windows, attributes)``.
    groups: the windows that are groups, in the order of videos.
    """

    def __init__(self, folder: Path, tokens: int, dim: int, frames_per_video: int) -> None:
        self.events = read_events(folder)
        raw = np.memmap(folder / "features.bin", np.int16, "r")
        shape = (len(self.events), frames_per_video, tokens, dim)
        self.features = raw[: math.prod(shape)].reshape(shape)
        self.windows_per_video = frames_per_video - GROUP + 1
        targets = [group_labels(e, begin) for _, e in self.events for begin in range(self.windows_per_video)]
        self.card_targets = torch.tensor([card for card, _ in targets])
        self.mover_targets = torch.tensor([mover for _, mover in targets])
        self.groups = np.flatnonzero(np.arange(len(targets)) % self.windows_per_video % GROUP == 0)

    def __len__(self) -> int:
        return len(self.card_targets)

    def read(self, windows: NDArray[np.int64]) -> Tensor:
        """bf16 ``(windows, 4, tokens, dim)``."""
        video, begin = np.divmod(windows, self.windows_per_video)
        frames = self.features[video[:, None], begin[:, None] + np.arange(GROUP)]
        return torch.from_numpy(frames).view(torch.bfloat16)


def group_labels(events: list[Placed], begin: int) -> tuple[list[int], list[int]]:
    """Labels of the four frames from ``begin`` on, for the card head and the mover head.

    Of two cards the one that is longer to be seen counts.
    """
    shown: list[tuple[int, Placed]] = []
    for event in events:
        frames = min(event.stop, begin + GROUP) - max(event.first, begin)
        if frames > 0:
            shown.append((frames, event))
    cards = sorted((s for s in shown if isinstance(s[1].what, Card)), key=lambda s: -s[0])
    movers = [s for s in shown if isinstance(s[1].what, Mover)]
    card, mover = labels(None), labels(None)
    if cards:
        event = cards[0][1]
        card = labels(event.what, onset=_onset(event, begin), centres=_centres(event, begin))
        if len(cards) > 1 and cards[1][0] == cards[0][0]:
            card = [IGNORE] * len(card)
    if movers:
        frames, event = movers[0]
        centres = _centres(event, begin)
        mover = labels(event.what, onset=_onset(event, begin), moving=frames >= 2, centres=centres)
    return card, mover


def _onset(event: Placed, begin: int) -> int:
    return event.first - begin if event.first >= begin else GROUP


def _centres(event: Placed, begin: int) -> tuple[tuple[float, float], ...]:
    """Where an event is on its frames within the group that begins at a frame."""
    return event.centres[max(0, begin - event.first) : begin + GROUP - event.first]


def train_compressor(recipe: CompressorRecipe, bank: FeatureBank, folder: Path) -> DynamicTokenSynthesizer:
    """Train, resuming from ``folder``, on windows that begin anywhere; the last tenth of the videos is held out."""
    torch.manual_seed(recipe.seed)
    dts = DynamicTokenSynthesizer(recipe.dim)
    start_as_mean(dts)
    card_head, mover_head = ReadingHead(recipe.dim), ReadingHead(recipe.dim)
    modules = {"dts": dts, "card_head": card_head, "mover_head": mover_head}
    optimiser = Optimiser(modules, recipe.lr, recipe.muon_lr, recipe.weight_decay)
    start = checkpoint.resume(folder, modules, optimiser)
    log = checkpoint.Log(folder / "log.jsonl", recipe.steps, start)
    last = int(len(bank.events) * 0.9) * bank.windows_per_video
    nothing = ((bank.card_targets[:, 0] == 0) & (bank.mover_targets[:, 0] == 0)).numpy()
    plain, busy = np.flatnonzero(nothing[:last]), np.flatnonzero(~nothing[:last])
    for step in range(start, recipe.steps):
        rng = np.random.default_rng([recipe.seed, step, 3])
        empty = int(recipe.batch * recipe.plain)
        rows = np.concatenate([rng.choice(plain, empty), rng.choice(busy, recipe.batch - empty)])
        features, targets = bank.read(rows), (bank.card_targets[rows], bank.mover_targets[rows])
        features, targets = run_backwards(features, targets, torch.from_numpy(rng.random(len(rows)) < recipe.reverse))
        features = features + recipe.noise * features.std() * torch.randn_like(features)
        loss, figures = _loss(modules, features, targets, recipe.pool)
        optimiser.update(loss, checkpoint.cosine(step, recipe.steps, recipe.warmup))
        log.add(loss=loss.item(), **figures)
        if (step + 1) % recipe.log_every == 0:
            log.write(step + 1)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            checkpoint.save(folder, step + 1, modules, optimiser)
            held = bank.groups[(bank.groups >= last) & ~nothing[bank.groups]][:1500]
            with torch.no_grad():
                targets = bank.card_targets[held], bank.mover_targets[held]
                _, figures = _loss(modules, bank.read(held), targets, recipe.pool)
            log.write(step + 1, **{f"held_{name}": round(value, 4) for name, value in figures.items()})
    return dts


@torch.no_grad()
def start_as_mean(dts: DynamicTokenSynthesizer) -> None:
    """Add the mean of the two frames a convolution joins to its random start, so that nothing read is lost at first.

    Ours. From a random start alone the heads must learn to read again what the tower reads already.
    """
    for conv in (module for module in dts.modules() if isinstance(module, nn.Conv3d)):
        weight = conv.weight  # (out, in, 3, 3, 3): of three frames the last two are new to each output
        weight[:, :, 1:, 1, 1] += 0.5 * torch.eye(len(weight))[..., None]


def run_backwards(features: Tensor, targets: Targets, which: Tensor) -> tuple[Tensor, Targets]:
    """Some groups in reverse: what moved left moves right, its places change ends, and when it came is not asked.

    features: ``(rows, 4, tokens, dim)``. which: bool ``(rows,)``. The arguments stay as they are.
    Without this the direction of motion is learned by heart: the same four frames never show both.
    """
    names = list(ATTRIBUTES)
    cards, movers = (target.clone() for target in targets)
    ends = [names.index(name) for name in ("from_x", "from_y", "to_x", "to_y")]
    for target in (cards, movers):
        target[which, names.index("onset")] = IGNORE
        target[:, ends] = torch.where(which[:, None], target[:, ends[2:] + ends[:2]], target[:, ends])
    direction = movers[:, names.index("direction")]
    direction[which & (direction != IGNORE)] ^= 1  # DIRECTIONS stand in pairs of opposites
    return torch.where(which[:, None, None, None], features.flip(1), features), (cards, movers)


def _loss(
    modules: dict[str, nn.Module], features: Tensor, targets: Targets, pool: int
) -> tuple[Tensor, dict[str, float]]:
    """Both heads' loss and accuracies on groups of features ``(rows, 4, tokens, dim)``."""
    with torch.autocast("cpu", torch.bfloat16):
        tokens = compress(modules["dts"], features, pool)
        cards, movers = modules["card_head"](tokens), modules["mover_head"](tokens)
    card_targets, mover_targets = targets
    loss = reading_loss(cards, card_targets) + reading_loss(movers, mover_targets)
    figures = {f"card_{k}": v for k, v in reading_accuracy(cards, card_targets).items()}
    figures |= {f"mover_{k}": v for k, v in reading_accuracy(movers, mover_targets).items()}
    return loss, figures


@torch.no_grad()
def encode_groups(dts: DynamicTokenSynthesizer, bank: FeatureBank, pool: int) -> Tensor:
    """Tokens of every group after the DTS and the pool, bf16 ``(groups, tokens, dim)``: what a decoder learns from."""
    done = []
    for begin in range(0, len(bank.groups), 128):
        features = bank.read(bank.groups[begin : begin + 128])
        with torch.autocast("cpu", torch.bfloat16):
            done.append(compress(dts, features, pool).bfloat16())
    return torch.cat(done)


def compress(dts: nn.Module, features: Tensor, pool: int) -> Tensor:
    """Groups of a square grid's features ``(groups, 4, tokens, dim)`` to ``(groups, tokens / pool^2, dim)``."""
    groups, frames, tokens, dim = features.shape
    side = math.isqrt(tokens)
    return average_pool(dts(features.reshape(groups, frames, side, side, dim)), pool).flatten(1, 2)
