"""Questions of the probe world beside puzzles: what they hold, their split, their memories, and a run with them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import tiny
import world
from footage_puzzles import make_puzzles
from grpo_runs import own
from longtake.data.probe_world.questions import Question, score
from longtake.recipes import mvp_replay, settings
from longtake.recipes.mvp import mvp, mvp_debug
from longtake.recipes.mvp_replay import Replay, answers_of, questions_of, replay_beside
from longtake.recipes.mvp_stages import run_on_puzzles
from longtake.train.beside import Beside
from longtake.train.imitate import with_questions
from longtake.train.puzzles import QuestionPuzzle
from longtake.types import LongtakeError
from stage_runs import logged


@pytest.fixture(autouse=True)
def few_clips(monkeypatch):
    """The drawn haystack takes a minute to draw; a few clips are enough."""
    monkeypatch.setattr(mvp_replay, "load_clips", lambda split, *_: world.clips({"train": 0, "test": 1000}[split], 1))


def test_a_right_answer_is_what_the_probe_world_takes_for_right():
    when = Question(task="when", text="When?", answer="7 s")
    assert answers_of(when) == ("5 s", "6 s", "7 s", "8 s", "9 s")
    assert [score(when, f"{second} s") for second in (4, 5, 9, 10)] == [False, True, True, False]
    assert answers_of(Question(task="when", text="When?", answer="1 s")) == ("0 s", "1 s", "2 s", "3 s")
    assert answers_of(Question(task="what", text="What?", answer="42")) == ("42",)


def test_videos_are_watched_once_and_splits_differ(tmp_path, monkeypatch):
    replay = Replay(count=3, videos=2, held_videos=1, frames=8)
    made = replay_beside(replay, own(), tmp_path)
    assert (made.name, made.count) == ("replay", 3)
    assert {puzzle.name.split(".")[0] for puzzle in made.puzzles} == {"train 0", "train 1"}
    assert {puzzle.name.split(".")[0] for puzzle in made.held} == {"test 0"}
    assert not {puzzle.question for puzzle in made.puzzles} & {puzzle.question for puzzle in made.held}
    assert all(puzzle.reward(puzzle.answers[0]) == {"exact": 1.0} for puzzle in made.puzzles)
    monkeypatch.setattr(mvp_replay, "watch_frames", None)  # the second time nothing is watched
    again = replay_beside(replay, own(), tmp_path)
    for one, other in zip(made.puzzles, again.puzzles, strict=True):
        assert (one.name, one.question, one.answers) == (other.name, other.question, other.answers)
        assert torch.equal(one.tokens.features, other.tokens.features)
    some = questions_of(dataclasses.replace(replay, tasks=("is_there",)), own(), "train", tmp_path, range(2))
    assert {puzzle.level for puzzle in some} == {"is_there"}


@pytest.mark.slow
def test_a_recipe_replays(tmp_path):
    folder = make_puzzles(tmp_path)
    start = tiny.save_video_llm(tmp_path / "start", scorer=None)
    recipe = mvp_debug()
    for assignment in (
        f"start.folder={start}",
        "grpo.fit.steps=2",
        "grpo.draw.max_new_tokens=4",
        "puzzles.controls=blind",
        "replay.count=1",
        "replay.videos=1",
        "replay.held_videos=1",
        "replay.frames=8",
    ):
        recipe = settings.changed(recipe, assignment)
    recipe = settings.changed(recipe, "supervised.fit.steps=2")
    run_on_puzzles(recipe, ("grpo", "supervised"), folder, tmp_path / "out")
    assert set(logged(tmp_path / "out/supervised", "replay_held_exact")) == {2}
    assert set(logged(tmp_path / "out/grpo", "replay_reward_exact")) == {1, 2}
    assert set(logged(tmp_path / "out/grpo", "replay_held_exact")) == {2}
    assert len(logged(tmp_path / "out/grpo", "reward_selection")) == 2
    with pytest.raises(LongtakeError, match="replay"):
        run_on_puzzles(settings.changed(recipe, "replay.count=2"), ("grpo",), folder, tmp_path / "out")


def test_wrong_replays_are_refused():
    for wrong in ({"count": -1}, {"videos": 0}, {"held_videos": 0}, {"frames": 7}):
        with pytest.raises(LongtakeError, match="count must not be negative, videos be at least 1"):
            Replay(**wrong)
    with pytest.raises(LongtakeError, match="no questions of the task 'taste'; known are what"):
        Replay(tasks=("taste",))
    recipe = settings.changed(mvp(), "replay.count=2")
    with pytest.raises(LongtakeError, match=r"replay.count is 2, but grpo.train_video is true"):
        settings.changed(recipe, "grpo.train_video=true")
    with pytest.raises(LongtakeError, match=r"but supervised.train_video is true"):
        settings.changed(recipe, "supervised.train_video=true")


def test_right_answers_of_questions_stand_among_the_puzzles():
    """Two questions for every eight puzzles, spread over all questions; a question's guess is its answer."""
    asked = [QuestionPuzzle(name=f"{n}", question="?", answers=("5 s", "6 s", "7 s"), level="when") for n in range(50)]
    puzzles = [dataclasses.replace(asked[0], name="a puzzle")] * 40
    lessons = with_questions(puzzles, Beside(name="replay", puzzles=asked, count=2), 8)
    assert (lessons[:40], len(lessons)) == (puzzles, 50)
    assert {lesson.name for lesson in lessons[40:]} >= {"0", "49"}
    for lesson in lessons[40:]:
        assert lesson.guess(np.random.default_rng(0)) == lesson.solution() == "6 s"
        assert lesson.reward(lesson.solution()) == {"exact": 1.0}
