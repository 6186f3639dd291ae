"""Drawn scenes that move by a rule: the rules by hand, the split, and files that puzzles are made of."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from longtake import video
from longtake.cli import app
from longtake.data.probe_world.haystack import Clip, group_by_source, split_of_source
from longtake.data.puzzles import dynamics
from longtake.data.puzzles.dynamics import FLOOR, KINDS, Thing, domain_of, make_scene, shown_count, write_scenes
from longtake.data.puzzles.puzzle_file import read_records
from longtake.data.puzzles.puzzle_split import split_by_source
from longtake.types import LongtakeError, Sampling

THING = Thing(
    shape="circle", tint="red", radius=0.1, place=0.5, way=1, start_seconds=2.0, stop_seconds=6.0, count=4
)
MIDDLE = 0.5 * dynamics.WIDTH / dynamics.HEIGHT


def test_a_thing_moves_rests_and_goes():
    assert [THING.share(at) for at in (2.0, 3.0, 6.0, 9.0)] == [0.0, 0.25, 1.0, 1.0]
    assert [THING.is_seen(at) for at in (1.9, 2.0, 15.9, 16.0)] == [False, True, True, False]


def test_falling_goes_with_the_square_of_time():
    ways = [dynamics.fall(THING, share).y + 0.1 for share in (0.0, 0.25, 0.5, 1.0)]
    assert ways == pytest.approx([0.0, FLOOR / 16, FLOOR / 4, FLOOR])


def test_bouncing_comes_half_as_high_each_time():
    """Parabolas of heights 1, 1/2 and 1/4 take 1, 2 sqrt(1/2) and 2 sqrt(1/4) units of time."""
    whole = 1 + math.sqrt(2) + 1
    heights = [
        (FLOOR - 0.1 - dynamics.bounce(THING, time / whole).y) / (FLOOR - 0.2)
        for time in (0.0, 1.0, 1 + math.sqrt(0.5), 1 + math.sqrt(2), 1.5 + math.sqrt(2), whole)
    ]
    assert heights == pytest.approx([1.0, 0.0, 0.5, 0.0, 0.25, 0.0], abs=1e-9)
    ends = dynamics.bounce(THING, 0.0).x, dynamics.bounce(THING, 1.0).x
    assert ends == pytest.approx((MIDDLE - 0.5, MIDDLE))


@pytest.mark.parametrize("way", [1, -1])
def test_rolling_turns_by_the_way_it_goes(way):
    thing = dataclasses.replace(THING, way=way)
    begun, stopped = dynamics.roll(thing, 0.0), dynamics.roll(thing, 1.0)
    assert stopped.x == pytest.approx(MIDDLE)
    assert begun.x == pytest.approx(-0.1 if way > 0 else 2 * MIDDLE + 0.1)
    assert stopped.turn_degrees == pytest.approx(way * 360 * (MIDDLE + 0.1) / (2 * math.pi * 0.1))
    half = dynamics.roll(thing, 0.5)
    assert (half.x - begun.x) / (stopped.x - begun.x) == pytest.approx(0.75)


def test_growing_stands_on_the_floor():
    for share, radius in ((0.0, 0.01), (0.5, 0.055), (1.0, 0.1)):
        pose = dynamics.grow(THING, share)
        assert (pose.radius, pose.y + pose.radius) == pytest.approx((radius, FLOOR))


def test_counting_down_ends_at_nothing():
    assert [shown_count(THING, share) for share in (0.0, 0.2, 0.25, 0.6, 0.99, 1.0)] == [4, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_follow_from_their_seed_and_change_all_the_time(kind):
    one, again, other = (make_scene(kind, "train", seed, 12.0) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    pictures = [np.asarray(one.picture(at), np.int16) for at in np.arange(0.5, 12.0)]
    assert (pictures[3] == np.asarray(again.picture(3.5))).all()
    later = zip(pictures, pictures[3:], strict=False)  # a number may stay for two seconds
    assert all((np.abs(a - b).max(axis=2) > 40).mean() > 0.001 for a, b in later)
    assert sum(len(chunk.seconds) for chunk in one.frames(2.5)) == 30


@pytest.mark.parametrize("name", ["fall.mp4", "falling-00001-0.mp4", "fall-00001-0.mkv", "fall-1-0.mp4", "cat.mp4"])
def test_other_names_are_of_filmed_videos(name):
    assert domain_of(name) == "filmed"


def test_the_splits_share_nothing():
    scenes = {split: [make_scene(KINDS[n % 5], split, n) for n in range(60)] for split in ("train", "test")}
    seen = {}
    for split, made in scenes.items():
        things = [thing for scene in made for thing in scene.things]
        assert all(split_of_source(scene.name) == split for scene in made)
        assert {domain_of(f"some/folder/{scene.name}") for scene in made} == {"drawn"}
        lengths = [thing.stop_seconds - thing.start_seconds for thing in things]
        seen[split] = {
            "shapes": {thing.shape for thing in things},
            "tints": {thing.tint for thing in things},
            "backdrops": {scene.backdrop for scene in made},
            "fonts": {scene.font for scene in made},
            "paces": {band for length in lengths for band, (low, high) in enumerate(BANDS) if low <= length <= high},
        }
        assert all(len(found) > 1 for name, found in seen[split].items() if name != "paces"), "little is drawn"
    assert seen["train"]["paces"] == {0, 2}
    assert seen["test"]["paces"] == {1}
    for name, found in seen["train"].items():
        assert found.isdisjoint(seen["test"][name]), name


BANDS = ((3.5, 5.0), (5.5, 6.5), (7.0, 9.0))  # seconds that a movement takes


def test_no_scene_shows_what_another_shows():
    clips = []
    for number in range(10):
        scene = make_scene(KINDS[number % 5], "test" if number % 4 == 3 else "train", number, 8.0)
        pixels = np.concatenate([chunk.pixels for chunk in scene.frames(2.0)]).transpose(0, 2, 3, 1)
        clips.append(Clip(name=scene.name, pixels=np.ascontiguousarray(pixels), fps=2.0))
    sources = group_by_source(clips)
    assert all(name == source for name, source in sources.items())


def test_files_hold_the_scenes(tmp_path):
    written = write_scenes(tmp_path, count=4, seconds=4.0, fps=2.0, seed=3)
    assert [path.name.split("-")[0] for path in written] == ["fall", "bounce", "roll", "grow"]
    assert [split_of_source(path.name) for path in written] == ["train", "train", "train", "test"]
    info = video.open(written[3])
    assert (info.codec, info.fps, info.num_frames, info.width, info.height) == ("h264", 2.0, 8, 256, 144)
    read = np.concatenate([frames.pixels for frames in video.read(written[3], Sampling(fps=2.0))])
    drawn = np.concatenate([chunk.pixels for chunk in make_scene("grow", "test", 30_003, 4.0).frames(2.0)])
    assert np.abs(read.astype(int) - drawn.astype(int)).mean() < 6


@pytest.mark.slow
def test_the_commands_make_puzzles_of_scenes(tmp_path):
    media, output = tmp_path / "media", tmp_path / "puzzles"
    for arguments in (
        ["scenes", str(media), "--count", "4", "--seconds", "16", "--fps", "3"],
        ["mvp", str(media), "-o", str(output), "--embedder", "pixels", "--level", "L1", "--frames", "8"],
    ):
        found = CliRunner().invoke(app, ["synth", *arguments])
        assert found.exit_code == 0, found.output
    records = list(read_records(output))
    split = split_by_source(output, records)
    kinds = {Path(record.video).name.split("-")[0]: split.is_held(record) for record in records}
    assert kinds == {"fall": False, "bounce": False, "roll": False, "grow": True}


@pytest.mark.parametrize("wrong", [{"count": 0}, {"fps": 0.5}, {"seconds": 3.0}, {"seed": -1}])
def test_wrong_scenes_are_refused(tmp_path, wrong):
    with pytest.raises(LongtakeError, match="count and fps must be at least 1, seconds at least 4"):
        write_scenes(tmp_path, **wrong)
