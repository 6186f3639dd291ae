"""Decoded frames to RGB rows of a chunk: colour conversion, pixel aspect, resizing and rotation in one pass."""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from longtake.video._source import Orientation


class Painter:
    """Writes frames as uint8 RGB of one size, shown upright.

    size: (height, width) of the result. Alpha is dropped; more than 8 bits a channel are rounded to 8 by swscale.
    """

    def __init__(self, size: tuple[int, int], orientation: Orientation, *, threads: int) -> None:
        self.size = size
        self._orientation = orientation
        self._threads = threads
        self._scaler = VideoReformatter()

    def paint(self, frame: av.VideoFrame, out: NDArray[np.uint8]) -> None:
        """Fill ``out``, uint8 ``(height, width, 3)``, with a frame."""
        height, width = self.size[::-1] if self._orientation.transpose else self.size
        bicubic = Interpolation.BICUBIC
        rgb = self._scaler.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=bicubic, threads=self._threads
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]  # PyAV's stubs do not call it a buffer
        pixels = rows.reshape(height, plane.line_size)[:, : 3 * width].reshape(height, width, 3)
        turn = self._orientation
        if turn.transpose:
            pixels = pixels.transpose(1, 0, 2)
        if turn.flip_rows:
            pixels = pixels[::-1]
        if turn.flip_columns:
            pixels = pixels[:, ::-1]
        out[...] = pixels
