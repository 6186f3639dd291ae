"""What an H.264 keyframe packet says of itself. Private to ``longtake.video``."""

from __future__ import annotations

from collections.abc import Iterator

_SLICE, _IDR_SLICE, _SEI = 1, 5, 6  # types of NAL units (ITU-T H.264, table 7-1)
_RECOVERY_POINT = 6  # payload type of supplemental enhancement information (annex D.1)


def recovery_frames(data: bytes, extradata: bytes | None) -> int:
    """How many frames after this one the picture is whole again; 0 for a keyframe proper.

    Encoders with intra refresh (x264's ``intra-refresh``) write no keyframes after the first: blocks are renewed a few
    columns a frame, and a recovery point (annex D.2.8) says how long that takes. FFmpeg counts those as keyframes.

    data: a packet; extradata: the stream's, which tells whether units follow their length or a start code.
    """
    frames = 0
    for kind, unit in _units(data, extradata):
        if kind == _IDR_SLICE:
            return 0
        if kind == _SLICE:
            break
        if kind == _SEI:
            frames = max(frames, _recovery_in(unit))
    return frames


def _units(data: bytes, extradata: bytes | None) -> Iterator[tuple[int, bytes]]:
    """Type and bytes after the first of each NAL unit; of units with start codes also the zeros that may follow."""
    if extradata and extradata[0] == 1:  # an AVCDecoderConfigurationRecord: units follow their length
        width, at = (extradata[4] & 3) + 1, 0
        while at + width < len(data):
            start, at = at + width, at + width + int.from_bytes(data[at : at + width], "big")
            yield data[start] & 31, data[start + 1 : at]
        return
    start = data.find(b"\0\0\1") + 3
    while 3 <= start < len(data):
        stop = data.find(b"\0\0\1", start)
        yield data[start] & 31, data[start + 1 : stop if stop >= 0 else len(data)]
        start = stop + 3


def _recovery_in(unit: bytes) -> int:
    """``recovery_frame_cnt`` of a unit of supplemental information, 0 without one."""
    unit, at = unit.replace(b"\0\0\3", b"\0\0"), 0  # without the bytes that guard against false start codes
    while at + 2 < len(unit):
        kind, at = _summed(unit, at)
        size, at = _summed(unit, at)
        if kind == _RECOVERY_POINT:
            return _exp_golomb(unit[at : at + size])
        at += size
    return 0


def _summed(unit: bytes, at: int) -> tuple[int, int]:
    """A number written as bytes of 255 and one below, and the place behind it."""
    value = 0
    while at < len(unit) and unit[at] == 255:
        value, at = value + 255, at + 1
    return value + (unit[at] if at < len(unit) else 0), at + 1


def _exp_golomb(data: bytes) -> int:
    """The unsigned Exp-Golomb number at the beginning (section 9.1)."""
    bits = "".join(f"{byte:08b}" for byte in data[:8])
    zeros = len(bits) - len(bits.lstrip("0"))
    return int(bits[zeros : 2 * zeros + 1] or "1", 2) - 1
