"""The probe world: videos of any length with needles at known moments, and questions with known answers.

A video is a haystack of shots; cards and a moving shape are drawn onto the frames they replace, and as many card-free
foreign cuts are put in, so that a cut betrays nothing. Everything follows from a seed; frames are rendered on demand.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from longtake.data.probe_world.decoys import VividShot
from longtake.data.probe_world.haystack import Clip, Shot, random_shot
from longtake.data.probe_world.needles import (
    COLOURS,
    Card,
    Mover,
    Split,
    card_picture,
    draw_card_choice,
    draw_mover_choice,
    fonts,
    mover_picture,
)
from longtake.types import Frames

SIZES = ((144, 256), (144, 192), (144, 144), (256, 144), (144, 256))  # (height, width), wide ones twice as often
MAX_CARDS = 6
CARD_SIZE, SMALL = (0.4, 0.9), (0.38, 0.55)  # a card's height as a share of the shorter side


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What is put into the haystack for ``[start_seconds, stop_seconds)``: a card, a mover or a foreign cut.

    card_size: the range that a card's height is drawn from, as a share of the frame's shorter side.
    """

    what: Card | Mover | None  # None: a cut to other footage, with nothing on it
    start_seconds: float
    stop_seconds: float
    seed: int
    card_size: tuple[float, float] = CARD_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeVideo:
    """A video of the probe world. Frame i is shown at ``i / fps`` seconds."""

    seed: int
    split: Split
    fps: float
    num_frames: int
    size: tuple[int, int]  # (height, width)
    shots: tuple[Shot | VividShot, ...]
    events: tuple[Event, ...]
    foreign: tuple[Shot | VividShot, ...]  # one for each event, used by the cuts

    @property
    def cards(self) -> tuple[tuple[Card, Event], ...]:
        """Cards in order of appearance, each with its event."""
        return tuple((event.what, event) for event in self.events if isinstance(event.what, Card))

    @property
    def movers(self) -> tuple[tuple[Mover, Event], ...]:
        """Moving shapes in order of appearance, each with its event."""
        return tuple((event.what, event) for event in self.events if isinstance(event.what, Mover))

    def picture(self, at_seconds: float) -> Image.Image:
        """The picture shown at a time."""
        shot = self.shots[bisect_right(self.shots, at_seconds, key=lambda shot: shot.start_seconds) - 1]
        for event, other in zip(self.events, self.foreign, strict=True):
            if event.start_seconds <= at_seconds < event.stop_seconds:
                if event.what is None:
                    return other.picture(at_seconds, self.size)
                return draw_event(shot.picture(at_seconds, self.size), event, at_seconds, self.split)
        return shot.picture(at_seconds, self.size)

    def frames(self, chunk_frames: int = 64, start: int = 0, stop: int | None = None) -> Iterator[Frames]:
        """Frames ``[start, stop)`` in chunks."""
        stop = self.num_frames if stop is None else stop
        for first in range(start, stop, chunk_frames):
            seconds = np.arange(first, min(first + chunk_frames, stop), dtype=np.float64) / self.fps
            pictures = np.stack([np.asarray(self.picture(float(at))) for at in seconds])
            yield Frames(pixels=pictures.transpose(0, 3, 1, 2), seconds=seconds)


def make_video(
    seed: int,
    *,
    split: Split,
    clips: list[Clip],
    num_frames: int,
    fps: float = 1.0,
    num_cards: int | None = None,
    mover: bool | None = None,
    size: tuple[int, int] | None = None,
) -> ProbeVideo:
    """A video of the probe world from its seed. Cards of one video have different colours.

    num_cards: None draws 1 to 6, fewer in videos of under 32 seconds. mover: None puts one in every second video.
    """
    if fps < 1:
        raise ValueError(f"fps is {fps}; below 1 a card could fall between two frames")
    rng = np.random.default_rng([seed, 1 if split == "train" else 2])
    duration = num_frames / fps
    if num_cards is None:
        num_cards = int(rng.integers(1, 1 + min(MAX_CARDS, max(1, int(duration / 6)))))
    if mover is None:
        mover = bool(rng.random() < 0.5) and duration >= 16
    things: list[Card | Mover | None] = []
    for colour in rng.permutation(list(COLOURS))[:num_cards]:
        things.append(draw_card_choice(rng, split, colour=str(colour)))
    if mover:
        things.append(draw_mover_choice(rng, split))
    things += [None] * num_cards
    events = _place(rng, things, duration)
    shots, at = [], 0.0
    while at < duration:
        shots.append(random_shot(rng, clips, at))
        at += float(rng.uniform(8, 40))
    return ProbeVideo(
        seed=seed,
        split=split,
        fps=fps,
        num_frames=num_frames,
        size=size or SIZES[int(rng.integers(len(SIZES)))],
        shots=tuple(shots),
        events=events,
        foreign=tuple(random_shot(rng, clips, event.start_seconds) for event in events),
    )


