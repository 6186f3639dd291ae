"""One opened file: the chosen stream, its origin, orientation and timeline. Private to ``longtake.video``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.video
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from longtake.types import VideoError
from longtake.video._h264 import recovery_frames
from longtake.video._timeline import Timeline, VideoPacket, from_index, from_packets

_PEEK_PACKETS = 40  # more than any codec's reorder depth, so the first shown frame is among them
_PEEK_LIMIT = 600  # a damaged beginning: how many packets to try before giving up on the first frame
_STILL_BRANDS = {"avif", "heic", "heix", "mif1"}  # pictures in an MP4 coat


@dataclass(frozen=True, slots=True, kw_only=True)
class Orientation:
    """How stored rows and columns become shown ones: transpose first, then flips."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    rotation_degrees: int = 0  # clockwise


class Source:
    """An open container and decoder of one video stream; ``reopen`` starts again from the first packet."""

    def __init__(self, path: str | os.PathLike[str], stream: int | None = None, *, threads: int = 1) -> None:
        self.path = os.fspath(path)
        self._wanted = stream
        self._threads = threads
        self.warnings: list[str] = []
        self.container, self.stream = self._open()
        try:
            self._peek()
            self.timeline = self._read_timeline()
        except BaseException:
            self.container.close()
            raise

    # -- opening ------------------------------------------------------------------------------------------------

    def _open(self) -> tuple[av.container.InputContainer, av.video.VideoStream]:
        container = open_container(self.path)
        try:
            stream = choose_stream(container, self.path, self._wanted)
        except BaseException:
            container.close()
            raise
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = self._threads
        # Opened before any frame is to be skipped: dav1d looks at that setting once, and would go on skipping.
        stream.codec_context.open(strict=False)
        return container, stream

    def reopen(self) -> None:
        """Start again from the first packet, in a fresh container: not every format can seek to its start."""
        self.container.close()
        self.container, self.stream = self._open()

    def close(self) -> None:
        self.container.close()

    @property
    def decoder(self) -> av.video.codeccontext.VideoCodecContext:
        return self.stream.codec_context

    def packets(self) -> Iterator[VideoPacket]:
        """Packets with data from here on; a read error ends the stream and is told in ``warnings``."""
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    yield packet
        except av.FFmpegError as error:
            self.warnings.append(f"the file cannot be read to its end: {error.strerror}")

    # -- what only packets and the first frame tell ---------------------------------------------------------------

    def _peek(self) -> None:
        """Origin, lag of the first keyframe, and orientation, from the first packets and the first decodable frame."""
        packets: list[VideoPacket] = []
        frame: av.VideoFrame | None = None
        for number, packet in enumerate(self.packets()):
            if number < _PEEK_PACKETS and (packets or packet.is_keyframe):
                packets.append(packet)
            if frame is None:
                frame = self._first(packet)
            if number >= _PEEK_PACKETS and (frame is not None or number >= _PEEK_LIMIT):
                break
        frame = frame or self._first(None)
        if frame is None:
            raise VideoError(f"{self.path}: no frame of its video can be decoded; is the file damaged?")
        shown = [p.pts for p in packets if p.pts is not None and not p.is_discard]
        key = packets[0] if packets else None
        self.origin = min(shown, default=0)
        self.first_lag = (key.pts or 0) - (key.dts or 0) if key is not None else 0  # pts minus dts, in ticks
        # B-frames need presentation times that differ from decoding times; without them the times cannot be right.
        orderly = self.decoder.reorder_depth == 0 or any(p.pts != p.dts for p in packets)
        self.sound = orderly and len(shown) == len(set(shown)) > 0
        self.orientation = orientation(frame)
        self.stored_size = (frame.height, frame.width)
        aspect = self.stream.sample_aspect_ratio or self.decoder.sample_aspect_ratio
        self.pixel_aspect = aspect if aspect is not None and aspect > 0 else Fraction(1)

    def _first(self, packet: VideoPacket | None) -> av.VideoFrame | None:
        try:
            frames = self.decoder.decode(packet)
        except av.FFmpegError:
            return None  # reported when the frames themselves are read
        return frames[0] if frames else None

    def _read_timeline(self) -> Timeline:
        timeline = None
        if self.sound and "mp4" in self.container.format.name:
            tail = self._tail()
            timeline = from_index(self.stream, tail, origin=self.origin, lag=self.first_lag, time_base=self.time_base)
        if timeline is None:
            guessed = not self.sound or (self.container.format.name == "avi" and self.decoder.codec.reorder)
            timeline = self._counted(guessed=guessed)
            self.origin = timeline.origin
            self._compare_with_header(timeline)
        self.warnings += timeline.warnings
        return timeline

    def _compare_with_header(self, timeline: Timeline) -> None:
        """Tell of a header that promises more than was found.

        A header's duration counts from the container's start, which the first shown frame may come long after; in
        Matroska it counts from the zero of the clock.
        """
        start = 0.0 if "matroska" in self.container.format.name else (self.container.start_time or 0) / 1e6
        late = float(timeline.origin * self.time_base) - start
        found, promised = timeline.duration_seconds, (self.container.duration or 0) / 1e6 - late
        if found < promised - max(1.0, 0.05 * promised):
            self.warnings.append(f"the header says {promised:.2f} s but frames end at {found:.2f} s")
        elif timeline.num_frames < 0.98 * self.stream.frames:
            self.warnings.append(f"the header says {self.stream.frames} frames but {timeline.num_frames} were found")

    def is_entry(self, packet: VideoPacket) -> bool:
        """Whether decoding can begin at a packet that an index calls a keyframe, as far as the packet tells."""
        if self.decoder.codec.name == "h264" and recovery_frames(bytes(packet), self.decoder.extradata):
            return False
        return bool(packet.is_keyframe)

    def sift_keyframes(self) -> None:
        """Leave only the keyframes at which decoding can begin. Reads all packets."""
        found = self._counted(guessed=False)
        self.timeline = replace(
            self.timeline,
            keyframes=found.keyframes,
            key_ticks=found.key_ticks,
            seek_ticks=found.seek_ticks,
            by_dts=found.by_dts,
        )

    def shown(self) -> NDArray[np.float64]:
        """The times at which frames begin, ascending. Reads all packets where an index tells only decoding times."""
        if self.timeline.estimated:
            found = self._counted(guessed=False).shown
            whole = len(found) == self.timeline.num_frames  # a file cut short holds less than its index promises
            self.timeline = replace(self.timeline, shown=found if whole else self.timeline.shown, estimated=False)
        return self.timeline.shown

    def _counted(self, *, guessed: bool) -> Timeline:
        """The timeline by reading every packet, from the first one on."""
        self.reopen()
        return from_packets(
            self.packets(), self.stream, time_base=self.time_base, guessed=guessed, is_entry=self.is_entry
        )

    def drop_keyframe(self, number: int) -> None:
        """Take a keyframe out of the timeline."""
        line = self.timeline
        kept = np.arange(len(line.keyframes)) != number
        self.timeline = replace(
            line, keyframes=line.keyframes[kept], key_ticks=line.key_ticks[kept], seek_ticks=line.seek_ticks[kept]
        )

    def _tail(self) -> list[VideoPacket]:
        """The last packets of an indexed file: their presentation times are not in the index."""
        entries = self.stream.index_entries
        if len(entries) == 0:
            return []
        at = entries[max(0, len(entries) - _PEEK_PACKETS)].timestamp
        self.container.seek(at, stream=self.stream, any_frame=True)
        return list(self.packets())

    @property
    def time_base(self) -> Fraction:
        return self.stream.time_base or Fraction(1, 1000)

    def seconds(self, pts: int) -> float:
        """Shown time of a presentation timestamp: 0 at the first shown frame."""
        return float((pts - self.origin) * self.time_base)

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) after pixel aspect and rotation."""
        height, width = self.stored_size
        width = max(1, round(width * self.pixel_aspect))
        return (width, height) if self.orientation.transpose else (height, width)


def open_container(path: str) -> av.container.InputContainer:
    """Open a regular file with FFmpeg; raises VideoError with one line when that cannot work."""
    check_file(path)
    try:
        # The file: prefix keeps names with colons from being taken for protocols.
        return av.open(f"file:{path}", metadata_errors="replace")
    except av.FFmpegError as error:
        raise VideoError(f"{path}: is not a video that FFmpeg can open ({error.strerror})") from error


def check_file(path: str) -> None:
    """Raise VideoError unless the path names a regular file with something in it that may be read."""
    file = Path(path)
    try:
        if not file.exists():
            raise VideoError(f"{path}: no such file; check the path")
        if file.is_dir():
            raise VideoError(f"{path}: is a directory; give one video file")
        if not file.is_file():
            raise VideoError(f"{path}: is not a regular file; longtake reads video files, not streams or devices")
        with file.open("rb") as handle:
            if not handle.read(1):
                raise VideoError(f"{path}: the file is empty; was it copied completely?")
    except OSError as error:  # a name that is too long, a folder or file that may not be read
        raise VideoError(f"{path}: {error.strerror}; check the path and its permissions") from error


def choose_stream(
    container: av.container.InputContainer, path: str, wanted: int | None
) -> av.video.VideoStream:
    """The video stream of index ``wanted``, or the one FFmpeg calls best; VideoError when there is none."""
    name = container.format.name
    if name.endswith("_pipe") or name == "image2" or container.metadata.get("major_brand") in _STILL_BRANDS:
        raise VideoError(f"{path}: is an image ({name.removesuffix('_pipe')}); give a video file")
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if name == "tty" or not videos:
        kinds = sorted({s.type for s in container.streams}) if name != "tty" else ["text"]
        raise VideoError(f"{path}: has no video stream, only {', '.join(kinds) or 'nothing'}; give a video file")
    if wanted is not None:
        for stream in videos:
            if stream.index == wanted:
                return stream
        raise VideoError(f"{path}: stream {wanted} is not a video stream; choose from {[s.index for s in videos]}")
    best = container.streams.best("video")
    chosen = best if best in videos else videos[0]
    assert isinstance(chosen, av.video.VideoStream)
    return chosen


def orientation(frame: av.VideoFrame) -> Orientation:
    """Orientation of a decoded frame from its display matrix; turns that are not right angles are left alone."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None or frame.rotation % 90:
        return Orientation()
    numbers = np.frombuffer(data, np.int32)  # type: ignore[call-overload]  # PyAV's stubs do not call it a buffer
    a, b, _, c, d = numbers[:5].tolist()
    # FFmpeg's matrix maps a stored point (x, y) to (a x + c y, b x + d y).
    if abs(b) > abs(a):
        return Orientation(
            transpose=True, flip_columns=c < 0, flip_rows=b < 0, rotation_degrees=90 if b > 0 else 270
        )
    return Orientation(flip_columns=a < 0, flip_rows=d < 0, rotation_degrees=180 if d < 0 else 0)
