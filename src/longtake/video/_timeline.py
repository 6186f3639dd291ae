"""Where a stream's keyframes are and how long it lasts: from the container's index, or from its packets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import av.packet
import av.video
import numpy as np
from av.index import IndexEntries
from numpy.typing import NDArray

VideoPacket: TypeAlias = "av.packet.Packet[av.video.VideoStream]"

_MOST_GAPS = 5  # told one by one
_GLITCH_SECONDS = 0.5  # a smaller step back of decoding times is a muxer's slip, no new clock; ours
_BACKWARD_SECONDS = 2.0  # without decoding times: presentation times may step back by this at the least; ours
_RECENT = 16  # packets over which steps are looked at; no codec's frames wait for more


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Keyframes and length of one stream.

    keyframes: float64 ``(keyframes,)``, ascending, shown seconds; from an index they are estimates good to some frames.
    key_ticks: int64 ``(keyframes,)``: each keyframe packet's timestamp, decoding (``by_dts``) or presentation.
    seek_ticks: int64 ``(keyframes,)``: what to hand to ``seek`` to land on each keyframe; -1 where it cannot be sought.
    shown: float64 ``(frames,)``, ascending: when frames begin. estimated: from decoding times, which tell it only where
        all steps are the same.
    trusted: presentation times of packets are complete and unique, so frames can be chosen before decoding.
    """

    keyframes: NDArray[np.float64]
    key_ticks: NDArray[np.int64]
    seek_ticks: NDArray[np.int64]
    by_dts: bool
    shown: NDArray[np.float64]
    duration_seconds: float
    origin: int
    estimated: bool = False
    trusted: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        return len(self.shown)


def from_index(
    stream: av.video.VideoStream, tail: list[VideoPacket], *, origin: int, lag: int, time_base: Fraction
) -> Timeline | None:
    """Timeline from the sample table of an MP4 or MOV file; None when the file has no complete one.

    Its entries hold decoding times; presentation times lie ``lag`` ticks later, as at the first keyframe. ``tail`` are
    the last packets, which tell until when the last frame is shown; without them it is taken to last the mean step.
    A header that counts the steps of decoding may be off by as long as B-frames are held, and is not gone by then.
    """
    entries = stream.index_entries
    if len(entries) < 2 or not stream.duration:
        return None
    first, last = entries[0].timestamp, entries[-1].timestamp
    step = Fraction(last - first, len(entries) - 1)
    indexed, declared = float((last - first + step) * time_base), float(stream.duration * time_base)
    slack = max(1.0, 0.02 * declared)
    if indexed < declared - slack:
        return None  # fragments still to come, or an index cut short: only reading tells
    ends = [(p.pts, p.duration or int(step)) for p in tail if p.pts is not None and not p.is_discard]
    found = float((sum(max(ends)) - origin) * time_base) if ends else indexed
    decoded = [(p.dts, p.duration or int(step)) for p in tail if p.dts is not None]
    steps = float((sum(max(decoded)) - first) * time_base) if decoded else indexed
    whole = bool(ends) and max(decoded, default=(first, 0))[0] == last
    seconds = found if whole and declared <= steps else max(declared, found)
    warnings: tuple[str, ...] = ()
    if min(found, steps) > declared + slack:
        warnings = (f"the header says {declared:.2f} s but frames go on to {seconds:.2f} s; going by the frames",)
    ticks = _index_keyframes(entries)
    every = np.array([entry.timestamp for entry in entries if not entry.is_discard], np.int64)
    return Timeline(
        keyframes=np.asarray((ticks + (lag - origin)) * float(time_base), np.float64),
        key_ticks=ticks,
        seek_ticks=ticks,
        by_dts=True,
        shown=np.asarray((every + (lag - origin)) * float(time_base), np.float64),
        duration_seconds=seconds,
        origin=origin,
        estimated=lag != 0 and bool(np.ptp(np.diff(every)) > 0),
        warnings=warnings,
    )


def _index_keyframes(entries: IndexEntries) -> NDArray[np.int64]:
    """Decoding timestamps of the keyframes, hopping from one to the next."""
    ticks: list[int] = []
    at = entries.search_timestamp(entries[0].timestamp, backward=False)
    while at >= 0:
        ticks.append(entries[at].timestamp)
        at = entries.search_timestamp(ticks[-1] + 1, backward=False)
    return np.array(ticks, np.int64)


def repaired(
    packets: Iterable[VideoPacket], *, step: int, depth: int, time_base: Fraction
) -> Iterator[tuple[VideoPacket, int]]:
    """Each packet with a usable presentation time in ticks, in the order of the file.

    A missing time is taken from the decoding time, or counted on by ``step`` ticks; where times break off and begin
    again lower, they are carried on from the highest one so far. ``depth``: how many frames the codec may hold back.
    """
    highest: int | None = None
    previous, offset, breaks = 0, 0, _Breaks(depth=depth, time_base=time_base)
    for packet in packets:
        raw = packet.pts if packet.pts is not None else packet.dts
        tick = raw + offset if raw is not None else previous + step
        if breaks.before(packet) and highest is not None:
            offset += highest + step - tick
            tick = highest + step
        previous = tick
        highest = tick if highest is None else max(highest, tick)
        yield packet, tick


