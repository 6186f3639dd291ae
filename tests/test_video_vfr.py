"""Frames at uneven distances, against a full decode: times, pictures, and what a rate means where none is constant."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from longtake import video
from longtake.data.files import read_chunks
from longtake.types import Sampling
from longtake.video._timeline import repaired
from make_videos import cut, make, numbers_in

HEVC = {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:bframes=4"}}
CLOCK_SECONDS = 1.01e-3


def uneven(count: int, steps: tuple[int, ...], seed: int = 0) -> list[int]:
    """Times in milliseconds, from 0 on, whose distances are drawn from ``steps``."""
    drawn = np.random.default_rng(seed).choice(steps, count - 1)
    return [0, *np.cumsum(drawn).tolist()]


@cache
def fully_decoded(path: Path) -> tuple[NDArray[np.float64], list[NDArray[np.uint8]]]:
    """Shown times and RGB pictures of all frames, by a plain decode from the first packet to the last."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    times = np.array([float((frame.pts - frames[0].pts) * frame.time_base) for frame in frames])
    return times, [frame.to_ndarray(format="rgb24", interpolation="BICUBIC") for frame in frames]


def read(path: Path, sampling: Sampling) -> tuple[NDArray[np.float64], NDArray[np.uint8], video.Reading]:
    """Times, pictures ``(frames, height, width, 3)`` and the reading."""
    reading = video.read(path, sampling, threads=1)
    chunks = list(reading)
    seconds = np.concatenate([np.empty(0), *(chunk.seconds for chunk in chunks)])
    pixels = [picture for chunk in chunks for picture in chunk.pixels.transpose(0, 2, 3, 1)]
    return seconds, np.array(pixels), reading


def same_as_decoded(path: Path, seconds: NDArray[np.float64], pixels: NDArray[np.uint8]) -> None:
    times, pictures = fully_decoded(path)
    for second, picture in zip(seconds, pixels, strict=True):
        number = int(np.argmin(np.abs(times - second)))
        assert second == pytest.approx(times[number], abs=1e-6)
        np.testing.assert_array_equal(picture, pictures[number])


# -- times that step back by the reordering of B-frames ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["rare.mkv", "rare.ts", "slow.mkv", "slow.ts", "hevc.mkv", "hevc.ts"])
def test_b_frames_of_rare_frames_are_no_break(tmp_path: Path, name: str) -> None:
    kind, options = name.split(".")[0], {}
    if kind == "rare":
        times = uneven(120, (33, 33, 33, 1000, 1500))
    elif kind == "slow":
        times = [2000 * i for i in range(40)]
    else:
        times, options = uneven(60, (17, 33, 200, 700), seed=1), HEVC
    path = make(tmp_path / name, count=len(times), times=times, gop=50, b_frames=3, **options)  # type: ignore[arg-type]
    shown, _ = fully_decoded(path)
    np.testing.assert_allclose(shown, np.array(times) / 1000, atol=CLOCK_SECONDS)
    info = video.open(path)
    assert info.warnings == ()
    assert info.num_frames == len(times)
    # The last frame's own length is what the container says, or one step.
    assert shown[-1] < info.duration_seconds <= shown[-1] + max(np.diff(times)) / 1000 + CLOCK_SECONDS
    wanted = np.random.default_rng(2).uniform(0, shown[-1], 25)
    seconds, pixels, reading = read(path, Sampling(at_seconds=tuple(wanted), exact=True))
    np.testing.assert_allclose(seconds, shown[np.searchsorted(shown, np.sort(wanted) + 1e-6, side="right") - 1])
    same_as_decoded(path, seconds, pixels)
    assert reading.warnings == ()


