"""The haystack of the probe world: real footage from a folder, or drawn scenes when there is none.

Clips are decoded once into small arrays on disk, and split by source: files that show the same frames (re-encodes,
cuts, rotated copies) fall on the same side. A shot shows a stretch of one clip with a seeded crop, flip, speed and
colour.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from longtake import video
from longtake.data.probe_world.needles import Split
from longtake.outputs import replaced
from longtake.types import Sampling, VideoError

SHORT_SIDE_PIXELS = 144
STORED_FPS = 3.0
DRAWN_SEEDS: dict[Split, range] = {"train": range(24), "test": range(1000, 1010)}
# A drifting shape: its corners around its centre, the centre, pixels a picture, colour.
_Thing = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], tuple[int, int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A decoded piece of footage. pixels: uint8 ``(frames, height, width, 3)``, often memory-mapped."""

    name: str
    pixels: NDArray[np.uint8]
    fps: float

    @property
    def duration_seconds(self) -> float:
        return len(self.pixels) / self.fps


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A stretch of one clip as it is shown: where it starts, how fast, cropped, mirrored and tinted how."""

    clip: Clip
    start_seconds: float  # in the shown video
    offset_seconds: float  # in the clip
    speed: float
    crop: tuple[float, float, float, float]  # left, top, right, bottom as shares of the picture
    flip: bool
    gain: tuple[float, float, float]

    def picture(self, at_seconds: float, size: tuple[int, int]) -> Image.Image:
        """The shot's picture at a time of the shown video, ``size`` = (height, width); clips run to and fro."""
        count = len(self.clip.pixels)
        index = int((self.offset_seconds + (at_seconds - self.start_seconds) * self.speed) * self.clip.fps)
        index %= max(1, 2 * count - 2)
        frame = self.clip.pixels[index if index < count else 2 * count - 2 - index]
        height, width = frame.shape[:2]
        left, top, right, bottom = self.crop
        box = (left * width, top * height, right * width, bottom * height)
        shown = Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
        if self.flip:
            shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        table = [min(255, int(level * gain)) for gain in self.gain for level in range(256)]
        return shown.point(table)


def random_shot(rng: np.random.Generator, clips: list[Clip], start_seconds: float) -> Shot:
    """A shot of a clip drawn in proportion to the square root of its length, so that no long clip fills the world."""
    weights = np.sqrt([clip.duration_seconds for clip in clips])
    clip = clips[int(rng.choice(len(clips), p=weights / weights.sum()))]
    share = rng.uniform(0.6, 1.0)
    left, top = rng.uniform(0, 1 - share, 2)
    gains = [float(gain) for gain in rng.uniform(0.8, 1.2) * rng.uniform(0.9, 1.1, 3)]
    return Shot(
        clip=clip,
        start_seconds=start_seconds,
        offset_seconds=float(rng.uniform(0, clip.duration_seconds)),
        speed=float(rng.uniform(0.4, 1.5)),
        crop=(float(left), float(top), float(left + share), float(top + share)),
        flip=bool(rng.random() < 0.5),
        gain=(gains[0], gains[1], gains[2]),
    )


def load_clips(split: Split, folder: Path | None, cache: Path) -> list[Clip]:
    """The clips of one split: from the videos in a folder, or drawn scenes when ``folder`` is None.

    Raises VideoError where there are none.
    """
    if folder is None:
        return [drawn_clip(seed) for seed in DRAWN_SEEDS[split]]
    clips = footage_clips(split, folder, cache)
    if not clips:
        raise VideoError(
            f"no video in {folder} is of the {split} side, which takes whole sources (about one in four is for the "
            "test); add footage, or name no folder for drawn scenes"
        )
    return clips


def footage_clips(split: Split, folder: Path, cache: Path) -> list[Clip]:
    """The clips of one split in a folder, maybe none. Raises VideoError where no video can be read at all."""
    clips = [clip for path in files_in(folder) if (clip := _stored(path, cache)) is not None]
    if not clips:
        raise VideoError(f"{folder} holds no readable video; name a folder of video files, or none for drawn scenes")
    sources = group_by_source(clips)
    chosen = [clip for clip in clips if split_of_source(sources[clip.name]) == split]
    return [clip for clip in chosen if len(clip.pixels) >= 4]


def clips_and_scenes(split: Split, folder: Path | None, cache: Path) -> list[Clip]:
    """The clips of one split in a folder, where there is one, and drawn scenes beside them."""
    real = footage_clips(split, folder, cache) if folder else []
    return real + load_clips(split, None, cache)


def footage_names(folder: Path | None) -> list[str]:
    """Names of the files in a folder of footage, to name what is made of them; none without a folder."""
    return [file.name for file in files_in(folder)] if folder else []


def files_in(folder: Path) -> list[Path]:
    """What a folder of footage holds but what is still written, by name. Raises VideoError where it is not a folder."""
    if not folder.is_dir():
        raise VideoError(f"{folder} is not a folder; name a folder of video files, or none for drawn scenes")
    return [path for path in sorted(folder.iterdir()) if path.suffix != ".part"]


def split_of_source(source: str) -> Split:
    """The split that a source is of, by a hash of its name: one in four is kept for the test."""
    return "test" if part_of_source(source, 4) == 0 else "train"


