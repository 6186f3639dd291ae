"""The shared videos: real files with every oddity, against their manifest and two independent readers."""

from __future__ import annotations

import csv
import shutil
import subprocess
from bisect import bisect_right
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from longtake import video
from longtake.types import Frames, Sampling, VideoError

FOLDER = Path(__file__).parents[1] / "../shared/data/videos"
MANIFEST = FOLDER / "manifest.csv"
ROWS = list(csv.DictReader(MANIFEST.read_text().splitlines())) if MANIFEST.exists() else []
READABLE = [row for row in ROWS if row["codec"]]
ODD = [
    "film_rotated90.mp4",  # rotation
    "keyboard_rot90.mov",  # three frames
    "vec_var_fps.mp4",  # variable frame rate
    "vec_h265_10bit.mp4",  # ten bits
    "dark_no_duration.webm",  # no duration
    "woman_eye_makeup.avi",  # B-frames without presentation times
    "megamind_dinner_buggy.avi",
    "woman_cooking_show_lake.mp4",  # edit list
    "dog_skateboard.mp4",  # no frame count
    "arm_wrestling.mp4",  # pixel aspect
    "anet_TpB_zMG3XBA.mp4",  # three frames a second
    "crocodile_tiny.flv",
    "pucks_magnets.ogv",
    "game_robot_cutscene.mkv",
    "vec_av1.mkv",
    "nasa_suit_test.mp4",  # two video streams
]
# 50 frames by its index, 28 by strict readers: the rest is damaged. See its own test.
DAMAGED = {"corrupt_test_card.mp4"}

pytestmark = pytest.mark.skipif(not ROWS, reason=f"the shared videos are not at {FOLDER}")


def named(rows: list[dict[str, str]]) -> list[object]:
    return [pytest.param(row, id=row["name"]) for row in rows]


def first_video_stream(row: dict[str, str]) -> int | None:
    """The manifest describes the first video stream, which for one file is not the best."""
    return 0 if row["name"] == "nasa_suit_test.mp4" else None


@pytest.mark.parametrize("row", named(READABLE))
def test_info_agrees_with_the_manifest(row: dict[str, str]) -> None:
    info = video.open(FOLDER / row["name"], stream=first_video_stream(row))
    if row["name"] not in DAMAGED:
        assert info.num_frames == int(row["frames_decoded"])
    assert info.codec in (row["codec"], f"{row['codec']}v3", f"lib{row['codec']}", "libdav1d", "libvpx", "libvpx-vp9")
    # The manifest's duration is the container's: sound may go on longer than the picture.
    assert info.duration_seconds == pytest.approx(float(row["seconds"]), abs=0.35)
    turned = int(row["rotation"] or 0) % 180 == 90
    aspect = Fraction(1) if row["sar"] == "None" else Fraction(row["sar"])
    height, width = int(row["height"]), round(int(row["width"]) * aspect)
    assert (info.height, info.width) == ((width, height) if turned else (height, width))
    assert info.rotation_degrees == -int(row["rotation"] or 0) % 360
    assert (info.audio is not None) == (row["audio"] == "y")
    if row["fps"] and row["vfr"] == "no":
        assert info.fps == pytest.approx(float(row["fps"]), rel=0.02)


def test_a_fragment_without_its_header_is_refused() -> None:
    with pytest.raises(VideoError, match="is not a video that FFmpeg can open"):
        video.open(FOLDER / "headerless_fragment.mp4")


def test_a_damaged_file_tells_where() -> None:
    reading = video.read(FOLDER / "corrupt_test_card.mp4", Sampling(fps=10.0, exact=True))
    frames = list(reading)
    delivered = sum(len(chunk) for chunk in frames)
    text = " | ".join(reading.warnings)
    assert 28 <= delivered < 50
    assert f"{50 - delivered} of 50 frames could not be read" in text
    assert "damaged" in text
    assert "between 2." in text


@pytest.mark.parametrize("name", ODD)
def test_odd_files_against_a_full_decode(name: str) -> None:
    check_against_full_decode(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [row["name"] for row in READABLE if row["name"] not in {*ODD, *DAMAGED}])
def test_all_files_against_a_full_decode(name: str) -> None:
    check_against_full_decode(name)


