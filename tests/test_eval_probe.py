"""The probe evaluation: intervals, reports and evidence by hand, and the whole run with a tiny model."""

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import longtake
import longtake.model
import tiny
import world
from full_disk import full_disk
from longtake.backbones.base import Prompt
from longtake.cli import app
from longtake.data.probe_world.needles import Card
from longtake.data.probe_world.probe import Event, ProbeVideo, make_video
from longtake.data.probe_world.questions import TASKS, Question, ask_all
from longtake.eval import probe
from longtake.eval.plot import depth_by_length
from longtake.eval.probe import (
    ask_blind,
    ask_watched,
    evaluate_each,
    evidence,
    later,
    needle_groups,
    watch_video,
)
from longtake.eval.report import DEPTHS, Asked, ProbeRun, interval, report, table
from longtake.types import Answer, Evidence, LongtakeError, Usage
from thoughts import thinker

CONTROLS = {"all", "oracle", "random", "uniform", "blind", "majority", "hindsight"}


def asked(video: int, right: bool, task: str = "what", answer: str = "7", depth: float | None = 0.5, **more) -> Asked:
    question = Question(task=task, text="?", answer=answer)
    answers = {"model": answer if right else "wrong", "blind": more.pop("blind", "wrong")}
    values = {"evidence_hit": True, "evidence_share": 0.1} | more
    return Asked(video=video, question=question, answers=answers, depth=depth, **values)


def is_right(a: Asked) -> bool:
    return a.answers["model"] == a.question.answer


def test_an_interval_of_equal_videos_has_no_width():
    some = [asked(video, right) for video in range(6) for right in (True, False, True, True)]
    rng = np.random.default_rng(0)
    assert interval(some, is_right, rng) == {"mean": 0.75, "low": 0.75, "high": 0.75, "questions": 24}
    assert interval([], is_right, rng) == {"mean": None, "low": None, "high": None, "questions": 0}


def test_an_interval_resamples_videos_and_not_questions():
    """All answers of a video right or all wrong: the mean of n fair coins, whose quantiles are binomial."""
    videos = 20
    some = [asked(video, video % 2 == 0) for video in range(videos) for _ in range(10)]
    found = interval(some, is_right, np.random.default_rng(0))
    below = np.cumsum([math.comb(videos, k) / 2**videos for k in range(videos + 1)])
    low, high = (int(np.searchsorted(below, share)) / videos for share in (0.025, 0.975))
    assert found["mean"] == 0.5
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1 / videos + 1e-9)
    # by question the width would be about 0.14
    assert found["high"] - found["low"] > 0.35


def test_videos_count_by_their_questions():
    some = [asked(0, True)] * 9 + [asked(1, False)]
    found = interval(some, is_right, np.random.default_rng(0))
    assert (found["mean"], found["low"], found["high"]) == (0.9, 0.0, 1.0)


