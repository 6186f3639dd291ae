"""The feature store: right values, computed once, whole or absent, small memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fakes
import make_videos
from full_disk import full_disk
from longtake.data.features import Features, FeatureStore
from longtake.data.files import read_chunks, read_image
from longtake.types import Frames, LongtakeError, Sampling, VideoError

FPS = Sampling(fps=1.0)


class Tower:
    """Mean colours of the frame's quarters as features, and how often it was asked."""

    def __init__(self) -> None:
        self.chunks: list[int] = []

    def __call__(self, frames: Frames) -> torch.Tensor:
        self.chunks.append(len(frames))
        pixels = torch.from_numpy(np.ascontiguousarray(frames.pixels)).float()
        return pixels.unflatten(3, (2, -1)).unflatten(2, (2, -1)).mean((3, 5)).permute(0, 2, 3, 1)


def store(
    folder: Path, tower: Tower | None = None, name: str = "tower1", size: tuple[int, int] = (16, 16)
) -> FeatureStore:
    return FeatureStore(folder, name, tower or Tower(), frame_size=size, chunk_frames=4)


def video(folder: Path, count: int = 10, name: str = "a.mp4") -> Path:
    return fakes.write_video(folder / name, [20 * i for i in range(count)])


def num_files(kept: FeatureStore) -> int:
    return sum(1 for _ in kept.folder.glob("*/[!.]*.safetensors"))


def test_features_are_those_of_the_frames_in_order(tmp_path):
    path, tower = video(tmp_path), Tower()
    got = store(tmp_path / "store", tower).get(path, FPS)
    (frames,) = read_chunks(path, FPS, size=(16, 16), chunk_frames=64)
    assert torch.equal(got.features, Tower()(frames).bfloat16())
    assert got.seconds.tolist() == frames.seconds.tolist() == list(range(10))
    assert tower.chunks == [4, 4, 2]
    assert len(got) == 10


def test_each_is_computed_once_and_shared_by_stores(tmp_path):
    path, tower = video(tmp_path), Tower()
    first = store(tmp_path / "store", tower)
    expected = first.get(path, FPS).features
    assert torch.equal(first.get(path, FPS).features, expected)
    again = store(tmp_path / "store", tower)
    assert torch.equal(again.get(path, FPS).features, expected)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(path.read_bytes())  # the same bytes under another name
    assert torch.equal(again.get(copy, FPS).features, expected)
    assert sum(tower.chunks) == 10
    assert num_files(again) == 1


def test_sampling_tower_frame_size_and_content_are_told_apart(tmp_path):
    path, tower = video(tmp_path), Tower()
    first = store(tmp_path / "store", tower)
    first.get(path, FPS)
    assert first.get(path, Sampling(count=3)).seconds.shape == (3,)
    first.get(path, Sampling(fps=1.0, start_seconds=2.0))
    assert num_files(first) == 3
    computed = sum(tower.chunks)
    store(tmp_path / "store", tower, name="tower2").get(path, FPS)
    store(tmp_path / "store", tower, size=(8, 8)).get(path, FPS)
    assert sum(tower.chunks) == computed + 20
    video(tmp_path, count=7)  # another file under the old name
    assert len(first.get(path, FPS)) == 7


