"""Leak checks: statistics against known values, planted leaks are found, baselines by hand, the command."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import make_videos
import tiny
from longtake import cli
from longtake.backbones import load_backbone
from longtake.cli.synth import make_gatherer
from longtake.data.puzzles.footage import find_footage, pixel_features
from longtake.data.puzzles.framefile import FrameFile, encoded
from longtake.data.puzzles.mvp import LEVELS
from longtake.data.puzzles.puzzle_file import PuzzleRecord, read_records
from longtake.data.puzzles.synth import Synthesis, synthesise
from longtake.eval.leaks import (
    check_leaks,
    chi_square_p,
    embedders_of,
    position_checks,
    table,
    without_replacement,
)
from longtake.eval.puzzle_baselines import (
    BASELINES,
    distances,
    least_alike,
    most_alike,
    nearest_to_boundary,
    pool_order,
    shortest_path,
)
from longtake.types import LongtakeError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Puzzles of two videos."""
    media, output = tmp_path_factory.mktemp("media"), tmp_path_factory.mktemp("made") / "out"
    make_videos.make(media / "a.mp4", count=120, fps=2)
    make_videos.make(media / "b.mp4", count=150, fps=2, size=(64, 48))
    make = partial(make_gatherer, None, "cpu", "pixels", output, 1.0, 48, "jpeg")
    synthesise(find_footage([media]), output, Synthesis(levels=LEVELS[1:4], frames=10, per_minute=60.0), make)
    return output


# -- statistics -----------------------------------------------------------------------------------------------------


def test_chi_square_against_tables():
    for statistic, freedom, p in ((3.841, 1, 0.05), (18.307, 10, 0.05), (10.828, 1, 0.001), (0.0, 4, 1.0)):
        assert chi_square_p(statistic, freedom) == pytest.approx(p, rel=1e-3)


def test_the_statistic_of_positions_is_chi_square():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        drawn = rng.random((200, 8)).argsort(axis=1)[:, :4]
        found.append(without_replacement(np.bincount(drawn.reshape(-1), minlength=8), 200, 4))
    assert np.mean(found) == pytest.approx(7, abs=4 * math.sqrt(14 / 400))
    assert np.var(found) == pytest.approx(14, rel=0.35)
    assert np.mean([chi_square_p(statistic, 7) < 0.05 for statistic in found]) == pytest.approx(0.05, abs=0.045)


def record(truth: tuple[int, ...], pool: int = 6, number: int = 0) -> PuzzleRecord:
    missing = len(truth)
    return PuzzleRecord(
        id=str(number),
        video="a",
        path="a",
        identity="a",
        level="L1",
        mask="contiguous",
        seed=number,
        fps=1.0,
        frames="frames/a.zip",
        context=("c", "d"),
        context_seconds=(0.0, 9.0),
        masked=tuple(range(1, 1 + missing)),
        gaps_seconds=((0.0, 9.0),),
        candidates=tuple("efghijklm"[:pool]),
        truth=truth,
        truth_seconds=tuple(float(n) for n in range(missing)),
    )


def test_leaks_of_position_are_found():
    rng = np.random.default_rng(1)
    drawn = [tuple(int(n) + 1 for n in rng.permutation(6)[:3]) for _ in range(400)]
    fair = position_checks([record(truth) for truth in drawn])
    assert [check.passed for check in fair] == [True, True, True]
    assert all(check.p > 0.001 for check in fair)
    early = position_checks([record(tuple(min(n, 5) for n in t)) for t in drawn if len({min(n, 5) for n in t}) == 3])
    assert [check.passed for check in early] == [False, False, True]
    rising = position_checks([record(tuple(sorted(truth))) for truth in drawn])
    assert [check.passed for check in rising] == [True, False, False]


# -- baselines ------------------------------------------------------------------------------------------------------


def test_baselines_by_hand():
    # the frame before the gap at 0 degrees, the one after at 80; between them 20, 40 and 60 are missing
    degrees = [60, -70, 20, 150, 40, 178, 0, 80]
    apart = distances(np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1))
    assert apart[0, 2] == pytest.approx(1 - math.cos(math.radians(40)))
    assert shortest_path(apart, 3) == [3, 5, 1]
    assert nearest_to_boundary(apart, 3) == [3, 5, 1]
    assert most_alike(apart, 3) == [3, 5, 1]
    assert set(least_alike(apart, 2)) == {3, 6}  # 158 degrees
    assert pool_order(apart, 3) == [1, 2, 3]
    before, after = apart.copy(), apart.copy()
    before[-1] = before[:, -1] = np.nan  # nothing is after the gap
    after[-2] = after[:, -2] = np.nan
    assert shortest_path(before, 3) == nearest_to_boundary(before, 3) == [3, 5, 1]
    assert shortest_path(after, 3) == [3, 5, 1]
    assert nearest_to_boundary(after, 3) == [3, 5, 1]


def test_the_shortest_path_is_the_shortest():
    apart = distances(np.random.default_rng(0).normal(size=(8, 5)))
    answer = [6, *(n - 1 for n in shortest_path(apart, 3)), 7]
    length = sum(apart[a, b] for a, b in zip(answer, answer[1:], strict=False))
    for first in range(6):
        for second in set(range(6)) - {first}:
            for third in set(range(6)) - {first, second}:
                way = [6, first, second, third, 7]
                assert length <= sum(apart[a, b] for a, b in zip(way, way[1:], strict=False)) + 1e-12


# -- whole checks ---------------------------------------------------------------------------------------------------


