"""The table of held-out puzzles: answers to a table by hand, floors, equal compute, and the command at its smallest."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tiny
from footage_puzzles import make_puzzles
from longtake.eval.puzzle_table import Answers, held_table, stand_of
from longtake.recipes import mvp_ablations
from longtake.recipes.ablation_cost import Cost
from longtake.recipes.mvp import mvp

SOURCES = np.arange(40) // 4


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
    return Answers(rows=rows, levels=("L1",) * 20 + ("L2",) * 20, sources=SOURCES, baselines=("pool order", "path"))


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
    assert {"L1 exact", "L2 kendall", "all selection"} <= set(table.measures)
    assert not [f for f in table.findings if f.against in ("supervised, blind", "grpo", "path")]


def test_floors_and_ceilings():
    everything = np.ones(40, bool)
    ends = ((0.05, 0.05, "floor"), (0.5, 0.0, "open"), (1.0, 1.0, "ceiling"), (1.0, 0.0, "open"))
    for grpo, supervised, expected in ends:
        seeds = seeds_of(grpo, supervised)
        rows = {name: [seed[name] for seed in seeds] for name in seeds[0]}
        assert stand_of(rows, everything) == expected
    seeds = seeds_of(0.0, 0.0)
    table = held_table(seeds, {}, about(seeds[0]))
    assert table.findings == ()
    assert "L1 floor, L2 floor, all floor" in table.notes[1]


def test_answers_are_read_by_row(tmp_path):
    lines = [
        {"row": row, "puzzle": str(n), "level": "L1", "source": "ba"[n], "exact": n, "selection": 0.5, "pairs": 1.0}
        | {"kendall": -1.0}
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
    assert mvp_ablations.equal_steps(mvp(), costs) == 1500


def test_other_settings_and_puzzles_have_a_work_folder_of_their_own(tmp_path):
    names = set()
    for text in ("", "{}\n"):
        (tmp_path / "puzzles.jsonl").write_text(text)
        names |= {mvp_ablations.work_name(recipe, tmp_path) for recipe in (mvp(), mvp_ablations.smallest(), mvp())}
    assert len(names) == 4


@pytest.mark.slow
def test_the_table_comes_out_and_goes_on(tmp_path, capsys):
    puzzles = make_puzzles(tmp_path)
    start = tiny.save_video_llm(tmp_path / "start", scorer=None)
    given = ["held", "--puzzles", str(puzzles), "--start", str(start), "--work", str(tmp_path / "work")]
    given += ["--results", str(tmp_path / "results"), "--seeds", "0", "1", "--size", "smallest"]
    mvp_ablations.main([*given, "--dry-run"])
    assert "core-hours of training still to be done" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()
    mvp_ablations.main(given)
    told = (tmp_path / "results/mvp-held.json").read_text()
    arms = json.loads(told)["arms"]
    assert {"grpo", "supervised", "warm", "grpo, foreign", "grpo, shuffled", "grpo, trained blind"} <= arms.keys()
    (tmp_path / "results/mvp-held.json").unlink()
    capsys.readouterr()
    mvp_ablations.main(given)
    assert "about 0.00 core-hours" in capsys.readouterr().out
    assert (tmp_path / "results/mvp-held.json").read_text() == told
