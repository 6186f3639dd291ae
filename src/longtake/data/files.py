"""Media files to frames, in chunks: videos as a sampling says, images as one frame at 0 s."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

import longtake.video
from longtake.models.preprocess import resize
from longtake.types import Frames, Sampling, VideoError

LEAST_READ = 0.9  # of the planned frames; a video that gives fewer counts as broken. Ours
_BAD_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)  # PIL raises all


def read_chunks(
    path: Path,
    sampling: Sampling | None,
    *,
    size: tuple[int, int] | None,
    chunk_frames: int,
    threads: int | None = None,
) -> Iterator[Frames]:
    """Frames of a video, at most ``chunk_frames`` at a time; without a sampling the one frame of an image.

    size: (height, width) to resize to. threads: that decode; None uses the cores there are.

    Raises VideoError for a file that cannot be read, and at its end for a video of which a tenth or more is missing:
    what an annotation speaks of may lie there.
    """
    if sampling is None:
        yield read_image(path, size)
        return
    count = 0
    with closing(longtake.video.read(path, sampling, size=size, chunk_frames=chunk_frames, threads=threads)) as reading:
        for frames in reading:
            count += len(frames)
            yield frames
    if not count:
        raise VideoError(f"{path}: no frame to read in the chosen span; correct its start and end")
    if reading.losses and count < LEAST_READ * reading.num_planned:
        told = "; ".join(reading.warnings)
        raise VideoError(
            f"{path}: {count} of {reading.num_planned} frames could be read ({told}); copy or download the file again"
        )


def read_image(path: Path, size: tuple[int, int] | None) -> Frames:
    """An image file as one frame at 0 s, turned upright, transparency left out. Raises VideoError when it is broken."""
    if not path.is_file():
        raise VideoError(f"{path}: no such image file; check the path")
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except _BAD_IMAGE as error:
        raise VideoError(f"{path}: not a readable image ({error}); replace the file or leave it out") from error
    pixels = np.array(upright).transpose(2, 0, 1)[None]
    if size is not None:
        pixels = resize(torch.from_numpy(pixels), size).numpy()
    return Frames(pixels=pixels, seconds=np.zeros(1))