def test_an_image_is_a_file_of_one_frame(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(make_videos.drawn(5)).save(path)
    got = store(tmp_path / "store").get(path, None)
    assert torch.equal(got.features, Tower()(read_image(path, (16, 16))).bfloat16())
    assert got.seconds.tolist() == [0.0]


def test_the_file_is_plain_safetensors(tmp_path):
    kept = store(tmp_path / "store")
    got = kept.get(video(tmp_path), FPS)
    (file,) = (tmp_path / "store").rglob("*.safetensors")
    tensors = load_file(file)
    assert torch.equal(tensors["features"], got.features)
    assert tensors["seconds"].tolist() == got.seconds.tolist()


def test_writing_to_features_does_not_reach_the_file(tmp_path):
    kept, path = store(tmp_path / "store"), video(tmp_path)
    got = kept.get(path, FPS)
    before = got.features.clone()
    got.features.zero_()
    assert torch.equal(kept.get(path, FPS).features, before)


def test_thousands_may_be_open_at_once(tmp_path):
    kept, path = store(tmp_path / "store"), video(tmp_path)
    kept.get(path, FPS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        got = [kept.get(path, FPS) for _ in range(100)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(torch.equal(features.features, got[0].features) for features in got)


def spoil_end(data: bytes) -> bytes:
    return data[:-1]


def spoil_all(data: bytes) -> bytes:
    return b""


def spoil_header(data: bytes) -> bytes:
    return data[:8] + b"x" * 40 + data[48:]


def spoil_version(data: bytes) -> bytes:
    return data.replace(b'"version": "1"', b'"version": "0"')


def foreign(data: bytes) -> bytes:
    return b"this is no tensor file"


@pytest.mark.parametrize("spoil", [spoil_end, spoil_all, spoil_header, spoil_version, foreign])
def test_a_broken_or_foreign_file_is_computed_again(tmp_path, spoil):
    kept, path = store(tmp_path / "store"), video(tmp_path)
    expected = kept.get(path, FPS).features.clone()
    (file,) = (tmp_path / "store").rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    assert torch.equal(kept.get(path, FPS).features, expected)
    assert file.read_bytes() == whole


def test_broken_media_leave_nothing(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video at all")
    kept = store(tmp_path / "store")
    with pytest.raises(VideoError, match="a.mp4"):
        kept.get(path, FPS)
    with pytest.raises(VideoError, match="none.mp4: could not be read .No such file"):
        kept.get(tmp_path / "none.mp4", FPS)
    assert [file for file in (tmp_path / "store").rglob("*") if file.is_file()] == []


def test_a_failing_tower_leaves_nothing_and_the_next_one_succeeds(tmp_path):
    path, calls = video(tmp_path), 0

    def failing(frames: Frames) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return Tower()(frames)

    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path / "store", "tower1", failing, frame_size=(16, 16), chunk_frames=4).get(path, FPS)
    assert [file for file in (tmp_path / "store").rglob("*") if file.is_file()] == []
    assert len(store(tmp_path / "store").get(path, FPS)) == 10


def test_a_full_disk_is_told_and_is_no_broken_video(tmp_path):
    path = video(tmp_path)
    told = "could not store the features of .*a.mp4.*free space"
    with full_disk(600), pytest.raises(LongtakeError, match=told) as caught:
        store(tmp_path / "store").get(path, FPS)
    assert not isinstance(caught.value, VideoError)
    assert [file for file in (tmp_path / "store").rglob("*") if file.is_file()] == []


def test_prefill_names_what_is_broken(tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video at all")
    image = tmp_path / "a.png"
    Image.fromarray(make_videos.drawn(5)).save(image)
    kept, done = store(tmp_path / "store"), []
    broken = kept.prefill([(video(tmp_path), FPS), (bad, FPS), (image, None)], done.append)
    assert list(broken) == [str(bad)]
    assert "bad.mp4" in broken[str(bad)]
    assert done == [1, 2, 3]
    assert num_files(kept) == 2


def test_threads_that_want_the_same_wait_for_one(tmp_path):
    path, tower = video(tmp_path), Tower()
    kept = store(tmp_path / "store", tower)
    got: list[Features] = []
    threads = [threading.Thread(target=lambda: got.append(kept.get(path, FPS))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(tower.chunks) == 10
    assert all(torch.equal(features.features, got[0].features) for features in got)


def compute(folder: Path, paths: list[Path], counts) -> None:  # type: ignore[no-untyped-def]
    tower = Tower()
    kept = store(folder, tower)
    for path in paths:
        kept.get(path, FPS)
    counts.put(sum(tower.chunks))


def compute_slowly(folder: Path, path: Path, begun) -> None:  # type: ignore[no-untyped-def]
    def slow(frames: Frames) -> torch.Tensor:
        begun.set()
        time.sleep(60)
        raise AssertionError("not killed")

    FeatureStore(folder, "tower1", slow, frame_size=(16, 16), chunk_frames=4).get(path, FPS)


@pytest.mark.slow
def test_processes_share_the_work_and_a_killed_one_does_not_block(tmp_path):
    context = multiprocessing.get_context("spawn")
    paths = [video(tmp_path, count=5 + i, name=f"{i}.mp4") for i in range(6)]
    counts, begun = context.Queue(), context.Event()
    killed = context.Process(target=compute_slowly, args=(tmp_path / "store", paths[0], begun))
    killed.start()
    assert begun.wait(60)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    workers = [
        context.Process(target=compute, args=(tmp_path / "store", order, counts)) for order in (paths, paths[::-1])
    ]
    for worker in workers:
        worker.start()
    total = sum(counts.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert total == sum(5 + i for i in range(6))
    kept = store(tmp_path / "store")
    assert num_files(kept) == 6
    assert all(len(kept.get(path, FPS)) == 5 + i for i, path in enumerate(paths))
    assert not [*(tmp_path / "store").rglob("*.part")]


def peak_bytes() -> int:
    """This process's own peak; the usual getrusage would count its parent's before it started."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def store_a_long_video(folder: Path, grown) -> None:  # type: ignore[no-untyped-def]
    wide = torch.ones(1, 24, 24, 128)  # 147 kB a frame in bfloat16: 133 MB for the video

    def encode(frames: Frames) -> torch.Tensor:
        return wide.expand(len(frames), -1, -1, -1)

    kept = FeatureStore(folder / "store", "wide", encode, frame_size=(16, 16), chunk_frames=16)
    kept.get(folder / "short.mp4", FPS)
    before = peak_bytes()
    kept.prefill([(folder / "long.mp4", FPS)])
    grown.put(peak_bytes() - before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a process's own peak memory is read from /proc")
def test_a_long_video_is_stored_in_bounded_memory(tmp_path):
    fakes.write_video(tmp_path / "short.mp4", [i % 250 for i in range(40)])
    fakes.write_video(tmp_path / "long.mp4", [i % 250 for i in range(900)])
    context = multiprocessing.get_context("spawn")
    grown = context.Queue()
    process = context.Process(target=store_a_long_video, args=(tmp_path, grown))
    process.start()
    assert grown.get(timeout=120) < 30e6
    process.join()
    assert sum(file.stat().st_size for file in (tmp_path / "store").rglob("*.safetensors")) > 130e6


def test_a_video_of_which_much_is_missing_counts_as_broken(tmp_path):
    index_first = {"movflags": "faststart"}
    whole = make_videos.make(tmp_path / "whole.mp4", count=120, gop=12, container_options=index_first)
    half = make_videos.cut(whole, tmp_path / "half.mp4", keep=0.5)
    with pytest.raises(VideoError, match=r"half.mp4: \d+ of \d+ frames could be read .*cut short"):
        list(read_chunks(half, Sampling(fps=10.0), size=None, chunk_frames=8))


@pytest.mark.parametrize("data", [b"", b"no image", None], ids=["empty", "foreign", "cut"])
def test_broken_images_are_told(tmp_path, data):
    path = tmp_path / "a.png"
    Image.fromarray(make_videos.drawn(5)).save(path)
    path.write_bytes(path.read_bytes()[:300] if data is None else data)
    with pytest.raises(VideoError, match=r"a.png: not a readable image"):
        read_image(path, None)


def test_images_are_upright_and_rgb(tmp_path):
    picture = Image.fromarray(make_videos.drawn(5, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    picture.convert("RGBA").save(tmp_path / "b.png")
    turned = read_image(tmp_path / "a.png", None).pixels[0].transpose(1, 2, 0)
    assert np.array_equal(turned, np.rot90(np.asarray(picture), -1))
    assert np.array_equal(read_image(tmp_path / "b.png", None).pixels[0].transpose(1, 2, 0), np.asarray(picture))
    assert read_image(tmp_path / "b.png", (8, 9)).pixels.shape == (1, 3, 8, 9)
