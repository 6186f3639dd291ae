"""Watching: groups and times, bounded reading ahead, interruption and continuation, and bad targets."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import longtake.watch
from fakes import FakeBackbone, grey_frames, write_video
from longtake.memory import load_memory, save_memory
from longtake.types import Frames, LongtakeError, Memory, Sampling, VideoError, VisualTokens
from longtake.watch import watch, watch_frames

LEVELS = [(7 * i) % 250 for i in range(600)]


def in_chunks(frames: Frames, size: int) -> Iterator[Frames]:
    for start in range(0, len(frames), size):
        part = slice(start, start + size)
        yield Frames(pixels=frames.pixels[part], seconds=frames.seconds[part])


def assert_same_tokens(one: Memory, other: Memory) -> None:
    for name in ("features", "position", "seconds", "weight"):
        assert torch.equal(getattr(one.tokens, name), getattr(other.tokens, name)), name
    assert one.tokens.grid == other.tokens.grid


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "grey.mp4", LEVELS)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 32, 1000])
def test_chunks_of_any_length_give_the_tokens_of_one_encoding(size):
    frames = grey_frames(LEVELS[:50], fps=2.0)
    whole = FakeBackbone().encode(frames)
    memory = watch_frames(FakeBackbone(), in_chunks(frames, size), Sampling(fps=2.0))
    for name in ("features", "position", "seconds", "weight"):
        assert torch.equal(getattr(memory.tokens, name), getattr(whole, name)), name
    assert memory.tokens.grid == (13, 2, 2)


def test_times_and_provenance_by_hand():
    memory = watch_frames(FakeBackbone(), [grey_frames(LEVELS[:9], fps=2.0)], Sampling(fps=2.0), duration_seconds=4.5)
    assert memory.group_seconds == 2.0
    assert memory.start_seconds == 0.0
    assert memory.tokens.seconds.tolist() == [0.0] * 4 + [2.0] * 4 + [4.0] * 4
    assert memory.stop_seconds == 4.5  # the last group has one frame
    assert memory.group_stops == (2.0, 4.0, 4.5)
    assert memory.provenance.frames == 9
    assert memory.provenance.duration_seconds == 4.5
    assert set(memory.provenance.seconds) == {"read", "encode", "compress"}


@pytest.mark.parametrize("num_planned", [0, 20, 150, 100_000])
def test_the_model_s_tensors_are_copied_once_and_let_go(num_planned, tmp_path):
    made: list[weakref.ref[torch.Tensor]] = []
    most = 0

    class Counted(FakeBackbone):
        def encode(self, frames: Frames) -> VisualTokens:
            nonlocal most
            most = max(most, sum(part() is not None for part in made))
            tokens = super().encode(frames)
            made.append(weakref.ref(tokens.features))
            return tokens

    frames = grey_frames(LEVELS[:150])
    memory = watch_frames(Counted(), in_chunks(frames, 8), Sampling(fps=1.0), num_planned=num_planned)
    assert len(made) == 20
    assert most <= 1
    assert not any(part() is not None for part in made)
    assert torch.equal(memory.tokens.features, FakeBackbone().encode(frames).features)
    save_memory(memory, tmp_path / "m")  # room that was planned and not needed is not saved
    assert (tmp_path / "m").stat().st_size < 38 * 4 * (4 * 4 + 3 * 8 + 8 + 4) + 2000
    assert_same_tokens(load_memory(tmp_path / "m"), memory)


GROWTH = """
import resource, sys
import numpy as np
import torch
from longtake.types import Frames, Sampling, VisualTokens
from longtake.watch import watch_frames

class Wide:
    name, frames_per_group = "wide", 4
    def encode(self, frames):
        passing = [torch.ones(1 << 20) for _ in range(3)]
        start = torch.from_numpy(frames.seconds[::4].copy())
        passing.append(passing[0] + passing[1])
        return VisualTokens(
            features=passing[-1][: 16384 * len(start)].view(-1, 1024).clone(),
            position=torch.zeros(16 * len(start), 3, dtype=torch.int64),
            seconds=start.repeat_interleave(16),
            weight=torch.ones(16 * len(start)),
            grid=(len(start), 4, 4),
        )

def chunks(num_frames):
    for first in range(0, num_frames, 32):
        seconds = np.arange(first, first + 32, dtype=np.float64)
        yield Frames(pixels=np.zeros((32, 3, 2, 2), np.uint8), seconds=seconds)

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

