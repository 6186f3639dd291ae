"""``longtake train mvp``: stages, figures and files, mistakes, an interruption, and the model in the package."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import tiny
from footage_puzzles import make_puzzles
from longtake.backbones import load_backbone
from longtake.cli import app
from longtake.data.puzzles.puzzle_file import read_records
from longtake.recipes import settings
from longtake.recipes.mvp import mvp_debug
from longtake.recipes.mvp_stages import run_on_puzzles
from longtake.train.methods import METHODS
from longtake.train.rewards import parse
from longtake.types import LongtakeError
from processes import PATIENCE_SECONDS, environment
from stage_runs import logged

SHORT = ["warm.fit.steps=2", "warm.fit.batch=2", "warm.fit.eval_every=2", "grpo.fit.steps=2", "supervised.fit.steps=2"]
SHORT += ["grpo.draw.max_new_tokens=4", "warm.max_new_tokens=4", "supervised.max_new_tokens=4"]
SHORT += ["puzzles.controls=blind,candidates,foreign,shuffled"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_puzzles(tmp_path_factory.mktemp("footage"))


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A tiny model."""
    return tiny.save_video_llm(tmp_path_factory.mktemp("start"), scorer=None)


def arguments(folder: Path, start: Path, output: Path, *more: str, stages: tuple[str, ...] = ()) -> list[str]:
    sets = [f"start.folder={start}", *SHORT, *more]
    named = [part for stage in stages for part in ("--stage", stage)]
    return ["train", "mvp_debug", str(folder), "-o", str(output), *named, *(p for s in sets for p in ("--set", s))]


@pytest.fixture(scope="module")
def finished(folder, start, tmp_path_factory):
    """A short run of all stages: its folder, and what was printed."""
    output = tmp_path_factory.mktemp("run") / "out"
    stages = ("warm", "grpo", "supervised")
    found = CliRunner().invoke(app, arguments(folder, start, output, stages=stages))
    assert found.exit_code == 0, found.output
    return output, found.stdout


def test_the_report_has_models_controls_baselines_and_chance(finished, folder):
    output, printed = finished
    told = json.loads((output / "report.json").read_text())
    assert told["puzzles"] == {"L1": 4}
    rows = told["levels"]["L1"]
    trained = [f"{stage}{control}" for stage in ("grpo", "supervised") for control in (
        "", ", blind", ", candidates", ", foreign", ", shuffled"
    )]
    assert [row for row in rows if row not in told["baselines"]] == ["chance", "best baseline", "warm", *trained]
    assert {"pool order", "shortest path, pixels", "nearest to the boundary, own tower"} <= set(told["baselines"])
    best = max(rows[name]["selection"] for name in told["baselines"])
    assert rows["best baseline"]["selection"] == best
    assert all(set(found) == {"valid", "exact", "selection", "pairwise", "kendall"} for found in rows.values())
    assert "L1, 4 held-out puzzles" in printed
    assert "supervised, shuffled" in printed
    assert "pool order" not in printed
    split = json.loads((output / "split.json").read_text())
    answers = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 4 * len(rows) - 4  # all but the best of each measure
    assert {answer["source"] for answer in answers} == set(split["held"])
    sources = {record.id: split["sources"][record.identity] for record in read_records(folder)}
    assert all(sources[answer["puzzle"]] == answer["source"] for answer in answers)


def test_lessons_in_comparing_come_before_all_other_stages(folder, start, tmp_path):
    output = tmp_path / "out"
    few = ("compare.fit.steps=2", "compare.fit.eval_every=2", "copies=3")
    for stage, origin in (("compare", "start"), ("supervised", "compare"), ("warm", "compare")):
        found = CliRunner().invoke(app, arguments(folder, start, output, *few, stages=(stage,)))
        assert found.exit_code == 0, found.output
        assert json.loads((output / stage / "settings.json").read_text())["from"] == origin
    assert 0 <= logged(output / "compare", "held_exact")[2] <= 1
    rows = json.loads((output / "report.json").read_text())["levels"]["L1"]
    assert not any(row.startswith("compare") for row in rows)
    order = ("order.fit.steps=2", "order.fit.eval_every=2")
    found = CliRunner().invoke(app, arguments(folder, start, output, *order, stages=("order",)))
    assert found.exit_code == 0, found.output
    assert json.loads((output / "order" / "settings.json").read_text())["from"] == "compare"
    assert 0 <= logged(output / "order", "held_pairwise")[2] <= 1
    assert "order alone: the frames beside the gap and the missing ones\nL1, 4 held-out puzzles" in found.stdout
    rows = json.loads((output / "order" / "report.json").read_text())["levels"]["L1"]
    assert rows["chance"]["exact"] == 0.5
    assert {"order", "order, foreign", "order, shuffled", "shortest path, pixels"} <= set(rows)
    refused = arguments(folder, start, output, *order, "puzzles.control=blind", stages=("order",))
    assert "order" in str(CliRunner().invoke(app, refused).exception)
    found = CliRunner().invoke(app, arguments(folder, start, output, *few[:2], "copies=4", stages=("compare",)))
    assert isinstance(found.exception, LongtakeError)
    assert "copies" in str(found.exception)


