"""Files that are no video, and videos that are damaged: one clear line, or what can be read and a word on the rest."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest

from longtake import video
from longtake.types import Sampling, VideoError
from make_videos import cut, damaged, drawn, make, numbers_in, sound_only


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module")
def sound(folder: Path) -> Path:
    """Two seconds and more of a file whose index stands in front: 120 frames, a keyframe every 12."""
    return make(folder / "sound.mp4", count=120, container_options={"movflags": "faststart"})


def refused(path: Path, message: str, **options: int) -> None:
    for call in (lambda: video.open(path, **options), lambda: video.read(path, Sampling(count=1), **options)):
        with pytest.raises(VideoError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_missing_path(folder: Path) -> None:
    refused(folder / "nowhere.mp4", "no such file")


def test_directory(folder: Path) -> None:
    refused(folder, "is a directory")


def test_empty_file(folder: Path) -> None:
    path = folder / "empty.mp4"
    path.touch()
    refused(path, "file is empty")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_does_not_hang(folder: Path) -> None:
    path = folder / "pipe.mp4"
    os.mkfifo(path)
    refused(path, "not a regular file")


@pytest.mark.parametrize("name", ["notes.txt", "notes.mp4", "table.csv", "page.html", "noise.avi"])
def test_not_a_video(folder: Path, name: str) -> None:
    path = folder / name
    noise = np.random.default_rng(0).bytes(5000)
    path.write_bytes(noise if name.startswith("noise") else b"<p>Only words, and more words.</p>\n" * 50)
    refused(path, "is not a video that FFmpeg can open|has no video stream")


def test_sound_without_picture(folder: Path) -> None:
    refused(sound_only(folder / "song.m4a"), "has no video stream, only audio")


def test_subtitles(folder: Path) -> None:
    path = folder / "words.srt"
    path.write_text("1\n00:00:00,000 --> 00:00:02,000\nHello\n\n")
    refused(path, "has no video stream, only subtitle")


@pytest.mark.parametrize(("suffix", "codec", "pixels"), [("png", "png", "rgb24"), ("jpg", "mjpeg", "yuvj420p")])
def test_an_image_is_called_an_image(folder: Path, suffix: str, codec: str, pixels: str) -> None:
    path = folder / f"still.{suffix}"
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream(codec, rate=1)
        stream.height, stream.width, stream.pix_fmt = 96, 128, pixels
        container.mux(stream.encode(av.VideoFrame.from_ndarray(drawn(1), format="rgb24").reformat(format=pixels)))
        container.mux(stream.encode())
    refused(path, "is an image")


def test_stream_that_is_none(sound: Path) -> None:
    refused(sound, r"stream 7 is not a video stream; choose from \[0\]", stream=7)


def test_start_after_the_end(sound: Path) -> None:
    with pytest.raises(VideoError, match=r"start is 9 s but the video ends at 4\.00 s"):
        video.read(sound, Sampling(fps=1.0, start_seconds=9.0))


def test_size_that_is_none(sound: Path) -> None:
    with pytest.raises(VideoError, match=r"size is \(0, 64\)"):
        video.read(sound, Sampling(fps=1.0), size=(0, 64))


# -- damage ------------------------------------------------------------------------------------------------------------


def outcome(path: Path, sampling: Sampling) -> tuple[dict[float, int], str]:
    """Number shown at each delivered time, and all warnings in one text."""
    reading = video.read(path, sampling)
    shown: dict[float, int] = {}
    for frames in reading:
        shown.update(zip(frames.seconds.round(6).tolist(), numbers_in(frames.pixels), strict=True))
    return shown, " | ".join(reading.warnings)


def test_index_lost_with_the_end_of_the_file(folder: Path) -> None:
    whole = make(folder / "index_last.mp4")  # without faststart the index comes last
    refused(cut(whole, folder / "no_index.mp4", keep=0.6), "is not a video that FFmpeg can open")


@pytest.mark.parametrize("sampling", [Sampling(fps=10.0, exact=True), Sampling(fps=10.0), Sampling(count=40)])
def test_a_file_cut_short(folder: Path, sound: Path, sampling: Sampling) -> None:
    path = cut(sound, folder / "short.mp4", keep=0.6)
    shown, warnings = outcome(path, sampling)
    assert 10 < len(shown) < 30
    assert [round(second * 30) for second in shown] == list(shown.values())  # every frame at its own time
    assert "cut short" in warnings
    assert f"{40 - len(shown)} of 40 frames could not be read" in warnings


@pytest.mark.parametrize("count", [2, 8])
def test_a_file_cut_short_read_sparsely(folder: Path, sound: Path, count: int) -> None:
    shown, warnings = outcome(cut(sound, folder / "short.mp4", keep=0.6), Sampling(count=count))
    assert 0 < len(shown) < count
    assert f"{count - len(shown)} of {count} frames could not be read" in warnings


@pytest.mark.parametrize("suffix", ["mkv", "flv"])
def test_a_cut_stream_says_that_it_ends_early(folder: Path, suffix: str) -> None:
    whole = make(folder / f"whole.{suffix}", count=120)
    info = video.open(cut(whole, folder / f"short.{suffix}", keep=0.5))
    assert info.duration_seconds < 3.0
    assert any("the header says 4.0" in warning for warning in info.warnings)
    shown, _ = outcome(folder / f"short.{suffix}", Sampling(fps=5.0, exact=True))
    assert list(shown.values()) == [6 * i for i in range(len(shown))]


@pytest.mark.parametrize("sampling", [Sampling(fps=10.0, exact=True), Sampling(fps=100.0), Sampling(count=40)])
def test_bytes_changed_in_the_middle(folder: Path, sound: Path, sampling: Sampling) -> None:
    path = damaged(sound, folder / "changed.mp4", start=0.5, stop=0.6)
    shown, warnings = outcome(path, sampling)
    assert "could not be read, between 1." in warnings
    right = [second for second, number in shown.items() if round(second * 30) == number]
    # One damaged stretch: what lies before and from the next keyframe on is as it was.
    assert {round(s, 1) for s in right} >= {0.0, 0.5, 1.0, 2.0, 3.0, 3.9} or sampling.count
    wrong = [second for second in shown if second not in right]
    assert not wrong or "damaged" in warnings


def test_losses_are_of_what_was_asked_for_only(folder: Path, sound: Path) -> None:
    whole = make(folder / "whole_odd.mkv", count=120)
    for path, lost in ((cut(whole, folder / "odd.mkv", keep=0.5), 0), (cut(sound, folder / "lost.mp4", keep=0.6), 1)):
        reading = video.read(path, Sampling(count=40))
        assert reading.losses == ()
        num_frames = sum(len(frames) for frames in reading)
        assert (num_frames < 40, any("could not be read" in line for line in reading.losses)) == (lost, lost)
        assert bool(reading.losses) == lost
        assert reading.warnings


def test_a_gap_in_a_stream_is_told(folder: Path) -> None:
    whole = make(folder / "gap_whole.mkv", count=120)
    path = damaged(whole, folder / "gap.mkv", start=0.5, stop=0.6)
    assert any("frames seem to be missing between 1." in warning for warning in video.open(path).warnings)


def test_frames_lost_from_an_avi_file_do_not_shift_the_rest(folder: Path) -> None:
    path = make(folder / "changed.avi", count=120, gop=30)
    with av.open(str(path)) as container:
        keyframe = [packet for packet in container.demux(video=0) if packet.is_keyframe][1]
        first, last = keyframe.pos + 8, keyframe.pos + 8 + keyframe.size
    data = bytearray(path.read_bytes())
    data[first:last] = np.random.default_rng(0).bytes(last - first)
    path.write_bytes(bytes(data))
    shown, warnings = outcome(path, Sampling(fps=5.0, exact=True))
    end = max(shown)
    assert abs(round(end * 30) - shown[end]) <= 4  # times are only good to the reordering of B-frames
    assert "packets could not be decoded, at 1.0" in warnings


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "flv"])
def test_random_damage_never_hangs_or_crashes(folder: Path, suffix: str, seed: int) -> None:
    whole = folder / f"fuzz.{suffix}"
    if not whole.exists():
        make(whole, count=40, container_options={"movflags": "faststart"} if suffix == "mp4" else None)
    start = float(np.random.default_rng(seed).uniform(0.0, 0.95))
    path = damaged(whole, folder / f"fuzz{seed}.{suffix}", start=start, stop=start + 0.02, seed=seed)
    for sampling in (Sampling(fps=5.0), Sampling(count=5, exact=True), Sampling(fps=100.0)):
        try:
            reading = video.read(path, sampling)
        except VideoError:
            continue
        seconds = np.concatenate([np.empty(0), *(frames.seconds for frames in reading)])
        assert (np.diff(seconds) >= 0).all()
        assert len(seconds) <= max(reading.num_planned, reading.info.num_frames) + 1
