"""What the arms of an ablation learn from: the bank's blocks of eight frames, as they are or changed and pruned.

For pruning, a block is one sample. Training videos are then drawn from samples without looking at what they hold, so
that a sample that teaches nothing costs as much as one that does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from longtake.data.probe_world.bank import Mix, Mixer, Placed, Unit, cut_units, join, read_events
from longtake.data.probe_world.needles import Card, Mover
from longtake.data.probe_world.probe import MAX_CARDS
from longtake.data.probe_world.regroup import VideoSource
from longtake.data.pruning.redundancy import Cut, similarity
from longtake.tables.ablations.world import BANK_FRAMES, BLOCK, World

Samples = Literal["bank", "as it is", "planted", "adverse"]
Kept = Literal["all", "random half", "pruned half"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What arms learn from. blocks: the bank's frames of each, ``(blocks, 8)``. source: mixes videos of them."""

    blocks: NDArray[np.int64]
    source: VideoSource


class SampleMixer:
    """Videos of samples drawn alike; cards of one video differ in colour, six at most, and one mover at most."""

    def __init__(self, units: Sequence[Unit], frames_per_group: int) -> None:
        self.units, self.frames_per_group = units, frames_per_group

    def mix(self, rng: np.random.Generator, num_groups: int, max_cards: int, mover: float, late: float = 0.5) -> Mix:
        """One video that begins at 0 s; ``num_groups`` samples. What they hold is not chosen.

        A sample that does not go with those before it is drawn again.
        """
        del max_cards, mover, late
        chosen: list[Unit] = []
        while len(chosen) < num_groups:
            unit = self.units[int(rng.integers(len(self.units)))]
            if _go_together([*chosen, unit]):
                chosen.append(unit)
        return join(chosen, "train", self.frames_per_group, 1.0, 0)


def _go_together(units: Sequence[Unit]) -> bool:
    """Whether cards differ in colour and are not too many to be counted, and at most one thing moves."""
    things = [event.what for unit in units for event in unit.events]
    colours = [thing.colour for thing in things if isinstance(thing, Card)]
    movers = sum(isinstance(thing, Mover) for thing in things)
    return len(set(colours)) == len(colours) <= MAX_CARDS and movers <= 1


def bank_data(world: World) -> Dataset:
    """The bank as the embedded model's training mixes it: needles are chosen, and blocks without any fill the gaps."""
    units = cut_units(read_events(world.bank), BANK_FRAMES // BLOCK, BLOCK)
    return Dataset(blocks=world.blocks, source=Mixer(units, "train", BLOCK))


def dataset(world: World, samples: Samples, kept: Kept, seed: int) -> Dataset:
    """What is learned from, by name; the seed decides the random half.

    "as it is": every block is a sample. "planted": as many stills without needles, each one frame repeated, stand
    beside them. "adverse": needles are in stills alone, and all that moves is empty.
    """
    if samples == "bank":
        return bank_data(world)
    blocks, events = sampled(world.blocks, events_by_block(world), samples)
    chosen = np.arange(len(blocks))
    if kept == "random half":
        chosen = np.sort(np.random.default_rng([seed, 41]).permutation(len(blocks))[: len(blocks) // 2])
    elif kept == "pruned half":
        scores = [similarity(frames_of(world, block)) for block in blocks]
        chosen = np.flatnonzero(Cut(keep=0.5).kept(scores, [f"{n:08}" for n in range(len(blocks))]))
    units = [Unit(first_group=int(n), groups=1, events=events[n]) for n in chosen if _go_together([_unit(events[n])])]
    return Dataset(blocks=blocks, source=SampleMixer(units, BLOCK))


def shares_by_cards(data: Dataset, frames: int, videos: int = 400) -> dict[str, float]:
    """How many training videos of so many frames show no card, one, two, three, and more, as shares of all."""
    rng = np.random.default_rng(47)
    shown = [len(data.source.mix(rng, frames // BLOCK, MAX_CARDS, 0.5).video.cards) for _ in range(videos)]
    counts = np.bincount(np.minimum(shown, 4), minlength=5) / videos
    return dict(zip(("0", "1", "2", "3", "more"), counts.round(3).tolist(), strict=True))


def _unit(events: tuple[Placed, ...]) -> Unit:
    return Unit(first_group=0, groups=1, events=events)


def events_by_block(world: World) -> list[tuple[Placed, ...]]:
    """What each block of the bank shows, by its own frames; an event that no frame shows is left out."""
    found: list[tuple[Placed, ...]] = []
    for _, placed in read_events(world.bank):
        for begin in range(0, BANK_FRAMES, BLOCK):
            inside = [e for e in placed if begin <= e.first < e.stop and e.first < begin + BLOCK]
            found.append(tuple(replace(e, first=e.first - begin, stop=e.stop - begin) for e in inside))
    return found


def frames_of(world: World, block: NDArray[np.int64]) -> NDArray[np.float32]:
    """A block's tower features, float32 ``(frames, tokens, dim)``."""
    return torch.from_numpy(world.features[block]).view(torch.bfloat16).float().numpy()


def sampled(
    blocks: NDArray[np.int64], events: list[tuple[Placed, ...]], samples: Samples
) -> tuple[NDArray[np.int64], list[tuple[Placed, ...]]]:
    """The samples' frames and events; see ``dataset``."""
    rng = np.random.default_rng(43)
    if samples == "planted":
        shown = [{n for e in own for n in range(e.first, e.stop)} for own in events]
        empty = [(block, n) for block, seen in enumerate(shown) for n in range(BLOCK) if n not in seen]
        chosen = np.array([empty[i] for i in rng.integers(len(empty), size=len(blocks))])
        return np.concatenate([blocks, _still(blocks, chosen)]), [*events, *[()] * len(blocks)]
    if samples == "adverse":
        cards = [(n, e) for n, own in enumerate(events) for e in own if isinstance(e.what, Card)]
        moving = [n for n, own in enumerate(events) if not own]
        count = min(len(cards), len(moving))
        needles = [cards[i] for i in rng.permutation(len(cards))[:count]]
        stills = _still(blocks, np.array([(n, e.first) for n, e in needles]))
        held = [(replace(e, first=0, stop=BLOCK, centres=e.centres[:1] * BLOCK),) for _, e in needles]
        return np.concatenate([stills, blocks[rng.permutation(moving)[:count]]]), [*held, *[()] * count]
    return blocks, events


def _still(blocks: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Blocks of one frame repeated; chosen: (block, frame) ``(stills, 2)``."""
    return np.repeat(blocks[chosen[:, 0], chosen[:, 1]][:, None], BLOCK, axis=1)