def test_a_report_by_hand():
    rows = [
        asked(0, True, depth=0.05, evidence_hit=True, evidence_share=0.02),
        asked(0, True, depth=0.95, evidence_hit=False, evidence_share=0.04, blind="7"),
        asked(1, False, depth=1.0, evidence_hit=True, evidence_share=0.5),
        asked(1, True, "is_there", "yes", depth=0.5, evidence_share=0.9),
        asked(1, True, "is_there", "no", depth=None, evidence_hit=None, evidence_share=0.9),
        asked(2, False, "is_there", "no", depth=None, evidence_hit=None, blind="no"),
        asked(2, True, "when", "12 s", depth=0.0),
        asked(2, False, "when", "12 s", depth=0.3, blind="13 s"),
    ]
    run = ProbeRun(num_frames=64, num_videos=3, seed=2)
    clips = world.clips()
    others = [
        Question(task=task, text="?", answer=said)
        for task, said in [("what", "8"), ("what", "8"), ("what", "7"), ("is_there", "No."), ("when", "12 s")]
    ]
    found = report(run, rows, clips, others)
    assert json.loads(json.dumps(found)) == found
    said = {"num_frames": 64, "num_videos": 3, "seed": 2, "keep": None, "begin_seconds": 0, "split": "test",
            "oracle": False}  # fmt: skip
    assert found["run"] == said
    assert found["haystack"] == {"clips": 3, "unique_minutes": 0.4}
    assert (found["accuracy"]["mean"], found["accuracy"]["questions"]) == (0.625, 8)
    assert list(found["by_task"]) == ["what", "is_there", "when"]
    assert found["by_task"]["what"]["mean"] == found["by_task"]["is_there"]["mean"] == 0.6667
    assert [found["by_task"][task]["blind"] for task in found["by_task"]] == [0.3333, 0.3333, 0.5]
    assert [found["by_task"][task]["hindsight"] for task in found["by_task"]] == [1.0, 0.6667, 1.0]
    assert [found["by_task"][task]["majority"] for task in found["by_task"]] == [0.0, 0.6667, 1.0]
    assert found["controls"]["hindsight"]["mean"] == 0.875
    assert found["controls"]["majority"]["mean"] == 0.5
    assert found["controls"]["blind"]["mean"] == 0.375
    # depths of what is on and of cards that are there: 0.05, 0.5, and 0.95 with 1.0
    assert [cell["mean"] for cell in found["by_depth"]] == [1.0, None, 1.0, None, 0.5]
    assert [cell["questions"] for cell in found["by_depth"]] == [1, 0, 1, 0, 2]
    assert found["evidence"] == {"correct_what": 2, "top_span_hits": 0.5, "covered_share": 0.03}
    text = table([found, found]).splitlines()
    assert text[0].split() == ["frames", "64", "64"]
    assert {len(line) for line in text} == {26 + 2 * 22}
    assert text[1].startswith("all questions")
    assert text[1].split()[2].startswith("0.625")
    assert next(line for line in text if line.startswith("order")).split() == ["order", "-", "-"]
    assert next(line for line in text if "top_span_hits" in line).split()[2:] == ["0.500", "0.500"]


def answer(*spans: tuple[float, float, float]) -> Answer:
    found = tuple(Evidence(start_seconds=a, stop_seconds=b, score=s) for a, b, s in spans)
    return Answer(text="7", evidence=found, usage=Usage(frames=1, visual_tokens=1, prompt_tokens=1, seconds={}))


def test_evidence_by_hand():
    needle = Event(what=Card(content="7", colour="red", outline="round"), start_seconds=10.0, stop_seconds=13.0, seed=0)
    video = ProbeVideo(seed=0, split="test", fps=2.0, num_frames=200, size=(8, 8), shots=(), events=(), foreign=())
    about = Question(task="what", text="?", answer="7", event=needle)
    assert evidence(video, about, answer((8, 12, 0.6), (40, 44, 0.4))) == (True, 0.08)
    assert evidence(video, about, answer((40, 44, 0.6), (8, 12, 0.4))) == (False, 0.08)
    assert evidence(video, about, answer((13, 17, 0.6))) == (False, 0.04)  # spans and needles are half-open
    assert evidence(video, about, answer((6, 10, 0.6))) == (False, 0.04)
    assert evidence(video, about, answer()) == (False, 0.0)
    whole = Question(task="count", text="?", answer="1")
    assert evidence(video, whole, answer((0, 100, 1.0))) == (None, 1.0)


def test_a_question_about_a_later_video():
    needle = Event(what=Card(content="7", colour="red", outline="round"), start_seconds=10.5, stop_seconds=13.0, seed=0)
    when = later(Question(task="when", text="?", answer="11 s", event=needle), 9000)
    assert (when.answer, when.event.start_seconds, when.event.stop_seconds) == ("9011 s", 9010.5, 9013.0)
    count = Question(task="count", text="?", answer="2")
    assert later(count, 9000) == count


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> longtake.Model:
    return longtake.load(tiny.save_video_llm(tmp_path_factory.mktemp("model")), device="cpu")


