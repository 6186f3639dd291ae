"""Drawn scenes whose things move by a rule: short videos from a seed, to make puzzles of beside real footage. Ours.

A scene is of one kind: its things fall, bounce, roll, grow or count down, one after the other and a little at the same
time, so that something always changes. What has come to rest stays for a while: a later picture shows what has been.
Training and test scenes share no shape, colour, speed, backdrop or font. A scene's file has a name that every split by
source (``haystack.split_of_source``) puts on the scene's own side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from longtake import video
from longtake.data.probe_world.haystack import split_of_source
from longtake.data.probe_world.needles import COLOURS, PROCEDURAL, Split, draw_symbol, font_of, fonts
from longtake.types import Frames, LongtakeError

Kind = Literal["fall", "bounce", "roll", "grow", "count_down"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HEIGHT, WIDTH = 144, 256
FLOOR = 0.88  # share of the height at which things come to rest
REST_SECONDS = 10.0  # for which they are still seen
DRAWN, FILMED = "drawn", "filmed"
DROPS = (1.0, 0.5, 0.25)  # how high a bouncing thing comes each time
TEST_EVERY = 4  # one scene in four is the test's, as of the probe world's sources

_SCENE_NAME = re.compile(rf"({'|'.join(KINDS)})-\d{{5,}}-\d+\.mp4")

SHAPES: dict[Split, tuple[str, ...]] = {
    "train": ("circle", "square", "triangle", "star", "diamond"),
    "test": ("heart", "cross", "moon"),
}
TINTS: dict[Split, tuple[str, ...]] = {
    "train": ("red", "yellow", "green", "blue", "purple"),
    "test": ("orange", "cyan", "pink"),
}
PACES: dict[Split, tuple[tuple[float, float], ...]] = {"train": ((3.5, 5.0), (7.0, 9.0)), "test": ((5.5, 6.5),)}
BACKDROPS: dict[Split, tuple[str, ...]] = {"train": ("patches", "bricks"), "test": ("waves", "dots")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One thing that moves for ``[start_seconds, stop_seconds)`` and then rests.

    radius, place: as shares of the picture's height and width; it comes to rest at ``place``. way: 1 where it comes
    from the left, -1 from the right. count: the number it counts down from.
    """

    shape: str
    tint: str
    radius: float
    place: float
    way: int
    start_seconds: float
    stop_seconds: float
    count: int

    def share(self, at_seconds: float) -> float:
        """How much of the thing's movement is done, from 0 to 1."""
        return min(1.0, (at_seconds - self.start_seconds) / (self.stop_seconds - self.start_seconds))

    def is_seen(self, at_seconds: float) -> bool:
        """Whether the thing is in the picture: while it moves, and for a while after."""
        return self.start_seconds <= at_seconds < self.stop_seconds + REST_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Where a thing's middle is, in heights of the picture from its left upper corner, how large it is, how turned."""

    x: float
    y: float
    radius: float
    turn_degrees: float = 0.0


def fall(thing: Thing, share: float) -> Pose:
    """The pose of a thing that falls from above the picture to the floor, ever faster."""
    return Pose(x=_at(thing.place), y=-thing.radius + FLOOR * share**2, radius=thing.radius)


def bounce(thing: Thing, share: float) -> Pose:
    """The pose of a thing thrown in from the side, each time half as high. A fall takes the root of its height."""
    begun, time = 0.0, share * sum(_lengths())
    height = 0.0
    for number, (drop, length) in enumerate(zip(DROPS, _lengths(), strict=True)):
        if begun <= time <= begun + length:
            top = begun if number == 0 else begun + length / 2
            height = drop - (time - top) ** 2
            break
        begun += length
    x = _at(thing.place) - thing.way * 0.5 * (1 - share)
    return Pose(x=x, y=FLOOR - thing.radius - max(0.0, height) * (FLOOR - 2 * thing.radius), radius=thing.radius)


