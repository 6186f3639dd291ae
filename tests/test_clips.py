"""Clips for pre-training: the windows and images they say they are, needles where they are, and broken files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import world
from longtake.data.clips import BankClips, Clips, StoreClips, needle_patches
from longtake.data.probe_world.bank import BankRecipe, Placed, build_bank
from longtake.data.probe_world.needles import Card
from longtake.types import LongtakeError, Sampling, VideoError

CARD = Card(content="7", colour="red", outline="round")
SAMPLING = Sampling(fps=1.0)


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    """Features that tell where they stand: video, frame, row and column."""
    folder = tmp_path_factory.mktemp("bank")
    done = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        done.append(len(done))
        axes = [torch.tensor([float(done[-1])]), *(torch.arange(float(n)) for n in (len(pixels), 2, 3))]
        return torch.cartesian_prod(*axes).view(len(pixels), 6, 4).bfloat16()

    build_bank(BankRecipe(videos=20, frames=16, seed=5, side=8), world.clips(), encode, folder, workers=0)
    return folder


def source(bank: Path, **changes) -> BankClips:
    settings = {"grid": (2, 3), "dim": 4, "frames_per_video": 16, "frames": 8} | changes
    return BankClips(bank, **settings)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_bank_clips_are_windows_and_images(bank):
    batch = source(bank).draw(rng(), 400)
    assert batch.features.shape == (400, 8, 2, 3, 4)
    assert batch.features.dtype == torch.bfloat16
    assert batch.is_image.float().mean().item() == pytest.approx(0.25, abs=0.07)
    steps = batch.features[..., 1].diff(dim=1)
    assert (steps[batch.is_image] == 0).all()
    assert (steps[~batch.is_image] == 1).all()
    assert set(batch.features[..., 0].unique().tolist()) == set(range(18))
    assert set(batch.features[~batch.is_image][:, 0, 0, 0, 1].tolist()) == set(range(9))
    assert batch.features[0, 0, :, :, 2:].tolist() == [[[row, column] for column in range(3)] for row in range(2)]


def test_held_out_videos_are_the_last_tenth(bank):
    batch = source(bank, part="held_out").draw(rng(), 50)
    assert set(batch.features[..., 0].unique().tolist()) == {18, 19}


def test_the_generator_alone_decides(bank):
    one, same, other = (source(bank).draw(rng(seed), 20) for seed in (3, 3, 4))
    assert torch.equal(one.features, same.features)
    assert torch.equal(one.oracle, same.oracle)
    assert not torch.equal(one.features, other.features)


def test_needles_are_marked_on_the_frames_that_show_them(bank):
    clips = source(bank)
    batch = clips.draw(rng(1), 60)
    found = 0
    for features, image, oracle in zip(batch.features, batch.is_image, batch.oracle, strict=True):
        video, first = (int(value) for value in features[0, 0, 0, :2])
        for place in range(8):
            frame = first if image else first + place
            shown = [e for e in clips.events[video] if e.what is not None and e.first <= frame < e.stop]
            assert oracle[place].any() == bool(shown)
            for event in shown:
                x, y = event.centres[frame - event.first]
                assert oracle[place, int(y * 2), int(x * 3)]
                found += 1
    assert found > 50


def test_a_needles_patches_by_hand():
    events = [
        Placed(what=CARD, first=2, stop=4, centres=((0.1, 0.9), (0.5, 0.5))),
        Placed(what=None, first=1, stop=3),
    ]
    patches = needle_patches(events, np.arange(1, 5), (4, 5))
    assert not patches[0].any()
    assert patches[1].astype(int).tolist() == [[0] * 5, [0] * 5, [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert patches[2].astype(int).tolist() == [[0] * 5, *[[0, 1, 1, 1, 0]] * 3]
    assert not patches[3].any()


def test_a_bank_of_other_sizes_is_refused(bank):
    with pytest.raises(LongtakeError, match="features.bin holds 7680 values, fewer than"):
        source(bank, dim=8)
    with pytest.raises(LongtakeError, match="a clip has 17 frames; give at least 1 and at most a video's 16"):
        source(bank, frames=17)


@dataclass(frozen=True)
class Stored:
    features: torch.Tensor


class FakeStore:
    """Video n has n frames that tell (n, frame); broken files and images are named so."""

    def get(self, path: Path, sampling: Sampling | None) -> Stored:
        if "broken" in path.name:
            raise VideoError(f"{path}: holds no readable video")
        assert sampling == (None if "image" in path.name else SAMPLING)
        number, frames = int(path.suffix[1:]), 1 if sampling is None else int(path.suffix[1:])
        rows = torch.stack([torch.full((frames,), number), torch.arange(frames)], dim=1)
        return Stored(rows[:, None, None, :].expand(-1, 2, 3, -1).bfloat16())


def files(*names: str) -> list[Path]:
    return [Path(name) for name in names]


def test_store_clips_are_windows_filled_up_and_images():
    clips = StoreClips(FakeStore(), files("v.2", "v.9"), files("image.40", "image.50"), sampling=SAMPLING)
    batch = clips.draw(rng(), 300)
    assert batch.features.shape == (300, 4, 2, 3, 2)
    assert batch.oracle is None
    number, frame = batch.features[:, 0, 0, 0, 0], batch.features[:, :, 0, 0, 1]
    assert set(number[batch.is_image].tolist()) == {40, 50}
    assert (frame[batch.is_image] == 0).all()
    assert {tuple(row) for row in frame[number == 2].tolist()} == {(0, 1, 1, 1)}
    assert {tuple(row) for row in frame[number == 9].tolist()} == {tuple(range(n, n + 4)) for n in range(6)}
    again = StoreClips(FakeStore(), files("v.2", "v.9"), files("image.40", "image.50"), sampling=SAMPLING)
    assert torch.equal(again.draw(rng(), 300).features, batch.features)


def test_broken_files_are_named_and_not_replaced_by_anything():
    videos = files("v.5", "v.6", "broken.7")
    clips = StoreClips(FakeStore(), videos, sampling=SAMPLING, image_share=0.0, max_broken=0.4)
    batch = clips.draw(rng(), 50)
    assert set(batch.features[..., 0].unique().tolist()) == {5, 6}
    assert clips.broken.names == {"broken.7": "broken.7: holds no readable video"}
    strict = StoreClips(FakeStore(), videos, sampling=SAMPLING, image_share=0.0)
    with pytest.raises(LongtakeError, match=r"1 of 3 files are broken or missing, more than 1.0% .first: broken.7"):
        strict.draw(rng(), 50)
    hopeless = StoreClips(FakeStore(), files("broken.7"), sampling=SAMPLING, image_share=0.0, max_broken=1.0)
    with pytest.raises(LongtakeError, match="all 1 videos are broken or missing"):
        hopeless.draw(rng(), 1)


def test_a_kind_without_files_is_refused():
    with pytest.raises(LongtakeError, match="there are no images, but image_share is 0.25"):
        StoreClips(FakeStore(), files("v.5"), sampling=SAMPLING)
    with pytest.raises(LongtakeError, match="there are no videos"):
        StoreClips(FakeStore(), [], files("image.5"), sampling=SAMPLING)


def test_clips_check_their_shapes():
    good = torch.zeros(2, 4, 2, 2, 8)
    with pytest.raises(ValueError, match="features must be"):
        Clips(features=good[0], is_image=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"is_image must be bool \(2,\)"):
        Clips(features=good, is_image=torch.zeros(2))
    with pytest.raises(ValueError, match=r"oracle must be bool \(2, 4, 2, 2\)"):
        Clips(features=good, is_image=torch.zeros(2, dtype=torch.bool), oracle=torch.zeros(2, 4, dtype=torch.bool))
