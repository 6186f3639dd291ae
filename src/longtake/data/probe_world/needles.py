"""What is drawn into the probe world: cards and moving shapes, and the rule that splits them into train and test.

A card has a content (a number, a letter or a symbol), a colour and an outline; a mover is a coloured symbol that
crosses the picture in one direction. Everything is drawn by Pillow from a seeded generator.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Split = Literal["train", "test"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 28, 32),
    "orange": (245, 135, 25),
    "yellow": (246, 222, 40),
    "green": (30, 150, 55),
    "cyan": (30, 195, 215),
    "blue": (32, 75, 215),
    "purple": (125, 40, 165),
    "pink": (246, 135, 190),
}
NUMBERS = tuple(str(n) for n in range(100))
LETTERS = tuple("ABCDEFGHJKLMNPQRSTUVWXYZ")  # I and O would be confused with 1 and 0
SYMBOLS = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "moon")
CONTENTS = NUMBERS + LETTERS + SYMBOLS
OUTLINES = ("square", "round", "hexagon")
DIRECTIONS = ("left", "right", "up", "down")
FONT_FOLDER = Path(__file__).parents[2] / "assets" / "fonts"
PROCEDURAL = "segments"  # the font that is drawn from straight strokes


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A coloured card with something on it."""

    content: str
    colour: str
    outline: str

    def __post_init__(self) -> None:
        if self.content not in CONTENTS or self.colour not in COLOURS or self.outline not in OUTLINES:
            raise ValueError(f"unknown card {self.content!r}, {self.colour!r}, {self.outline!r}")

    @property
    def kind(self) -> str:
        """What the card shows: number, letter or shape."""
        return "number" if self.content in NUMBERS else "letter" if self.content in LETTERS else "shape"

    @property
    def split(self) -> Split:
        """The side this (content, colour, outline) triple belongs to: one in six is kept for the test."""
        digest = hashlib.blake2b(f"{self.content}/{self.colour}/{self.outline}".encode(), digest_size=4).digest()
        return "test" if int.from_bytes(digest, "big") % 6 == 0 else "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    """A coloured symbol that crosses the picture."""

    shape: str
    colour: str
    direction: str

    def __post_init__(self) -> None:
        if self.shape not in SYMBOLS or self.colour not in COLOURS or self.direction not in DIRECTIONS:
            raise ValueError(f"unknown mover {self.shape!r}, {self.colour!r}, {self.direction!r}")

    @property
    def split(self) -> Split:
        """The side this (shape, colour) pair belongs to: one in four is kept for the test, in every direction."""
        digest = hashlib.blake2b(f"mover/{self.shape}/{self.colour}".encode(), digest_size=4).digest()
        return "test" if int.from_bytes(digest, "big") % 4 == 0 else "train"


def draw_card_choice(
    rng: np.random.Generator,
    split: Split,
    *,
    colour: str | None = None,
    groups: tuple[tuple[str, ...], ...] = (NUMBERS, LETTERS, SYMBOLS),
) -> Card:
    """A random card of one split; the groups of contents are equally likely."""
    while True:
        card = Card(
            content=str(rng.choice(groups[rng.integers(len(groups))])),
            colour=colour or str(rng.choice(list(COLOURS))),
            outline=str(rng.choice(OUTLINES)),
        )
        if card.split == split:
            return card


def draw_mover_choice(rng: np.random.Generator, split: Split) -> Mover:
    """A random mover of one split."""
    while True:
        mover = Mover(
            shape=str(rng.choice(SYMBOLS)),
            colour=str(rng.choice(list(COLOURS))),
            direction=str(rng.choice(DIRECTIONS)),
        )
        if mover.split == split:
            return mover


@lru_cache
def fonts(split: Split) -> tuple[str, ...]:
    """Font names of one split; the procedural one is trained on."""
    files = tuple(sorted(p.name for p in FONT_FOLDER.iterdir() if p.name.startswith(split)))
    return (*files, PROCEDURAL) if split == "train" else files


@lru_cache(maxsize=4096)
def font_of(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of ``fonts`` at a size in pixels. Raises OSError for the procedural one, which has no file."""
    return ImageFont.truetype(str(FONT_FOLDER / name), size)


def card_picture(card: Card, side: int, font: str, rng: np.random.Generator) -> Image.Image:
    """The card as an RGBA picture about ``side`` pixels high, slightly turned; drawn at twice the size first."""
    picture, room = _plate(card.outline, _jitter(COLOURS[card.colour], rng), 2 * side, rng)
    dark = card.colour in ("yellow", "cyan", "pink", "orange") if rng.random() < 0.85 else rng.random() < 0.3
    dark = dark and card.colour not in ("blue", "purple")
    bright = not dark and card.colour != "yellow"
    ink = (248, 248, 248) if bright else (15, 15, 15)
    _content(picture, card, 2 * side * room, font, ink, rng)
    return _turned(picture, side, rng)


