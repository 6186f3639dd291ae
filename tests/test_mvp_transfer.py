"""The table of transfer: what is asked, what each arm learns from, equal operations, and answers to a table by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
import world
from grpo_runs import own, puzzles
from longtake.data.probe_world.questions import Question, score
from longtake.eval.ablation import Estimate
from longtake.eval.ablation_report import Finding
from longtake.recipes.mvp import mvp
from longtake.tables import token_files
from longtake.tables.compare import TOGETHER, Measured
from longtake.tables.mvp import exam as mvp_exam
from longtake.tables.mvp import transfer_arms
from longtake.tables.mvp.exam import TRANSFER, exam_video, questions_about
from longtake.tables.mvp.site import Site
from longtake.tables.mvp.transfer import FALLS, PAIRS, START, WARM, fallen, table_of_answers
from longtake.tables.mvp.transfer_arms import (
    ARMS,
    EVENLY,
    PUZZLES,
    QUESTIONS,
    REPLAY,
    SIZE,
    arm_recipe,
    folder_of,
    step_cost,
)
from longtake.tables.operations import Cost
from longtake.tables.replies import Replies
from longtake.train.beside import Beside, draw, kinds_of
from longtake.train.grpo_recipe import names_of
from longtake.train.puzzles import QuestionPuzzle

COSTS = {
    REPLAY: Cost(operations=2e9, seconds=1.0),
    QUESTIONS: Cost(operations=8e9, seconds=4.0),
    PUZZLES: Cost(operations=20e9, seconds=9.0),
}


@pytest.fixture
def site(tmp_path):
    return Site(puzzles=tmp_path, work=tmp_path / "work", recipe=mvp())


def asked_about(videos: int) -> list[Question]:
    return [Question(task=task, text="?", answer=f"{n % 2}") for n in range(videos) for task in TRANSFER]


class Asked:
    def __init__(self, videos: int) -> None:
        self.asked = asked_about(videos)
        self.video_of = np.arange(4 * videos) // 4


def answering(exam: Asked, share: dict[str, float], seeds: int = 3) -> Measured:
    """Right in a share of each task's questions, drawn by seed."""
    replies = {}
    for seed in range(seeds):
        drawn = np.random.default_rng(seed).random(len(exam.asked))
        said = [q.answer if d < share[q.task] else "wrong" for q, d in zip(exam.asked, drawn, strict=True)]
        replies[seed] = Replies(answers=tuple(said), spans=(None,) * len(said))
    return Measured(exam, replies, dict.fromkeys(replies, {}))


def shares(order: float, after: float, direction: float = 0.5, count: float = 0.97) -> dict[str, float]:
    return dict(zip(TRANSFER, (order, after, direction, count), strict=True))


def test_answers_become_a_table_with_falls():
    exam = Asked(120)
    measured = {
        START: answering(exam, shares(0.95, 0.95), seeds=1),
        WARM: answering(exam, shares(0.9, 0.7)),
        REPLAY: answering(exam, shares(0.9, 0.8, count=0.99)),
        QUESTIONS: answering(exam, shares(0.9, 0.8, count=0.96)),
        PUZZLES: answering(exam, shares(0.3, 0.9, count=0.93)),
    }
    table = table_of_answers(exam, measured, answering(exam, shares(0.1, 0.1, 0.1, 0.1)))
    standings = {task: start.standing for task, start in table.tasks.items()}
    assert standings == {"order": "open", "after": "open", "direction": "floor", "count": "ceiling"}
    assert table.tasks["after"].start == pytest.approx(measured[WARM].right[:, 1::4].mean())
    assert (table.tasks["after"].majority, table.tasks["after"].blind) == (0.5, pytest.approx(0.1, abs=0.03))
    found = {(f.arm, f.against, f.measure): f.found for f in table.findings}
    assert len(found) == len(table.findings) == len(FALLS) * 4 + len(PAIRS)  # each task once, and open ones together
    gained = measured[PUZZLES].right[:, 1::4] - measured[REPLAY].right[:, 1::4]
    assert found[PUZZLES, REPLAY, "after"].mean == pytest.approx(gained.mean())
    assert found[PUZZLES, START, "order"].by_seed == pytest.approx(
        tuple((measured[PUZZLES].right - measured[START].right)[:, ::4].mean(1))
    )
    assert {(PUZZLES, QUESTIONS, TOGETHER), (REPLAY, WARM, "direction, at the floor")} <= found.keys()
    told = table.notes[-1]
    assert f"{PUZZLES} against {REPLAY} in order" in told
    assert f"{PUZZLES} against {REPLAY} in after" not in told
    assert f"{REPLAY} against {WARM}" not in told
    assert [row.arm for row in table.rows] == [START, WARM, *ARMS]