def part_of_source(source: str, parts: int) -> int:
    """Which of so many parts of all sources one belongs to, from 0, by a hash of its name."""
    digest = hashlib.blake2b(source.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % parts


def unique_minutes(clips: list[Clip]) -> float:
    """Minutes of different footage in the clips."""
    return sum(clip.duration_seconds for clip in clips) / 60


def _stored(path: Path, cache: Path) -> Clip | None:
    """Decode a file once to ``cache``; None for what is no readable video."""
    if path.suffix.lower() in {".csv", ".json", ".txt", ".md", ".npy"} or path.is_dir():
        return None
    try:
        file = cache / f"{path.stem}-{video.identity(path)[-12:]}.npy"
        pixels = None if file.exists() else _decode(path)
    except VideoError:
        return None
    if pixels is not None:
        with replaced(file, make_folder=True) as scratch, scratch.open("wb") as sink:
            np.save(sink, pixels)
    return Clip(name=path.name, pixels=np.load(file, mmap_mode="r"), fps=STORED_FPS)


def _decode(path: Path) -> NDArray[np.uint8]:
    info = video.open(path)
    scale = SHORT_SIDE_PIXELS / min(info.width, info.height)
    size = (round(info.height * scale), round(info.width * scale))
    chunks = [frames.pixels for frames in video.read(path, Sampling(fps=STORED_FPS), size=size)]
    return np.ascontiguousarray(np.concatenate(chunks).transpose(0, 2, 3, 1))


def group_by_source(clips: list[Clip]) -> dict[str, str]:
    """The name of each clip's source: the first clip (by name) that shows some of the same pictures.

    Two clips are of one source when at least 5 pictures of one (or a third of them) have a look-alike in the other, in
    any of the four quarter turns: difference hashes of 64 bits that differ in at most 5 places. Flat pictures don't
    count.
    """
    hashes = {clip.name: _hashes(clip) for clip in clips}
    source = {clip.name: clip.name for clip in clips}
    names = sorted(source)
    for i, one in enumerate(names):
        for other in names[:i]:
            if source[one] != source[other] and _same_source(hashes[one], hashes[other]):
                old, new = sorted((source[one], source[other]), reverse=True)
                source = {name: new if s == old else s for name, s in source.items()}
    return source


def _hashes(clip: Clip) -> NDArray[np.uint8]:
    """Difference hashes ``(turns, pictures, 64)`` of a clip's pictures that are not flat."""
    kept = []
    for frame in clip.pixels[:: max(1, len(clip.pixels) // 120)]:
        grey = Image.fromarray(frame).convert("L").filter(ImageFilter.BoxBlur(1)).resize((9, 9), Image.Resampling.BOX)
        grid = np.asarray(grey, np.int16)
        if grid.std() > 12:
            turns = [np.rot90(grid, quarter) for quarter in range(4)]
            kept.append([(turned[:8, 1:] > turned[:8, :-1]).ravel() for turned in turns])
    return np.asarray(kept, np.uint8).reshape(len(kept), 4, 64).transpose(1, 0, 2)


def _same_source(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    if one.shape[1] == 0 or other.shape[1] == 0:
        return False
    a = one[0].astype(np.float32)
    for turned in other.astype(np.float32):
        distance = a.sum(1)[:, None] + turned.sum(1)[None] - 2 * a @ turned.T
        twins = int((distance.min(1) <= 5).sum())
        if twins >= 5 or twins >= max(2, len(a) / 3):
            return True
    return False


def drawn_clip(seed: int, seconds: float = 60.0) -> Clip:
    """A drawn scene: a graded backdrop with texture, and dull irregular shapes that drift; a few cuts."""
    rng = np.random.default_rng([seed, 77])
    width, height, count = 256, SHORT_SIDE_PIXELS, int(seconds * STORED_FPS)
    pixels = np.empty((count, height, width, 3), np.uint8)
    cut = 0
    for index in range(count):
        if index == cut:
            backdrop, things = _scene(rng, width, height)
            begun, cut = index, index + int(rng.integers(30, 75))
        picture = backdrop.copy()
        pen = ImageDraw.Draw(picture)
        for corners, centre, speed, colour in things:
            moved = centre + speed * (index - begun) + 3 * np.sin(index / 5 + centre)
            pen.polygon([tuple(p) for p in (corners + moved)], fill=colour)
        pixels[index] = np.asarray(picture)
    return Clip(name=f"drawn-{seed}", pixels=pixels, fps=STORED_FPS)


def _scene(rng: np.random.Generator, width: int, height: int) -> tuple[Image.Image, list[_Thing]]:
    """A backdrop, and the things that drift before it."""
    top, bottom = rng.integers(20, 235, 3), rng.integers(20, 235, 3)
    ramp = np.linspace(0, 1, height)[:, None, None]
    noise = rng.normal(0, 1, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1) * rng.uniform(3, 22)
    picture = Image.fromarray(np.clip(top * (1 - ramp) + bottom * ramp + noise, 0, 255).astype(np.uint8))
    things = []
    for _ in range(int(rng.integers(3, 10))):
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(5, 11))))
        radius = rng.uniform(6, 45) * rng.uniform(0.6, 1.2, len(angles))
        corners = np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)
        grey = rng.integers(25, 225)
        red, green, blue = (int(v) for v in np.clip(grey + rng.normal(0, 25, 3), 0, 255))
        things.append((corners, rng.uniform((0, 0), (width, height)), rng.normal(0, 0.6, 2), (red, green, blue)))
    return picture.filter(ImageFilter.GaussianBlur(3)), things


def describe(clips: list[Clip]) -> str:
    """One JSON line about the clips: how many, and how many unique minutes."""
    return json.dumps({"clips": len(clips), "unique_minutes": round(unique_minutes(clips), 1)})