Wide().encode(next(chunks(32)))
before = peak_bytes()
memory = watch_frames(Wide(), chunks(8192), Sampling(fps=1.0), num_planned=8192)
print(memory.tokens.features.nbytes, peak_bytes() - before)
"""


@pytest.mark.slow
def test_memory_grows_by_the_kept_tokens_alone():
    """Measured in a process of its own, beside a model whose passing tensors are many times what is kept."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", GROWTH], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tokens_bytes, grown_bytes = map(int, done.stdout.split())
    assert tokens_bytes > 100 << 20
    assert grown_bytes < 1.3 * tokens_bytes


@pytest.mark.parametrize(("sampling", "group_seconds"), [(Sampling(fps=2.0), 2.0), (Sampling(count=1), 4.0)])
def test_a_single_frame_covers_what_was_asked_for(sampling, group_seconds):
    assert watch_frames(FakeBackbone(), [grey_frames([9])], sampling).group_seconds == group_seconds


def test_group_seconds_is_not_moved_by_a_hole():
    frames = grey_frames(LEVELS[:20])
    late = Frames(pixels=frames.pixels, seconds=frames.seconds + (frames.seconds > 10) * 500.0)
    assert watch_frames(FakeBackbone(), [late], Sampling(fps=1.0)).group_seconds == 4.0


def test_no_frames_is_the_users_error():
    with pytest.raises(VideoError, match="a.mp4: no frame to watch in the chosen span; widen start and stop"):
        watch_frames(FakeBackbone(), [], Sampling(fps=1.0), video="a.mp4")


def test_reading_runs_beside_encoding_in_its_own_thread_but_not_far_ahead():
    made, ahead, most, threads = threading.Event(), 0, 0, set()

    def chunks() -> Iterator[Frames]:
        nonlocal ahead, most
        for number, part in enumerate(in_chunks(grey_frames(LEVELS[:160]), 8)):
            threads.add(threading.current_thread().name)
            ahead += 1
            most = max(most, ahead)
            if number == longtake.watch.READ_AHEAD_CHUNKS:
                made.set()
            yield part

    class Slow(FakeBackbone):
        def encode(self, frames: Frames) -> object:
            nonlocal ahead
            assert made.wait(60), "the next chunks are not read while the first is encoded"
            time.sleep(0.002)
            ahead -= 1
            return super().encode(frames)

    watch_frames(Slow(), chunks(), Sampling(fps=1.0))
    assert most <= longtake.watch.READ_AHEAD_CHUNKS + 2  # and one in hand, one being made
    assert threads == {"longtake-read_0"}


def test_time_is_counted_by_stage():
    def chunks() -> Iterator[Frames]:
        for part in in_chunks(grey_frames(LEVELS[:40]), 8):
            time.sleep(0.02)
            yield part

    class Slow(FakeBackbone):
        def encode(self, frames: Frames) -> object:
            time.sleep(0.01)
            return super().encode(frames)

    spent = watch_frames(Slow(), chunks(), Sampling(fps=1.0)).provenance.seconds
    assert spent["read"] >= 0.1
    assert spent["encode"] >= 0.05
    assert spent["compress"] == 0.0


def test_an_error_while_reading_is_raised_here_and_ends_the_thread():
    def chunks() -> Iterator[Frames]:
        yield grey_frames(LEVELS[:8])
        raise VideoError("a.mp4: broken")

    with pytest.raises(VideoError, match="a.mp4: broken"):
        watch_frames(FakeBackbone(), chunks(), Sampling(fps=1.0))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("longtake-read")]


def test_watching_a_file(video):
    calls = []
    backbone = FakeBackbone()
    memory = watch(backbone, video, Sampling(fps=1.0), progress=lambda done, planned: calls.append((done, planned)))
    assert memory.provenance.frames == 600
    assert memory.tokens.grid == (150, 2, 2)
    assert memory.provenance.video == str(video)
    assert memory.provenance.duration_seconds == pytest.approx(600)
    assert calls[-1] == (600, 600)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    shown = np.asarray(LEVELS, dtype=np.float64).reshape(-1, 4).mean(1) / 255
    assert memory.tokens.features[::4, 0].numpy() == pytest.approx(shown, abs=0.02)
    assert len(backbone.encoded_frames) == 600


class Interrupted(FakeBackbone):
    """Stops as a user's Ctrl-C would, after so many frames."""

    limit = 400

    def encode(self, frames: Frames) -> object:
        if len(self.encoded_frames) >= self.limit:
            raise KeyboardInterrupt
        return super().encode(frames)