class _Breaks:
    """Tells where a clock begins again: decoding times go back there, which they never do within one clock.

    Presentation times do go back within one, by as much as B-frames are held: seconds or minutes, where frames are
    rare. They are gone by only where decoding times are missing, and then a break is a step further back than 2 s and
    than ``depth + 1`` of the largest recent steps forward.
    """

    def __init__(self, *, depth: int, time_base: Fraction) -> None:
        self._depth = depth
        self._glitch, self._backward = _GLITCH_SECONDS / time_base, _BACKWARD_SECONDS / time_base
        self._dts: int | None = None
        self._pts: int | None = None
        self._highest: int | None = None
        self._steps: deque[int] = deque(maxlen=_RECENT)

    def before(self, packet: VideoPacket) -> bool:
        """Whether the clock began again between the packet before and this one."""
        dts, pts = packet.dts, packet.pts
        if dts is not None and self._dts is not None:
            broken = dts < self._dts - self._glitch
        elif dts is None and pts is not None and self._highest is not None:
            broken = pts < self._highest - max(self._backward, (self._depth + 1) * max(self._steps, default=0))
        else:
            broken = False
        if broken:
            self._dts = self._pts = self._highest = None
            self._steps.clear()
        if pts is not None:
            self._steps.append(0 if self._pts is None else pts - self._pts)
            self._pts, self._highest = pts, pts if self._highest is None else max(self._highest, pts)
        self._dts = dts if dts is not None else self._dts
        return broken


def frame_step(stream: av.video.VideoStream, time_base: Fraction) -> int:
    """Ticks from one frame to the next by the declared rate; 25 frames a second when there is none."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return max(1, round(1 / (rate * time_base)))


def from_packets(
    packets: Iterable[VideoPacket],
    stream: av.video.VideoStream,
    *,
    time_base: Fraction,
    guessed: bool,
    is_entry: Callable[[VideoPacket], bool],
) -> Timeline:
    """Timeline from reading every packet once without decoding: for containers whose index is partial or absent.

    guessed: the container holds no presentation times, so that those of streams with B-frames are in the wrong order.
    is_entry: whether decoding can begin at a packet that counts as a keyframe; the first is one all the same.
    """
    step = frame_step(stream, time_base)
    ticks: list[int] = []
    last = (-(2**63), 0)  # the frame shown last and how long
    keys: list[tuple[int, int]] = []
    sound, last_dts = not guessed, None
    depth = stream.codec_context.reorder_depth
    for packet, tick in repaired(packets, step=step, depth=depth, time_base=time_base):
        dts = packet.dts
        sound &= packet.pts == tick and (dts is None or last_dts is None or dts > last_dts)
        last_dts = dts if dts is not None else last_dts
        if packet.is_keyframe:
            if sound and not keys:
                ticks.clear()  # what comes before the first keyframe of a file cut out of another cannot be decoded
            if not keys or is_entry(packet):
                keys.append((tick, dts if dts is not None else tick))
        if not packet.is_discard:
            ticks.append(tick)
            step = packet.duration or step
            last = max(last, (tick, step))
    shown = np.sort(np.array(ticks, np.int64))
    origin, end = (int(shown[0]), sum(last)) if len(shown) else (0, 0)
    key_ticks = np.array([tick for tick, _ in keys], np.int64)
    seconds = np.asarray((shown - origin) * float(time_base), np.float64)
    return Timeline(
        keyframes=np.asarray((key_ticks - origin) * float(time_base), np.float64),
        key_ticks=key_ticks,
        seek_ticks=_seekable(stream.index_entries, keys),
        by_dts=False,
        shown=seconds,
        duration_seconds=float((end - origin) * time_base),
        origin=origin,
        trusted=sound and bool(keys) and bool((np.diff(shown) > 0).all()),
        warnings=gaps(seconds),
    )


def gaps(shown: NDArray[np.float64]) -> tuple[str, ...]:
    """A warning where a stream of constant frame rate leaves frames out; ``shown`` are ascending seconds."""
    steps = np.diff(shown)
    if len(steps) < 10:
        return ()
    usual = float(np.median(steps))
    if usual <= 0 or np.mean(np.abs(steps - usual) <= 0.25 * usual) < 0.9:
        return ()  # a variable frame rate: nothing can be said
    wide = np.flatnonzero(steps >= 2.5 * usual).tolist()
    told = [
        f"about {round(steps[i] / usual) - 1} frames seem to be missing between {shown[i]:.2f} and {shown[i + 1]:.2f} s"
        for i in wide[:_MOST_GAPS]
    ]
    return (*told, f"and in {len(wide) - _MOST_GAPS} more places") if len(wide) > _MOST_GAPS else tuple(told)


def _seekable(entries: IndexEntries, keys: list[tuple[int, int]]) -> NDArray[np.int64]:
    """The timestamp under which the index, filled by reading, knows the keyframe of each (pts, dts); else -1."""
    found = []
    for pair in keys:
        places = [(tick, entries.search_timestamp(tick, backward=True)) for tick in pair]
        found.append(next((tick for tick, at in places if at >= 0 and entries[at].timestamp == tick), -1))
    return np.array(found, np.int64)