def test_order_alone_can_be_asked_of_every_stage(folder, start, tmp_path):
    """Two missing frames and no others: any valid answer has both, and half of them are right by chance."""
    only = "puzzles.only_order=true"
    found = CliRunner().invoke(app, arguments(folder, start, tmp_path, only, stages=("grpo", "supervised")))
    assert found.exit_code == 0, found.output
    rows = json.loads((tmp_path / "report.json").read_text())["levels"]["L1"]
    assert (rows["chance"]["exact"], rows["chance"]["selection"]) == (0.5, 1)
    assert all(found["selection"] == pytest.approx(found["valid"]) for found in rows.values())
    assert {"grpo", "grpo, foreign", "supervised, shuffled", "shortest path, pixels"} <= set(rows)


def test_stages_begin_after_the_warm_up_and_log_figures(finished):
    output, _ = finished
    origins = [json.loads((output / stage / "settings.json").read_text())["from"] for stage in ("grpo", "supervised")]
    assert origins == ["warm", "warm"]
    assert list(logged(output / "grpo", "held_kendall")) == [2]
    assert list(logged(output / "warm", "loss")) == [1, 2]
    assert list(logged(output / "grpo", "reward_selection")) == [1, 2]
    weights = [load_file(output / stage / "model" / "model.safetensors") for stage in ("warm", "supervised")]
    changed = [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]
    assert changed
    assert all(name.startswith("language_model") for name in changed)


def test_samples_of_the_run_are_shown(finished):
    output, _ = finished
    found = CliRunner().invoke(app, ["samples", str(output / "grpo")])
    assert found.exit_code == 0
    assert "2 frames are missing" in found.stdout
    assert "selection" in found.stdout


def test_a_finished_run_is_left_as_it_is(finished, folder, start):
    output, _ = finished
    before = {file: file.read_bytes() for file in output.rglob("*.json*")}
    assert CliRunner().invoke(app, arguments(folder, start, output, "grpo.fit.log_every=3")).exit_code == 0
    assert before == {file: file.read_bytes() for file in output.rglob("*.json*")} | {
        output / "grpo/settings.json": before[output / "grpo/settings.json"]
    }


def test_runs_of_other_settings_and_puzzles_are_refused(finished, folder, start, tmp_path):
    output, _ = finished
    with pytest.raises(LongtakeError, match=r"warm holds a run with puzzles\.times = True, not False"):
        run_again(folder, start, output, "puzzles.times=false")
    other = tmp_path / "other"
    other.mkdir()
    (other / "puzzles.jsonl").write_text("".join((folder / "puzzles.jsonl").read_text().splitlines(True)[:-1]))
    with pytest.raises(LongtakeError, match="out holds a run on other puzzles than .*other; give another --output"):
        run_again(other, start, output)


def test_the_model_in_the_package_has_a_recipe_of_its_own(folder, tmp_path):
    """Shortened, by the command: right answers, with questions among them, and a report."""
    few = ["supervised.fit.steps=2", "replay.videos=1", "replay.held_videos=1", "replay.frames=8", "puzzles.watched=2"]
    more = [*few, "puzzles.most_held=2", "puzzles.controls=blind", "supervised.max_new_tokens=6"]
    told = [part for each in more for part in ("--set", each)]
    found = CliRunner().invoke(app, ["train", "mvp_embedded", str(folder), "-o", str(tmp_path / "out"), *told])
    assert found.exit_code == 0, found.output
    assert "supervised, blind" in found.output
    assert set(logged(tmp_path / "out/supervised", "replay_held_exact")) == {2}
    assert not (tmp_path / "out/warm").exists()


def run_again(folder: Path, start: Path, output: Path, *more: str) -> None:
    recipe = mvp_debug()
    for assignment in (f"start.folder={start}", *SHORT, *more):
        recipe = settings.changed(recipe, assignment)
    run_on_puzzles(recipe, recipe.stages, folder, output)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["puzzles.levels=L7"], "there are no puzzles of level L7; .* has L1, L2"),
        (["puzzles.watched=0"], "watched is 0"),
        (["puzzles.form=letters"], "it must be one of direct, answer, think"),
        (["puzzles.control=deaf"], "it must be one of none, blind, candidates, foreign, shuffled"),
    ],
)
def test_wrong_choices_are_told(folder, start, tmp_path, more, said):
    with pytest.raises(LongtakeError, match=said):
        run_again(folder, start, tmp_path / "out", *more)


