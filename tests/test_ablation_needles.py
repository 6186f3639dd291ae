"""The selector's table and the heat-map: by hand, what is kept, and in several processes."""

import dataclasses

import numpy as np
import pytest
import torch

import tiny
from longtake.backbones import load_backbone
from longtake.data.probe_world.needles import Card
from longtake.data.probe_world.probe import Event
from longtake.data.probe_world.questions import Question
from longtake.eval.ablation_report import as_text
from longtake.model import EMBEDDED
from longtake.models.video_llm import VideoLLM
from longtake.tables.ablations import heatmap, selector
from longtake.tables.ablations.heatmap import HeatmapSize, arms_of, chosen_questions, missing, parts_of
from longtake.tables.ablations.heatmap_table import PACKAGED, RANDOM, RECOT, START, depth_map, videos_of
from longtake.tables.ablations.heatmap_table import table_of as heatmap_of
from longtake.tables.ablations.jobs import Site
from longtake.tables.ablations.selector import SelectorSize, gathered
from longtake.tables.ablations.selector import table_of as selector_of
from longtake.tables.ablations.world import FULL, SMALLEST, World
from longtake.tables.operations import Cost

RED = Event(what=Card(content="7", colour="red", outline="round"), start_seconds=2, stop_seconds=4, seed=0)


def test_the_selectors_table_by_hand():
    choices, shares = ("selector", "random", "uniform", "oracle"), ("75%", "50%", "25%", "10%", "5%")
    names = [f"{choice} at {share}" for choice in choices for share in shares]
    rows = []
    for video in range(4):
        for task, known in (("what", True), ("count", False)):
            right = dict.fromkeys(names, known) | {"all": True, "blind": False, "oracle at 5%": True}
            rows.append({"video": video, "task": task, "truth": "7", "right": right})
    table = selector_of(SelectorSize(), gathered(rows))
    cells = {row.arm: {name: cell.mean for name, cell in row.cells.items()} for row in table.rows}
    assert cells["all"] == {"all questions": 1.0, "what": 1.0, "count": 1.0}
    assert cells["selector at 50%"] == {"all questions": 0.5, "what": 1.0, "count": 0.0}
    found = {(f.arm, f.against): f.found.mean for f in table.findings}
    assert {f.measure for f in table.findings} == {"all questions"}
    assert found[("selector at 5%", "all")] == found[("selector at 5%", "oracle at 5%")] == -0.5
    assert found[("selector at 5%", "random at 5%")] == 0
    assert (table.tasks["what"].standing, table.tasks["count"].standing) == ("ceiling", "ceiling")


def test_the_selector_is_compared_by_task_where_the_start_is_open():
    names = [f"{choice} at {share}" for choice in ("selector", "random", "uniform", "oracle")
             for share in ("75%", "50%", "25%", "10%", "5%")]  # fmt: skip
    rows = [
        {"video": video, "task": task, "truth": str(n) if task == "what" else f"{9 * n} s",
         "right": dict.fromkeys(names, n > 2) | {"all": n > (0 if task == "when" else 1), "blind": False}}
        for video in range(4) for task in ("what", "when") for n in range(12)
    ]  # fmt: skip
    table = selector_of(SelectorSize(), gathered(rows))
    assert {task: start.standing for task, start in table.tasks.items()} == {"what": "open", "when": "ceiling"}
    assert {f.measure for f in table.findings} == {"all questions", "what"}
    found = {(f.arm, f.against, f.measure): f.found.mean for f in table.findings}
    assert found["selector at 50%", "all", "what"] == pytest.approx(-1 / 12)
    assert any("compared wherever it stands" in note for note in table.notes)


def row(task: str, frames: int, video: int, depth: float, truth: str, right: dict, blind: bool = False) -> dict:
    return {"task": task, "truth": truth, "frames": frames, "video": video, "depth": depth, "right": right,
            "blind": blind}  # fmt: skip