def test_a_whole_run_with_a_tiny_model(model, monkeypatch):
    monkeypatch.setattr(probe, "ANSWER_TOKENS", 3)
    progress: list[tuple[int, int]] = []
    run = ProbeRun(num_frames=24, num_videos=2, seed=5)
    (found,) = evaluate_each(model, [run], world.clips(), lambda *step: progress.append(step))
    assert progress == [(1, 2), (2, 2)]
    # a random model's tokens are no answers
    assert found["accuracy"]["mean"] == 0.0
    assert set(found["controls"]) == {"blind", "majority", "hindsight"}
    (again,) = evaluate_each(model, [run], world.clips())
    assert found | {"seconds": 0} == again | {"seconds": 0}
    expected = [make_video(5 * 100_003 + n, split="test", clips=world.clips(), num_frames=24) for n in (0, 1)]
    asked_by_hand = sum(len(ask_all(v, np.random.default_rng(0), 20)) for v in expected)
    assert found["accuracy"]["questions"] == asked_by_hand


def test_a_budget_adds_its_controls(model, monkeypatch):
    monkeypatch.setattr(probe, "ANSWER_TOKENS", 3)
    monkeypatch.setattr(probe, "QUESTIONS_A_VIDEO", 3)
    kept: dict[str, set[int]] = {}
    ask = longtake.Model.ask_all

    def watched(self, memory, questions, **settings):
        found = ask(self, memory, questions, **settings)
        name = type(settings["selector"]).__name__ + str(settings["budget_tokens"])
        kept.setdefault(name, set()).update(one.usage.visual_tokens for one in found)
        return found

    monkeypatch.setattr(longtake.Model, "ask_all", watched)

    def ask_video(run: ProbeRun) -> list[Asked]:
        return ask_watched(model, run, watch_video(model, run, world.clips(), 0))

    rows = ask_video(ProbeRun(num_frames=24, keep=0.25))
    assert set(rows[0].answers) == {"model", "random", "uniform", "all", "blind"}
    assert kept["NoneTypeNone"] == {24}
    assert kept["NoneType4"] == kept["Random4"] == kept["Uniform4"] == {4}  # a quarter is 6, in whole groups 4
    kept.clear()
    rows = ask_video(ProbeRun(num_frames=520))  # 520 tokens do not fit 512 positions
    assert set(rows[0].answers) == {"model", "random", "uniform", "blind"}
    assert all(count < 512 for counts in kept.values() for count in counts)


@pytest.mark.slow
def test_several_budgets_share_one_watching(model, monkeypatch):
    monkeypatch.setattr(probe, "ANSWER_TOKENS", 3)
    monkeypatch.setattr(probe, "QUESTIONS_A_VIDEO", 3)
    watched = []
    watch = probe.watch_frames
    monkeypatch.setattr(probe, "watch_frames", lambda *a, **k: watched.append(1) or watch(*a, **k))
    runs = [ProbeRun(num_frames=24, num_videos=2, keep=keep, oracle=True) for keep in (0.5, 0.25)]
    found = evaluate_each(model, runs, world.clips())
    assert len(watched) == 2
    assert [set(one["controls"]) for one in found] == [CONTROLS] * 2
    (alone,) = evaluate_each(model, runs[1:2], world.clips())
    assert alone | {"seconds": 0} == found[1] | {"seconds": 0}
    assert table(found).splitlines()[1].split() == ["tokens", "kept", "50%", "25%"]
    assert any(line.startswith("control: oracle") for line in table(found).splitlines())


