"""What a video file holds: its streams, sizes and times, and a short identity of its bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from longtake.types import VideoInfo
from longtake.video._source import Source, check_file

_MIB = 2**20


def open(path: str | os.PathLike[str], *, stream: int | None = None) -> VideoInfo:
    """Describe one video stream of a file; ``stream`` overrides the one that FFmpeg calls best.

    Decodes one frame, for the rotation; reads all packets only when the container has no complete index.
    Raises VideoError, in one line, for anything that is not a readable video file.
    """
    source = Source(path, stream)
    try:
        return describe(source)
    finally:
        source.close()


def describe(source: Source) -> VideoInfo:
    """The VideoInfo of an opened source."""
    timeline, height_width = source.timeline, source.shown_size
    audio = source.container.streams.best("audio")
    return VideoInfo(
        path=source.path,
        duration_seconds=timeline.duration_seconds,
        fps=_fps(source),
        num_frames=timeline.num_frames,
        width=height_width[1],
        height=height_width[0],
        codec=source.decoder.name,
        audio=audio.codec_context.name if audio is not None else None,
        rotation_degrees=source.orientation.rotation_degrees,
        stream=source.stream.index,
        warnings=tuple(dict.fromkeys(source.warnings)),
    )


def _fps(source: Source) -> float:
    """Frames over duration; the declared rate where it agrees to a hundredth, being free of rounding."""
    timeline = source.timeline
    declared = float(source.stream.average_rate or 0)
    if timeline.duration_seconds <= 0:
        return declared
    counted = timeline.num_frames / timeline.duration_seconds
    return declared if abs(declared - counted) <= 0.01 * counted else counted


def identity(path: str | os.PathLike[str]) -> str:
    """Size in bytes and a BLAKE2b hash of the first, middle and last MiB: ``"<size>-<32 hex digits>"``.

    Tells a replaced or re-encoded file from the one seen before, in the time of reading 3 MiB.
    """
    file = Path(path)
    check_file(os.fspath(path))
    size = file.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as handle:
        for start in (0, max(0, size // 2 - _MIB // 2), max(0, size - _MIB)):
            handle.seek(start)
            digest.update(handle.read(_MIB))
    return f"{size}-{digest.hexdigest()}"