def test_the_heat_map_by_hand():
    """Single cards at 10 frames are open, at 20 at the ceiling; what came after is guessed as well as known."""
    all_right = {RECOT: True, START: False, RANDOM: False, PACKAGED: True}
    none = dict.fromkeys(all_right, False)
    rows = [row("what", 10, n, 0.1, str(n), all_right if n < 3 else none) for n in range(4)]
    rows += [row("what", 20, n, 0.15, str(n), all_right) for n in range(4)]
    rows += [row("after", 20, n, 0.99, "nothing", all_right, blind=True) for n in range(4)]
    assert depth_map((10, 20), rows[:4], RECOT) == [[0.75, None], *[[None, None]] * 4]
    assert depth_map((10, 20), rows[8:], START) == [*[[None, None]] * 4, [None, 0.0]]
    table = heatmap_of((10, 20), rows, ["One more."])
    assert {measure: start.standing for measure, start in table.tasks.items()} == {
        "single, 10 frames": "open", "single, 20 frames": "ceiling", "single, all lengths": "open",
        "chained, 20 frames": "ceiling", "chained, all lengths": "ceiling",
    }  # fmt: skip
    assert (table.tasks["chained, 20 frames"].blind, table.tasks["chained, 20 frames"].majority) == (1.0, 1.0)
    found = {f.measure: f.found for f in table.findings if (f.arm, f.against) == (RECOT, RANDOM)}
    assert {measure: gap.mean for measure, gap in found.items()} == {
        "single, 10 frames": 0.75, "single, all lengths": 0.875, "chained, all lengths": 1.0,
    }  # fmt: skip
    assert {(f.arm, f.against) for f in table.findings} == {(RECOT, START), (RECOT, RANDOM), (START, RANDOM)}
    assert {f.found.verdict for f in table.findings} == {"exploratory"}
    assert table.notes[-1] == "One more."


def test_a_video_of_all_lengths_is_one_video():
    """Its cards are the same at every length."""
    right = {RECOT: True, START: False, RANDOM: False, PACKAGED: False}
    rows = [row("what", frames, n, 0.5, "7", right | {RECOT: n > 0}) for frames in (10, 20, 40) for n in range(4)]
    assert len(np.unique(videos_of(rows))) == 4
    found = next(f.found for f in heatmap_of((10, 20, 40), rows).findings if f.measure == "single, all lengths")
    assert found.degrees == 3
    assert found.standard_error == pytest.approx(np.sqrt(0.25 * 0.75 / 4), rel=0.1)  # of four videos and not of twelve


def test_questions_are_of_both_kinds_in_turn():
    card, after = (Question(task=task, text="?", answer="7", event=RED) for task in ("what", "after"))
    whole = Question(task="count", text="?", answer="1")
    assert chosen_questions([card, whole, card, card, after], 3) == [card, after, card]


def test_forks_keep_their_names_and_two_of_them_start_alike(tmp_path):
    """The names of the two that were always there; what begins as ReCoT does is told from both."""
    here = World(tmp_path, None, FULL)
    arms = arms_of(here)
    names = {name: heatmap.folder_of(here, heatmap.FULL, arm, 0).name for name, arm in arms.items()}
    assert (names[RECOT], names[RANDOM]) == ("long-aeabe94833", "long-2dd9fa11d1")
    assert len(set(names.values())) == 3
    assert dataclasses.replace(arms[RECOT], pretraining=None) == arms[START]
    assert here.begun.parent == here.work


def test_more_videos_go_on_with_the_same_weights_and_answers(tmp_path):
    here = World(tmp_path, None, FULL)
    few = dataclasses.replace(heatmap.FULL, videos=3)
    assert heatmap.answer_files(here, few, 0, 64, 2) == heatmap.answer_files(here, heatmap.FULL, 0, 64, 2)
    fewer_steps = dataclasses.replace(heatmap.FULL, steps=3)
    assert heatmap.answer_files(here, fewer_steps, 0, 64, 2) != heatmap.answer_files(here, few, 0, 64, 2)


def test_a_fork_attends_as_in_training_though_the_packaged_model_is_asked(tmp_path):
    here = World(tmp_path, None, SMALLEST)
    asked = here.backbone(here.packaged).model
    fresh = VideoLLM.from_pretrained(EMBEDDED).language_model.config._attn_implementation
    assert heatmap.new_fork(here, 0).language_model.config._attn_implementation == fresh
    assert asked.language_model.config._attn_implementation != fresh


SHORT, LONG = (f"videos of {frames} frames, watched and asked about" for frames in (32, 64))


