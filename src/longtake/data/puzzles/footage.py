"""Videos on disk to frame files: found, read once in bounded memory, embedded, stored."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

import longtake.video
from longtake.data.files import read_chunks
from longtake.data.puzzles.framefile import Encoding, FrameFile, FrameIndex, FrameWriter
from longtake.data.puzzles.likeness import apart_at, neighbour_cosines, rounded_units
from longtake.data.threads import one_thread
from longtake.outputs import replaced
from longtake.types import Frames, LongtakeError, Sampling, VideoError
from longtake.video.timing import timed

NO_VIDEO = {".csv", ".json", ".jsonl", ".txt", ".md", ".npy", ".npz", ".html", ".srt", ".vtt", ".zip", ".part"}
CHUNK_FRAMES = 32
# Ours: how many frames a short clip should give, and how densely it may be read for them
SHORT_FRAMES, MOST_FPS = 48, 5.0
PLACES = 2  # a frame's features are averaged to a grid of this many by as many places, then laid end to end

Embed = Callable[[Frames], Tensor]  # frames to features ``(frames, rows, columns, dim)`` of any floating-point type


@dataclass(frozen=True, slots=True, kw_only=True)
class Footage:
    """A video to make puzzles of. name: its path as seen from the folder that was given, or the file's name."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """A video whose frames are in ``file``, or the problem for which they are not.

    reused: whether the file was there. seconds: spent, by stage: "read", "embed", "store".
    """

    footage: Footage
    problem: str | None = None
    identity: str = ""
    file: Path = Path()
    frames: int = 0
    fps: float = 0.0
    reused: bool = False
    seconds: Mapping[str, float]


def find_footage(videos: Sequence[Path]) -> list[Footage]:
    """The given files and all in the given folders but hidden ones and those that are plainly no video, by path.

    Raises LongtakeError for a path that is not there, and when there is nothing at all.
    """
    found: dict[Path, str] = {}
    for given in videos:
        if given.is_dir():
            for path in sorted(given.rglob("*")):
                inside = path.relative_to(given)
                hidden = any(part.startswith(".") for part in inside.parts)
                if path.is_file() and not hidden and path.suffix.lower() not in NO_VIDEO:
                    found.setdefault(path, inside.as_posix())
        elif given.exists():
            found.setdefault(given, given.name)
        else:
            raise LongtakeError(f"{given}: no such file or folder; check the path")
    if not found:
        raise LongtakeError(f"{', '.join(map(str, videos))}: no videos in it; give files, or folders with some")
    return [Footage(name=name, path=path) for path, name in found.items()]


def frames_folder(output: Path) -> Path:
    """Where the frame files of a synthesis lie."""
    return output / "frames"


def source_of(identity: str) -> str:
    """A short name for a video's identity, which names its frame file."""
    return hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gatherer:
    """Reads a video, embeds its frames and stores both. Called once a video, the same whichever process it is in.

    folder: of the frame files. fps: frames a second, more for short clips. longest_side: of a stored picture, in
    pixels. settings: by name all that a frame file depends on beside the video.
    """

    embed: Embed
    folder: Path
    fps: float
    longest_side: int
    encoding: Encoding
    settings: Mapping[str, Any]

    def __call__(self, footage: Footage) -> Gathered:
        """A file that is no video, or is damaged for a tenth of it or more, has a problem instead of frames.

        Raises LongtakeError when the frames cannot be stored.
        """
        spent = {"read": 0.0, "embed": 0.0, "store": 0.0}
        try:
            identity = longtake.video.identity(footage.path)
            file = self.folder / f"{source_of(identity)}.zip"
            reused = file.exists()
            if not reused:
                with replaced(file) as scratch:
                    self._gather(footage.path, identity, scratch, spent)
        except VideoError as error:
            return Gathered(footage=footage, problem=" ".join(str(error).split()), seconds=spent)
        with FrameFile(file) as held:
            index = held.index
        return Gathered(
            footage=footage,
            identity=identity,
            file=file,
            frames=len(index.names),
            fps=index.fps,
            reused=reused,
            seconds=spent,
        )

    def _gather(self, path: Path, identity: str, scratch: Path, spent: dict[str, float]) -> None:
        begun = time.perf_counter()
        info = longtake.video.open(path)
        fps = fps_of(info.duration_seconds, info.fps, self.fps)
        scale = self.longest_side / max(info.height, info.width)
        size = max(1, round(info.height * scale)), max(1, round(info.width * scale))
        chunks = read_chunks(path, Sampling(fps=fps), size=size, chunk_frames=CHUNK_FRAMES, threads=1)
        spent["read"] += time.perf_counter() - begun
        seconds: list[float] = []
        units: list[NDArray[np.int16]] = []
        with FrameWriter(scratch, identity, self.encoding) as writer, closing(timed(chunks, spent)) as reading:
            for frames in reading:
                begun = time.perf_counter()
                units.append(rounded_units(placed(self.embed, frames)))
                spent["embed"] += time.perf_counter() - begun
                begun = time.perf_counter()
                for pixels in frames.pixels:
                    writer.add(pixels)
                spent["store"] += time.perf_counter() - begun
                seconds += [round(second, 6) for second in frames.seconds.tolist()]
            begun = time.perf_counter()
            embeddings = np.concatenate(units)
            index = FrameIndex(
                identity=identity, fps=fps, names=tuple(writer.names), seconds=tuple(seconds), settings=self.settings
            )
            writer.finish(index, embeddings, neighbour_cosines(embeddings, apart_at(fps, self.fps)))
            spent["store"] += time.perf_counter() - begun