def interrupt(video: Path, target: Path, sampling: Sampling | None = None) -> None:
    with pytest.raises(KeyboardInterrupt):
        watch(Interrupted(), video, sampling or Sampling(fps=1.0), target=target)


def test_an_interrupted_watch_continues_from_its_shards(video, tmp_path):
    target = tmp_path / "m"
    interrupt(video, target)
    assert os.listdir(tmp_path) == ["m.shard-00000"]
    backbone = FakeBackbone()
    memory = watch(backbone, video, Sampling(fps=1.0), target=target)
    assert len(backbone.encoded_frames) == 600 - longtake.watch.SHARD_FRAMES
    assert os.listdir(tmp_path) == ["m"]
    assert_same_tokens(memory, watch(FakeBackbone(), video, Sampling(fps=1.0)))
    assert_same_tokens(memory, load_memory(target))
    assert memory.provenance.frames == 600
    assert memory.start_seconds == 0.0


def test_a_watch_interrupted_after_its_last_frame_encodes_nothing_again(video, tmp_path, monkeypatch):
    monkeypatch.setattr(longtake.watch, "SHARD_FRAMES", 200)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(longtake.watch, "save_memory", fail)
    with pytest.raises(KeyboardInterrupt):
        watch(FakeBackbone(), video, Sampling(fps=1.0), target=tmp_path / "m")
    monkeypatch.setattr(longtake.watch, "save_memory", save_memory)
    backbone = FakeBackbone()
    memory = watch(backbone, video, Sampling(fps=1.0), target=tmp_path / "m")
    assert len(backbone.encoded_frames) == 600 % 224  # shards fill with whole chunks: 224 frames each
    assert_same_tokens(memory, watch(FakeBackbone(), video, Sampling(fps=1.0)))


def test_a_watch_continued_in_another_type_keeps_the_wider_one(video, tmp_path):
    class Halved(Interrupted):
        def encode(self, frames: Frames) -> VisualTokens:
            tokens = super().encode(frames)
            return dataclasses.replace(tokens, features=tokens.features.bfloat16())

    with pytest.raises(KeyboardInterrupt):
        watch(Halved(), video, Sampling(fps=1.0), target=tmp_path / "m")
    features = watch(FakeBackbone(), video, Sampling(fps=1.0), target=tmp_path / "m").tokens.features
    whole = watch(FakeBackbone(), video, Sampling(fps=1.0)).tokens.features
    seen = longtake.watch.SHARD_FRAMES  # 4 frames a group of 4 tokens: as many tokens as frames
    assert torch.equal(features, torch.cat([whole[:seen].bfloat16().float(), whole[seen:]]))


@pytest.mark.parametrize("change", ["model", "sampling", "video", "broken"])
def test_shards_of_another_watch_are_not_used(video, tmp_path, change):
    target = tmp_path / "m"
    sampling, backbone, path = Sampling(fps=1.0), FakeBackbone(), video
    interrupt(video, target)
    if change == "model":
        backbone = FakeBackbone(name="fake-2")
    elif change == "sampling":
        sampling = Sampling(fps=0.5)
    elif change == "video":
        path = write_video(tmp_path / "other.mp4", LEVELS[::-1])
    else:
        shard = tmp_path / "m.shard-00000"
        shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="shards of another or a broken watch stood beside it"):
        memory = watch(backbone, path, sampling, target=target)
    assert memory.provenance.frames == len(backbone.encoded_frames) == (300 if change == "sampling" else 600)
    assert not [name for name in os.listdir(tmp_path) if "shard" in name]


@pytest.mark.parametrize("damage", ["header", "watch", "grid", "frame_spans"])
def test_a_damaged_shard_is_watched_again(video, tmp_path, damage):
    target, shard = tmp_path / "m", tmp_path / "m.shard-00000"
    interrupt(video, target)
    tensors = load_file(shard)
    with safe_open(shard, framework="pt") as file:
        metadata = file.metadata()
    if damage == "frame_spans":
        del tensors["frame_spans"]
    else:
        header = json.loads(metadata["header"])
        header.pop(damage, None)
        metadata["header"] = "{" if damage == "header" else json.dumps(header)
    save_file(tensors, shard, metadata)
    backbone = FakeBackbone()
    with pytest.warns(UserWarning, match="shards of another or a broken watch stood beside it"):
        watch(backbone, video, Sampling(fps=1.0), target=target)
    assert len(backbone.encoded_frames) == 600
    assert os.listdir(tmp_path) == ["m"]


