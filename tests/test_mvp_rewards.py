"""The table of rewards: its arms, equal operations, puzzles under other rules, and answers to a table by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from footage_puzzles import make_puzzles
from longtake.data.puzzles.framefile import FrameFile
from longtake.data.puzzles.puzzle_file import PUZZLES, read_records
from longtake.eval.ablation import figure
from longtake.eval.mvp import CHANCE
from longtake.recipes.mvp import mvp
from longtake.tables.mvp.rewards import (
    ARMS,
    CLIPPED,
    FLAT,
    FULL,
    PAIRS,
    WARM,
    alone,
    folder_of,
    logged,
    recipe_of,
    table_of,
)
from longtake.tables.mvp.site import Site
from longtake.tables.mvp.variants import rules_of, variant_records
from longtake.tables.operations import Cost
from longtake.train.methods import METHODS
from longtake.train.rewards import total
from longtake.types import LongtakeError

COSTS = {"one update": Cost(operations=4e9, seconds=1.0), "four updates": Cost(operations=10e9, seconds=2.0)}
BY_NAME = {arm.name: arm for arm in ARMS}


@pytest.fixture
def site(tmp_path):
    return Site(puzzles=tmp_path, work=tmp_path / "work", recipe=mvp())


def test_arms_are_the_ones_that_were_asked_for():
    assert len(BY_NAME) == len(ARMS)
    assert {name for pair in PAIRS for name in pair} - {WARM} <= BY_NAME.keys()
    assert {arm.name for arm in ARMS if arm.starred} == {FULL, "exact only", "random distractors"}
    assert [BY_NAME["exact only"].seeds((4, 5, 6)), BY_NAME["GDPO"].seeds((4, 5, 6))] == [[4, 5, 6], [4]]
    assert {arm.updates for arm in ARMS if arm.method in ("gspo", "dapo")} == {4}
    settings = {(arm.method, arm.updates, arm.puzzles, *sorted(arm.weights.items())) for arm in ARMS}
    assert len(settings) == len(ARMS)  # no two are the same


def test_a_reward_alone_pays_for_its_part_and_the_form():
    parts = dict.fromkeys(("selection", "order", "exact", "valid", "repetition"), 0.0) | {"format": 1.0}
    for part in ("selection", "order", "exact"):
        assert total(parts | {part: 1.0}, alone(part)) == pytest.approx(1.1)
        assert total(parts | dict.fromkeys({"selection", "order", "exact"} - {part}, 1.0), alone(part)) == 0.1


def test_four_updates_have_the_operations_of_one(site):
    steps = site.recipe.grpo.fit.steps
    for arm in ARMS:
        recipe = recipe_of(site, arm, 3, COSTS)
        assert recipe.fit.steps == (steps if arm.updates == 1 else round(steps * 4 / 10))
        assert (recipe.fit.seed, recipe.updates, recipe.method) == (3, arm.updates, METHODS[arm.method])
    folders = {folder_of(site, arm, seed, COSTS) for arm in ARMS for seed in (0, 1)}
    assert len(folders) == 2 * len(ARMS)
    assert folder_of(site, BY_NAME[FULL], 1, COSTS) == site.folder(1) / "grpo"  # the table of held-out puzzles'


def test_logs_become_figures(tmp_path):
    logs = ([{"flat": 0.5, "clipped": 0.1}, {"flat": 1.0, "skipped": 1}], [{"flat": 0.0, "clipped": 0.3}])
    files = []
    for number, rows in enumerate(logs):
        files.append(tmp_path / f"{number}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = logged(files)
    assert found[FLAT].by_seed == (0.75, 0.0)
    assert found[CLIPPED].mean == pytest.approx(0.2)
    files[0].write_text('{"flat": 1.0}\n')
    assert list(logged(files)) == [FLAT]


def test_answers_become_a_table():
    levels = ("L1",) * 20 + ("L2",) * 20
    records = [SimpleNamespace(identity=n // 4, video=f"{n // 4}.mp4") for n in range(40)]
    held = [SimpleNamespace(level=level, record=record) for level, record in zip(levels, records, strict=True)]
    material = SimpleNamespace(held=held, sources={n: f"source {n}" for n in range(10)})

    def answering(share: float, seed: int, hard: float) -> dict[str, np.ndarray]:
        drawn = np.random.default_rng(seed).random(40)
        right = (drawn < np.repeat([share, hard], 20)).astype(float)
        return dict.fromkeys(("exact", "selection", "pairs", "kendall"), right)

    rows = {CHANCE: [dict.fromkeys(("exact", "selection", "pairs", "kendall"), np.full(40, 0.05))]}
    rows[WARM] = [answering(0.1, seed, 0.05) for seed in range(3)]
    for arm in ARMS:
        share = {FULL: 0.7, "exact only": 0.1}.get(arm.name, 0.6)
        rows[arm.name] = [answering(share, seed, 0.05) for seed in arm.seeds(range(3))]
    table = table_of(rows, {FULL: {FLAT: figure(np.array([0.25, 0.5, 0.75]))}}, material)
    found = {(f.arm, f.against, f.measure): f.found for f in table.findings}
    assert {measure for _, _, measure in found if measure.startswith("L2")} == set()
    mean = {name: np.mean([seed["exact"][:20] for seed in rows[name]]) for name in (FULL, WARM)}
    assert found[FULL, WARM, "L1 exact"].mean == pytest.approx(mean[FULL] - mean[WARM])
    assert found[FULL, WARM, "L1 exact"].verdict == "holds"
    assert found["exact only", FULL, "L1 exact"].mean < -0.4
    assert found["near distractors", "random distractors", "L1 exact"].verdict == "exploratory"
    assert "L2 exact floor" in table.notes[1]
    assert [row.arm for row in table.rows] == [CHANCE, WARM, *BY_NAME]
    assert table.rows[2].cells[FLAT].mean == 0.5


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory):
    return make_puzzles(tmp_path_factory.mktemp("variants"), videos=2, levels=("L1", "L3"))


@pytest.mark.slow
def test_puzzles_are_made_anew_from_kept_frames(puzzles, tmp_path):
    settings, rules = rules_of(puzzles)
    assert (settings.frames, settings.per_minute, rules.kappa, rules.context) == (8, 30.0, 0.9999, 2)
    own = variant_records(puzzles, "own", tmp_path)
    assert (tmp_path / "puzzles-own" / PUZZLES).read_bytes() == (puzzles / PUZZLES).read_bytes()
    made = {name: {r.id: r for r in variant_records(puzzles, name, tmp_path)} for name in ("random", "near", "kept")}
    shared = [record for record in own if record.id in made["near"].keys() & made["random"].keys()]
    assert len(shared) > 10
    for record in shared:  # the same stretches and gaps, other distractors
        assert made["near"][record.id].context == made["random"][record.id].context == record.context
    assert any(set(made["near"][r.id].candidates) != set(made["random"][r.id].candidates) for r in shared)
    random = [r for r in shared if r.level == "L3"]
    assert all(made["random"][r.id].candidates == r.candidates for r in random)  # as that level has them anyway
    for record in made["kept"].values():
        with FrameFile(puzzles / record.frames) as frames:
            stream = frames.index.seconds
        seconds = sorted([*record.context_seconds, *record.truth_seconds])
        first = stream.index(seconds[0])
        assert tuple(seconds) == stream[first : first + len(seconds)]  # every frame, none left out
    before = (tmp_path / "puzzles-near" / PUZZLES).stat().st_mtime_ns
    assert {record.id for record in variant_records(puzzles, "near", tmp_path)} == made["near"].keys()
    assert (tmp_path / "puzzles-near" / PUZZLES).stat().st_mtime_ns == before
    assert all((puzzles / record.frames).exists() for record in read_records(tmp_path / "puzzles-kept"))


def test_puzzles_that_do_not_say_how_they_were_made_are_refused(tmp_path):
    (tmp_path / "statistics.json").write_text('{"seed": 0}')
    with pytest.raises(LongtakeError, match=r"does not say how long .* run longtake synth mvp with this output"):
        rules_of(tmp_path)
