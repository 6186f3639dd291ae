"""Coloured things that are no cards, for footage that is trained on.

Few of the training's clips show bright colours, and a model that has met them on cards alone takes a lawn or a green
waveform for one. Here a shot's colours are made stronger, and blobs, waves, bands, lines of text and empty cards are
drawn into it. None of this is a needle: a video with them has nothing on it.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from longtake.data.probe_world.haystack import Clip, Shot, random_shot
from longtake.data.probe_world.needles import COLOURS, LETTERS, PROCEDURAL, blank_card, font_of, fonts

KINDS = ("blob", "wave", "band", "text", "empty card")
SIGNS = "".join(LETTERS) + "".join(LETTERS).lower() + "0123456789 "
RGB = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class VividShot:
    """A shot with other colours and decoys in it, which follow from ``seed``.

    saturation: how far colours are from their grey, 1.0 as they are. decoys: how many.
    """

    shot: Shot
    saturation: float
    decoys: int
    seed: int

    @property
    def start_seconds(self) -> float:
        """The time in the shown video at which the shot begins."""
        return self.shot.start_seconds

    def picture(self, at_seconds: float, size: tuple[int, int]) -> Image.Image:
        """The picture shown at a time, ``size`` = (height, width)."""
        picture = ImageEnhance.Color(self.shot.picture(at_seconds, size)).enhance(self.saturation)
        for number in range(self.decoys):
            rng = np.random.default_rng([self.seed, number])
            draw_decoy(picture, rng, at_seconds - self.start_seconds)
        return picture


def vivid_shot(rng: np.random.Generator, clips: list[Clip], start_seconds: float) -> Shot | VividShot:
    """A random shot for training; every other one may have stronger colours and up to three decoys."""
    shot = random_shot(rng, clips, start_seconds)
    if rng.random() < 0.5:
        return shot
    return VividShot(
        shot=shot,
        saturation=float(rng.choice([1.0, rng.uniform(1.5, 4.0)])),
        decoys=int(rng.integers(0, 4)),
        seed=int(rng.integers(2**31)),
    )


def draw_decoy(picture: Image.Image, rng: np.random.Generator, seconds: float) -> None:
    """One decoy drawn onto a picture, ``seconds`` after its shot began; half of them drift."""
    width, height = picture.size
    kind, colour = str(rng.choice(KINDS)), _colour(rng)
    drift = rng.normal(0, 0.04, 2) * min(picture.size) * int(rng.integers(2))
    x, y = rng.uniform((0, 0), (width, height)) + drift * seconds
    side = min(picture.size) * rng.uniform(0.1, 0.7)
    pen = ImageDraw.Draw(picture)
    if kind == "blob":
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(5, 12))))
        radius = side / 2 * rng.uniform(0.5, 1.2, len(angles))
        pen.polygon(list(zip(x + radius * np.cos(angles), y + radius * np.sin(angles), strict=True)), fill=colour)
    elif kind == "wave":
        _wave(pen, rng, y, side, width, colour)
    elif kind == "band":
        box = (0, y, width, y + side / 2) if rng.random() < 0.6 else (x, 0, x + side / 2, height)
        pen.rectangle(box, fill=colour)
    elif kind == "text":
        _line_of_text(pen, rng, (x, y), side, colour)
    else:
        drawn = blank_card(colour, max(4, int(side)), rng)
        picture.paste(drawn, (int(x - side / 2), int(y - side / 2)), drawn)


def _colour(rng: np.random.Generator) -> RGB:
    """A card's colour, about, or any strong one."""
    if rng.random() < 0.6:
        shade = np.asarray(list(COLOURS.values())[int(rng.integers(len(COLOURS)))]) + rng.uniform(-25, 25, 3)
    else:
        shade = 255 * np.asarray(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.5, 1), rng.uniform(0.3, 1)))
    red, green, blue = (int(v) for v in np.clip(shade, 0, 255))
    return red, green, blue


def _wave(pen: ImageDraw.ImageDraw, rng: np.random.Generator, y: float, side: float, width: int, colour: RGB) -> None:
    """A line or a filled curve from left to right."""
    xs = np.linspace(0, width, int(rng.integers(12, 80)))
    heights = np.convolve(rng.normal(0, side / 3, len(xs) + 4), np.ones(5) / 5 ** rng.uniform(0.3, 1), "valid")
    if rng.random() < 0.5:
        pen.line(list(zip(xs, y + heights, strict=True)), fill=colour, width=int(rng.integers(1, 5)))
    else:
        upper, lower = zip(xs, y - np.abs(heights), strict=True), zip(xs[::-1], y + np.abs(heights[::-1]), strict=True)
        pen.polygon([*upper, *lower], fill=colour)


def _line_of_text(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, at: tuple[float, float], side: float, colour: RGB
) -> None:
    """Three or more letters and digits, as in a caption or a sign; on a plate, sometimes."""
    text = "".join(rng.choice(list(SIGNS), int(rng.integers(3, 12))))
    face = font_of(str(rng.choice([name for name in fonts("train") if name != PROCEDURAL])), max(8, int(side / 3)))
    ink: RGB = colour
    if rng.random() < 0.4:
        pen.rectangle(pen.textbbox(at, text, font=face, anchor="mm"), fill=colour)
        ink = (250, 250, 250) if rng.random() < 0.5 else (15, 15, 15)
    pen.text(at, text, font=face, fill=ink, anchor="mm")