def test_only_a_watch_s_own_files_are_removed(video, tmp_path):
    target = tmp_path / "m"
    foreign = ["m.shard-notes.txt", "m.shard-000001", "m2.shard-00000", ".m2.0123456789ab.part", ".m.fresh.part"]
    left = [".m.0123456789ab.part", ".m.shard-00003.0123456789ab.part"]
    written_now = ".m.ba9876543210.part"
    for name in (*foreign, *left, written_now):
        (tmp_path / name).write_text("of somebody")
        if name != written_now:
            os.utime(tmp_path / name, (0, 0))
    watch(FakeBackbone(), video, Sampling(fps=1.0), target=target)
    assert sorted(os.listdir(tmp_path)) == sorted(["m", written_now, *foreign])


@pytest.mark.parametrize("there", ["the video", "notes", "weights"])
def test_only_a_memory_is_replaced(video, tmp_path, there):
    target = tmp_path / "there"
    if there == "the video":
        target.write_bytes(video.read_bytes())
    elif there == "notes":
        target.write_text("of mine")
    else:
        save_file({"weight": torch.zeros(3)}, target)
    before, backbone = target.read_bytes(), FakeBackbone()
    source = target if there == "the video" else video
    with pytest.raises(LongtakeError, match="there is there and is no memory; give another name, or remove that file"):
        watch(backbone, source, Sampling(fps=1.0), target=target)
    assert target.read_bytes() == before
    assert backbone.encoded_frames == []


def test_a_memory_is_replaced_even_a_truncated_one(video, tmp_path):
    target = tmp_path / "m"
    watch(FakeBackbone(), video, Sampling(count=8), target=target)
    target.write_bytes(target.read_bytes()[:-5])
    watch(FakeBackbone(), video, Sampling(count=12), target=target)
    assert load_memory(target).provenance.frames == 12


@pytest.mark.parametrize("length", [240, 300])
def test_a_name_too_long_for_what_stands_beside_it_is_refused_before_watching(video, tmp_path, length):
    backbone = FakeBackbone()
    with pytest.raises(LongtakeError, match="could not write .*: File name too long; "):
        watch(backbone, video, Sampling(fps=1.0), target=tmp_path / ("m" * length))
    assert backbone.encoded_frames == []
    assert os.listdir(tmp_path) == []


def test_full_disk_while_watching_keeps_whole_shards_only(video, tmp_path, monkeypatch):
    import safetensors.torch

    real, calls = safetensors.torch.save_file, []

    def fills_up(tensors: object, path: Path, metadata: object) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", fills_up)
    with pytest.raises(LongtakeError, match=r"could not write .*m.shard-00001: No space left on device; free space"):
        watch(FakeBackbone(), video, Sampling(fps=1.0), target=tmp_path / "m")
    assert os.listdir(tmp_path) == ["m.shard-00000"]
    backbone = FakeBackbone()
    watch(backbone, video, Sampling(fps=1.0), target=tmp_path / "m")
    assert len(backbone.encoded_frames) == 600 - longtake.watch.SHARD_FRAMES


def test_a_missing_folder_is_refused_before_watching(video, tmp_path):
    backbone = FakeBackbone()
    with pytest.raises(LongtakeError, match="the folder .*none does not exist; make it first"):
        watch(backbone, video, Sampling(fps=1.0), target=tmp_path / "none" / "m")
    assert backbone.encoded_frames == []


def test_what_the_reader_lost_is_warned_of_and_kept(video, tmp_path):
    damaged = tmp_path / "damaged.mp4"
    data = bytearray(video.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 4
    data[middle : middle + 2000] = bytes(2000)
    damaged.write_bytes(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        memory = watch(FakeBackbone(), damaged, Sampling(fps=1.0))
    assert memory.provenance.warnings == tuple(str(warning.message) for warning in caught)
    assert any("could not be read" in line for line in memory.provenance.warnings)


def test_sampling_is_kept_as_asked(video):
    sampling = Sampling(count=10, start_seconds=100.0, stop_seconds=200.0)
    memory = watch(FakeBackbone(), video, sampling)
    assert memory.provenance.sampling == sampling
    assert memory.provenance.frames == 10
    assert 100 <= memory.start_seconds < 110
