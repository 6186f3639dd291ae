"""Retrieval of temporal neighbours: by hand, against a slow count, and as a command."""

import json
import sys

import numpy as np
import pytest
import torch

import tiny
import world
from longtake import LongtakeError, cli
from longtake.data.probe_world import haystack
from longtake.data.probe_world.haystack import Clip
from longtake.data.puzzles.footage import pixel_features
from longtake.data.puzzles.neighbours import chance, hits, takes
from longtake.eval.neighbours import evaluate, summary, table


def at_angles(*degrees: float) -> np.ndarray:
    turned = np.deg2rad(degrees)
    return np.stack([np.cos(turned), np.sin(turned)], axis=1)


def test_hits_by_hand():
    """The nearest of 0 is 10; of 10, 0; of 50, the 52 that stands two later; of 90, the 52 after it; of 52, 50."""
    assert hits(at_angles(0, 10, 50, 90, 52)).tolist() == [1, 1, 0, 1, 0]
    assert hits(at_angles(0, 10, 20, 30)).tolist() == [1, 1, 1, 1]


def test_length_says_nothing():
    vectors = at_angles(0, 10, 50, 90, 52)
    assert hits(vectors * np.array([[1], [9], [0.1], [4], [2]])).tolist() == hits(vectors).tolist()


def test_equally_near_frames_share_a_hit():
    """Five equal frames: an end has one neighbour among four, the others two."""
    assert hits(np.ones((5, 3))).tolist() == [1 / 4, 1 / 2, 1 / 2, 1 / 2, 1 / 4]


def test_a_random_choice_has_chances_share():
    rng = np.random.default_rng(0)
    drawn = [hits(rng.normal(size=(12, 40))).mean() for _ in range(300)]
    assert np.mean(drawn) == pytest.approx(chance(12), abs=0.01)
    assert hits(np.ones((12, 3))).mean() == pytest.approx(chance(12) * 11 / 11)


def test_takes_are_the_stored_frames_nearest_in_time_from_each_first_one():
    levels = np.arange(10, dtype=np.uint8)
    clip = Clip(name="count", pixels=np.broadcast_to(levels[:, None, None, None], (10, 4, 6, 3)), fps=3.0)
    thirds = [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    for fps, wanted in ((1.0, thirds), (2.0, [[0, 2, 3, 4, 6, 8, 9]]), (3.0, [list(range(10))])):
        found = takes(clip, fps)
        assert [frames.pixels[:, 0, 0, 0].tolist() for frames in found] == wanted
        for frames, rows in zip(found, wanted, strict=True):
            assert frames.seconds.tolist() == pytest.approx([row / 3 for row in rows])
    with pytest.raises(LongtakeError, match="fps is 4; it must be above 0 and at most 3"):
        takes(clip, 4.0)


def test_sources_count_alike_and_differences_are_paired():
    """Two sources, of two frames and of four."""
    found = {"pixels": [np.array([1.0, 0.0]), np.zeros(4)], "other": [np.array([1.0, 0.0]), np.ones(4)]}
    rows = summary(found, seed=0)
    assert rows["pixels"] == {"mean": 0.25, "low": 0.0, "high": 0.5, "over_pixels": 0.0, "over_pixels_low": 0.0,
                              "over_pixels_high": 0.0, "by_frame": 0.1667}  # fmt: skip
    assert rows["other"]["mean"] == 0.75
    assert rows["other"]["by_frame"] == 0.8333
    assert (rows["other"]["over_pixels"], rows["other"]["over_pixels_low"], rows["other"]["over_pixels_high"]) == (
        0.5, 0.0, 1.0,
    )  # fmt: skip


def test_pixels_of_drawn_scenes_find_their_neighbours_and_noise_does_not():
    clips = world.clips(70, 2, 12.0)
    generator = torch.Generator().manual_seed(0)
    noise = lambda frames: torch.randn(len(frames), 1, 1, 64, generator=generator)  # noqa: E731
    told = []
    result = evaluate(
        {"pixels": pixel_features, "noise": noise}, clips, progress=lambda done, of: told.append((done, of))
    )
    assert (result["clips"], result["sources"], result["frames"]) == (2, 2, 72)
    assert result["rows"]["chance"]["mean"] == pytest.approx(2 / 12, abs=1e-4)
    assert result["rows"]["pixels"]["mean"] > 0.7
    assert result["rows"]["noise"]["mean"] < 0.5
    assert told == [(1, 2), (2, 2)]
    lines = table(result).splitlines()
    assert lines[0] == "72 frames at 1 fps of 2 clips (2 sources)"
    assert [line.split()[0] for line in lines[2:]] == ["chance", "pixels", "noise"]


def test_clips_of_too_few_frames_are_said():
    with pytest.raises(LongtakeError, match="no clip has 8 frames at 0.5 fps"):
        evaluate({"pixels": pixel_features}, world.clips(70, 2, 12.0), fps=0.5)


def test_the_command_has_a_row_for_each_tower(tmp_path, monkeypatch, capsys):
    model = str(tiny.save_video_llm(tmp_path / "model"))
    tiny.video_llm(seed=3).vision_tower.save_pretrained(tmp_path / "tower")
    clips = {"test": world.clips(70, 2, 12.0)}
    monkeypatch.setattr(haystack, "load_clips", lambda split, *_: clips[split])

    def run(*options: object) -> tuple[int, str, str]:
        asked = ["longtake", "eval", "neighbours", "--model", model, "--device", "cpu", *map(str, options)]
        monkeypatch.setattr(sys, "argv", asked)
        with pytest.raises(SystemExit) as left:
            cli.main()
        streams = capsys.readouterr()
        return left.value.code or 0, streams.out, streams.err

    code, out, _ = run("--tower", tmp_path / "tower", "--json")
    assert code == 0
    assert list(json.loads(out)["rows"]) == ["chance", "pixels", "random tower", "own tower", "given tower"]
    code, out, _ = run("--fps", "3")
    assert code == 0
    assert out.startswith("72 frames at 3 fps of 2 clips (2 sources)\n")
    for options, told in (
        (("--fps", "5"), "fps is 5; it must be above 0 and at most 3"),
        (("--tower", tmp_path), f"{tmp_path}: there is no config.json in it"),
        (("--tower", model), f"{model}: the checkpoint lacks"),
    ):
        code, out, err = run(*options)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert told in err
