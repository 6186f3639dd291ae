"""Towers trained on parts of the footage: who learns from what, and the table of all parts."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

import world
from footage_puzzles import write_scene
from longtake import LongtakeError
from longtake.tables import eyes as table
from longtake.tables.eyes import TRAINED, Folds, folder_of, measured, over_pixels, train_fold, write
from longtake.train.embedded.eyes import EyesRecipe


def folds(count: int = 2) -> Folds:
    """Four clips of three sources, of which the first stands twice."""
    clips = world.clips(70, 3, 9.0)
    twin = replace(clips[0], name="twin")
    return Folds(clips=[*clips, twin], sources={clip.name: clip.name for clip in clips} | {"twin": clips[0].name},
                 count=count)  # fmt: skip


def test_every_clip_is_held_out_once_and_never_beside_its_twin():
    whole = folds()
    parts = [whole.split(fold) for fold in range(2)]
    assert sorted(clip.name for _, held in parts for clip in held) == sorted(clip.name for clip in whole.clips)
    for learned, held in parts:
        assert len(learned) + len(held) == 4
        assert not {whole.sources[clip.name] for clip in learned} & {whole.sources[clip.name] for clip in held}


def test_parts_without_a_source_are_refused():
    with pytest.raises(LongtakeError, match="9 parts of 3 sources: each part and the rest must have a source"):
        folds(9)


def test_each_part_is_asked_of_the_tower_that_has_not_seen_it(tmp_path):
    """All sources have hits of every row, from untrained towers by the same places too; what is trained is kept."""
    whole, recipe = folds(), EyesRecipe(steps=1, stretches=1, frames=8, every=1)
    for fold, seed in itertools.product(range(2), range(2)):
        train_fold(replace(recipe, seed=seed), whole, fold, folder_of(tmp_path, seed, fold))
    written = (folder_of(tmp_path, 0, 1) / "model.safetensors").stat().st_mtime_ns
    found = measured(whole, recipe, tmp_path, [0, 1])
    assert list(found) == ["chance", "pixels", "random tower", "own tower", "own tower, lower part",
                           "trained, seed 0", "trained, seed 1", TRAINED]  # fmt: skip
    assert all(set(by) == set(whole.sources.values()) for by in found.values())
    assert (folder_of(tmp_path, 0, 1) / "model.safetensors").stat().st_mtime_ns == written
    weights = {(folder_of(tmp_path, seed, 0) / "model.safetensors").read_bytes() for seed in range(2)}
    assert len(weights) == 2
    for source, rows in found[TRAINED].items():
        by_seed = [found[f"trained, seed {seed}"][source] for seed in range(2)]
        assert [row.tolist() for row in rows] == [row.tolist() for own in by_seed for row in own]
    found["own tower"] = {source: [np.zeros(9)] for source in whole.sources.values()}
    by_hand = [-np.concatenate(rows).mean() for rows in found["pixels"].values()]
    assert over_pixels(found, "own tower") == pytest.approx(by_hand)
    write({"command": "python -m x", **table.told(found, 1.0, 0)}, found, tmp_path)
    told = json.loads((tmp_path / "eyes.json").read_text())
    assert (told["sources"], told["clips"]) == (3, 4)
    assert TRAINED in (tmp_path / "eyes.md").read_text()
    assert (tmp_path / "eyes.png").stat().st_size > 5000


def test_the_command_trains_one_part_and_refuses_what_is_none(tmp_path, monkeypatch, capsys):
    footage = tmp_path / "footage"
    footage.mkdir()
    for seed in range(5):
        write_scene(footage / f"scene{seed}.mp4", seed, 9.0)
    asked = ["eyes", "--footage", str(footage), "--work", str(tmp_path / "work"), "--folds", "2", "--steps", "1"]
    monkeypatch.setattr("sys.argv", [*asked, "--fold", "0"])
    table.main()
    assert (tmp_path / "work" / "seed-0" / "fold-0" / "model.safetensors").exists()
    assert not (tmp_path / "work" / "seed-0" / "fold-1").exists()
    monkeypatch.setattr("sys.argv", [*asked, "--fold", "2"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        table.main()
    assert capsys.readouterr().err == "error: fold is 2; it must be from 0 to 1\n"
