"""The same videos in groups of another size, or with only every n-th frame: what arms of an ablation are compared on.

Videos are mixed once, in blocks of frames that any arm's groups divide; each arm then sees them in its own groups, and
the questions stay those of the whole video.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from longtake.data.probe_world.bank import Mix, Placed


class VideoSource(Protocol):
    """A source of mixed videos; see ``Mixer``."""

    @property
    def frames_per_group(self) -> int:
        """How many frames each of the groups has that ``mix`` counts."""

    def mix(self, rng: np.random.Generator, num_groups: int, max_cards: int, mover: float, late: float = 0.5) -> Mix:
        """One video of a number of groups; see ``Mixer.mix``."""


def regroup(mix: Mix, frames_per_group: int, every: int = 1) -> Mix:
    """A mixed video of which every ``every``-th frame is seen, the first one too, in groups of ``frames_per_group``.

    Its groups count the bank's groups of that size (``group_frames``). What falls between two frames that are seen is
    no longer among ``placed``; the video, of which questions are asked, stays as it is.

    Raises ValueError where the mixed video's groups do not hold a whole number of the new ones.
    """
    per_block, rest = divmod(mix.frames_per_group, frames_per_group * every)
    if rest or not per_block:
        raise ValueError(
            f"blocks of {mix.frames_per_group} frames do not divide into groups of {frames_per_group}, one in {every}"
        )
    groups = (mix.groups[:, None] * per_block + np.arange(per_block)).reshape(-1)
    placed = tuple(seen for event in mix.placed if (seen := _seen(event, every)).stop > seen.first)
    return replace(
        mix,
        groups=groups,
        frame_seconds=mix.frame_seconds * every,
        frames_per_group=frames_per_group,
        placed=placed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegroupedMixer:
    """A mixer's videos as an arm sees them: for every arm the same; ``mix`` counts the mixer's groups."""

    mixer: VideoSource
    size: int  # frames in an arm's group
    every: int = 1

    @property
    def frames_per_group(self) -> int:
        return self.mixer.frames_per_group

    def mix(self, rng: np.random.Generator, num_groups: int, max_cards: int, mover: float, late: float = 0.5) -> Mix:
        """One video; see ``Mixer.mix``."""
        return regroup(self.mixer.mix(rng, num_groups, max_cards, mover, late), self.size, self.every)


def _seen(event: Placed, every: int) -> Placed:
    """An event by the frames that are seen."""
    first, stop = -(-event.first // every), -(-event.stop // every)
    return replace(event, first=first, stop=stop, centres=event.centres[first * every - event.first :: every])


def group_frames(blocks: NDArray[np.int64], frames_per_group: int, every: int = 1) -> NDArray[np.int64]:
    """The frames of each group, ``(groups, frames_per_group)``, from those of each block, ``(blocks, frames)``."""
    return blocks[:, ::every].reshape(-1, frames_per_group)
