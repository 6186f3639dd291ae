"""Reading a conversation's media: rates by length, the same again for the same seed, spans, images, the store."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fakes
import make_videos
from longtake.data.conversations.conversations import Conversation, Media, Turn
from longtake.data.conversations.media import MediaReader, VariableSampling
from longtake.data.features import Features, FeatureStore
from longtake.types import Frames, LongtakeError, Sampling, VideoError


def conversation(*media: Media, name: str = "a") -> Conversation:
    turns = (Turn(role="user", parts=(*media, "What?")), Turn(role="assistant", parts=("A card.",)))
    return Conversation(name=name, turns=turns)


def video(folder: Path, seconds: int, name: str = "v.mp4", fps: int = 6) -> Media:
    """A file whose brightness tells the time: 4 a second."""
    shades = [int(4 * i / fps) % 256 for i in range(seconds * fps)]
    return Media(kind="video", path=fakes.write_video(folder / name, shades, fps=fps, size=32))


def reader(**changes: object) -> MediaReader:
    return MediaReader(VariableSampling(short_seconds=10, max_frames=25), seed=3, **changes)


def test_short_videos_get_a_random_rate_and_long_ones_one_a_second(tmp_path):
    short, long = video(tmp_path, 8, "s.mp4"), video(tmp_path, 12, "l.mp4")
    both = conversation(short, long)
    drawn = [[sampling.fps for sampling in reader().samplings(both, epoch)] for epoch in range(40)]
    assert {rates[0] for rates in drawn} == {2.0, 3.0}
    assert 10 <= [rates[0] for rates in drawn].count(2.0) <= 30
    assert {rates[1] for rates in drawn} == {1.0}
    other = [reader().samplings(conversation(short, name=str(n)), 0)[0].fps for n in range(40)]
    assert set(other) == {2.0, 3.0}


def test_the_same_seed_epoch_and_conversation_read_the_same(tmp_path):
    both = conversation(video(tmp_path, 8, "s.mp4"), video(tmp_path, 12, "l.mp4"))
    for epoch in range(4):
        first, again = reader().read(both, epoch), reader().read(both, epoch)
        assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, again, strict=True))
        assert [len(clip) for clip in first] == reader().num_frames(both, epoch)
    other = MediaReader(VariableSampling(short_seconds=10, max_frames=25), seed=4)
    assert [reader().samplings(both, e) for e in range(9)] != [other.samplings(both, e) for e in range(9)]


def test_frames_are_those_of_their_times(tmp_path):
    (clip,) = reader().read(conversation(video(tmp_path, 12)), 0)
    assert clip.seconds == pytest.approx(np.arange(12.0), abs=0.11)
    assert np.abs(clip.pixels.mean((1, 2, 3)) - 4 * clip.seconds).max() < 4


def test_above_the_cap_sampling_is_uniform(tmp_path):
    (clip,) = reader().read(conversation(video(tmp_path, 60, fps=2)), 0)
    assert len(clip) == 25
    assert reader().num_frames(conversation(video(tmp_path, 60, fps=2)), 0) == [25]
    assert clip.seconds == pytest.approx((np.arange(25) + 0.5) * 60 / 25, abs=1.3)


def test_a_cap_that_cuts_nothing_is_no_other_sampling(tmp_path):
    """So that a store has the frames that pre-training read, which knows no cap."""
    for seconds, cap in ((25, None), (26, 25)):
        (sampling,) = reader().samplings(conversation(video(tmp_path, seconds)), 0)
        assert sampling == Sampling(fps=1.0, max_frames=cap)
    (part,) = reader().samplings(conversation(dataclasses.replace(video(tmp_path, 60), stop_seconds=12.0)), 0)
    assert part == Sampling(fps=1.0, stop_seconds=12.0)


def test_a_span_counts_as_the_video(tmp_path):
    long = video(tmp_path, 12)
    part = conversation(Media(kind="video", path=long.path, start_seconds=4.0, stop_seconds=9.0))
    (sampling,) = reader().samplings(part, 0)
    assert sampling.fps in (2.0, 3.0)
    (clip,) = reader().read(part, 0)
    assert len(clip) == 5 * sampling.fps == reader().num_frames(part, 0)[0]
    assert clip.seconds.min() >= 4 - 0.2
    assert clip.seconds.max() < 9
    late = conversation(Media(kind="video", path=long.path, start_seconds=20.0, stop_seconds=30.0))
    with pytest.raises(VideoError, match=r"v.mp4: the span starts at 20 s but the video ends at 12.00 s"):
        reader().read(late, 0)


def test_a_video_slower_than_the_rate_gives_its_own_frames(tmp_path):
    slow = conversation(video(tmp_path, 8, fps=1))
    assert [len(clip) for clip in reader().read(slow, 0)] == [8] == reader().num_frames(slow, 0)


def test_images_and_frame_size(tmp_path):
    Image.fromarray(make_videos.drawn(9)).save(tmp_path / "a.png")
    mixed = conversation(Media(kind="image", path=tmp_path / "a.png"), video(tmp_path, 12))
    image, clip = reader(frame_size=(16, 24)).read(mixed, 0)
    assert isinstance(image, Frames)
    assert image.pixels.shape == (1, 3, 16, 24)
    assert clip.pixels.shape == (12, 3, 16, 24)
    assert reader().samplings(mixed, 0)[0] is None


def test_with_a_store_clips_are_features(tmp_path):
    Image.fromarray(make_videos.drawn(9)).save(tmp_path / "a.png")
    mixed = conversation(Media(kind="image", path=tmp_path / "a.png"), video(tmp_path, 12))

    def encode(frames: Frames) -> torch.Tensor:
        return torch.from_numpy(np.array(frames.pixels)).float().mean((2, 3))[:, None, None]

    store = FeatureStore(tmp_path / "store", "mean", encode, frame_size=(16, 16))
    image, clip = reader(store=store).read(mixed, 0)
    assert isinstance(image, Features)
    assert clip.features.shape == (12, 1, 1, 3)
    plain = reader(frame_size=(16, 16)).read(mixed, 0)
    assert torch.equal(clip.features, encode(plain[1]).bfloat16())
    assert clip.seconds.tolist() == plain[1].seconds.tolist()


def test_missing_media_are_told(tmp_path):
    with pytest.raises(VideoError, match="none.mp4: no such file"):
        reader().read(conversation(Media(kind="video", path=tmp_path / "none.mp4")), 0)
    with pytest.raises(VideoError, match="none.png: no such image file"):
        reader().read(conversation(Media(kind="image", path=tmp_path / "none.png")), 0)
    with pytest.raises(LongtakeError, match="short_fps is empty"):
        VariableSampling(short_fps=())