def check_against_full_decode(name: str) -> None:
    path = FOLDER / name
    info = video.open(path)
    times, pictures = fully_decoded(path, info.stream)
    assert len(times) == info.num_frames
    exact = [Sampling(fps=1.7, exact=True), Sampling(count=9, exact=True)]
    for sampling in (*exact, Sampling(fps=1.7), Sampling(count=9)):
        reading = video.read(path, sampling)
        chunks = list(reading)
        seconds = np.concatenate([chunk.seconds for chunk in chunks])
        wanted, tolerance = moments(sampling, info.duration_seconds)
        assert len(seconds) == len(wanted)
        for at, second in zip(wanted, seconds, strict=True):
            shown = times[max(0, bisect_right(times, at + 1e-6) - 1)]
            if sampling.exact or abs(second - at) > tolerance + 1e-6:
                assert second == pytest.approx(shown, abs=1e-6)
        which = [int(np.argmin(np.abs(np.array(times) - second))) for second in seconds]
        np.testing.assert_allclose(np.array(times)[which], seconds, atol=1e-6)
        for number, picture in zip(which, each(chunks), strict=True):
            np.testing.assert_array_equal(picture, pictures(number, info))
        assert reading.warnings == info.warnings


def moments(sampling: Sampling, duration: float) -> tuple[NDArray[np.float64], float]:
    """Requested times and tolerance, by their definitions."""
    if sampling.count is not None:
        half = duration / sampling.count / 2
        return (2 * np.arange(sampling.count) + 1) * half, half
    assert sampling.fps is not None
    every = np.arange(int(duration * sampling.fps) + 2) / sampling.fps
    return every[every < duration - 1e-6], 0.1 / sampling.fps


def each(chunks: list[Frames]) -> list[NDArray[np.uint8]]:
    return [picture for chunk in chunks for picture in chunk.pixels.transpose(0, 2, 3, 1)]


def _decoded(path: Path, stream: int) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(container.streams[stream]))


def fully_decoded(path: Path, stream: int):  # type: ignore[no-untyped-def]
    """Shown times of all frames, and a function from number and info to upright RGB: every frame, in order."""
    frames = _decoded(path, stream)
    # Frames come in the order they are shown; where a container has no presentation times their stamps do not.
    stamps = sorted(frame.pts for frame in frames)
    times = [float((stamp - stamps[0]) * frames[0].time_base) for stamp in stamps]

    def picture(number: int, info):  # type: ignore[no-untyped-def]
        height, width = info.height, info.width
        if info.rotation_degrees in (90, 270):
            height, width = width, height
        rgb = frames[number].reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
        return np.rot90(rgb.to_ndarray(), -info.rotation_degrees // 90)

    return times, picture


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command line is not installed")
@pytest.mark.parametrize(
    "name", [row["name"] for row in READABLE if row["name"] not in DAMAGED and float(row["seconds"]) < 100]
)
def test_pictures_and_times_equal_those_of_the_ffmpeg_command(name: str) -> None:
    path = FOLDER / name
    info = video.open(path)
    reading = video.read(path, Sampling(count=6, exact=True), size=(info.height, info.width))
    chunks = list(reading)
    seconds = np.concatenate([chunk.seconds for chunk in chunks])
    stamps = probed_times(path, info.stream)
    numbers = [int(np.argmin(np.abs(stamps - second))) for second in seconds]
    np.testing.assert_allclose(stamps[numbers], seconds, atol=2e-3)
    chosen = "+".join(rf"eq(n\,{number})" for number in sorted(set(numbers)))
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", f"0:{info.stream}", "-vsync", "0"]
    command += ["-vf", f"select={chosen},scale={info.width}:{info.height}:flags=bicubic"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    pictures = np.frombuffer(raw, np.uint8).reshape(-1, info.height, info.width, 3)
    ordered = sorted(set(numbers))
    assert len(pictures) == len(ordered)
    for number, picture in zip(numbers, each(chunks), strict=True):
        difference = np.abs(picture.astype(int) - pictures[ordered.index(number)].astype(int))
        # another version of swscale rounds and interpolates chroma differently: by 2.3 on ten bits, less on others
        assert difference.mean() < 3.0


def probed_times(path: Path, stream: int) -> NDArray[np.float64]:
    """Shown times of all frames by ffprobe, from 0, in the order of time."""
    command = ["ffprobe", "-v", "error", "-select_streams", str(stream), "-of", "csv=p=0"]
    command += ["-show_entries", "frame=best_effort_timestamp_time", str(path)]
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    stamps = np.sort([float(line.strip(",")) for line in lines if line.strip(",") != "N/A"])
    return np.asarray(stamps - stamps[0], np.float64)
