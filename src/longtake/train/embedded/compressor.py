"""Train the embedded model's DTS to keep what the tower read; stage 2 of the embedded model.

The tower is frozen: windows of four frames of its features come from a bank. After the DTS and the 2x2 pool, reading
heads must still tell content, colour, places, onset within the window and direction of motion: one for cards and one
for movers, from all tokens together, and one from each token in which a card or a mover has its middle. From each
token of a window with nothing in it that head must tell just that.
(ReCoT, the paper's self-supervised stage, is a stage of its own.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longtake.data.probe_world.bank import GROUP, Placed, read_events
from longtake.data.probe_world.needles import Mover
from longtake.models.dts import DynamicTokenSynthesizer
from longtake.models.video_llm import average_pool
from longtake.train import checkpoint
from longtake.train.checkpoint import Cycle
from longtake.train.embedded.optimiser import Optimiser
from longtake.train.embedded.reading import (
    ATTRIBUTES,
    AttributeHeads,
    ReadingHead,
    labels,
    reading_accuracy,
    reading_loss,
    tokens_at,
)
from longtake.types import IGNORE

TOLD_EVERY = 10  # steps between two in which accuracies are computed
CPU = torch.device("cpu")
# labels for the card head and the mover head, int64 (windows, attributes) each, and (windows, tokens, attributes)
Targets = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorRecipe:
    """Hyper-parameters of stage 2."""

    dim: int = 192
    pool: int = 2
    cycles: tuple[Cycle, ...] = (
        Cycle(until_step=1600),
        Cycle(until_step=3400, peak=0.5),
        Cycle(until_step=5400, peak=0.5),
    )
    batch: int = 64  # windows of four frames
    plain: float = 0.2  # share of windows with nothing in them
    noise: float = 0.2  # of a feature's standard deviation
    reverse: float = 0.5  # share of windows that run backwards
    lr: float = 1.0e-3
    muon_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 100
    seed: int = 0
    log_every: int = 50
    save_every: int = 300

    @property
    def steps(self) -> int:
        """How many steps all cycles take together."""
        return self.cycles[-1].until_step


class FeatureBank:
    """Features of a bank on disk, memory-mapped, and the labels of every window of four frames of a video.

    Windows count from the first video's first frame on, one for each frame that can begin one.

    features: bf16 as int16, ``(videos, frames, tokens, dim)``. card_targets, mover_targets: ``(windows, attributes)``.
    token_targets: int8 ``(windows, side x side, attributes)``. groups: the windows that are groups, in the order of
    videos. first_held_out: the first window of the last tenth of the videos, which training never sees.
    """

    def __init__(self, folder: Path, tokens: int, dim: int, frames_per_video: int, side: int) -> None:
        """tokens: of a frame. side: rows and columns of tokens after the pool."""
        self.events = read_events(folder)
        raw = np.memmap(folder / "features.bin", np.int16, "r")
        shape = (len(self.events), frames_per_video, tokens, dim)
        self.features: NDArray[np.int16] | Tensor = raw[: math.prod(shape)].reshape(shape)
        self.windows_per_video = frames_per_video - GROUP + 1
        windows = [(events, begin) for _, events in self.events for begin in range(self.windows_per_video)]
        pairs = [window_labels(*window) for window in windows]
        self.card_targets = torch.tensor([card for card, _ in pairs])
        self.mover_targets = torch.tensor([mover for _, mover in pairs])
        self.token_targets = torch.from_numpy(np.stack([token_labels(*window, side) for window in windows]))
        self.groups = np.flatnonzero(np.arange(len(windows)) % self.windows_per_video % GROUP == 0)
        self.first_held_out = int(len(self.events) * 0.9) * self.windows_per_video

    def __len__(self) -> int:
        return len(self.card_targets)

    def read(self, windows: NDArray[np.int64]) -> Tensor:
        """Features of these windows, bf16 ``(windows, 4, tokens, dim)``."""
        video, begin = np.divmod(windows, self.windows_per_video)
        frames = self.features[video[:, None], begin[:, None] + np.arange(GROUP)]
        return torch.as_tensor(frames).view(torch.bfloat16)

    def keep_on(self, device: torch.device) -> None:
        """Have all features in a device's memory, where windows are then read from it."""
        if device.type != "cpu":
            self.features = torch.as_tensor(self.features, device=device)

    def targets(self, windows: NDArray[np.int64]) -> Targets:
        """Labels of these windows, for the card, the mover and the token head."""
        return self.card_targets[windows], self.mover_targets[windows], self.token_targets[windows].long()