def fps_of(duration_seconds: float, own_fps: float, fps: float) -> float:
    """The rate at which a video is read: ``fps``, or for a short clip what gives ``SHORT_FRAMES``, never above
    ``MOST_FPS`` for that, nor above its own."""
    wanted = SHORT_FRAMES / duration_seconds if duration_seconds > 0 else fps
    chosen = max(fps, min(wanted, MOST_FPS))
    return round(min(chosen, own_fps), 3) if own_fps > 0 else round(chosen, 3)


def placed(embed: Embed, frames: Frames) -> NDArray[np.float32]:
    """Features on a grid of ``PLACES`` by ``PLACES``, laid end to end: float32 ``(frames, dim)``; on one thread."""
    with one_thread(), torch.no_grad():
        return np.asarray(on_places(embed(frames).float()).cpu().numpy(), np.float32)


def stretches(count: int) -> list[slice]:
    """Of ``count`` frames those that are embedded at once."""
    return [slice(begin, begin + CHUNK_FRAMES) for begin in range(0, count, CHUNK_FRAMES)]


def vectors(embed: Embed, shown: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """``placed`` of stretches of pictures, uint8 ``(frames, 3, height, width)`` each, whose times are not told."""
    frames = (Frames(pixels=pixels, seconds=np.arange(len(pixels), dtype=np.float64)) for pixels in shown)
    return np.concatenate([placed(embed, one) for one in frames])


def on_places(features: Tensor) -> Tensor:
    """``(frames, rows, columns, dim)`` averaged to ``PLACES`` by ``PLACES``, ``(frames, dim)``; differentiable."""
    by_channel = features.permute(0, 3, 1, 2)
    on_grid = by_channel if min(by_channel.shape[2:]) < PLACES else F.adaptive_avg_pool2d(by_channel, PLACES)
    return on_grid.flatten(1)


def pixel_features(frames: Frames) -> Tensor:
    """Pictures of 16 by 16 pixels, centred, as features ``(frames, 1, 1, dim)``: an embedding without a model."""
    flat = small_pictures(frames.pixels, 16).flatten(1) / 127.5 - 1
    return F.pad(flat, (0, 1), value=1.0)[:, None, None]  # so that grey has a direction too


def small_pictures(pixels: NDArray[np.uint8], side: int) -> Tensor:
    """uint8 ``(frames, 3, height, width)`` to means, float32 ``(frames, 3, side, side)``, as ``F.adaptive_avg_pool2d``.

    Fast where a pixel's colours lie side by side, as they are decoded. Sums of whole numbers are exact in any order.
    """
    count, colours, height, width = pixels.shape
    down, across = spans(height, side), spans(width, side)
    lines = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))).view(count, height, width * colours)
    summed = torch.stack([lines[:, begin:end].float().sum(1) for begin, end in down], 1)
    summed = summed.view(count, side, width, colours)
    summed = torch.stack([summed[:, :, begin:end].sum(2) for begin, end in across], 2)
    tall, wide = (torch.tensor([end - begin for begin, end in both]) for both in (down, across))
    return summed.permute(0, 3, 1, 2) / (tall[:, None] * wide)


def spans(size: int, parts: int) -> list[tuple[int, int]]:
    """The pixels ``[begin, end)`` that each of ``parts`` equal parts of ``size`` pixels touches."""
    return [(part * size // parts, -(-(part + 1) * size // parts)) for part in range(parts)]