def test_what_is_kept_is_not_estimated_again(tmp_path, monkeypatch):
    here, size = World(tmp_path, None, SMALLEST), HeatmapSize(lengths=(32, 64), videos=2, steps=2, tokens=1024)
    done = []
    monkeypatch.setattr(heatmap.checkpoint, "last_step", lambda folder: 2 if folder in done else 0)
    monkeypatch.setattr(heatmap.Costs, "pretraining", lambda *_: Cost(operations=1.0, seconds=5.0))
    monkeypatch.setattr(heatmap, "asking_seconds", lambda world, frames, questions: float(questions))
    seconds = {part.name: part.seconds for part in parts_of(here, size, 0, 0.1)}
    assert seconds[LONG] == pytest.approx(64 * 0.1 + 4 * size.questions)
    left = {part.name: part.times for part in parts_of(here, size, 0, 0.1)}
    trained = {"bank": 1, "ReCoT, 8 steps": 1, "decoders, 2 steps": 3}
    assert left == trained | {SHORT: 2, LONG: 2}
    done += [heatmap.folder_of(here, size, arm, 0) for arm in list(arms_of(here).values())[1:]]
    for file in heatmap.answer_files(here, size, 0, 32, 1).values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    left = {part.name: part.times for part in parts_of(here, size, 0, 0.1)}
    trained = {"bank": 1, "ReCoT, 8 steps": 1, "decoders, 2 steps": 1}
    assert left == trained | {SHORT: 1, LONG: 2}
    assert missing(here, size, 0) == [(32, 0), (64, 0), (64, 1)]
    done.append(heatmap.folder_of(here, size, arms_of(here)[RECOT], 0))
    assert "bank" not in {part.name for part in parts_of(here, size, 0, 0.1) if part.times}


def test_longer_videos_take_longer_to_be_asked_about(tmp_path):
    here = World(tmp_path, None, SMALLEST)
    short, long = (heatmap.asking_seconds(here, frames, 2) for frames in (32, 512))
    assert 0 < short < long


@pytest.mark.slow
def test_several_processes_make_the_same_heat_map(tmp_path):
    size = HeatmapSize(lengths=(32,), videos=2, steps=2, tokens=1024)
    site = Site(folder=tmp_path / "jobs", footage=None, size=SMALLEST, model=EMBEDDED, device="cpu", threads=1)
    alone = World(tmp_path / "alone", None, SMALLEST)
    torch.set_num_threads(1)
    heatmap.run_jobs(site, size, 0, 2)
    written = {file: file.stat().st_mtime_ns for file in site.folder.rglob("*.*")}
    here = World(site.folder, None, SMALLEST)
    assert all(part.times == 0 for part in parts_of(here, size, 0, 1.0))
    in_two = heatmap.run_heatmap(here, size, 0)
    assert {file: file.stat().st_mtime_ns for file in site.folder.rglob("*.*")} == written  # nothing was left to do
    assert as_text(in_two) == as_text(heatmap.run_heatmap(alone, size, 0))


@pytest.mark.parametrize("save", [tiny.save_video_llm, tiny.save_qwen_vl])
def test_a_made_up_memory_has_the_shape_of_a_watched_one_of_either_family(tmp_path, save):
    backbone = load_backbone(str(save(tmp_path / "model")))
    memory = selector.made_up_memory(backbone, 8)
    watched = backbone.encode(tiny.frames(8, *(backbone.frame_size or (224, 224))))
    assert memory.tokens.grid == watched.grid
    assert memory.tokens.features.shape == watched.features.shape
    assert torch.equal(memory.tokens.position, watched.position)
    assert torch.equal(memory.tokens.seconds, watched.seconds)


@pytest.mark.slow
def test_several_processes_make_the_same_selectors_table(tmp_path):
    size = SelectorSize(frames=16, videos=2)
    site = Site(folder=tmp_path / "jobs", footage=None, size=SMALLEST, model=EMBEDDED, device="cpu", threads=1)
    torch.set_num_threads(1)
    selector.run_jobs(site, size, [0], 2)
    here, alone = (World(tmp_path / name, None, SMALLEST) for name in ("jobs", "alone"))
    assert all(part.times == 0 for part in selector.parts_of(here, size, [0], 1.0))
    assert as_text(selector.run_selector(here, size, [0])) == as_text(selector.run_selector(alone, size, [0]))