def _place(rng: np.random.Generator, things: list[Card | Mover | None], duration: float) -> tuple[Event, ...]:
    """Events in random order at random places, at least a second apart; what doesn't fit is left out, cuts first."""
    order = [things[i] for i in rng.permutation(len(things))]
    lengths = [float(rng.uniform(6.0, 9.0) if isinstance(t, Mover) else rng.uniform(1.5, 4.0)) for t in order]
    while sum(lengths) + len(lengths) + 1 > duration and order:
        drop = next((i for i, thing in enumerate(order) if thing is None), len(order) - 1)
        del order[drop], lengths[drop]
    slack = duration - sum(lengths) - len(lengths)
    gaps = np.diff(np.sort(rng.uniform(0, slack, len(order))), prepend=0.0)
    events, at = [], 0.0
    for thing, length, gap in zip(order, lengths, gaps, strict=True):
        at += float(gap) + 0.5
        seed = int(rng.integers(2**31))
        events.append(Event(what=thing, start_seconds=at, stop_seconds=at + length, seed=seed))
        at += length + 0.5
    return tuple(events)


def draw_event(picture: Image.Image, event: Event, at_seconds: float, split: Split) -> Image.Image:
    """A card or a moving shape drawn onto a picture of the haystack, as it looks at a time."""
    drawn, x, y = place_event(event, at_seconds, picture.size, split)
    picture.paste(drawn, (x, y), drawn)
    return picture


def place_event(
    event: Event, at_seconds: float, size: tuple[int, int], split: Split
) -> tuple[Image.Image, int, int]:
    """The picture of a card or a moving shape, and where its left upper corner stands at a time.

    size: (width, height) of the frame.
    """
    if isinstance(event.what, Card):
        return _place_card(event.what, event.seed, size, split, event.card_size)
    assert isinstance(event.what, Mover)
    rng = np.random.default_rng(event.seed)
    width, height = size
    side = int(min(size) * rng.uniform(0.2, 0.36))
    drawn = mover_picture(event.what, side, rng)
    x, y = _on_path(event, (at_seconds - event.start_seconds) / (event.stop_seconds - event.start_seconds), rng)
    return drawn, int(x * (width - side)), int(y * (height - side))


@lru_cache(maxsize=32)
def _place_card(
    card: Card, seed: int, size: tuple[int, int], split: Split, card_size: tuple[float, float]
) -> tuple[Image.Image, int, int]:
    """A card's picture and the place of its left upper corner; the same on all of its frames."""
    rng = np.random.default_rng(seed)
    width, height = size
    side = math.ceil(min(size) * rng.uniform(*card_size))
    drawn = card_picture(card, side, str(rng.choice(fonts(split))), rng)
    x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
    if rng.random() < 0.3:
        drawn = drawn.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.7))))
    return drawn, int(x), int(y)


def centre(event: Event, at_seconds: float, size: tuple[int, int], split: Split) -> tuple[float, float]:
    """The middle of a card or a moving shape at a time, as shares of the frame's width and height.

    size: (width, height) of the frame.
    """
    drawn, x, y = place_event(event, at_seconds, size, split)
    return (x + drawn.width / 2) / size[0], (y + drawn.height / 2) / size[1]


def _on_path(event: Event, share: float, rng: np.random.Generator) -> tuple[float, float]:
    """Where a mover is after a share of its time, as shares of the free width and height."""
    assert isinstance(event.what, Mover)
    begin, end, side = rng.uniform(0.0, 0.12), rng.uniform(0.88, 1.0), rng.uniform(0.0, 1.0)
    drift = rng.uniform(-0.1, 0.1)
    along = begin + (end - begin) * share
    across = float(np.clip(side + drift * share, 0, 1))
    if event.what.direction in ("left", "up"):
        along = 1 - along
    return (along, across) if event.what.direction in ("left", "right") else (across, along)