def test_a_fall_is_an_interval_below_two_points():
    def finding(mean: float) -> Finding:
        found = Estimate(mean=mean, by_seed=(mean,) * 3, standard_error=0.01, degrees=np.inf)
        return Finding(arm="a", against="b", measure=f"{mean}", found=found)

    told = fallen([finding(mean) for mean in (-0.05, -0.039, 0.3)])  # the intervals reach 0.0196 each way
    assert told == "Fell (the whole interval below -2%): a against b in -0.05."
    assert fallen([finding(0.0)]).endswith("none.")


def test_every_video_has_a_question_of_each_task():
    clips = world.clips(1000, 1)
    for number in range(12):
        asked = questions_about(exam_video(number, clips), number)
        assert tuple(question.task for question in asked) == TRANSFER
        order, _, _, count = asked
        assert int(count.answer) == 2 + number % 3 == len(order.answer.split(", "))
        assert all(score(question, question.answer) for question in asked)
    assert exam_video(3, clips).split == "test"
    again = questions_about(exam_video(11, clips), 11)
    assert again == asked


def test_a_video_is_run_once_for_its_questions_and_answers_stay():
    """As each is answered alone; two videos with three and two questions; blind, no video is run."""
    backbone = own()
    films = [backbone.encode(tiny.frames(8, 32, 32, seed=seed)) for seed in (0, 1)]
    texts = ("Which is it?", "How many of them are there?", "When?")
    asked = [
        QuestionPuzzle(name=f"{n}", question=texts[n % 3], answers=("a",), tokens=films[n // 3]) for n in range(5)
    ]
    runs = []
    inner = type(backbone).prefill
    spied = SimpleNamespace(prefill=lambda *given, **told: runs.append(told) or inner(backbone, *given, **told))
    spied.prepare, spied.generate = backbone.prepare, backbone.generate
    alone = [mvp_exam.replies_to(backbone, [puzzle]).answers[0] for puzzle in asked]
    assert list(mvp_exam.replies_to(spied, asked).answers) == alone
    assert len(runs) == 2
    assert len(set(alone)) > 1
    blind = mvp_exam.replies_to(spied, asked, blind=True).answers
    assert len(runs) == 2
    assert blind[:2] == blind[3:]


def test_the_exam_is_made_once(site, monkeypatch):
    encoded, tokens = [], puzzles(own(), 1)[0].tokens

    def encode(backbone, video):
        encoded.append(video.seed)
        return tokens

    monkeypatch.setattr(mvp_exam, "encoded", encode)
    monkeypatch.setattr(mvp_exam, "load_clips", lambda split, *_: world.clips(1000, 1))
    monkeypatch.setattr(token_files, "SHARD", 2)
    monkeypatch.setattr(type(site.recipe.start), "backbone", lambda self: None)
    made = mvp_exam.transfer_exam(site, 3)
    assert len(encoded) == len(set(encoded)) == 3
    assert made.video_of.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [puzzle.question for puzzle in made.puzzles] == [question.text for question in made.asked]
    again = mvp_exam.transfer_exam(site, 3)
    assert len(encoded) == 3
    assert again.asked == made.asked


def test_all_arms_draw_the_same_replay(site):
    asked = [QuestionPuzzle(name=f"{n}", question="?", answers=("a",), level=("what", "when")[n % 2]) for n in range(9)]
    others = [replace(puzzle, name=f"other {puzzle.name}") for puzzle in asked]
    drawn = {}
    for arm in ARMS:
        recipe = arm_recipe(site, SIZE, arm, 7, COSTS)
        beside = [Beside(name="replay", puzzles=asked, count=SIZE.replay.count, curriculum=EVENLY)]
        own, more = (asked, []) if arm == REPLAY else (others, beside)
        kinds = kinds_of(recipe, own, names_of(own), (), more)
        drawn[arm] = []
        for step in range(6):
            names = [puzzle.name for puzzle in draw(kinds, step)]
            drawn[arm].append(names[-SIZE.replay.count :])
            assert len(names) == recipe.fit.batch + (0 if arm == REPLAY else SIZE.replay.count)
            for kind in kinds:  # success moves the own puzzles' levels, never the replay's
                kind.curriculum.learn(["what"], [float(arm == PUZZLES)])
    assert drawn[REPLAY] == drawn[QUESTIONS] == drawn[PUZZLES]


def test_questions_get_the_operations_of_puzzles(site):
    assert arm_recipe(site, SIZE, QUESTIONS, 0, COSTS).fit.batch == 20  # 8 puzzles of 2.5 operations
    assert arm_recipe(site, SIZE, REPLAY, 0, COSTS).fit.batch == SIZE.replay.count
    assert {arm_recipe(site, SIZE, arm, 0, COSTS).fit.steps for arm in ARMS} == {site.recipe.grpo.fit.steps}
    assert step_cost(site, SIZE, QUESTIONS, COSTS).operations == step_cost(site, SIZE, PUZZLES, COSTS).operations
    assert step_cost(site, SIZE, QUESTIONS, COSTS).seconds == 11.0
    assert not set(SIZE.replay.tasks) & set(TRANSFER)
    folders = {folder_of(site, SIZE, arm, seed, COSTS) for arm in ARMS for seed in (0, 1)}
    assert len(folders) == 6
    assert folder_of(replace(site, footage=site.puzzles), SIZE, REPLAY, 0, COSTS) == folder_of(
        site, SIZE, REPLAY, 0, COSTS
    )  # an empty folder names nothing
    (site.puzzles / "a.mp4").write_text("")
    assert folder_of(replace(site, footage=site.puzzles), SIZE, REPLAY, 0, COSTS) not in folders


def test_questions_are_of_other_videos_than_replay(site, monkeypatch):
    monkeypatch.setattr(transfer_arms, "questions_of", lambda replay, backbone, split, folder, videos: [*videos])
    replayed, further = (
        transfer_arms.own_puzzles(site, SIZE, arm, None, None) for arm in (REPLAY, QUESTIONS)
    )
    assert (len(replayed), len(further)) == (SIZE.replay.videos, SIZE.more_videos)
    assert not set(replayed) & set(further)


def test_the_warm_up_keeps_replay_in_its_later_share(site, monkeypatch):
    asked = [QuestionPuzzle(name=f"{n}", question="?", answers=("5 s", "6 s", "7 s"), level="when") for n in range(50)]
    given = []
    monkeypatch.setattr(transfer_arms, "questions_of", lambda *_: asked)
    monkeypatch.setattr(type(site.recipe.start), "backbone", lambda self: own())
    monkeypatch.setattr(transfer_arms, "train_imitation", lambda *given_: given.append(given_))
    material = SimpleNamespace(train=["a puzzle"] * 40)
    model = transfer_arms.replay_warmed(site, SIZE, 3, material)
    ((recipe, _, lessons, folder),) = given
    assert (recipe.fit.seed, recipe.target, folder / "model") == (3, "form", model)
    remembered = lessons[40:]
    assert len(remembered) == 10  # two beside eight
    assert {lesson.name for lesson in remembered} >= {"0", "49"}
    assert {(lesson.level, lesson.question) for lesson in remembered} == {("when", "?")}
    model.mkdir(parents=True)
    assert transfer_arms.replay_warmed(site, SIZE, 3, material) == model
    assert len(given) == 1
