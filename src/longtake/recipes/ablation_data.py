"""What the arms of an ablation learn from: the bank's blocks of eight frames, as they are or changed and pruned.

For pruning, a block is one sample. Training videos are then drawn from samples without looking at what they hold, so
that a sample that teaches nothing costs as much as one that does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from longtake.data.bank import Mix, Mixer, Placed, Unit, cut_units, join, read_events
from longtake.data.needles import Card, Mover
from longtake.data.redundancy import Cut, similarity
from longtake.recipes.ablation_world import BANK_FRAMES, BLOCK, World
from longtake.train.decoder import VideoSource

Samples = Literal["bank", "as it is", "planted", "adverse"]
Kept = Literal["all", "random half", "pruned half"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """blocks: which of the bank's frames make each block, ``(blocks, 8)``. source: mixes videos of them."""

    blocks: NDArray[np.int64]
    source: VideoSource


class SampleMixer:
    """Videos of samples drawn alike; cards of one video differ in colour, and one mover at most."""

    def __init__(self, units: Sequence[Unit], frames_per_group: int) -> None:
        self.units, self.frames_per_group = units, frames_per_group

    def mix(self, rng: np.random.Generator, num_groups: int, max_cards: int, mover: float, late: float = 0.5) -> Mix:
        """One video that begins at 0 s; ``num_groups`` samples. What they hold is not chosen.

        A sample that does not go with those before it is drawn again.
        """
        del max_cards, mover, late
        chosen: list[Unit] = []
        colours: set[str] = set()
        while len(chosen) < num_groups:
            unit = self.units[rng.integers(len(self.units))]
            moves = any(isinstance(e.what, Mover) for other in [*chosen, unit] for e in other.events)
            if unit.colours & colours or (moves and _movers([*chosen, unit]) > 1):
                continue
            chosen.append(unit)
            colours |= unit.colours
        return join(chosen, "train", self.frames_per_group, 1.0, 0)


def _movers(units: Sequence[Unit]) -> int:
    return sum(isinstance(event.what, Mover) for unit in units for event in unit.events)


def bank_data(world: World) -> Dataset:
    """The bank as the embedded model's training mixes it: needles are chosen, and blocks without any fill the gaps."""
    units = cut_units(read_events(world.bank), BANK_FRAMES // BLOCK, BLOCK)
    blocks = np.arange(world.size.bank_videos * BANK_FRAMES).reshape(-1, BLOCK)
    return Dataset(blocks=blocks, source=Mixer(units, "train", BLOCK))


def dataset(world: World, samples: Samples, kept: Kept, seed: int) -> Dataset:
    """What is learned from, by name; the seed decides the random half.

    "as it is": every block is a sample. "planted": as many stills without needles, each one frame repeated, stand
    beside them. "adverse": needles are in stills alone, and all that moves is empty.
    """
    if samples == "bank":
        return bank_data(world)
    blocks, events = _samples(world, samples)
    scores = [similarity(_features(world, block)) for block in blocks]
    chosen = np.arange(len(blocks))
    if kept == "random half":
        chosen = np.sort(np.random.default_rng([seed, 41]).permutation(len(blocks))[: len(blocks) // 2])
    elif kept == "pruned half":
        stays = Cut(keep=0.5).kept(scores, [f"{n:08}" for n in range(len(blocks))])
        chosen = np.flatnonzero(stays)
    units = [Unit(first_group=int(n), groups=1, events=events[n]) for n in chosen]
    return Dataset(blocks=blocks, source=SampleMixer(units, BLOCK))


def _samples(world: World, samples: Samples) -> tuple[NDArray[np.int64], list[tuple[Placed, ...]]]:
    """Blocks and what each shows."""
    assert samples in get_args(Samples)
    blocks = np.arange(world.size.bank_videos * BANK_FRAMES).reshape(-1, BLOCK)
    events = _events_by_block(world)
    rng = np.random.default_rng(43)
    if samples == "planted":
        stills = [_still(block, int(rng.choice(_plain_frames(own)))) for block, own in zip(blocks, events, strict=True)]
        return np.concatenate([blocks, stills]), [*events, *[()] * len(stills)]
    if samples == "adverse":
        return _adverse(blocks, events, rng)
    return blocks, events
