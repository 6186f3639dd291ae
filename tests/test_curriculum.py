"""Levels by p (1 - p), and the puzzles that questions make."""

from collections import Counter

import pytest

from longtake.backbones.base import Prompt
from longtake.train.curriculum import Curriculum, CurriculumRecipe
from longtake.train.puzzles import QuestionPuzzle
from longtake.types import LongtakeError

LEVELS = ["easy"] * 3 + ["middle"] * 2 + ["hard"]


def curriculum(**settings) -> Curriculum:
    return Curriculum(recipe=CurriculumRecipe(**settings), levels=LEVELS, seed=7)


def test_shares_by_hand():
    """p (1 - p) = 0.09, 0.25 and 0.0125 (the least, of p = 0)."""
    made = curriculum()
    made.success = {"easy": 0.9, "middle": 0.5, "hard": 0.0}
    whole = 0.09 + 0.25 + 0.0125
    expected = {"easy": 0.09 / whole, "middle": 0.25 / whole, "hard": 0.0125 / whole}
    assert made.shares() == pytest.approx(expected)
    assert curriculum().shares() == pytest.approx(dict.fromkeys(expected, 1 / 3))
    assert curriculum(by_success=False).shares() == pytest.approx({"easy": 1 / 2, "middle": 1 / 3, "hard": 1 / 6})


def test_success_is_a_running_mean_by_hand():
    made = curriculum(memory=0.8)
    made.learn(["easy", "hard", "easy"], [1.0, 0.0, 0.5])
    assert made.success == pytest.approx({"easy": 0.5 + 0.2 * 0.25, "middle": 0.5, "hard": 0.4})


def test_draws_follow_the_shares():
    made = curriculum()
    made.success = {"easy": 0.9, "middle": 0.5, "hard": 0.0}
    drawn = Counter(LEVELS[number] for number in made.draw(0, 20_000))
    assert {level: n / 20_000 for level, n in drawn.items()} == pytest.approx(made.shares(), abs=0.02)


def test_within_a_level_each_comes_once_before_one_comes_again():
    made = curriculum(by_success=False)
    drawn = [number for step in range(60) for number in made.draw(step, 2)]
    for members in ((0, 1, 2), (3, 4)):
        own = [number for number in drawn if number in members]
        for at in range(0, len(own) - len(members), len(members)):
            assert sorted(own[at : at + len(members)]) == list(members)


def test_a_state_goes_on_as_if_nothing_had_happened():
    whole, parts = curriculum(), curriculum()
    for made in (whole, parts):
        for step in range(3):
            made.learn([LEVELS[n] for n in made.draw(step, 4)], [0.0, 0.2, 1.0, 0.4])
    again = curriculum()
    again.load(parts.state())
    assert [again.draw(step, 4) for step in range(3, 9)] == [whole.draw(step, 4) for step in range(3, 9)]
    assert curriculum().draw(0, 8) == curriculum().draw(0, 8)


def test_what_cannot_be_is_refused():
    with pytest.raises(LongtakeError, match="memory is 1"):
        CurriculumRecipe(memory=1.0)
    with pytest.raises(LongtakeError, match="there are no puzzles"):
        Curriculum(recipe=CurriculumRecipe(), levels=[], seed=0)
    with pytest.raises(LongtakeError, match="q has no answer"):
        QuestionPuzzle(name="q", question="what?", answers=(" ",))


@pytest.mark.parametrize(
    ("completion", "exact"),
    [
        ("Red.", 1),
        (" red \n", 1),
        ("scarlet", 1),
        ("red or blue", 0),
        ("red, blue", 0),
        ("red red", 0),
        ("it is red", 0),
        ("", 0),
        (".", 0),
        ("re", 0),
    ],
)
def test_a_question_pays_for_the_whole_answer_only(completion, exact):
    puzzle = QuestionPuzzle(name="q", question="Which colour?", answers=("red", "Scarlet"))
    assert puzzle.reward(completion) == {"exact": exact}
    assert puzzle.prompt(None) == Prompt(question="Which colour?")
