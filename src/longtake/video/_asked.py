"""What was asked for in the ticks of a stream, and what of it could not be had. Private to ``longtake.video``."""

from __future__ import annotations

from typing import NamedTuple

import av

from longtake.video._source import Source
from longtake.video.plan import SAME_SECONDS, Requests


class Served(NamedTuple):
    """A frame, the time it was asked for, and from when until when it is shown; in shown seconds."""

    asked: float
    seconds: float
    until: float
    frame: av.VideoFrame


class Ticks:
    """A request's times in ticks of the stream, nudged so that rounding does not push a time below its own frame."""

    def __init__(self, source: Source, asked: Requests) -> None:
        rate = 1 / float(source.time_base)
        self.at = [source.origin + (t + SAME_SECONDS) * rate for t in asked.seconds.tolist()]
        self.low = [source.origin + (t - SAME_SECONDS) * rate for t in asked.low.tolist()]
        self.high = [source.origin + (t - SAME_SECONDS) * rate for t in asked.high.tolist()]
        self.start = source.origin + (asked.start_seconds - SAME_SECONDS) * rate
        self.stop = source.origin + (asked.stop_seconds - SAME_SECONDS) * rate


class Losses:
    """What could not be read as asked, and where."""

    def __init__(self, duration_seconds: float) -> None:
        self.duration_seconds = duration_seconds
        self.missing: list[float] = []  # requested times without a frame
        self.damaged: list[float] = []  # times of delivered frames that are patched, or build on patched ones
        self.refused: list[float] = []  # times of packets that the decoder refused
        self.end_seconds: float | None = None  # where the data stop, when that is before the end

    @property
    def counts(self) -> tuple[int, int, int]:
        """How much is told so far, for ``back_to``."""
        return len(self.missing), len(self.damaged), len(self.refused)

    def back_to(self, counts: tuple[int, int, int]) -> None:
        """Forget what was told since: it is decoded again."""
        for told, count in zip((self.missing, self.damaged, self.refused), counts, strict=True):
            del told[count:]

    def describe(self, served: int) -> list[str]:
        """One line for each kind of loss; ``served`` frames were delivered."""
        lines = []
        if self.end_seconds is not None:
            lines.append(f"the file is cut short: nothing was found after {self.end_seconds:.2f} s")
        if self.missing:
            total = served + len(self.missing)
            lines.append(f"{len(self.missing)} of {total} frames could not be read, {_where(self.missing)}")
        if self.damaged:
            lines.append(f"{len(self.damaged)} frames are damaged or build on damaged ones, {_where(self.damaged)}")
        if self.refused:
            lines.append(f"{len(self.refused)} packets could not be decoded, {_where(self.refused)}")
        return lines


def _where(seconds: list[float]) -> str:
    first, last = min(seconds), max(seconds)
    return f"at {first:.2f} s" if first == last else f"between {first:.2f} s and {last:.2f} s"
