"""Reading generated videos: every frame says its own number, so what was read can be told from the picture."""

from __future__ import annotations

import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from longtake import video
from longtake.types import Sampling
from make_videos import drawn, make, number_in, numbers_in

FORMATS: dict[str, dict[str, object]] = {
    "b_frames.mp4": {"gop": 12, "b_frames": 2},
    "no_b_frames.mp4": {"gop": 12, "b_frames": 0},
    "pyramid.mp4": {"gop": 60, "b_frames": 3},
    "intra_only.mp4": {"gop": 1, "b_frames": 0},
    "one_keyframe.mp4": {"gop": 250},
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"}},
    "intra_refresh.mp4": {"b_frames": 0, "options": {"intra-refresh": "1"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "with_sound.mp4": {"audio": True},
    "ten_bit.mp4": {"pixels": "yuv420p10le"},
    "alpha.mov": {"codec": "qtrle", "pixels": "argb"},
    "alpha.webm": {"codec": "libvpx-vp9", "pixels": "yuva420p", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "matroska.mkv": {},
    "transport.ts": {},
    "flash.flv": {},
    "program.mpg": {"codec": "mpeg2video"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "h264.avi": {},
    "hevc.mp4": {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"}},
    "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "11", "svtav1-params": "lp=1"}},
    "motion_jpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
}
COUNT, FPS = 60, 30


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(params=FORMATS)
def each_format(request: pytest.FixtureRequest, folder: Path) -> Path:
    return written(folder, request.param)


def written(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.exists() else make(path, count=COUNT, fps=FPS, **FORMATS[name])  # type: ignore[arg-type]


def read(path: Path, sampling: Sampling, **options: object) -> tuple[list[int], NDArray[np.float64], video.Reading]:
    reading = video.read(path, sampling, **options)  # type: ignore[arg-type]
    numbers: list[int] = []
    seconds = [np.empty(0)]
    for frames in reading:
        numbers += numbers_in(frames.pixels)
        seconds.append(frames.seconds)
    return numbers, np.concatenate(seconds), reading


# A container's clock may be coarse: Matroska and Flash count milliseconds, MPEG program streams 90,000ths.
CLOCK_SECONDS = 1.01e-3


def test_info(each_format: Path) -> None:
    info = video.open(each_format)
    assert (info.width, info.height, info.num_frames) == (128, 96, COUNT)
    assert info.fps == pytest.approx(FPS, rel=0.01)
    assert info.duration_seconds == pytest.approx(COUNT / FPS, abs=2 * CLOCK_SECONDS)
    assert info.audio == ("aac" if each_format.name == "with_sound.mp4" else None)
    assert info.warnings == ()


def test_exact_gives_the_frame_shown_at_each_time(each_format: Path) -> None:
    wanted = [0.0, 0.21, 0.22, 0.35, 0.61, 0.74, 0.78, 1.15, 1.21, 1.99]
    numbers, seconds, reading = read(each_format, Sampling(at_seconds=tuple(wanted), exact=True))
    expected = [int(t * FPS) for t in wanted]
    assert numbers == expected
    np.testing.assert_allclose(seconds, np.array(expected) / FPS, atol=CLOCK_SECONDS)
    assert reading.warnings == ()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_exact_by_fps(each_format: Path, threads: int) -> None:
    numbers, seconds, reading = read(each_format, Sampling(fps=7.0, exact=True), threads=threads)
    # A millisecond early would be the frame before: the container's rounding must not matter at these times.
    expected = [int(i / 7 * FPS + 0.03) for i in range(14)]
    assert numbers == expected
    assert reading.num_planned == 14
    np.testing.assert_allclose(seconds, np.array(expected) / FPS, atol=CLOCK_SECONDS)


@pytest.mark.parametrize("sampling", [Sampling(fps=4.0), Sampling(count=5), Sampling(count=11), Sampling(fps=10.0)])
@pytest.mark.parametrize("threads", [1, 2])
def test_nearest_stays_within_the_tolerance(each_format: Path, sampling: Sampling, threads: int) -> None:
    numbers, seconds, reading = read(each_format, sampling, threads=threads)
    if sampling.fps is not None:
        wanted, tolerance = np.arange(0, COUNT / FPS, 1 / sampling.fps), 0.1 / sampling.fps
    else:
        assert sampling.count is not None
        tolerance = COUNT / FPS / sampling.count / 2
        wanted = (2 * np.arange(sampling.count) + 1) * tolerance
    # With frames further apart than the window, the one shown at the time is taken: at most a frame early.
    early = np.maximum(tolerance, 1 / FPS) + CLOCK_SECONDS
    assert len(numbers) == len(wanted) == reading.num_planned
    assert (seconds <= wanted + tolerance + CLOCK_SECONDS).all()
    assert (seconds >= wanted - early).all()
    # What is reported is the time of the frame that is delivered.
    np.testing.assert_allclose(seconds, np.array(numbers) / FPS, atol=CLOCK_SECONDS)
    assert len(set(numbers)) == len(numbers)
    assert reading.warnings == ()


def test_every_frame(each_format: Path) -> None:
    numbers, seconds, reading = read(each_format, Sampling(fps=500.0), chunk_frames=7)
    assert numbers == list(range(COUNT))
    assert reading.num_planned == COUNT
    np.testing.assert_allclose(seconds, np.arange(COUNT) / FPS, atol=CLOCK_SECONDS)
    assert [w for w in reading.warnings if "every frame" not in w] == []
    assert "every frame" in reading.warnings[0]


def test_a_span_of_every_frame(each_format: Path) -> None:
    numbers, _, reading = read(each_format, Sampling(fps=30.0, start_seconds=0.795, stop_seconds=1.205))
    assert numbers == list(range(24, 37))
    assert abs(reading.num_planned - 13) <= 1


def test_pixels_equal_a_full_decode(each_format: Path) -> None:
    """Against a plain decode of everything with the same library: skipping must not change a single pixel."""
    with av.open(str(each_format)) as container:
        every = [frame.to_ndarray(format="rgb24", interpolation="BICUBIC") for frame in container.decode(video=0)]
    for sampling in (Sampling(fps=7.0, exact=True), Sampling(count=9)):
        for frames in video.read(each_format, sampling):
            for picture in frames.pixels.transpose(0, 2, 3, 1):
                np.testing.assert_array_equal(picture, every[number_in(picture)])


def test_colours_are_those_drawn(folder: Path) -> None:
    frames = next(video.read(written(folder, "b_frames.mp4"), Sampling(count=1, exact=True)))
    difference = np.abs(frames.pixels[0].transpose(1, 2, 0).astype(int) - drawn(30).astype(int))
    assert np.median(difference) <= 4  # edges blur; the grounds must not


# -- shapes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rotate", "flip", "upright", "clockwise"),
    [
        (90, False, lambda p: np.rot90(p, 1), 270),
        (-90, False, lambda p: np.rot90(p, -1), 90),
        (180, False, lambda p: np.rot90(p, 2), 180),
        (0, True, lambda p: p[:, ::-1], 0),
    ],
)
def test_rotation_is_applied(folder: Path, rotate: int, flip: bool, upright: object, clockwise: int) -> None:
    path = make(folder / f"turned{rotate}{flip}.mp4", count=12, rotate=rotate, flip=flip)
    expected = upright(drawn(5))  # type: ignore[operator]
    info = video.open(path)
    frames = next(video.read(path, Sampling(at_seconds=(5 / 30,), exact=True)))
    assert info.rotation_degrees == clockwise
    assert (info.height, info.width) == expected.shape[:2] == frames.pixels.shape[2:]
    assert np.abs(frames.pixels[0].transpose(1, 2, 0).astype(int) - expected.astype(int)).mean() < 6


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(4, 3), 171), (Fraction(1, 2), 64)])
def test_pixel_aspect_is_applied(folder: Path, aspect: Fraction, width: int) -> None:
    path = make(folder / f"aspect{width}.mp4", count=6, aspect=aspect)
    frames = next(video.read(path, Sampling(at_seconds=(0.1,), exact=True)))
    assert (video.open(path).width, video.open(path).height) == (width, 96)
    assert frames.pixels.shape == (1, 3, 96, width)
    assert numbers_in(frames.pixels) == [3]


def test_rotation_and_pixel_aspect_together(folder: Path) -> None:
    path = make(folder / "both.mp4", count=6, aspect=Fraction(2, 1), rotate=-90)
    info = video.open(path)
    assert (info.width, info.height) == (96, 256)
    frames = next(video.read(path, Sampling(at_seconds=(0.1,), exact=True)))
    assert number_in(np.rot90(frames.pixels[0].transpose(1, 2, 0), 1)) == 3


def test_size_resizes_the_shown_frame(folder: Path) -> None:
    path = make(folder / "turned_small.mp4", count=6, rotate=-90)
    frames = next(video.read(path, Sampling(at_seconds=(0.1,), exact=True), size=(64, 40)))
    assert frames.pixels.shape == (1, 3, 64, 40)
    assert number_in(np.rot90(frames.pixels[0].transpose(1, 2, 0), 1)) == 3


# -- times ---------------------------------------------------------------------------------------------------------


def test_variable_frame_rate(folder: Path) -> None:
    times = [0, 33, 66, 500, 533, 566, 600, 2000, 2033, 3000]
    path = make(folder / "variable.mp4", count=10, times=times)
    wanted = (0.0, 0.4, 0.5, 0.599, 0.6, 1.9, 2.0, 2.999, 3.0)
    numbers, seconds, _ = read(path, Sampling(at_seconds=wanted, exact=True))
    assert numbers == [0, 2, 3, 5, 6, 6, 7, 8, 9]
    np.testing.assert_allclose(seconds, [times[n] / 1000 for n in numbers], atol=1e-4)
    numbers, seconds, _ = read(path, Sampling(fps=1.0, start_seconds=0.0, stop_seconds=3.5))
    assert numbers == [0, 6, 7, 9]  # at 1 s nothing lies in [0.9, 1.1): what is shown then has begun at 0.6 s
    np.testing.assert_allclose(seconds, [0.0, 0.6, 2.0, 3.0], atol=1e-4)


@pytest.mark.parametrize(("fps", "count"), [(3, 12), (187, 374)])
def test_slow_and_fast_videos(folder: Path, fps: int, count: int) -> None:
    path = make(folder / f"at{fps}.mp4", fps=fps, count=count)
    numbers, seconds, _ = read(path, Sampling(at_seconds=(0.0, 0.7, 1.3, 1.999), exact=True))
    assert numbers == [int(t * fps) for t in (0.0, 0.7, 1.3, 1.999)]
    np.testing.assert_allclose(seconds, np.array(numbers) / fps, atol=1e-4)


def test_three_frames(folder: Path) -> None:
    path = make(folder / "three.mp4", count=3)
    assert read(path, Sampling(fps=1.0))[0] == [0]
    assert read(path, Sampling(count=3))[0] == [0, 1, 2]
    numbers, seconds, _ = read(path, Sampling(count=6))  # more than there are: each is shown twice
    assert numbers == [0, 0, 1, 1, 2, 2]
    assert (np.diff(seconds) >= 0).all()
    assert read(path, Sampling(fps=30.0))[0] == [0, 1, 2]


def test_time_zero_is_the_first_shown_frame(folder: Path) -> None:
    path = make(folder / "late.mkv", count=10, times=[5000 + 100 * i for i in range(10)])
    numbers, seconds, _ = read(path, Sampling(at_seconds=(0.0, 0.5), exact=True))
    assert numbers == [0, 5]
    np.testing.assert_allclose(seconds, [0.0, 0.5], atol=1e-4)


def test_missing_timestamps_are_counted(folder: Path) -> None:
    path = make(folder / "raw.h264", count=50)  # no container: FFmpeg assumes 25 frames a second
    info = video.open(path)
    assert info.num_frames == 50
    assert info.duration_seconds == pytest.approx(2.0, abs=0.02)
    numbers, seconds, _ = read(path, Sampling(fps=5.0, exact=True))
    assert numbers == list(range(0, 50, 5))
    np.testing.assert_allclose(seconds, np.array(numbers) / 25, atol=1e-6)


def test_times_that_begin_again_are_carried_on(folder: Path) -> None:
    """Two transport streams put end to end, as after a programme change."""
    part = make(folder / "part.ts", count=90)
    whole = folder / "joined.ts"
    whole.write_bytes(part.read_bytes() * 2)
    info = video.open(whole)
    assert info.num_frames == 180
    assert info.duration_seconds == pytest.approx(6.0, abs=0.1)
    numbers, seconds, _ = read(whole, Sampling(fps=3.0, exact=True))
    assert (np.diff(seconds) > 0).all()
    assert numbers[:9] == list(range(0, 90, 10))
    assert set(numbers[9:]) <= set(range(90))
    assert len(numbers) == 18


def test_a_duration_the_header_does_not_know(folder: Path) -> None:
    whole = written(folder, "matroska.mkv")
    live = make(folder / "live.mkv", count=COUNT, container_options={"live": "1"})
    with av.open(str(live)) as container:
        assert container.duration is None
    assert video.open(live).duration_seconds == pytest.approx(video.open(whole).duration_seconds)
    assert read(live, Sampling(count=4, exact=True))[0] == [7, 22, 37, 52]


# -- streams, memory, identity ----------------------------------------------------------------------------------------


def test_the_best_stream_is_chosen_and_can_be_overridden(folder: Path) -> None:
    path = make(folder / "two.mkv", count=30, second=100)
    with av.open(str(path)) as container:
        best = container.streams.best("video")
        assert best is not None
        expected = best.index
    assert video.open(path).stream == expected
    assert read(path, Sampling(at_seconds=(0.5,), exact=True), stream=0)[0] == [115]
    assert read(path, Sampling(at_seconds=(0.5,), exact=True), stream=1)[0] == [15]
    assert video.open(path, stream=1).width == 128


def test_chunks_are_bounded(folder: Path) -> None:
    path = written(folder, "b_frames.mp4")
    lengths = [len(frames) for frames in video.read(path, Sampling(fps=30.0), chunk_frames=25)]
    assert lengths == [25, 25, 10]
    large = [frames.pixels.nbytes for frames in video.read(path, Sampling(fps=30.0), size=(1080, 1920))]
    assert max(large) <= 8 * 2**20


def test_a_reading_can_be_left_early(folder: Path) -> None:
    reading = video.read(written(folder, "b_frames.mp4"), Sampling(fps=30.0), chunk_frames=4)
    next(reading)
    reading.close()
    assert list(reading) == []


def test_identity_tells_replaced_files(folder: Path) -> None:
    path, other = folder / "a.bin", folder / "b.bin"
    data = bytearray(5 * 2**20)
    path.write_bytes(data)
    before = video.identity(path)
    assert before.startswith(f"{5 * 2**20}-")
    for place in (0, len(data) // 2, len(data) - 1):
        changed = data.copy()
        changed[place] = 1
        other.write_bytes(changed)
        assert video.identity(other) != before
    other.write_bytes(data + b"x")
    assert video.identity(other) != before
    other.write_bytes(data)
    assert video.identity(other) == before


def test_reading_needs_no_torch_and_little_memory(folder: Path) -> None:
    path = make(folder / "large.mp4", size=(720, 1280), count=90, options={"preset": "ultrafast"})
    code = (
        "import sys; from longtake import video; from longtake.types import Sampling\n"
        f"n = sum(len(f) for f in video.read({str(path)!r}, Sampling(fps=30.0), threads=2)); assert n == 90, n\n"
        "assert not any(m.split('.')[0] == 'torch' for m in sys.modules)\n"
        "status = open('/proc/self/status').read() if sys.platform == 'linux' else 'VmHWM: 0'\n"
        "print(int(status.split('VmHWM:')[1].split()[0]) // 1024)"
    )  # the program's own peak: ru_maxrss would count the parent's size before it started
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150


# -- another reader ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command line is not installed")
@pytest.mark.parametrize("name", ["b_frames.mp4", "ten_bit.mp4", "alpha.mov", "transport.ts", "h264.avi"])
def test_pixels_equal_those_of_the_ffmpeg_command(folder: Path, name: str) -> None:
    path = written(folder, name)
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    every = np.frombuffer(raw, np.uint8).reshape(-1, 96, 128, 3)
    assert len(every) == COUNT
    numbers, _, _ = read(path, Sampling(fps=7.0, exact=True))
    pictures = np.concatenate([f.pixels for f in video.read(path, Sampling(fps=7.0, exact=True))])
    difference = np.abs(pictures.transpose(0, 2, 3, 1).astype(int) - every[numbers].astype(int))
    # Another version of swscale: chroma may be interpolated differently, values round differently.
    assert difference.mean() < 1.5
    assert np.quantile(difference, 0.99) <= 24
