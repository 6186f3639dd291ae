"""Read chosen moments of a video in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from math import inf

import numpy as np
from numpy.typing import NDArray

from longtake.types import Frames, Sampling, VideoError, VideoInfo
from longtake.video._asked import Losses, Served
from longtake.video._pixels import Painter
from longtake.video._plain import Plain
from longtake.video._planned import Planned
from longtake.video._source import Source
from longtake.video.plan import Requests, requests
from longtake.video.probe import describe

_CHUNK_BYTES = 8 * 2**20  # a chunk never holds more, unless a single frame does
_MOST_THREADS = 8  # more decode little faster, and each holds frames of its own


def read(
    path: str | os.PathLike[str],
    sampling: Sampling,
    *,
    size: tuple[int, int] | None = None,
    chunk_frames: int = 64,
    stream: int | None = None,
    threads: int | None = None,
) -> Reading:
    """Start reading the moments of a video that ``sampling`` names.

    size: (height, width) to resize to, bicubic, in the same step as the conversion to RGB; None keeps the shown size.
    chunk_frames: most frames in a chunk; chunks are also kept to about 8 MiB.
    stream: index of the video stream in the container; None takes the one FFmpeg calls best.
    threads: decoding threads; None uses the cores there are.

    Raises VideoError for a file without readable video and for times outside the video.
    """
    if size is not None and (size[0] < 1 or size[1] < 1):
        raise VideoError(f"size is {size}; give (height, width) of at least 1 pixel each")
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames is {chunk_frames}; it must be at least 1")
    threads = threads or min(_MOST_THREADS, os.cpu_count() or 1)
    source = Source(path, stream, threads=threads)
    try:
        return Reading(source, sampling, size=size, chunk_frames=chunk_frames, threads=threads)
    except BaseException:
        source.close()
        raise


class Reading:
    """An iterator of ``Frames`` chunks, in the order of time; use it once.

    info: the video. num_planned: how many frames are expected; damage can make it fewer.
    warnings: what the reader has to say so far; complete when the iterator is exhausted.
    """

    def __init__(
        self, source: Source, sampling: Sampling, *, size: tuple[int, int] | None, chunk_frames: int, threads: int
    ) -> None:
        self.info: VideoInfo = describe(source)
        self._source = source
        self._asked: Requests = requests(sampling, self.info, source.shown)
        self._losses = Losses(self.info.duration_seconds)
        self._painter = Painter(size or source.shown_size, source.orientation, threads=threads)
        height, width = self._painter.size
        self._chunk_frames = max(1, min(chunk_frames, _CHUNK_BYTES // (3 * height * width)))
        self._served = 0
        self._chunks = self._read()

    def __iter__(self) -> Iterator[Frames]:
        return self

    def __next__(self) -> Frames:
        return next(self._chunks)

    def close(self) -> None:
        """Stop reading and close the file; exhausting the iterator does so too."""
        self._chunks.close()
        self._source.close()

    @property
    def num_planned(self) -> int:
        return len(self._asked)

    @property
    def losses(self) -> tuple[str, ...]:
        """What of the frames asked for is missing or damaged; complete when the iterator is exhausted."""
        return tuple(self._losses.describe(self._served))

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self._source.warnings, *self._asked.warnings, *self.losses]))

    def _read(self) -> Generator[Frames, None, None]:
        way = Planned if self._source.timeline.trusted else Plain
        try:
            yield from self._chunked(iter(way(self._source, self._asked, self._losses)))
        finally:
            self._source.close()

    def _chunked(self, served: Iterator[Served]) -> Iterator[Frames]:
        height, width = self._painter.size
        seconds: list[float] = []
        spans: list[tuple[float, float]] = []
        last = -inf
        for asked, second, until, frame in served:
            if not seconds:
                pixels = np.empty((self._chunk_frames, height, width, 3), np.uint8)
            self._painter.paint(frame, pixels[len(seconds)])
            seconds.append(second)
            spans.append((max(second, self._asked.start_seconds) if second > last else asked, until))
            last = second
            if len(seconds) == self._chunk_frames:
                yield self._chunk(pixels, seconds, spans)
                seconds, spans = [], []
        if seconds:
            yield self._chunk(pixels[: len(seconds)], seconds, spans)

    def _chunk(self, pixels: NDArray[np.uint8], seconds: list[float], spans: list[tuple[float, float]]) -> Frames:
        self._served += len(seconds)
        return Frames(
            pixels=pixels.transpose(0, 3, 1, 2),
            seconds=np.array(seconds, np.float64),
            spans=np.array(spans, np.float64),
        )
