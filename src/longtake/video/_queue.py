"""Packets between the container and the decoder: moving to keyframes, and looking ahead at presentation times."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterator
from math import inf

from longtake.video._source import Source
from longtake.video._timeline import VideoPacket, frame_step

_LOOKAHEAD = 48  # packets; no codec reorders over more, so beyond it presentation times are complete
_KNOWN = 512  # presentation times remembered; far more than the lookahead
_SEEK_SECONDS = 1.0  # a shorter way ahead is read through


class PacketQueue:
    """Packets of one source in file order, with the presentation times of those fetched since the last jump.

    known: ascending presentation ticks. end: where the last of them stops being shown; furthest: the same over all
    jumps. ended: the file is at its end. jumped: the packets now coming were reached by skipping others.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._packets: Iterator[VideoPacket] | None = None
        self._queue: deque[VideoPacket] = deque()
        self._newest: int | None = None  # decoding time of the last packet fetched
        self._step = frame_step(source.stream, source.time_base)
        self.known: list[int] = []
        self.end = self.furthest = -inf
        self.ended = False
        self.jumped = False
        self._landed: int | None = None  # timestamp of the first packet after a jump

    # -- moving ---------------------------------------------------------------------------------------------------

    def peek(self) -> VideoPacket | None:
        """The next packet, left where it is."""
        return self._queue[0] if self._queue or self._fetch() else None

    def go_to(self, keyframe: int) -> VideoPacket | None:
        """Drop packets until that keyframe is next, and return it; None when the file ends before it.

        Seeks when the keyframe lies behind or more than a second ahead, and the container can.
        """
        second = self._source.timeline.keyframes[keyframe]
        here = self._source.seconds(self._queue[0].pts or 0) if self._queue else None
        behind = here is None or second < here
        far = here is not None and second > here + _SEEK_SECONDS and not self._queued(keyframe)
        if behind or far:
            self._jump(keyframe, behind=behind)
        found = self._drop_until(keyframe)
        if found is None and self._passed(keyframe):
            self._restart()
            found = self._drop_until(keyframe)
        return found

    def is_keyframe(self, packet: VideoPacket, keyframe: int) -> bool:
        """Whether a packet is the one that the timeline calls that keyframe."""
        tick = packet.dts if self._source.timeline.by_dts else packet.pts
        return bool(tick == self._source.timeline.key_ticks[keyframe])

    def _queued(self, keyframe: int) -> bool:
        return any(self.is_keyframe(packet, keyframe) for packet in self._queue)

    def _passed(self, keyframe: int) -> bool:
        """Whether a seek landed behind the keyframe it was meant to reach."""
        return self._landed is not None and self._landed > self._source.timeline.key_ticks[keyframe]

    def _jump(self, keyframe: int, *, behind: bool) -> None:
        tick = int(self._source.timeline.seek_ticks[keyframe])
        if tick >= 0 or self._source.timeline.by_dts:
            self._clear()
            self._source.container.seek(tick, stream=self._source.stream)
            self._packets = self._source.packets()
        elif behind:
            self._restart()

    def _restart(self) -> None:
        self._clear()
        self._source.reopen()
        self._packets = self._source.packets()

    def _clear(self) -> None:
        self._queue.clear()
        self.known.clear()
        self._newest, self.end, self.ended = None, -inf, False
        self._landed = None

    def _drop_until(self, keyframe: int) -> VideoPacket | None:
        while self._queue or self._fetch():
            packet = self._queue[0]
            if self.is_keyframe(packet, keyframe):
                self.known = sorted(p.pts for p in self._queue if p.pts is not None and not p.is_discard)
                self.jumped = keyframe > 0
                return packet
            self._queue.popleft()
        return None

    # -- looking ahead --------------------------------------------------------------------------------------------

    def _fetch(self) -> bool:
        if self._packets is None or self.ended:
            return False
        packet = next(self._packets, None)
        if packet is None:
            self.ended = True
            return False
        if self._landed is None:
            self._landed = packet.dts if self._source.timeline.by_dts else packet.pts
        self._queue.append(packet)
        self._newest = packet.dts if packet.dts is not None else self._newest
        if packet.pts is not None and not packet.is_discard:
            insort(self.known, packet.pts)
            self.end = max(self.end, packet.pts + (packet.duration or self._step))
            self.furthest = max(self.furthest, self.end)
            if len(self.known) > _KNOWN:
                del self.known[: _KNOWN // 2]
        return True

    def pop(self) -> VideoPacket | None:
        """The next packet in file order; None at the end of the file."""
        return self._queue.popleft() if self._queue or self._fetch() else None

    def horizon(self, pts: int) -> float:
        """Fetch until the presentation time that follows ``pts`` is certain, and return it; infinite at the end.

        All presentation times up to it are then known: a packet never comes before its own decoding time.
        """
        while True:
            after = bisect_right(self.known, pts)
            following = self.known[after] if after < len(self.known) else inf
            if self._newest is not None and self._newest >= following:
                return following
            if len(self._queue) > _LOOKAHEAD or not self._fetch():
                return inf if self.ended else following

    def following(self, pts: int) -> int:
        """The presentation time that follows ``pts``; after the last, where it stops being shown."""
        self.horizon(pts)
        after = bisect_right(self.known, pts)
        return self.known[after] if after < len(self.known) else int(self.end)