def roll(thing: Thing, share: float) -> Pose:
    """The pose of a thing that rolls in along the floor, ever slower, turned by the way it has gone."""
    edge = -thing.radius if thing.way > 0 else _at(1.0) + thing.radius
    gone = (_at(thing.place) - edge) * (1 - (1 - share) ** 2)
    turn = math.degrees(gone / thing.radius)
    return Pose(x=edge + gone, y=FLOOR - thing.radius, radius=thing.radius, turn_degrees=turn)


def grow(thing: Thing, share: float) -> Pose:
    """The pose of a thing that grows out of the floor, from a tenth to its whole size."""
    radius = thing.radius * (0.1 + 0.9 * share)
    return Pose(x=_at(thing.place), y=FLOOR - radius, radius=radius)


def count_down(thing: Thing, share: float) -> Pose:
    """The pose of a thing that stays in its place; what changes is the number on it."""
    return Pose(x=_at(thing.place), y=FLOOR / 2, radius=thing.radius)


def shown_count(thing: Thing, share: float) -> int:
    """The number on a thing that counts down: each for as long as the others, 0 at the end."""
    return math.ceil(thing.count * (1 - share) - 1e-9)


def _at(place: float) -> float:
    return place * WIDTH / HEIGHT


def _lengths() -> list[float]:
    return [math.sqrt(drop) * (1 if number == 0 else 2) for number, drop in enumerate(DROPS)]


POSES: dict[Kind, Callable[[Thing, float], Pose]] = {
    "fall": fall,
    "bounce": bounce,
    "roll": roll,
    "grow": grow,
    "count_down": count_down,
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A drawn scene. things: in the order in which they begin. font: of numbers. Frames are drawn when asked for."""

    kind: Kind
    split: Split
    seed: int
    duration_seconds: float
    things: tuple[Thing, ...]
    backdrop: str
    font: str

    @property
    def name(self) -> str:
        """The name of the scene's file: the first of its names that a split by source puts on its side."""
        names = (f"{self.kind}-{self.seed:05d}-{tried}.mp4" for tried in range(1000))
        return next(name for name in names if split_of_source(name) == self.split)

    def picture(self, at_seconds: float) -> Image.Image:
        """The scene at a time."""
        picture = self._ground.copy()
        for thing in self.things:
            if thing.is_seen(at_seconds):
                share = thing.share(at_seconds)
                pose = POSES[self.kind](thing, share)
                said = str(shown_count(thing, share)) if self.kind == "count_down" else ""
                drawn = _drawn(thing, pose, said, self.font)
                left, top = (round(middle * HEIGHT - drawn.width / 2) for middle in (pose.x, pose.y))
                picture.paste(drawn, (left, top), drawn)
        return picture

    def frames(self, fps: float) -> Iterator[Frames]:
        """All frames of the scene at a rate, a second a chunk."""
        seconds = np.arange(round(self.duration_seconds * fps)) / fps
        for part in np.array_split(seconds, max(1, round(self.duration_seconds))):
            if len(part):
                pixels = np.stack([np.asarray(self.picture(float(at))) for at in part])
                yield Frames(pixels=np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), seconds=part)

    @cached_property
    def _ground(self) -> Image.Image:
        return _ground(self.backdrop, np.random.default_rng([self.seed, 88]))


def domain_of(name: str) -> str:
    """Whether a video with such a file name is a drawn scene of this module, or taken to be filmed."""
    return DRAWN if _SCENE_NAME.fullmatch(Path(name).name) else FILMED


def make_scene(kind: Kind, split: Split, seed: int, duration_seconds: float = 24.0) -> Scene:
    """A scene from its seed; the same seed gives other things in the other split, and in another kind."""
    rng = np.random.default_rng([seed, KINDS.index(kind), 1 if split == "train" else 2])
    least, most = PACES[split][int(rng.integers(len(PACES[split])))]
    things, begin = [], 0.0
    while begin < duration_seconds:
        length = float(rng.uniform(least, most))
        things.append(
            Thing(
                shape=str(rng.choice(SHAPES[split])),
                tint=str(rng.choice(TINTS[split])),
                radius=float(rng.uniform(0.12, 0.2)),
                place=float(rng.uniform(0.12, 0.88)),
                way=int(rng.choice([-1, 1])),
                start_seconds=begin,
                stop_seconds=begin + length,
                count=int(rng.integers(4, 10)),
            )
        )
        begin += length * float(rng.uniform(0.6, 0.9))
    return Scene(
        kind=kind,
        split=split,
        seed=seed,
        duration_seconds=duration_seconds,
        things=tuple(things),
        backdrop=str(rng.choice(BACKDROPS[split])),
        font=str(rng.choice([name for name in fonts(split) if name != PROCEDURAL])),
    )


