"""Frames of a file whose timestamps cannot be relied on: all are decoded in order, and times repaired on the way."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import av

from longtake.video._asked import Losses, Served, Ticks
from longtake.video._source import Source
from longtake.video._timeline import frame_step, repaired
from longtake.video.plan import Requests, choose


class _Shown(NamedTuple):
    """A frame, when it begins and when the next one does, in ticks."""

    tick: int
    until: int
    frame: av.VideoFrame


class Plain:
    """Decodes everything in order, repairs times, and chooses among decoded frames."""

    def __init__(self, source: Source, asked: Requests, losses: Losses) -> None:
        self._source, self._asked, self._losses = source, asked, losses
        self._ticks = Ticks(source, asked)
        self._step = frame_step(source.stream, source.time_base)

    def __iter__(self) -> Iterator[Served]:
        self._source.reopen()
        return self._all() if self._asked.every else self._chosen()

    def _all(self) -> Iterator[Served]:
        """Every frame that begins inside the span, and the one shown at its start if they begin late."""
        ticks, begun = self._ticks, False
        before: _Shown | None = None
        for shown in self._shown():
            if shown.tick >= ticks.stop:
                break
            if shown.tick < ticks.start:
                before = shown
                continue
            if not begun and before is not None and shown.tick >= ticks.high[0]:
                yield self._served(before, 0)
            begun = True
            yield self._served(shown)
        if not begun and before is not None:
            yield self._served(before, 0)

    def _chosen(self) -> Iterator[Served]:
        """Hold one frame back: a request is decided once a frame after it is known."""
        held: list[_Shown] = []
        number = 0
        for shown in self._shown():
            held = [*held[-1:], shown]
            while number < len(self._asked) and self._ticks.at[number] < shown.tick:
                yield self._pick(held, number)
                number += 1
            if number == len(self._asked):
                return
        end = held[-1].until + 1 if held else 0
        for late in range(number, len(self._asked)):
            if held and self._ticks.at[late] < end:
                yield self._pick(held, late)
            else:
                self._losses.missing.append(float(self._asked.seconds[late]))

    def _pick(self, held: list[_Shown], number: int) -> Served:
        known, ticks, exact = [shown.tick for shown in held], self._ticks, self._asked.exact
        tick = choose(known, ticks.at[number], ticks.low[number], ticks.high[number], exact=exact, first=False)
        return self._served(held[known.index(tick)], number)

    def _served(self, shown: _Shown, number: int | None = None) -> Served:
        """A frame for the request of that number; without one, for its own time."""
        seconds = self._source.seconds(shown.tick)
        asked = seconds if number is None else float(self._asked.seconds[number])
        return Served(asked, seconds, self._source.seconds(shown.until), shown.frame)

    def _shown(self) -> Iterator[_Shown]:
        """Frames with the times of the next ones; the last is taken to last a step."""
        held: tuple[int, av.VideoFrame] | None = None
        for tick, frame in self._frames():
            if held is not None:
                yield _Shown(held[0], tick, held[1])
            held = tick, frame
        if held is not None:
            yield _Shown(held[0], held[0] + self._step, held[1])

    def _frames(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames in the order they are shown, each with the earliest time not yet given to another.

        A frame's own timestamp is off by no more than the reordering of B-frames, so where more times lie before it
        than the codec holds back, the earliest belong to frames that were lost.
        """
        source, decoder = self._source, self._source.decoder
        times: list[int] = []  # ascending
        own: dict[int, int] = {}  # timestamp in the file -> repaired time, for packets in the decoder
        last: int | None = None
        packets = repaired(source.packets(), step=self._step, depth=decoder.reorder_depth, time_base=source.time_base)
        for packet, tick in chain(packets, [(None, 0)]):
            if packet is not None and not packet.is_discard:
                insort(times, tick)
                if packet.pts is not None:
                    own[packet.pts] = tick
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError:
                frames = []
                if tick in times:
                    times.remove(tick)
                    self._losses.refused.append(source.seconds(tick))
            for frame in frames:
                stamp = own.pop(frame.pts, None) if frame.pts is not None else None
                while stamp is not None and bisect_left(times, stamp) > decoder.reorder_depth + 1:
                    self._losses.refused.append(source.seconds(times.pop(0)))
                time = times.pop(0) if times else (last or 0) + self._step
                last = time if last is None else max(last, time)
                if frame.is_corrupt:
                    self._losses.damaged.append(source.seconds(last))
                yield last, frame
        self._losses.refused += [source.seconds(time) for time in times]