def test_made_puzzles_pass_and_baselines_stand_beside_chance(made):
    result = check_leaks(made, {"pixels": pixel_features}, samples=30)
    assert result["passed"], result["checks"]
    assert len(result["checks"]) == 7
    assert result["puzzles"] > 100
    assert 0.35 < result["truth_larger_on_disk"] < 0.65
    assert list(result["levels"]) == ["L2", "L3", "L4"]
    rows = result["levels"]["L3"]
    assert list(rows) == ["chance", "pool order", *(f"{name}, pixels" for name in BASELINES), "best of these"]
    assert rows["chance"]["selection"] == 0.5
    assert abs(rows["pool order"]["selection"] - 0.5) < 0.2
    assert rows["best of these"]["exact"] == max(row["exact"] for row in rows.values() if row is not rows["chance"])
    shown = table(result)
    assert shown.count("ok  ") == 7
    assert "best of these" in shown


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def rewrite(folder: Path, change: Callable[[PuzzleRecord], PuzzleRecord]) -> None:
    lines = [change(record).line() for record in read_records(folder)]
    (folder / "puzzles.jsonl").write_text("".join(lines))


def failed(folder: Path) -> list[str]:
    return [c["name"] for c in check_leaks(folder, {}, samples=40)["checks"] if not c["passed"]]


def test_distractors_by_another_route_are_found(copy):
    truths = {r.candidates[n - 1] for r in read_records(copy) for n in r.truth}
    for file in (copy / "frames").iterdir():
        with FrameFile(file) as frames:
            names = frames.index.names
            pictures = {name: encoded(frames.pictures([name])[0], "png") for name in names if name not in truths}
            rest = {name: frames.picture_bytes(name) for name in names if name in truths}
        with zipfile.ZipFile(file) as old:
            rest |= {name: old.read(name) for name in ("index.json", "embeddings.npy", "neighbours.npy")}
        with zipfile.ZipFile(file, "w") as new:
            for name, data in (pictures | rest).items():
                new.writestr(zipfile.ZipInfo(name, (1980 + len(name) % 7, 1, 1, 0, 0, 0)), data)
    assert failed(copy) == ["all pictures of a puzzle are encoded alike", "files have no dates"]


def test_context_in_the_pool_is_found(copy):
    def change(record: PuzzleRecord) -> PuzzleRecord:
        wrong = next(n for n in range(1, len(record.candidates) + 1) if n not in record.truth)
        candidates = (*record.candidates[: wrong - 1], record.context[0], *record.candidates[wrong:])
        return dataclasses.replace(record, candidates=candidates)

    rewrite(copy, change)
    assert failed(copy) == ["no candidate is context, or there twice"]


def test_names_that_tell_the_time_are_found(copy):
    names = {}
    for file in (copy / "frames").iterdir():
        with FrameFile(file) as frames:
            names[f"frames/{file.name}"] = {n: f"{at:016}.jpg" for at, n in enumerate(frames.index.names)}
        with zipfile.ZipFile(file) as old:
            held = {names[f"frames/{file.name}"].get(e, e): old.read(e) for e in old.namelist()}
        with zipfile.ZipFile(file, "w") as new:
            for name, data in held.items():
                new.writestr(zipfile.ZipInfo(name), data)

    def change(record: PuzzleRecord) -> PuzzleRecord:
        of = names[record.frames]
        parts = {part: tuple(of[name] for name in getattr(record, part)) for part in ("context", "candidates")}
        return dataclasses.replace(record, **parts)

    rewrite(copy, change)
    assert failed(copy) == ["names of candidates say nothing of time"]


def test_a_random_tower_has_the_shape_and_not_the_weights(tmp_path):
    for save in (tiny.save_video_llm, tiny.save_qwen_vl):
        backbone = load_backbone(str(save(tmp_path / save.__name__)), "cpu")
        frames = tiny.frames(2, 32, 32)
        before = backbone.tower_features(frames)
        fresh = backbone.random_tower(0)(frames)
        assert fresh.shape == before.shape
        assert not torch.allclose(fresh, before)
        assert torch.equal(backbone.random_tower(0)(frames), fresh)
        assert not torch.allclose(backbone.random_tower(1)(frames), fresh)
        assert torch.equal(backbone.tower_features(frames), before)
        assert list(embedders_of(backbone)) == ["pixels", "random tower", "own tower"]


def test_the_command(made, copy, tmp_path, monkeypatch, capsys):
    model = str(tiny.save_video_llm(tmp_path / "model"))

    def run(folder: Path, *options: str) -> tuple[int, str, str]:
        asked = ["longtake", "eval", "leaks", str(folder), "--model", model, "--device", "cpu", "--samples", "3"]
        monkeypatch.setattr(sys, "argv", [*asked, *options])
        with pytest.raises(SystemExit) as left:
            cli.main()
        streams = capsys.readouterr()
        return left.value.code or 0, streams.out, streams.err

    code, out, _ = run(made)
    assert code == 0
    assert "shortest path, own tower" in out
    assert "LEAK" not in out
    assert "given tower" not in out
    tiny.video_llm(seed=3).vision_tower.save_pretrained(tmp_path / "tower")
    code, out, _ = run(made, "--tower", str(tmp_path / "tower"))
    assert code == 0
    assert "shortest path, given tower" in out
    rewrite(copy, lambda record: dataclasses.replace(record, truth=tuple(sorted(record.truth))))
    code, out, _ = run(copy, "--json")
    assert code == 1
    assert not json.loads(out)["passed"]
    (copy / "puzzles.jsonl").write_text("")
    code, out, err = run(copy)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "holds no puzzles to check" in err
    with pytest.raises(LongtakeError, match="give the folder that longtake synth mvp wrote"):
        check_leaks(tmp_path, {})
