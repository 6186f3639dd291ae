"""Small test videos, drawn so that every frame says its own number, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

_BITS = 12


def drawn(number: int, height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    """RGB ``(height, width, 3)``: a grid of 3 by 4 black or white blocks in the upper left that spells the number, on a
    ground whose corners differ in colour (red, green, blue, grey) and on which a bright bar moves."""
    picture = np.full((height, width, 3), 60, np.uint8)
    picture[: height // 2, : width // 2] = (150, 40, 40)
    picture[: height // 2, width // 2 :] = (40, 150, 40)
    picture[height // 2 :, : width // 2] = (40, 40, 150)
    picture[height // 2 + 4 : -4, (number * 5) % (width - 8) :][:, :8] = 220
    for bit in range(_BITS):
        top, left = (bit // 4) * height // 8, (bit % 4) * width // 10
        picture[top : top + height // 8, left : left + width // 10] = 235 * (number >> bit & 1)
    return picture


def number_in(picture: NDArray[np.uint8]) -> int:
    """The number that ``drawn`` spelled in an RGB ``(height, width, 3)`` picture, whatever the codec did to it."""
    height, width = picture.shape[:2]
    number = 0
    for bit in range(_BITS):
        row, column = ((bit // 4) + 0.5) * height / 8, ((bit % 4) + 0.5) * width / 10
        number |= int(picture[int(row), int(column)].mean() > 120) << bit
    return number


def numbers_in(pixels: NDArray[np.uint8]) -> list[int]:
    """``number_in`` for each of ``(frames, 3, height, width)``."""
    return [number_in(picture) for picture in pixels.transpose(0, 2, 3, 1)]


def make(
    path: Path,
    *,
    count: int = 60,
    fps: Fraction | int = 30,
    size: tuple[int, int] = (96, 128),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 2,
    times: Sequence[int] | None = None,
    rotate: int | None = None,
    flip: bool = False,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    audio: bool = False,
    second: int | None = None,
) -> Path:
    """Write frames 0, 1, ... of ``drawn`` and return the path.

    times: presentation time of each frame in milliseconds (variable frame rate). rotate: degrees in the display matrix,
    counterclockwise as PyAV counts them. second: a further, smaller video stream first, of numbers from ``second`` on.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        streams = []
        if second is not None:
            streams.append((_video_stream(container, codec, fps, (48, 64), pixels, gop, b_frames, options), (48, 64)))
        streams.append((_video_stream(container, codec, fps, size, pixels, gop, b_frames, options), size))
        stream = streams[-1][0]
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if aspect is not None:
            stream.sample_aspect_ratio = aspect
        if rotate is not None or flip:
            stream.set_display_rotation(rotate or 0, hflip=flip)
        if audio:
            _add_silence(container, count / float(fps))
        for number in range(count):
            for order, (out, (height, width)) in enumerate(streams):
                shown = number + (second or 0) if order < len(streams) - 1 else number
                frame = av.VideoFrame.from_ndarray(drawn(shown, height, width), format="rgb24")
                frame = frame.reformat(format=pixels)
                frame.pts = number if times is None else times[number]
                frame.time_base = 1 / Fraction(fps) if times is None else Fraction(1, 1000)
                container.mux(out.encode(frame))
        for out, _ in streams:
            container.mux(out.encode())
    return path


def _video_stream(container, codec, fps, size, pixels, gop, b_frames, options):  # type: ignore[no-untyped-def]
    stream = container.add_stream(codec, rate=Fraction(fps), options=dict(options or {}))
    stream.height, stream.width, stream.pix_fmt = *size, pixels
    if codec in ("libx264", "mpeg4", "mpeg2video", "libx265"):
        stream.gop_size, stream.max_b_frames = gop, b_frames
    return stream


def _add_silence(container: av.container.OutputContainer, seconds: float) -> None:
    stream = container.add_stream("aac", rate=8000, layout="mono")
    container.start_encoding()
    for start in range(0, int(8000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def sound_only(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        _add_silence(container, 0.5)
    return path


def damaged(source: Path, target: Path, *, start: float, stop: float, seed: int = 0) -> Path:
    """A copy with random bytes in the part ``[start, stop)`` (0 to 1) of the file."""
    data = bytearray(source.read_bytes())
    first, last = int(start * len(data)), int(stop * len(data))
    data[first:last] = np.random.default_rng(seed).bytes(last - first)
    target.write_bytes(bytes(data))
    return target


def cut(source: Path, target: Path, *, keep: float) -> Path:
    """A copy of only the first part of the file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(keep * len(data))])
    return target
