"""The table of held-out puzzles: answers to a table by hand, floors, equal compute; all tables at their smallest."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
import world
from footage_puzzles import make_puzzles
from longtake.eval.puzzle_table import (
    TRAINED,
    Answers,
    by_source,
    held_table,
    overall,
    places_of,
    reached,
    stands_of,
)
from longtake.recipes import mvp_replay
from longtake.recipes.mvp import StartModel, mvp
from longtake.tables.mvp import exam
from longtake.tables.mvp.__main__ import TABLES, main, recipe_of
from longtake.tables.mvp.held import equal_steps
from longtake.tables.mvp.site import Site, cached_costs, measured, smallest, work_name
from longtake.tables.operations import Cost
from longtake.tables.table_command import common_parser, options_of, settings_of

SOURCES = np.arange(40) // 4
DOMAINS = ("drawn", "drawn", "filmed", "filmed") * 10


def parts(exact: np.ndarray) -> dict[str, np.ndarray]:
    return {name: exact.astype(float) for name in ("exact", "selection", "pairs", "kendall")}


def answering(share: float, seed: int) -> dict[str, np.ndarray]:
    return parts(np.random.default_rng(seed).random(40) < share)


def seeds_of(grpo: float, supervised: float) -> list[dict[str, dict[str, np.ndarray]]]:
    fixed = {"chance": parts(np.full(40, 0.1)), "pool order": answering(0.1, 90), "path": answering(0.3, 91)}
    return [
        fixed
        | {"warm": answering(0.1, seed), "grpo": answering(grpo, 10 + seed), "grpo, blind": answering(0.1, 20 + seed)}
        | {"supervised": answering(supervised, 30 + seed), "supervised, blind": answering(0.1, 40 + seed)}
        for seed in range(3)
    ]


def about(rows: dict[str, dict[str, np.ndarray]]) -> Answers:
    levels = ("L1",) * 20 + ("L2",) * 20
    return Answers(rows=rows, levels=levels, domains=DOMAINS, sources=SOURCES, baselines=("pool order", "path"))


def test_a_clear_difference_holds_and_none_is_undetermined():
    seeds = seeds_of(0.8, 0.8)
    table = held_table(seeds, {"grpo, trained blind": answering(0.1, 50)}, about(seeds[0]))
    found = {(f.against, f.measure): f.found for f in table.findings}
    mean = np.mean([s["grpo"]["exact"].mean() - s["warm"]["exact"].mean() for s in seeds])
    assert found["warm", "all exact"].mean == pytest.approx(mean)
    assert found["warm", "all exact"].verdict == "holds"
    assert found["supervised", "all exact"].verdict == "undetermined"
    assert found["grpo, trained blind", "all exact"].verdict == "exploratory"
    path = np.mean([s["grpo"]["exact"].mean() for s in seeds]) - seeds[0]["path"]["exact"].mean()
    assert found["best baseline", "all exact"].mean == pytest.approx(path)
    assert {"L1 exact", "L2 kendall", "all selection", "drawn exact", "filmed pairwise"} <= set(table.measures)
    assert not [f for f in table.findings if f.against in ("supervised, blind", "grpo", "path")]


def test_floors_and_ceilings():
    everything = {"all": np.ones(40, bool)}
    ends = ((0.05, 0.05, "floor"), (0.5, 0.0, "open"), (1.0, 1.0, "ceiling"), (1.0, 0.0, "open"))
    for grpo, supervised, expected in ends:
        seeds = seeds_of(grpo, supervised)
        rows = {name: [seed[name] for seed in seeds] for name in seeds[0]}
        stands = stands_of(rows, TRAINED, everything, SOURCES)
        assert {stand for (_, measure), stand in stands.items() if measure == "exact"} == {expected}
    seeds = seeds_of(0.0, 0.0)
    table = held_table(seeds, {}, about(seeds[0]))
    assert table.findings == ()
    assert "L1 exact floor, L1 selection floor" in table.notes[1]


def test_a_measure_is_compared_though_another_is_at_the_floor():
    seeds = seeds_of(0.0, 0.0)
    for seed in seeds:
        seed["grpo"]["selection"] = answering(0.8, 60)["exact"]
    table = held_table(seeds, {}, about(seeds[0]))
    assert {finding.measure.split()[1] for finding in table.findings} == {"selection"}
    gain = {f.against: f.found for f in table.findings if f.measure == "all selection"}["warm"]
    assert gain.verdict == "holds"


def test_every_source_weighs_the_same():
    values = np.array([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    sources = np.array([7, 7, 7, 2])
    assert np.allclose(by_source(values, sources), [[0.0, 1.0], [1.0, 1 / 3]])
    seeds = [{name: {m: v[:4] for m, v in own.items()} for name, own in seed.items()} for seed in seeds_of(0.9, 0.1)]
    for seed in seeds:
        seed["grpo"]["exact"] = np.array([1.0, 1.0, 1.0, 0.0])
    levels, domains = ("L1",) * 4, ("drawn",) * 4
    asked = Answers(rows=seeds[0], levels=levels, domains=domains, sources=sources, baselines=("path",))
    table = held_table(seeds, {}, asked)
    (row,) = [row for row in table.rows if row.arm == "grpo"]
    assert row.cells["L1 exact"].mean == 0.5
    assert "4 puzzles of 2 sources, the largest with 3" in table.notes[0]


def test_pairwise_is_of_what_was_rightly_chosen_and_half_where_nothing_was():
    kendall, pairs = np.array([1.0, -1.0, 1 / 3, 0.0]), np.array([1.0, 1.0, 1 / 3, 0.0])
    rows = [{"kendall": kendall, "pairs": pairs}, {"kendall": -pairs, "pairs": pairs}]
    found = reached(rows, "pairwise", np.ones(4, bool), np.array([0, 0, 1, 2]))
    assert np.allclose(found, [[0.5, 1.0, 0.5], [0.0, 0.0, 0.5]])
    in_one = reached(rows, "pairwise", np.array([True, False, True, False]), np.array([5, 5, 5, 5]))
    assert np.allclose(in_one, [[1.0], [0.0]])


def test_drawn_and_filmed_puzzles_are_told_apart():
    levels, domains = ("L1", "L2", "L1"), ("drawn", "drawn", "filmed")
    places = {name: where.tolist() for name, where in places_of(levels, domains).items()}
    assert places["drawn"] == [True, True, False]
    assert places["filmed"] == [False, False, True]
    assert places["all"] == [True] * 3
    assert set(places_of(levels, ("filmed",) * 3)) == {"L1", "L2", "all"}


def test_answers_are_read_by_row(tmp_path):
    lines = [
        {"row": row, "puzzle": str(n), "level": "L1", "domain": "drawn", "source": "ba"[n], "exact": n}
        | {"selection": 0.5, "pairs": 1.0, "kendall": -1.0}
        for row in ("chance", "grpo")
        for n in range(2)
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = Answers.read(tmp_path / "answers.jsonl", ("path",))
    assert read.sources.tolist() == [1, 0]
    assert read.rows["grpo"]["exact"].tolist() == [0.0, 1.0]
    assert read.rows["chance"]["kendall"].tolist() == [-1.0, -1.0]


def test_supervised_learning_gets_the_operations_of_policy_optimisation():
    costs = {name: Cost(operations=ops, seconds=1.0) for name, ops in (("grpo", 6e9), ("supervised", 4e9))}
    assert equal_steps(mvp(), costs) == 1500


def test_settings_of_the_recipe_are_set_by_name_and_told_in_the_command():
    own = ["puzzles.form=direct", "warm.fit.steps=7", "grpo.fit.steps=3"]
    options = argparse.Namespace(table="held", size="smallest", start="", set=own, puzzles="P", footage=None, seeds=[0])
    recipe = recipe_of(options)
    assert (recipe.puzzles.form, recipe.warm.fit.steps, recipe.grpo.fit.steps) == ("direct", 7, 3)
    told = settings_of(options, "mvp", ("puzzles", "footage", "start"), own=("set",))["command"]
    assert told == (
        "python -m longtake.tables.mvp held --puzzles FOLDER --seeds 0 --size smallest "
        "--set puzzles.form=direct --set warm.fit.steps=7 --set grpo.fit.steps=3"
    )


def test_the_smallest_size_leaves_the_tables_in_docs_alone():
    parser = common_parser("mvp", None, ["held"], "work")
    for words, folder in (
        (["held"], "docs/results"),
        (["held", "--size", "smallest", "--work", "here"], "here/results"),
        (["held", "--size", "smallest", "--results", "there"], "there"),
    ):
        assert options_of(parser, words).results == Path(folder)


def test_other_settings_and_puzzles_have_a_work_folder_of_their_own(tmp_path):
    names = set()
    for text in ("", "{}\n"):
        (tmp_path / "puzzles.jsonl").write_text(text)
        names |= {work_name(recipe, tmp_path) for recipe in (mvp(), smallest(), mvp())}
    assert len(names) == 4


def test_other_weights_in_the_same_place_have_a_work_folder_of_their_own(tmp_path):
    recipe = dataclasses.replace(smallest(), start=StartModel(folder=str(tmp_path / "model")))
    names = set()
    for seed in (0, 1):
        tiny.save_video_llm(tmp_path / "model", seed)
        names.add(work_name(recipe, tmp_path))
    assert len(names) == 2


def test_a_picture_shows_what_is_over_all_levels():
    assert overall(["L1 exact", "all exact", "clipped share"]) == ["all exact", "clipped share"]
    assert overall(["L1 exact", "drawn exact", "filmed exact", "flat"]) == ["L1 exact", "flat"]
    assert overall(["order", "count"]) == ["order", "count"]


def test_costs_are_kept_once_a_warmed_model_is_counted(tmp_path):
    site = Site(puzzles=tmp_path, work=tmp_path / "work", recipe=smallest())
    weight = torch.ones(6, 6)

    def steps(fresh):
        told.append(fresh)
        return {"once/2": lambda folder: weight @ weight, "twice": lambda folder: weight @ weight @ weight}

    told: list[object] = []
    found = cached_costs(site, "costs.json", steps)
    assert found["twice"].operations == 4 * found["once"].operations == 4 * 6**3
    assert not (site.work / "costs.json").exists()
    (site.folder(3) / "warm/model").mkdir(parents=True)
    assert cached_costs(site, "costs.json", steps).keys() == found.keys()
    assert told[0].__self__.folder == ""
    assert told[1].__self__.folder == str(site.folder(3) / "warm/model")
    assert cached_costs(site, "costs.json", steps)["once"].operations == 6**3
    assert len(told) == 2


def test_only_the_second_time_counts():
    done = []

    def step(folder):
        if not done:
            torch.ones(50, 50) @ torch.ones(50, 50)
        done.append(folder)
        torch.ones(2, 2) @ torch.ones(2, 2)

    assert measured(step).operations == 16
    assert len(set(done)) == 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Puzzles and a starting model, for all tables in one work folder."""
    folder = tmp_path_factory.mktemp("tables")
    make_puzzles(folder)
    tiny.save_video_llm(folder / "start", scorer=None)
    return folder