def write_scenes(
    folder: Path, *, count: int = 40, seconds: float = 24.0, fps: float = 5.0, seed: int = 0
) -> list[Path]:
    """Write scenes of all kinds in turn as H.264 files; one in four is of the test's split. The files, in order.

    Another seed gives other scenes and names. Raises LongtakeError for no scene, a rate below 1, or under 4 seconds.
    """
    if count < 1 or seed < 0 or not (1 <= fps < math.inf and 4 <= seconds < math.inf):
        raise LongtakeError(
            f"count is {count}, fps {fps:g}, seconds {seconds:g}, seed {seed}; count and fps must be at least 1, "
            "seconds at least 4, seed not negative"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number in range(count):
        split: Split = "test" if number % TEST_EVERY == TEST_EVERY - 1 else "train"
        scene = make_scene(KINDS[number % len(KINDS)], split, seed * 10_000 + number, seconds)
        written.append(folder / scene.name)
        video.write(written[-1], scene.frames(fps), fps)
    return written


def _drawn(thing: Thing, pose: Pose, said: str, font: str) -> Image.Image:
    """A thing as an RGBA picture, at twice its size first. A mark beside the middle shows how far it is turned."""
    side = max(4, 2 * round(pose.radius * HEIGHT))
    big, dark = 2 * side, (15, 15, 15)
    picture = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    draw_symbol(pen, thing.shape, (big / 2, big / 2), big * 0.49, dark)
    draw_symbol(pen, thing.shape, (big / 2, big / 2), big * 0.43, COLOURS[thing.tint])
    if said:
        pen.text((big / 2, big / 2), said, fill=dark, font=font_of(font, big // 2), anchor="mm")
    else:
        draw_symbol(pen, "circle", (big / 2, big * 0.36), big * 0.07, dark)
    turned = picture.rotate(-pose.turn_degrees, Image.Resampling.BILINEAR)
    return turned.resize((side, side), Image.Resampling.BOX)


def _ground(backdrop: str, rng: np.random.Generator) -> Image.Image:
    """A dull textured picture with a floor."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), _dull(rng))
    pen = ImageDraw.Draw(picture)
    if backdrop == "patches":
        for _ in range(24):
            left, top = rng.uniform(-40, (WIDTH, HEIGHT))
            pen.rectangle((left, top, left + rng.uniform(20, 90), top + rng.uniform(20, 70)), fill=_dull(rng))
    elif backdrop == "bricks":
        wide, high = int(rng.integers(24, 56)), int(rng.integers(14, 30))
        for row in range(HEIGHT // high + 1):
            for column in range(-1, WIDTH // wide + 1):
                left, top = (column + row % 2 / 2) * wide, row * high
                pen.rectangle((left, top, left + wide - 2, top + high - 2), fill=_dull(rng))
    elif backdrop == "dots":
        for _ in range(40):
            draw_symbol(pen, "circle", (rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)), rng.uniform(6, 30), _dull(rng))
    else:
        down, across = np.mgrid[:HEIGHT, :WIDTH] / HEIGHT
        levels = sum(
            np.sin(a * across + b * down + c) for a, b, c in rng.uniform((-14, -14, 0), (14, 14, 6.3), (4, 3))
        )
        shades = np.asarray(_dull(rng))[None, None] * (1 + 0.2 * np.asarray(levels)[..., None])
        picture = Image.fromarray(np.clip(shades, 0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(picture)
    pen.rectangle((0, FLOOR * HEIGHT, WIDTH, HEIGHT), fill=_dull(rng))
    return picture.filter(ImageFilter.GaussianBlur(1.5))


def _dull(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = np.clip(rng.uniform(40, 210) + rng.normal(0, 12, 3), 0, 255)
    return int(red), int(green), int(blue)