@pytest.mark.parametrize("name", ["open.mp4", "open.mkv"])
def test_frames_shown_before_the_keyframe_at_which_decoding_begins(tmp_path: Path, name: str) -> None:
    """Open groups of pictures: those frames cannot be decoded from there, whatever the tolerance allows."""
    times = uneven(90, (17, 33, 200, 700), seed=1)
    options = {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:keyint=25:open-gop=1:bframes=4"}
    path = make(tmp_path / name, count=90, times=times, codec="libx265", options=options)
    for at in np.arange(0.05, times[-1] / 1000, 0.4):
        seconds, pixels, reading = read(path, Sampling(at_seconds=(at,), tolerance_seconds=2.0))
        assert len(seconds) == 1
        assert abs(seconds[0] - at) <= 2 + 1e-6
        same_as_decoded(path, seconds, pixels)
        assert reading.warnings == ()


def test_a_clock_that_begins_again_between_rare_frames(tmp_path: Path) -> None:
    times = uneven(40, (33, 1000, 1500))
    part = make(tmp_path / "part.ts", count=40, times=times)
    whole = tmp_path / "whole.ts"
    whole.write_bytes(part.read_bytes() * 2)
    info = video.open(whole)
    assert info.num_frames == 80
    assert info.duration_seconds == pytest.approx(2 * times[-1] / 1000, rel=0.1)
    seconds, pixels, reading = read(whole, Sampling(fps=1000.0))
    assert numbers_in(pixels.transpose(0, 3, 1, 2)) == [*range(40), *range(40)]
    np.testing.assert_allclose(seconds[:40], np.array(times) / 1000, atol=CLOCK_SECONDS)
    np.testing.assert_allclose(np.diff(seconds[40:]), np.diff(times) / 1000, atol=CLOCK_SECONDS)
    assert reading.losses == ()


def ticks(*stamps: tuple[int | None, int | None], depth: int = 2) -> list[int]:
    """Repaired milliseconds of packets given as (presentation, decoding) milliseconds."""
    packets = [SimpleNamespace(pts=pts, dts=dts) for pts, dts in stamps]
    return [tick for _, tick in repaired(packets, step=40, depth=depth, time_base=Fraction(1, 1000))]  # type: ignore[arg-type]


def test_breaks_by_decoding_times() -> None:
    assert ticks((0, 0), (9000, 3000), (6000, 6000), (3000, 7000)) == [0, 9000, 6000, 3000]
    assert ticks((0, 0), (9000, 9000), (0, 0), (40, 40)) == [0, 9000, 9040, 9080]
    assert ticks((0, 0), (9000, 9000), (8960, 8960)) == [0, 9000, 8960]  # a slip of a few frames is no new clock


def test_breaks_where_there_are_no_decoding_times() -> None:
    assert ticks((0, None), (9000, None), (6000, None), (3000, None)) == [0, 9000, 6000, 3000]
    fast = [(40 * i, None) for i in range(100)]
    assert ticks(*fast, (0, None), (40, None))[-2:] == [4000, 4040]
    assert ticks(*fast, (2000, None))[-1] == 2000  # within 2 s
    assert ticks((0, None), (None, None), (None, None)) == [0, 40, 80]


# -- ends and headers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [[0, 30_000, 60_000, 90_000], [0, 40, 80, 120, 50_000]])
def test_rare_frames_of_an_indexed_file_end_where_the_header_says(tmp_path: Path, times: list[int]) -> None:
    path = make(tmp_path / "slides.mp4", count=len(times), times=times, b_frames=0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.duration is not None
        declared = float(stream.duration * stream.time_base)
    assert declared < times[-1] / 1000 + 1
    seconds, pixels, reading = read(path, Sampling(count=5, exact=True))
    assert reading.info.duration_seconds == pytest.approx(declared)
    assert len(seconds) == 5
    same_as_decoded(path, seconds, pixels)
    assert reading.warnings == ()


@pytest.mark.parametrize("name", ["late.mkv", "late.mp4", "late.ts"])
def test_a_late_start_is_no_loss(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, count=100, times=[12_340 + 40 * i for i in range(100)])
    seconds, pixels, reading = read(path, Sampling(fps=2.0, exact=True))
    assert reading.info.duration_seconds == pytest.approx(4.0, abs=0.04)
    np.testing.assert_allclose(seconds, 0.5 * np.arange(8), atol=0.04)
    same_as_decoded(path, seconds, pixels)
    assert reading.warnings == ()


@pytest.mark.parametrize("name", ["pieces.mp4", "end.mkv", "end.ts"])
def test_the_last_moments_of_an_uneven_file_are_its_last_frame(tmp_path: Path, name: str) -> None:
    times = uneven(60, (33, 33, 33, 1000, 1500), seed=3)
    pieces = {"movflags": "frag_keyframe+empty_moov"} if name.endswith("mp4") else {}
    path = make(tmp_path / name, count=60, times=times, b_frames=3, container_options=pieces)
    seconds, pixels, reading = read(path, Sampling(at_seconds=(video.open(path).duration_seconds - 0.002,), exact=True))
    assert seconds == pytest.approx([times[-1] / 1000], abs=CLOCK_SECONDS)
    same_as_decoded(path, seconds, pixels)
    assert reading.warnings == ()


def test_a_late_start_hides_no_loss(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.mkv", count=100, times=[12_340 + 40 * i for i in range(100)])
    half = cut(whole, tmp_path / "half.mkv", keep=0.5)
    assert "the header says 3.99 s but frames end at" in " ".join(video.open(half).warnings)


# -- rates where none is constant --------------------------------------------------------------------------------------

BURST = [0, 5000, *(10_000 + round(1000 * i / 30) for i in range(60)), 15_000, 20_000, 30_000, 40_000, 50_000, 59_000]
SLIDES = [0, 30_000, 60_000, 90_000]
FOLDED = "folded.ts"  # a clock that begins again, so that every frame is decoded and times are repaired


def uneven_file(folder: Path, times: list[int], name: str) -> Path:
    path = make(folder / name, count=len(times), times=times, b_frames=0 if times is SLIDES else 2)
    if name == FOLDED:
        path.write_bytes(path.read_bytes() * 2)
    return path


NAMES = ["uneven.mp4", "uneven.mkv", "uneven.ts", FOLDED]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exact", [True, False])
def test_a_burst_gives_the_rate_that_is_asked_for(tmp_path: Path, name: str, exact: bool) -> None:
    path = uneven_file(tmp_path, BURST, name)
    capped = Sampling(fps=2.0, start_seconds=10.0, stop_seconds=12.0, max_frames=10, exact=exact)
    seconds, _, reading = read(path, capped)
    np.testing.assert_allclose(seconds, [10, 10.5, 11, 11.5], atol=0.034)
    assert reading.num_planned == 4
    still = Sampling(fps=2.0, start_seconds=20.0, stop_seconds=50.0, exact=exact)
    seconds, _, reading = read(path, still)
    assert reading.losses == ()
    assert 1 <= len(seconds) == reading.num_planned <= 60
    assert sorted({round(second) for second in seconds}) == [20, 30, 40]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fps", [60.0, 1000.0])
def test_every_frame_of_a_burst(tmp_path: Path, name: str, fps: float) -> None:
    path = uneven_file(tmp_path, BURST, name)
    seconds, _, reading = read(path, Sampling(fps=fps, start_seconds=10.5, stop_seconds=20.5))
    expected = [t / 1000 for t in BURST if 10_500 <= t < 20_500]
    np.testing.assert_allclose(seconds, expected, atol=CLOCK_SECONDS)
    assert reading.num_planned == len(expected)
    for most in (45, 46, 47, 48):
        seconds, _, _ = read(path, Sampling(fps=fps, start_seconds=10.5, stop_seconds=20.5, max_frames=most))
        assert len(seconds) <= most


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fps", [1.0, 20.0])
def test_the_slide_shown_at_the_start_is_read(tmp_path: Path, name: str, fps: float) -> None:
    path = uneven_file(tmp_path, SLIDES, name)
    for start, stop, expected in ((40.0, 55.0, {30}), (40.0, 90.5, {30, 60, 90}), (30.0, 59.0, {30}), (0.0, 20.0, {0})):
        seconds, pixels, reading = read(path, Sampling(fps=fps, start_seconds=start, stop_seconds=stop))
        assert {round(second) for second in seconds} == expected
        assert len(seconds) == reading.num_planned
        assert reading.losses == ()
        if name != FOLDED:
            same_as_decoded(path, seconds, pixels)


def test_a_sound_uneven_file_is_not_taken_for_a_broken_one(tmp_path: Path) -> None:
    path = uneven_file(tmp_path, BURST, "sound.mp4")
    for sampling in (Sampling(fps=2.0, start_seconds=20.0, stop_seconds=50.0), Sampling(fps=60.0, start_seconds=20.0)):
        chunks = list(read_chunks(path, sampling, size=None, chunk_frames=8))
        assert sum(len(chunk) for chunk in chunks) >= 3