def test_method_weights_and_teacher_are_chosen_by_name(folder, start, tmp_path):
    recipe = mvp_debug()
    for assignment in ("grpo.method=gspo", "grpo.method.objective.clip_low=0.1", "grpo.weights=exact:1, order:0.5"):
        recipe = settings.changed(recipe, assignment)
    gspo = METHODS["gspo"]
    assert recipe.grpo.method == replace(gspo, objective=replace(gspo.objective, clip_low=0.1))
    assert recipe.grpo.weights == {"exact": 1.0, "order": 0.5}
    teacher = tiny.save_video_llm(tmp_path / "teacher", scorer=None)
    output = tmp_path / "out"
    few = ["puzzles.controls=", "puzzles.most_held=2", "grpo.method=opd", "grpo.method.teaching.share=0"]
    found = CliRunner().invoke(
        app, arguments(folder, start, output, *few, f"teacher={teacher}", stages=("warm", "grpo"))
    )
    assert found.exit_code == 0, found.output
    told = json.loads((output / "grpo" / "settings.json").read_text())
    assert told["teacher"] == load_backbone(str(teacher)).name


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("grpo.method=ppo", "grpo.method is 'ppo'; it must be one of grpo, dr_grpo, dapo, gspo"),
        ("grpo.weights=exact", "grpo.weights is 'exact'; it must be names and values, as exact:1,order:0.5"),
        ("grpo.weights=exact:much", "grpo.weights, exact is 'much'; it must be a number"),
        ("grpo.method=opd", "teacher is '' and grpo.method has a teacher; give teacher=FOLDER with grpo.method=opd"),
        ("teacher=FOLDER", "teacher is 'FOLDER' and grpo.method has none; give teacher=FOLDER with grpo.method=opd"),
    ],
)
def test_wrong_methods_are_told(folder, start, tmp_path, more, said):
    with pytest.raises(LongtakeError, match=said):
        run_again(folder, start, tmp_path / "out", more)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["mvp"], "the recipe mvp needs puzzles; give the folder that longtake synth mvp wrote"),
        (["debug", "FOLDER"], "the recipe debug takes no puzzles"),
        (["mvp", "FOLDER", "--data", "x.jsonl"], "--data, --media and --held are of conversations"),
        (["mvp", "FOLDER", "--stage", "sft"], "it must be one of compare, order, warm, grpo, supervised"),
        (["mvp", "nowhere"], "no such file; give the folder that longtake synth mvp wrote"),
    ],
)
def test_mistakes_of_the_command_line(folder, tmp_path, given, said):
    given = [str(folder) if word == "FOLDER" else word for word in given]
    found = CliRunner().invoke(app, ["train", *given, "--output", str(tmp_path / "out")])
    assert isinstance(found.exception, LongtakeError)
    assert said in str(found.exception)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(folder, start, tmp_path):
    more = ["grpo.fit.steps=6", "puzzles.controls=blind"]
    commands = {
        name: [sys.executable, "-m", "longtake.cli", *arguments(folder, start, tmp_path / name, *more)]
        for name in ("whole", "killed")
    }
    subprocess.run(commands["whole"], env=environment(), check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    running = subprocess.Popen(commands["killed"], env=environment(), stderr=subprocess.DEVNULL)
    log, until = tmp_path / "killed" / "grpo" / "log.jsonl", time.monotonic() + PATIENCE_SECONDS
    while not (log.exists() and log.read_text().count('"norm"') >= 3):
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.002)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/grpo/model").exists()
    subprocess.run(commands["killed"], env=environment(), check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    for stage in ("warm", "grpo"):
        one, other = (load_file(tmp_path / name / stage / "model/model.safetensors") for name in ("whole", "killed"))
        assert all(torch.equal(one[name], other[name]) for name in one)
    for name in ("report.json", "answers.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for name in ("reward", "loss", "held_kendall", "p_L1"):
        assert logged(tmp_path / "killed/grpo", name) == logged(tmp_path / "whole/grpo", name)


@pytest.mark.slow
def test_the_model_in_the_package_learns_the_form(folder, tmp_path):
    """The smallest size as it ships: after the warm-up most answers are lists of the asked form."""
    found = CliRunner().invoke(app, ["train", "mvp_debug", str(folder), "-o", str(tmp_path)])
    assert found.exit_code == 0, found.output
    told = json.loads((tmp_path / "report.json").read_text())["levels"]["L1"]
    assert told["warm"]["valid"] > 0.5
    rows = [json.loads(line) for line in (tmp_path / "grpo/samples.jsonl").read_text().splitlines()]
    said = [completion["text"] for row in rows for completion in row["completions"]]
    assert sum(parse(text).numbers is not None for text in said) > len(said) / 2
