"""The haystack: shots by hand, footage decoded once, and the split by source."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import world
from longtake import VideoError, video
from longtake.data.probe_world import haystack
from longtake.data.probe_world.haystack import (
    Clip,
    Shot,
    describe,
    drawn_clip,
    footage_clips,
    group_by_source,
    load_clips,
    random_shot,
    split_of_source,
    unique_minutes,
)
from longtake.types import Frames

SHARED = Path(__file__).parents[1] / "../shared/data/videos"
TWINS = (
    ("bbb_long_270p.mp4", "bbb_30s_vp8.webm"),
    ("room_people_one_by_one.mp4", "room_people_first60s_vp9.webm"),
    ("pedestrians_vtest.avi", "pedestrians_vtest_av1.mkv"),
    ("pour_coffee.mp4", "pour_coffee_hevc.mp4"),
    ("megamind_dinner.avi", "megamind_dinner_buggy.avi"),
    ("film_vfr_drop3.mp4", "film_rotated90.mp4"),
)


def shot(clip: Clip, **changes) -> Shot:
    plain = {"start_seconds": 0.0, "offset_seconds": 0.0, "speed": 1.0, "crop": (0.0, 0.0, 1.0, 1.0),
             "flip": False, "gain": (1.0, 1.0, 1.0)}  # fmt: skip
    return Shot(clip=clip, **(plain | changes))


def counting_clip(count: int, fps: float = 1.0) -> Clip:
    """Frame k is plain k."""
    levels = np.arange(count, dtype=np.uint8)
    return Clip(name="count", pixels=np.broadcast_to(levels[:, None, None, None], (count, 4, 6, 3)), fps=fps)


def test_a_shot_runs_to_and_fro():
    shown = [shot(counting_clip(4)).picture(float(t), (4, 6)).getpixel((0, 0))[0] for t in range(9)]
    assert shown == [0, 1, 2, 3, 2, 1, 0, 1, 2]


def test_a_shot_begins_at_its_offset_and_has_its_speed():
    one = shot(counting_clip(60, fps=3.0), start_seconds=10.0, offset_seconds=5.0, speed=0.5)
    assert [one.picture(t, (4, 6)).getpixel((0, 0))[0] for t in (10.0, 12.0, 20.0)] == [15, 18, 30]


def test_a_single_frame_is_a_clip():
    assert shot(counting_clip(1)).picture(7.0, (4, 6)).getpixel((0, 0)) == (0, 0, 0)


def test_crop_flip_and_gain():
    ramp = np.broadcast_to(np.arange(0, 80, 10, dtype=np.uint8)[None, None, :, None], (1, 8, 8, 3))
    clip = Clip(name="ramp", pixels=ramp, fps=1.0)
    cropped = np.asarray(shot(clip, crop=(0.5, 0.0, 1.0, 0.5)).picture(0.0, (4, 4)))
    assert cropped[0, :, 0].tolist() == [40, 50, 60, 70]
    assert np.asarray(shot(clip, flip=True).picture(0.0, (8, 8)))[0, :, 0].tolist() == list(range(70, -1, -10))
    tinted = np.asarray(shot(clip, gain=(2.0, 0.5, 9.0)).picture(0.0, (8, 8)))
    assert tinted[0, 5].tolist() == [100, 25, 255]


def test_shots_follow_their_generator_and_the_square_root_of_length():
    short, long = (Clip(name=n, pixels=np.zeros((c, 2, 2, 3), np.uint8), fps=1.0) for n, c in (("s", 25), ("l", 400)))
    rng = np.random.default_rng(0)
    names = [random_shot(rng, [short, long], 0.0).clip.name for _ in range(1000)]
    assert names.count("s") / 1000 == pytest.approx(5 / (5 + 20), abs=0.04)
    assert random_shot(np.random.default_rng(1), [short], 2.0) == random_shot(np.random.default_rng(1), [short], 2.0)


def test_drawn_clips_are_reproducible_move_and_differ():
    one, again, other = drawn_clip(3, 4.0), drawn_clip(3, 4.0), drawn_clip(4, 4.0)
    assert np.array_equal(one.pixels, again.pixels)
    assert len(one.pixels) == 12
    assert (one.pixels[0] != one.pixels[6]).any()
    assert (one.pixels[0] != other.pixels[0]).mean() > 0.5
    assert not set(haystack.DRAWN_SEEDS["train"]) & set(haystack.DRAWN_SEEDS["test"])


def test_minutes_are_counted():
    clips = [counting_clip(120), counting_clip(180, fps=3.0)]
    assert unique_minutes(clips) == 3.0
    assert describe(clips) == '{"clips": 2, "unique_minutes": 3.0}'


def reencoded(clip: Clip, name: str, rng: np.random.Generator) -> Clip:
    """Half the size, noisy, a little darker: as a bad re-encode."""
    small = np.stack([np.asarray(Image.fromarray(p).resize((128, 72))) for p in clip.pixels]).astype(float)
    worse = np.clip(small * 0.92 + rng.normal(0, 4, small.shape), 0, 255).astype(np.uint8)
    return Clip(name=name, pixels=worse, fps=clip.fps)


def test_twins_have_one_source_and_strangers_have_two():
    rng = np.random.default_rng(0)
    one, other, third = world.clips(50, 3)
    clips = [
        Clip(name="b", pixels=one.pixels, fps=3.0),
        reencoded(one, "c", rng),
        Clip(name="a cut", pixels=one.pixels[6:18], fps=3.0),
        Clip(name="turned", pixels=np.rot90(one.pixels, 1, axes=(1, 2)), fps=3.0),
        Clip(name="other", pixels=other.pixels, fps=3.0),
        Clip(name="third", pixels=third.pixels, fps=3.0),
        Clip(name="black", pixels=np.zeros((9, 72, 128, 3), np.uint8), fps=3.0),
        Clip(name="grey", pixels=np.full((9, 72, 128, 3), 90, np.uint8), fps=3.0),
    ]
    sources = group_by_source(clips)
    assert {sources[name] for name in ("a cut", "b", "c", "turned")} == {"a cut"}
    assert [sources[name] for name in ("other", "third", "black", "grey")] == ["other", "third", "black", "grey"]
    assert group_by_source(clips[::-1]) == sources


def test_a_quarter_of_the_sources_is_the_tests():
    sides = [split_of_source(f"video-{n}.mp4") for n in range(2000)]
    assert sides.count("test") / 2000 == pytest.approx(0.25, abs=0.03)


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    """Five videos, a twin of one of them, one that is still written, a note, a table and a file that is no video."""
    folder = tmp_path_factory.mktemp("footage")
    for number, clip in enumerate(world.clips(60, 5, 3.0)):
        pixels = clip.pixels.transpose(0, 3, 1, 2)
        video.write(folder / f"v{number}.mp4", [Frames(pixels=pixels, seconds=np.arange(len(pixels)) / 3)], 3.0)
        if number == 1:
            small = np.ascontiguousarray(pixels[:, :, ::2, ::2])
            chunk = Frames(pixels=small, seconds=np.arange(len(pixels)) / 3)
            video.write(folder / "zzz twin.mp4", [chunk], 3.0, quality=32)
    shutil.copy(folder / "v0.mp4", folder / ".v5.mp4.0123456789ab.part")
    (folder / "note.txt").write_text("no video")
    (folder / "table.csv").write_text("a,b")
    (folder / "broken.mp4").write_bytes(b"no video either" * 100)
    return folder


def test_a_folder_is_decoded_once_and_split_by_source(footage, tmp_path, monkeypatch):
    train, test = (load_clips(split, footage, tmp_path) for split in ("train", "test"))
    names = {clip.name for clip in train} | {clip.name for clip in test}
    assert names == {*(f"v{n}.mp4" for n in range(5)), "zzz twin.mp4"}
    assert not {clip.name for clip in train} & {clip.name for clip in test}
    for clip in train + test:
        source = "v1.mp4" if clip.name == "zzz twin.mp4" else clip.name
        assert (clip in train) == (split_of_source(source) == "train"), clip.name
        assert clip.pixels.shape[0] == 9
        assert min(clip.pixels.shape[1:3]) == haystack.SHORT_SIDE_PIXELS
    assert list(tmp_path.glob(".*")) == []
    readable = haystack._decode

    def only_broken(path: Path) -> np.ndarray:
        assert path.name == "broken.mp4", "decoded again"
        return readable(path)

    monkeypatch.setattr(haystack, "_decode", only_broken)
    again = load_clips("train", footage, tmp_path)
    assert [clip.name for clip in again] == [clip.name for clip in train]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(again, train, strict=True))


def test_a_folder_without_videos_says_so(tmp_path):
    (tmp_path / "note.txt").write_text("nothing here")
    with pytest.raises(VideoError, match="is not a folder; name a folder of video files"):
        load_clips("test", tmp_path / "nothing", tmp_path / "cache")
    with pytest.raises(VideoError, match="holds no readable video; name a folder"):
        load_clips("test", tmp_path, tmp_path / "cache")


@pytest.mark.usefixtures("permissions")
def test_a_file_that_cannot_be_read_ends_nothing(footage, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    shutil.copy(footage / "v0.mp4", folder)
    shutil.copy(footage / "v1.mp4", folder)
    (folder / "v1.mp4").chmod(0)
    (folder / "empty.mp4").touch()
    clips = footage_clips(split_of_source("v0.mp4"), folder, tmp_path / "cache")
    assert [clip.name for clip in clips] == ["v0.mp4"]


def test_a_side_without_a_source_says_so(footage, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(footage / "v0.mp4", folder)
    own = split_of_source("v0.mp4")
    other = "train" if own == "test" else "test"
    assert [clip.name for clip in load_clips(own, folder, tmp_path)] == ["v0.mp4"]
    assert footage_clips(other, folder, tmp_path) == []
    with pytest.raises(VideoError, match=f"is of the {other} side"):
        load_clips(other, folder, tmp_path)


@pytest.mark.slow
def test_shared_twins_fall_on_one_side(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("the shared videos are not here")
    names = [name for pair in TWINS for name in pair]
    names += ["panda_cub.mp4", "yoga_terrace.mp4", "kids_jump_bed.mp4", "arm_wrestling.mp4", "nature_cuts.mp4"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # damaged files say so
        clips = [haystack._stored(SHARED / name, tmp_path) for name in names]
    sources = group_by_source([clip for clip in clips if clip is not None])
    for one, other in TWINS:
        assert sources[one] == sources[other]
    assert len(set(sources.values())) == len(TWINS) + 5