def blank_card(colour: tuple[int, int, int], side: int, rng: np.random.Generator) -> Image.Image:
    """An empty card of a colour and any outline as an RGBA picture ``side`` pixels high."""
    return _turned(_plate(str(rng.choice(OUTLINES)), colour, 2 * side, rng)[0], side, rng)


def _plate(
    outline: str, fill: tuple[int, int, int], big: int, rng: np.random.Generator
) -> tuple[Image.Image, float]:
    """An empty card ``big`` pixels high, and the share of it that has room for a content."""
    picture = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    rim = (250, 250, 250) if rng.random() < 0.5 else (25, 25, 25) if rng.random() < 0.5 else fill
    width = max(1, int(big * rng.uniform(0.01, 0.04)))
    box = (1, 1, big - 2, big - 2)
    if outline == "square":
        pen.rounded_rectangle(box, radius=big * rng.uniform(0.0, 0.2), fill=fill, outline=rim, width=width)
        return picture, rng.uniform(0.7, 0.86)
    if outline == "round":
        pen.ellipse(box, fill=fill, outline=rim, width=width)
        return picture, rng.uniform(0.58, 0.7)
    turn = 30 * int(rng.integers(2))
    pen.regular_polygon((big / 2, big / 2, big / 2 - 1), 6, rotation=turn, fill=fill, outline=rim)
    return picture, rng.uniform(0.56, 0.68)


