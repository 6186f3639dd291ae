"""Frames to a video file: for demonstrations and tests, not for archives."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from longtake.outputs import replaced
from longtake.types import Frames


def write(
    path: str | os.PathLike[str],
    chunks: Iterable[Frames],
    fps: float,
    *,
    quality: int = 23,
    keyframe_interval: int = 250,
) -> None:
    """Write frames as H.264 at a constant rate; the file appears whole or not at all.

    Width and height must be even. quality: x264's constant rate factor, 0 (lossless) to 51.

    Raises LongtakeError where the file cannot be written.
    """
    with replaced(Path(path)) as scratch, av.open(str(scratch), "w", format="mp4") as container:
        stream = None
        for frames in chunks:
            for pixels in frames.pixels:
                if stream is None:
                    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                    stream.height, stream.width = pixels.shape[1:]
                    stream.pix_fmt = "yuv420p"
                    stream.options = {"crf": str(quality), "g": str(keyframe_interval), "preset": "veryfast"}
                picture = np.ascontiguousarray(pixels.transpose(1, 2, 0))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if stream is None:
            raise ValueError("there is no frame to write")
        container.mux(stream.encode())