def window_labels(events: list[Placed], begin: int) -> tuple[list[int], list[int]]:
    """Labels of the four frames from ``begin`` on, for the card head and the mover head.

    Of two cards the one that is longer to be seen counts.
    """
    card, mover = labels(None), labels(None)
    longest = 0
    for frames, event in shown_in(events, begin):
        own = _event_labels(event, begin, frames)
        if isinstance(event.what, Mover):
            mover = own
        elif frames >= longest:
            card = own if frames > longest else [IGNORE] * len(own)
            longest = frames
    return card, mover


def token_labels(events: list[Placed], begin: int, side: int) -> NDArray[np.int8]:
    """Labels of each token of the four frames from ``begin`` on: of the thing whose middle is there on one of them.

    ``(side x side, attributes)``; IGNORE where that is nothing, or two things.
    """
    rows = np.full((side * side, len(ATTRIBUTES)), IGNORE, np.int8)
    taken: set[int] = set()
    for frames, event in shown_in(events, begin):
        own = set(tokens_at(event.centres_in(begin), side))
        rows[list(own)] = _event_labels(event, begin, frames)
        rows[list(own & taken)] = IGNORE
        taken |= own
    return rows


def shown_in(events: list[Placed], begin: int) -> Iterator[tuple[int, Placed]]:
    """Cards and movers seen on the four frames from ``begin`` on, each behind the number of frames that show it."""
    for event in events:
        frames = min(event.stop, begin + GROUP) - max(event.first, begin)
        if frames > 0 and event.what is not None:
            yield frames, event


def _event_labels(event: Placed, begin: int, frames: int) -> list[int]:
    """Labels of an event that shows on ``frames`` of the four from ``begin`` on; one frame shows no direction."""
    places = event.centres_in(begin)
    return labels(event.what, onset=event.onset_in(begin), moving=frames >= 2, centres=places)


def train_compressor(
    recipe: CompressorRecipe,
    bank: FeatureBank,
    folder: Path,
    device: torch.device = CPU,
    begin: Mapping[str, Tensor] | None = None,
) -> DynamicTokenSynthesizer:
    """Train, resuming from ``folder``, on windows that begin anywhere; the last tenth of the videos is held out.

    begin: a DTS to go on from; its heads begin anew.
    """
    torch.manual_seed(recipe.seed)
    dts = DynamicTokenSynthesizer(recipe.dim)
    dts.start_as_mean(alone=False)
    if begin is not None:
        dts.load_state_dict(begin)
    heads = {"card": ReadingHead(recipe.dim), "mover": ReadingHead(recipe.dim), "token": AttributeHeads(recipe.dim)}
    modules = {name: module.to(device) for name, module in {"dts": dts, **heads}.items()}
    bank.keep_on(device)
    optimiser = Optimiser(modules, recipe.lr, recipe.muon_lr, recipe.weight_decay)
    start = checkpoint.resume(folder, modules, optimiser)
    log = checkpoint.Log(folder / "log.jsonl", recipe.steps, start)
    last = bank.first_held_out
    nothing = ((bank.card_targets[:, 0] == 0) & (bank.mover_targets[:, 0] == 0)).numpy()
    plain, busy = np.flatnonzero(nothing[:last]), np.flatnonzero(~nothing[:last])
    for step in range(start, recipe.steps):
        rng = np.random.default_rng([recipe.seed, step, 3])
        empty = int(recipe.batch * recipe.plain)
        rows = np.concatenate([rng.choice(plain, empty), rng.choice(busy, recipe.batch - empty)])
        which = torch.from_numpy(rng.random(len(rows)) < recipe.reverse)
        features, targets = run_backwards(bank.read(rows), bank.targets(rows), which)
        features = features + recipe.noise * features.std() * torch.randn_like(features)
        loss, figures = compressor_loss(modules, features, targets, recipe.pool, told=step % TOLD_EVERY == 0)
        within, length, peak = checkpoint.in_cycle(recipe.cycles, step)
        optimiser.update(loss, peak * checkpoint.cosine(within, length, recipe.warmup))
        log.add(loss=loss.item(), **figures)
        if (step + 1) % recipe.log_every == 0:
            log.write(step + 1)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            checkpoint.save(folder, step + 1, modules, optimiser)
            held = bank.groups[bank.groups >= last][:2000]
            with torch.no_grad():
                _, figures = compressor_loss(modules, bank.read(held), bank.targets(held), recipe.pool)
            log.write(step + 1, **{f"held_{name}": round(value, 4) for name, value in figures.items()})
    return dts