def _turned(picture: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A drawn card slightly turned, at its size."""
    turned = picture.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BILINEAR)
    return turned.resize((side, side), Image.Resampling.BOX)


def mover_picture(mover: Mover, side: int, rng: np.random.Generator) -> Image.Image:
    """The moving symbol as an RGBA picture ``side`` pixels high."""
    big = 2 * side
    picture = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    rim = (250, 250, 250) if rng.random() < 0.5 else (15, 15, 15)
    pen = ImageDraw.Draw(picture)
    draw_symbol(pen, mover.shape, (big / 2, big / 2), big * 0.49, rim)
    draw_symbol(pen, mover.shape, (big / 2, big / 2), big * 0.43, _jitter(COLOURS[mover.colour], rng))
    return picture.resize((side, side), Image.Resampling.BOX)


def _jitter(colour: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    shade = np.clip(np.asarray(colour) * rng.uniform(0.88, 1.08) + rng.uniform(-10, 10, 3), 0, 255)
    return int(shade[0]), int(shade[1]), int(shade[2])


def _content(
    picture: Image.Image,
    card: Card,
    room: float,
    name: str,
    ink: tuple[int, int, int],
    rng: np.random.Generator,
) -> None:
    """What is on a card, within ``room`` pixels around the middle of the picture."""
    pen, centre = ImageDraw.Draw(picture), (picture.width / 2, picture.height / 2)
    if card.kind == "shape":
        draw_symbol(pen, card.content, centre, room * 0.5, ink)
    elif name == PROCEDURAL:
        _segments(pen, card.content, centre, room, ink, rng)
    else:
        _text(picture, card.content, room, name, ink, rng)


def _text(
    picture: Image.Image, text: str, room: float, name: str, ink: tuple[int, int, int] | int, rng: np.random.Generator
) -> None:
    """A text in a font, as large as ``room`` allows; a font of the training split is stretched, slanted and thickened
    at random, so that fourteen families stand for many more.
    """
    stretch, slant, stroke = 1.0, 0.0, 0.0
    if name.startswith("train"):
        stretch, slant, stroke = rng.uniform(0.8, 1.25), rng.uniform(-0.08, 0.2), max(0.0, rng.uniform(-0.04, 0.04))
    middle = picture.width / 2
    left, top, right, bottom = font_of(name, 64).getbbox(text)
    height = bottom - top + 128 * stroke
    width = (right - left + 128 * stroke) * stretch + abs(slant) * height
    size = max(6, 2 * int(32 * min(room / width, room / height)))
    mask = Image.new("L", picture.size, 0)
    pen = ImageDraw.Draw(mask)
    pen.text((middle, middle), text, font=font_of(name, size), fill=255, anchor="mm", stroke_width=stroke * size)
    if name.startswith("train"):  # from where each pixel comes: x / stretch + slant y about the middle
        back = (1 / stretch, slant / stretch, middle - (1 + slant) * middle / stretch, 0.0, 1.0, 0.0)
        mask = mask.transform(mask.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    picture.paste(ink, mask=mask)


def draw_symbol(
    pen: ImageDraw.ImageDraw, name: str, centre: tuple[float, float], radius: float, fill: tuple[int, int, int]
) -> None:
    """One of ``SYMBOLS``, filled, within ``radius`` pixels of ``centre`` across and down."""
    x, y = centre
    if name == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    pen.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _outline(name)], fill=fill)


@lru_cache
def _outline(name: str) -> tuple[tuple[float, float], ...]:
    """A symbol's corners between -1 and 1, y downwards."""
    turn = 2 * math.pi
    if name == "square":
        return ((-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75))
    if name == "triangle":
        return ((0, -0.95), (0.9, 0.7), (-0.9, 0.7))
    if name == "diamond":
        return ((0, -1), (0.65, 0), (0, 1), (-0.65, 0))
    if name == "star":
        points = [(0.42 if k % 2 else 1.0, turn * k / 10) for k in range(10)]
        return tuple((radius * math.sin(t), -radius * math.cos(t)) for radius, t in points)
    if name == "cross":
        a, b = 0.3, 0.9
        half = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        return tuple(half + [(-x, -y) for x, y in half])
    if name == "heart":
        return tuple(_heart(turn * k / 40) for k in range(40))
    outer = [(math.cos(t), math.sin(t)) for t in np.linspace(0.35 * math.pi, 1.65 * math.pi, 24)]  # moon
    inner = [(0.45 + 0.75 * math.cos(t), 0.9 * math.sin(t)) for t in np.linspace(1.5 * math.pi, 0.5 * math.pi, 24)]
    return tuple(outer + inner)


def _heart(t: float) -> tuple[float, float]:
    """A point of the heart curve at the angle ``t``."""
    height = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return 16 * math.sin(t) ** 3 / 17.5, -height / 17.5


# Strokes of the procedural font on a grid 2 wide and 4 high: pairs of corner numbers, corners 0..14 row by row.
_CORNERS = [(c / 2, r / 4) for r in range(5) for c in range(3)]
_STROKES = {
    "0": "0-2 2-14 14-12 12-0", "1": "3-1 1-13", "2": "0-2 2-8 8-6 6-12 12-14", "3": "0-2 2-14 14-12 6-8",
    "4": "0-6 6-8 2-14", "5": "2-0 0-6 6-8 8-14 14-12", "6": "2-0 0-12 12-14 14-8 8-6", "7": "0-2 2-13",
    "8": "0-2 2-14 14-12 12-0 6-8", "9": "8-6 6-0 0-2 2-14 14-12", "A": "12-1 1-14 6-8",
    "B": "0-12 0-1 1-5 5-7 6-7 7-11 11-13 13-12",
    "C": "2-0 0-12 12-14", "D": "0-12 0-1 1-5 5-11 11-13 13-12", "E": "2-0 0-12 12-14 6-7", "F": "2-0 0-12 6-7",
    "G": "2-0 0-12 12-14 14-8 8-7", "H": "0-12 2-14 6-8", "J": "2-14 14-12 12-9", "K": "0-12 6-2 6-14",
    "L": "0-12 12-14", "M": "12-0 0-7 7-2 2-14", "N": "12-0 0-14 14-2", "P": "12-0 0-2 2-8 8-6",
    "Q": "0-2 2-14 14-12 12-0 10-14", "R": "12-0 0-2 2-8 8-6 7-14", "S": "2-0 0-3 3-11 11-14 14-12", "T": "0-2 1-13",
    "U": "0-12 12-14 14-2", "V": "0-13 13-2", "W": "0-12 12-7 7-14 14-2", "X": "0-14 2-12", "Y": "0-7 2-7 7-13",
    "Z": "0-2 2-12 12-14",
}  # fmt: skip


def _segments(
    pen: ImageDraw.ImageDraw,
    text: str,
    centre: tuple[float, float],
    room: float,
    ink: tuple[int, int, int],
    rng: np.random.Generator,
) -> None:
    """A text in the procedural font, whose proportions, slant and thickness are drawn anew each time."""
    height = room * (0.95 if len(text) == 1 else 0.8)
    glyph = height * rng.uniform(0.5, 0.6) if len(text) == 1 else room * 0.4
    gap = room * 0.14
    slant = rng.uniform(0.0, 0.15)
    thick = max(2, int(height * rng.uniform(0.09, 0.16)))
    left = centre[0] - (len(text) * glyph + (len(text) - 1) * gap) / 2
    for place, letter in enumerate(text):
        for stroke in _STROKES[letter].split():
            ends = [_CORNERS[int(corner)] for corner in stroke.split("-")]
            line = [
                (left + place * (glyph + gap) + x * glyph + slant * (0.5 - y) * height, centre[1] + (y - 0.5) * height)
                for x, y in ends
            ]
            pen.line(line, fill=ink, width=thick)
            for x, y in line:
                pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=ink)