@pytest.fixture
def command(made, monkeypatch, capsys):
    """Runs a table at its smallest with two seeds; what it printed. A few drawn clips are the haystack."""
    for module in (mvp_replay, exam):
        monkeypatch.setattr(module, "load_clips", lambda split, *_: world.clips({"train": 0, "test": 1000}[split], 1))

    def run(*words: str) -> str:
        given = ["--puzzles", str(made / "puzzles"), "--start", str(made / "start"), "--work", str(made / "work")]
        main(
            [*words, *given, "--results", str(made / "results"), "--seeds", "0", "1", "--size", "smallest"]
        )
        return capsys.readouterr().out

    return run


ARMS = {
    "held": {"grpo", "supervised", "warm", "grpo, foreign", "grpo, shuffled", "grpo, trained blind"},
    "transfer": {"before the warm-up", "warm-up", "replay only", "GRPO on questions", "MVP-GRPO"},
    "rewards": {"chance", "warm-up", "full reward", "exact only", "near distractors", "DAPO with four updates"},
}


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_every_table_comes_out_and_goes_on(made, command, table):
    pytest.importorskip("matplotlib")
    results = made / "results"
    assert "core-hours still to be done" in command(table, "--dry-run")
    assert not (results / f"mvp-{table}.json").exists()
    first = command(table)
    told = (results / f"mvp-{table}.json").read_text()
    found = json.loads(told)
    assert found["title"] in first
    assert ARMS[table] <= found["arms"].keys()
    assert found["settings"]["command"].startswith(f"python -m longtake.tables.mvp {table} --puzzles FOLDER")
    assert (results / f"mvp-{table}.md").read_text().startswith(f"# {found['title']}")
    assert (results / f"mvp-{table}.png").read_bytes().startswith(b"\x89PNG")
    before = {file: file.stat().st_mtime_ns for file in (made / "work").rglob("*.safetensors")}
    (results / f"mvp-{table}.json").unlink()
    assert "about 0.00 core-hours" in command(table)
    assert (results / f"mvp-{table}.json").read_text() == told
    assert {file: file.stat().st_mtime_ns for file in (made / "work").rglob("*.safetensors")} == before
