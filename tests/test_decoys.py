"""Decoys: what a vivid shot shows, and that only training footage has them."""

import dataclasses

import numpy as np
from PIL import Image

import world
from longtake.data.probe_world.bank import BankRecipe, bank_video
from longtake.data.probe_world.decoys import KINDS, VividShot, draw_decoy, vivid_shot
from longtake.data.probe_world.haystack import Clip, Shot
from longtake.data.probe_world.probe import make_video

SIZE = (90, 160)


def grey_shot(level: tuple[int, int, int] = (90, 90, 90)) -> Shot:
    pixels = np.broadcast_to(np.asarray(level, np.uint8), (4, 9, 16, 3))
    return Shot(clip=Clip(name="grey", pixels=pixels, fps=1.0), start_seconds=2.0, offset_seconds=0.0, speed=1.0,
                crop=(0.0, 0.0, 1.0, 1.0), flip=False, gain=(1.0, 1.0, 1.0))  # fmt: skip


def vivid(shot: Shot, **changes) -> VividShot:
    return dataclasses.replace(VividShot(shot=shot, saturation=1.0, decoys=0, seed=0), **changes)


def pixels(shot: Shot | VividShot, seconds: float = 3.0) -> np.ndarray:
    return np.asarray(shot.picture(seconds, SIZE), np.int16)


def test_without_decoys_and_at_its_own_colours_it_is_the_shot():
    assert np.array_equal(pixels(vivid(grey_shot((200, 30, 60)))), pixels(grey_shot((200, 30, 60))))
    assert vivid(grey_shot()).start_seconds == 2.0


def test_colours_move_away_from_their_grey():
    """Luma 0.299 * 120 + 0.587 * 100 + 0.114 * 80 is 103.7, rounded 104: twice as far from it."""
    assert pixels(vivid(grey_shot((120, 100, 80)), saturation=2.0))[0, 0].tolist() == [136, 96, 56]
    assert np.array_equal(pixels(vivid(grey_shot(), saturation=3.0)), pixels(grey_shot()))


def test_decoys_follow_from_their_seed_and_some_drift():
    still = 0
    for seed in range(30):
        one = vivid(grey_shot(), decoys=1, seed=seed)
        assert np.array_equal(pixels(one), pixels(vivid(grey_shot(), decoys=1, seed=seed)))
        still += np.array_equal(pixels(one, 3.0), pixels(one, 6.0))
    assert 5 <= still <= 25
    one, other = (vivid(grey_shot(), decoys=1, seed=seed) for seed in (0, 1))
    assert not np.array_equal(pixels(one), pixels(other))


def test_every_kind_is_drawn_in_colour():
    drawn = dict.fromkeys(KINDS, 0)
    for seed in range(60):
        picture = Image.new("RGB", SIZE[::-1], (90, 90, 90))
        draw_decoy(picture, np.random.default_rng(seed), 0.0)
        shown = np.asarray(picture, np.int16)
        changed = (shown != 90).any(2)
        kind = str(np.random.default_rng(seed).choice(KINDS))
        if changed.any():
            drawn[kind] += 1
            coloured = np.ptp(shown[changed], axis=1).max()
            assert coloured > 30, (seed, kind)
    assert min(drawn.values()) >= 4
    assert sum(drawn.values()) >= 55


def test_every_other_shot_is_plain():
    rng = np.random.default_rng(0)
    shots = [vivid_shot(rng, world.clips(), 0.0) for _ in range(400)]
    assert 160 < sum(isinstance(shot, Shot) for shot in shots) < 240
    richest = [shot.saturation for shot in shots if isinstance(shot, VividShot)]
    assert min(richest) == 1.0
    assert 3.5 < max(richest) < 4.0


def test_only_training_footage_has_decoys():
    bank = bank_video(BankRecipe(), world.clips(), 0)
    assert any(isinstance(shot, VividShot) for shot in bank.shots)
    for seed in range(8):
        video = make_video(seed, split="test", clips=world.clips(), num_frames=64)
        assert all(isinstance(shot, Shot) for shot in (*video.shots, *video.foreign))