def run_backwards(features: Tensor, targets: Targets, which: Tensor) -> tuple[Tensor, Targets]:
    """Reverse some windows: what moved left moves right, its places change ends, and when it came is not asked.

    features: ``(windows, 4, tokens, dim)``. which: bool ``(windows,)``. The arguments stay as they are.
    Without this the direction of motion is learned by heart: the same four frames never show both.
    """
    cards, movers, tokens = (_backwards(target, which) for target in targets)
    turned = which.to(features.device)[:, None, None, None]
    return torch.where(turned, features.flip(1), features), (cards, movers, tokens)


def _backwards(target: Tensor, which: Tensor) -> Tensor:
    """Labels ``(windows, ..., attributes)`` with those of some windows as they are in reverse."""
    names = list(ATTRIBUTES)
    ends, others = ([names.index(name) for name in pair] for pair in (("from_x", "from_y"), ("to_x", "to_y")))
    way = names.index("direction")
    back = target[which]
    back[..., names.index("onset")] = IGNORE
    back[..., ends + others] = back[..., others + ends]
    back[..., way] = torch.where(back[..., way] == IGNORE, IGNORE, back[..., way] ^ 1)  # opposites stand in pairs
    target = target.clone()
    target[which] = back
    return target


def compressor_loss(
    modules: dict[str, nn.Module], features: Tensor, targets: Targets, pool: int, told: bool = True
) -> tuple[Tensor, dict[str, float]]:
    """All heads' loss, a scalar, and accuracies by head and attribute, on windows of features.

    modules: "dts" and the heads "card", "mover" and "token". features: ``(windows, 4, tokens, dim)``. pool: side of the
    average pool after the DTS. "plain" among the accuracies is the token head's on windows with nothing in them.
    told: False leaves the accuracies out, each of which waits for a GPU.
    """
    cards, movers, spread = (target.to(features.device) for target in targets)
    labelled = spread[..., 0] != IGNORE
    nothing = (cards[:, 0] == 0) & (movers[:, 0] == 0)
    with torch.autocast(features.device.type, torch.bfloat16):
        tokens = compress(modules["dts"], features, pool)
        plain = tokens[nothing].flatten(0, 1)
        seen = [
            ("card", modules["card"](tokens), cards),
            ("mover", modules["mover"](tokens), movers),
            ("token", modules["token"](tokens[labelled]), spread[labelled]),
            ("plain", modules["token"](plain), torch.tensor(labels(None), device=plain.device).expand(len(plain), -1)),
        ]
    loss = sum((reading_loss(logits, wanted) for _, logits, wanted in seen), torch.zeros((), device=features.device))
    if not told:
        return loss, {}
    figures = {f"{name}_{k}": v for name, logits, wanted in seen for k, v in reading_accuracy(logits, wanted).items()}
    return loss, figures


@torch.no_grad()
def encode_groups(dts: DynamicTokenSynthesizer, bank: FeatureBank, pool: int) -> Tensor:
    """Tokens of every group after the DTS and the pool, bf16 ``(groups, tokens, dim)``: what a decoder learns from."""
    done = []
    for begin in range(0, len(bank.groups), 128):
        features = bank.read(bank.groups[begin : begin + 128]).to(dts.temporal_encoding.device)
        with torch.autocast(features.device.type, torch.bfloat16):
            done.append(compress(dts, features, pool).bfloat16())
    return torch.cat(done)


def compress(dts: nn.Module, features: Tensor, pool: int) -> Tensor:
    """Windows of a square grid's features ``(windows, 4, tokens, dim)`` to ``(windows, tokens / pool^2, dim)``."""
    windows, frames, tokens, dim = features.shape
    side = math.isqrt(tokens)
    return average_pool(dts(features.reshape(windows, frames, side, side, dim)), pool).flatten(1, 2)