def test_needle_groups_by_hand(model):
    run = ProbeRun(num_frames=48, begin_seconds=100)
    watched = watch_video(model, run, world.clips(), 1)
    assert watched.memory.tokens.grid[0] == 12
    frames = np.arange(48)
    for question in watched.questions:
        events = [e for _, e in watched.video.cards] if question.task in ("order", "count", "after") else []
        spans = [(e.start_seconds, e.stop_seconds) for e in events]
        if not spans and question.event:
            spans = [(question.event.start_seconds - 100, question.event.stop_seconds - 100)]
        seen = {n // 4 for n in frames for a, b in spans if a <= n < b}
        # an event may reach into a group without showing on one of its frames
        near = {n + step for n in seen for step in (-1, 0, 1)}
        assert seen <= set(needle_groups(watched, run, question)) <= near


@pytest.mark.parametrize("begin", [0, 7000])
def test_a_perfect_model_scores_everything(model, monkeypatch, begin):
    """Answers from the truth by question text: every figure is 1, evidence included."""
    truths: dict[str, Question] = {}
    asking = ask_all

    def remembered(video, rng, limit):
        questions = asking(video, rng, limit)
        truths.update({question.text: question for question in questions})
        return questions

    def told(text):
        question = later(truths[text], begin)
        spans = [] if question.event is None else [(question.event.start_seconds, question.event.stop_seconds, 1.0)]
        found = answer(*spans)
        return Answer(text=f" {question.answer}. ", evidence=found.evidence, usage=found.usage)

    def all_told(self, memory, texts, **settings):
        assert memory.tokens.seconds[0] == begin
        return [told(text) for text in texts]

    monkeypatch.setattr(probe, "ask_all", remembered)
    monkeypatch.setattr(longtake.Model, "ask_all", all_told)
    monkeypatch.setattr(probe, "ANSWER_TOKENS", 2)
    run = ProbeRun(num_frames=64, num_videos=3, begin_seconds=begin)
    (found,) = evaluate_each(model, [run], world.clips())
    assert found["accuracy"]["mean"] == found["accuracy"]["low"] == 1.0
    assert set(found["by_task"]) == set(TASKS)
    assert found["evidence"]["top_span_hits"] == 1.0
    assert 0 < found["evidence"]["covered_share"] < 0.1
    assert len(found["by_depth"]) == DEPTHS
    assert found["controls"]["majority"]["mean"] < 1


def test_blind_answers_come_from_the_question_alone(model):
    first = ask_blind(model, ["What is on the red card?", "How many?"])
    assert ask_blind(model, ["How many?"]) == first[1:]


def test_a_model_that_thinks_does_so_when_blind_too(monkeypatch):
    thinking = longtake.Model(backbone=thinker("own"))
    assert thinking.backbone.latent is not None
    questions, seen = ["What is on the red card?", "How many?"], []
    own = thinking.backbone.generate

    def told(self, inputs, *rest, **more):
        seen.append(inputs)
        return own(inputs, *rest, **more)

    monkeypatch.setattr(type(thinking.backbone), "generate", told)
    ask_blind(thinking, questions)
    plain_inputs = thinking.backbone.prepare([Prompt(question=question) for question in questions])
    assert seen[0].ids.shape[1] == plain_inputs.ids.shape[1] + 2 + 4  # the markers and four latents


def test_the_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    found = report(ProbeRun(num_frames=64), [asked(0, True), asked(1, False, depth=0.9)], world.clips(), [])
    depth_by_length([found, found | {"run": {"num_frames": 1024}}], tmp_path / "map.png")
    drawn = (tmp_path / "map.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > 5000
    with full_disk(600), pytest.raises(LongtakeError, match="could not write .*map.png: File too large"):
        depth_by_length([found], tmp_path / "map.png")
    assert os.listdir(tmp_path) == ["map.png"]
    assert (tmp_path / "map.png").read_bytes() == drawn


@pytest.mark.parametrize("plot", ["none/map.png", "map.foo"])
def test_a_picture_that_cannot_be_drawn_is_refused_first(tmp_path, monkeypatch, plot):
    pytest.importorskip("matplotlib")

    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(longtake.model, "load", load)
    done = CliRunner().invoke(app, ["eval", "probe", "--frames", "16", "--plot", str(tmp_path / plot)])
    assert isinstance(done.exception, LongtakeError)
    assert Path(plot).parts[0] in str(done.exception)


def test_figures_are_printed_though_their_picture_fails(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    found = report(ProbeRun(num_frames=64), [asked(0, True)], world.clips(), [])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "map.png")

    monkeypatch.setattr(longtake.model, "load", lambda *_, **__: None)
    monkeypatch.setattr("longtake.data.probe_world.haystack.load_clips", lambda *_: world.clips())
    monkeypatch.setattr(probe, "evaluate_each", lambda *_: [found])
    monkeypatch.setattr("longtake.eval.plot.depth_by_length", full)
    done = CliRunner().invoke(app, ["eval", "probe", "--frames", "64", "--plot", str(tmp_path / "map.png")])
    assert isinstance(done.exception, OSError)
    assert "all questions" in done.output
