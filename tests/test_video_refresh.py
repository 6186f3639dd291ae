"""H.264 with intra refresh, and keyframes that are none: only what a full decode gives is handed on."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from longtake.types import Sampling
from longtake.video._h264 import recovery_frames
from make_videos import drawn, make
from test_video_vfr import read, same_as_decoded

COUNT, FPS = 200, 25
REFRESH = {"gop": 40, "b_frames": 0, "options": {"intra-refresh": "1", "crf": "12"}}
CONTAINERS: dict[str, dict[str, object]] = {
    "refresh.mp4": {},
    "refresh.mkv": {},
    "refresh.ts": {},
    "pieces.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refresh")


@pytest.fixture(params=CONTAINERS)
def refreshed(request: pytest.FixtureRequest, folder: Path) -> Path:
    path = folder / request.param
    if not path.exists():
        make(path, count=COUNT, fps=FPS, **REFRESH, **CONTAINERS[request.param])  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("exact", [True, False])
def test_one_frame_of_a_refreshed_stream(refreshed: Path, exact: bool) -> None:
    for at in (0.5, 1.6, 2.0, 3.482, 4.8, 6.41, 7.9):
        seconds, pixels, reading = read(refreshed, Sampling(at_seconds=(at,), exact=exact))
        assert len(seconds) == 1
        assert abs(seconds[0] - at) <= (1 / FPS if exact else 0.5)
        same_as_decoded(refreshed, seconds, pixels)
        assert reading.warnings == ()


def test_many_frames_of_a_refreshed_stream(refreshed: Path) -> None:
    for sampling in (Sampling(fps=1.0), Sampling(fps=0.4), Sampling(count=3), Sampling(fps=25.0)):
        seconds, pixels, reading = read(refreshed, sampling)
        assert len(seconds) == reading.num_planned
        same_as_decoded(refreshed, seconds, pixels)
        assert reading.warnings == ()


def test_every_frame_of_a_span_of_a_refreshed_stream(refreshed: Path) -> None:
    seconds, pixels, reading = read(refreshed, Sampling(fps=25.0, start_seconds=3.0, stop_seconds=4.0))
    np.testing.assert_allclose(seconds, 3 + np.arange(25) / FPS, atol=1e-3)
    same_as_decoded(refreshed, seconds, pixels)
    assert reading.warnings == ()


def test_a_refreshed_stream_with_later_keyframes(folder: Path) -> None:
    """A cut makes x264 write a keyframe proper in the midst of recovery points."""
    path = folder / "cuts.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"intra-refresh": "1", "bf": "0", "g": "30"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(drawn(number), format="rgb24")
            frame.pict_type = PictureType.I if number in (70, 140) else PictureType.NONE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for at in (2.0, 2.9, 4.4, 5.5, 5.7, 7.0):
        seconds, pixels, reading = read(path, Sampling(at_seconds=(at,), exact=True))
        assert seconds == pytest.approx([int(at * FPS + 1e-6) / FPS])
        same_as_decoded(path, seconds, pixels)
        assert reading.warnings == ()


def relabelled(source: Path, target: Path, every: int) -> Path:
    """A copy of a file in which every so many packets are called keyframes, whatever they are."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in old.demux(stream) if p.size):
            packet.is_keyframe = number % every == 0
            packet.stream = copy
            new.mux(packet)
    return target


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("b.mp4", "libx265")])
def test_keyframes_that_are_none_are_stepped_back_over(folder: Path, name: str, codec: str) -> None:
    options = {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"} if codec == "libx265" else {}
    whole = make(folder / f"true-{name}", count=COUNT, fps=FPS, gop=100, b_frames=0, codec=codec, options=options)
    path = relabelled(whole, folder / f"false-{name}", every=10)
    for sampling in (Sampling(fps=1.0), Sampling(count=3), Sampling(at_seconds=(3.9, 7.0), exact=True)):
        seconds, pixels, reading = read(path, sampling)
        assert len(seconds) == reading.num_planned
        same_as_decoded(path, seconds, pixels)
        assert reading.warnings == ()


# -- what a packet says ------------------------------------------------------------------------------------------------

CONFIGURATION = b"\1\x64\0\x0a\xff\xe1"  # of units that follow lengths of four bytes


def units(*parts: str, lengths: bool) -> bytes:
    """NAL units given in hexadecimal, behind their lengths or start codes."""
    written = [bytes.fromhex(part) for part in parts]
    return b"".join((len(unit).to_bytes(4, "big") if lengths else b"\0\0\1") + unit for unit in written)


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("65 88 84",), 0),  # an IDR slice
        (("41 9a",), 0),  # a slice with nothing said
        (("06 06 01 c4 80", "41 88"), 0),  # 1: at once, as in open groups of pictures
        (("06 06 02 02 34 40 80", "41 9a"), 69),  # 0000001 000110: 2^6 + 6 - 1
        (("06 05 03 aa bb cc 06 02 02 34 40 80", "41 9a"), 69),  # behind other information
        (("09 f0", "67 64", "06 06 02 02 34 40 80", "41 9a"), 69),
        (("06 05 03 00 00 03 01 06 02 02 34 40 80", "41 9a"), 69),  # the 3 guards two zeros and is no content
        (("41 9a", "06 06 02 02 34 40 80"), 0),  # behind the picture: not of it
        (("06 06 02 02 34 40 80", "65 88"), 0),
    ],
)
def test_recovery_points_by_hand(parts: tuple[str, ...], expected: int, lengths: bool) -> None:
    assert recovery_frames(units(*parts, lengths=lengths), CONFIGURATION if lengths else None) == expected
