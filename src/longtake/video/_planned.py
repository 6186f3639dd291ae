"""Frames of a file with sound timestamps: packets are looked at before they are decoded.

So only what a request needs goes through the decoder: from a keyframe on, the frames others refer to, and the wanted
ones; then on to the next keyframe that is needed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from math import inf

import av
import numpy as np

from longtake.video._asked import Losses, Served, Ticks
from longtake.video._queue import PacketQueue
from longtake.video._source import Source
from longtake.video._timeline import VideoPacket
from longtake.video.plan import Requests, Stretch, choose, stretches


class Planned:
    """Decodes the stretches of a plan; iterating gives what was served, request by request.

    A run is what is decoded without a jump: one stretch, or several that follow each other.
    """

    def __init__(self, source: Source, asked: Requests, losses: Losses) -> None:
        self._source, self._asked, self._losses = source, asked, losses
        self._plan = stretches(asked, source.timeline.keyframes)
        self._ticks = Ticks(source, asked)
        self._queue = PacketQueue(source)
        self._next = 0  # the stretch after the current one
        self._waiting: dict[int, list[float]] = {}  # presentation time -> the times it was requested for
        self._unsent: set[int] = set()  # of those, the ones whose packet has not come yet
        self._doubtful_until = -inf  # frames before this time build on a damaged picture
        self._began = 0  # the keyframe at which the run began
        self._head: int | None = None  # its presentation time
        self._entered = False  # whether it came out of the decoder
        self._handed = 0  # frames handed on in this run
        self._retry = False  # the run has to begin again, at an earlier keyframe

    def __iter__(self) -> Iterator[Served]:
        while self._next < len(self._plan):
            yield from self._run()
        end = self._source.seconds(int(self._queue.furthest)) if self._queue.furthest > -inf else 0.0
        if self._queue.ended and end < self._losses.duration_seconds - max(0.25, 0.01 * self._losses.duration_seconds):
            self._losses.end_seconds = end

    # -- runs and stretches ---------------------------------------------------------------------------------------

    def _run(self) -> Iterator[Served]:
        """Jump to a keyframe and decode the stretches that need no further jump."""
        first, told = self._plan[self._next].first, self._losses.counts
        head = self._begin(self._plan[self._next])
        if head is not None and self._queue.jumped and not self._source.is_entry(head):
            self._source.sift_keyframes()
            self._queue = PacketQueue(self._source)
            self._plan_again(first)
            return
        self._head, self._handed = (head.pts if head is not None else None), 0
        self._entered = head is None or head.is_discard  # a decoder keeps what is to be discarded to itself
        while True:
            stretch = self._plan[self._next]
            self._next += 1
            if head is None:
                self._losses.missing += self._asked.seconds[stretch.first : stretch.stop].tolist()
            else:
                yield from self._all() if self._asked.every else self._serve(stretch, head)
            if self._retry or self._next == len(self._plan) or not self._continues(self._plan[self._next]):
                break
            head = self._queue.peek()
        if not self._retry:
            yield from self._hand_on(self._decode(None), before=inf)
        self._source.decoder.flush_buffers()
        if self._retry:
            self._losses.back_to(told)
            self._retry, self._doubtful_until = False, -inf
            self._source.drop_keyframe(self._began)
            self._plan_again(first + self._handed)

    def _plan_again(self, first: int) -> None:
        """Plan the requests from ``first`` on by the keyframes that are left."""
        self._waiting.clear()
        self._unsent.clear()
        plan = stretches(self._asked, self._source.timeline.keyframes)
        self._plan = plan if self._asked.every else [cut for s in plan if (cut := s.cut(first)) is not None]
        self._next = 0

    def _continues(self, stretch: Stretch) -> bool:
        head = self._queue.peek()
        return head is not None and self._queue.is_keyframe(head, stretch.keyframe) and self._fits(stretch, head)

    def _begin(self, stretch: Stretch) -> VideoPacket | None:
        """Move to the stretch's keyframe, or to an earlier one where the index put it too early."""
        for keyframe in range(stretch.keyframe, -1, -1):
            head, self._began = self._queue.go_to(keyframe), keyframe
            if head is None or keyframe == 0 or self._fits(stretch, head):
                return head
        return None

    def _fits(self, stretch: Stretch, head: VideoPacket) -> bool:
        """Whether decoding from this keyframe can serve the stretch's first request."""
        if head.pts is None:
            return False
        if self._asked.every:
            return head.pts <= self._ticks.start
        return head.pts <= self._ticks.at[stretch.first] or self._meets(stretch, head)

    def _meets(self, stretch: Stretch, head: VideoPacket) -> bool:
        """Whether the keyframe itself serves the stretch's first request."""
        low, high = self._ticks.low[stretch.first], self._ticks.high[stretch.first]
        return stretch.on_keyframe and head.pts is not None and low <= head.pts < high

    def _serve(self, stretch: Stretch, head: VideoPacket) -> Iterator[Served]:
        """Decode until every request of the stretch has its frame in the decoder."""
        resolved = stretch.first
        if self._meets(stretch, head):
            self._want(head.pts or 0, resolved)
            resolved += 1
        while not self._retry and (packet := self._queue.pop()) is not None:
            pts = packet.pts or 0
            stretch = self._extended(stretch, head, packet)
            if resolved < stretch.stop:
                resolved = self._resolve(stretch, resolved, self._queue.horizon(pts))
            yield from self._hand_on(self._decode(packet))
            self._unsent.discard(pts)
            overtaken = packet.dts is not None and packet.dts > max(self._unsent, default=-inf)
            if resolved == stretch.stop and overtaken:
                return
        if not self._retry:  # the file ended
            self._losses.missing += self._asked.seconds[resolved : stretch.stop].tolist()

    def _extended(self, stretch: Stretch, head: VideoPacket, packet: VideoPacket) -> Stretch:
        """A stretch that reaches the next one's keyframe, for frames stored after but shown before it, takes it in."""
        following = self._plan[self._next] if self._next < len(self._plan) else None
        if packet is head or following is None or not self._queue.is_keyframe(packet, following.keyframe):
            return stretch
        self._next += 1
        return Stretch(keyframe=stretch.keyframe, first=stretch.first, stop=following.stop)

    def _all(self) -> Iterator[Served]:
        """Decode every frame that begins inside the span, and the one shown at its start if they begin late."""
        ticks, begun = self._ticks, False
        while not self._retry and (packet := self._queue.pop()) is not None:
            if packet.dts is not None and packet.dts >= ticks.stop:
                return
            if packet.pts is not None and not begun and ticks.at[0] < self._queue.horizon(packet.pts):
                begun = True
                first = choose(self._queue.known, ticks.at[0], ticks.low[0], ticks.high[0], exact=False, first=True)
                if first < ticks.start:
                    self._waiting[first] = [float(self._asked.seconds[0])]
            if packet.pts is not None and not packet.is_discard and ticks.start <= packet.pts < ticks.stop:
                self._waiting[packet.pts] = [self._source.seconds(packet.pts)]
            yield from self._hand_on(self._decode(packet))

    # -- choosing -------------------------------------------------------------------------------------------------

    def _resolve(self, stretch: Stretch, number: int, horizon: float) -> int:
        """Choose frames for requests from ``number`` on, as far as presentation times are complete."""
        ticks, exact, known = self._ticks, self._asked.exact, self._queue.known
        entry = self._head if self._head is not None and self._queue.jumped else -inf  # what is shown before needs more
        while number < stretch.stop:
            first = not exact and number == stretch.stop - 1  # decoding can stop at the start of its window
            at, low, high = ticks.at[number], max(ticks.low[number], entry), ticks.high[number]
            inside = first and bisect_left(known, low) < bisect_left(known, min(high, horizon + 1))
            if (at >= horizon and not inside) or not known:
                break
            if horizon == inf and at >= self._queue.end + 1:
                self._losses.missing.append(float(self._asked.seconds[number]))
            else:
                self._want(choose(known, at, low, high, exact=exact, first=first), number)
            number += 1
        return number

    def _want(self, pts: int, number: int) -> None:
        self._waiting.setdefault(pts, []).append(float(self._asked.seconds[number]))
        self._unsent.add(pts)

    # -- decoding -------------------------------------------------------------------------------------------------

    def _decode(self, packet: VideoPacket | None) -> list[av.VideoFrame]:
        """Send one packet (None: the end) to the decoder and return the frames that come out."""
        decoder = self._source.decoder
        # A frame nobody asked for is decoded only when others refer to it; the run's keyframe shows that it is one.
        needed = packet is None or packet.pts in self._waiting or packet.pts == self._head
        decoder.skip_frame = "DEFAULT" if needed else "NONREF"
        try:
            return decoder.decode(packet)
        except av.FFmpegError:
            if packet is not None and packet.pts is not None:
                self._losses.refused.append(self._source.seconds(packet.pts))
                self._distrust(packet.pts)
            return []

    def _hand_on(self, frames: list[av.VideoFrame], before: float = -inf) -> Iterator[Served]:
        """The frames that were waited for. They come in the order they are shown, so those overtaken are lost."""
        for frame in frames:
            if frame.pts is not None and frame.pts in self._waiting:
                if not self._give_up(before=frame.pts) or (frame.pts != self._head and self._astray()):
                    return
                if frame.is_corrupt:
                    self._distrust(frame.pts)
                served, seconds = self._waiting.pop(frame.pts), self._source.seconds(frame.pts)
                if seconds < self._doubtful_until:
                    self._losses.damaged.append(seconds)
                until = self._source.seconds(self._queue.following(frame.pts))
                for asked in served:
                    self._handed += 1
                    yield Served(asked, seconds, until, frame)
            self._entered |= frame.pts == self._head
        self._give_up(before=before)

    def _give_up(self, *, before: float) -> bool:
        """Count overtaken frames as missing; False when the run should rather begin again at an earlier keyframe."""
        for pts in [pts for pts in self._waiting if pts < before]:
            if self._astray():
                return False
            self._losses.missing += self._waiting.pop(pts)
        return True

    def _astray(self) -> bool:
        """Whether the run jumped to a keyframe that is none, as it does not come out of the decoder.

        Then what comes out after it may not be the picture, and is not handed on.
        """
        self._retry |= not self._entered and self._queue.jumped
        return self._retry

    def _distrust(self, pts: int) -> None:
        """What follows a damaged picture builds on it, up to the next keyframe."""
        keyframes = self._source.timeline.keyframes
        after = int(np.searchsorted(keyframes, self._source.seconds(pts), side="right"))
        self._doubtful_until = float(keyframes[after]) if after < len(keyframes) else inf
