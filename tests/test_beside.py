"""Kinds of puzzles beside a run's own: their rewards, figures, places and curricula, and a run that goes on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from grpo_runs import Letters, own, puzzles, recipe
from longtake.train import checkpoint
from longtake.train.beside import Beside, draw, kinds_of, names_at
from longtake.train.grpo import train_grpo
from longtake.train.judging import joined, judge
from longtake.train.methods import METHODS
from longtake.train.puzzles import QuestionPuzzle
from longtake.types import LongtakeError
from stage_runs import logged

NAMES = ("letters", "exact", "short")


def questions(count: int = 3) -> list[QuestionPuzzle]:
    return [QuestionPuzzle(name=f"q{n}", question="say", answers=("a", "b", "e"), level="what") for n in range(count)]


def replay(**changes: object) -> Beside:
    return Beside(**({"name": "replay", "puzzles": questions(), "count": 2, "held": questions(1)} | changes))


def run(folder, **changes: object) -> None:
    backbone = own()
    made = puzzles(backbone)
    train_grpo(recipe(**changes), backbone, made, folder, held=made[:2], beside=[replay()])


def test_places_and_parts_by_hand():
    made = [Letters(name=f"p{n}", tokens=None) for n in range(5)]
    asked = recipe()
    kinds = kinds_of(asked, made, NAMES, (), [replay(), replay(name="more", count=1)])
    assert [list(kind.places) for kind in kinds] == [[0, 1, 2, 3], [4, 5], [6]]
    assert [names_at(kinds, place) for place in (3, 4, 6)] == [NAMES, ("exact",), ("exact",)]
    drawn = [puzzle.name[0] for puzzle in draw(kinds, 0)]
    assert drawn == ["p"] * 4 + ["q"] * 3
    assert kinds[1].named({"flat": 1.0}) == {"replay_flat": 1.0}
    bonus = kinds_of(dataclasses.replace(asked, contrast=0.3), made, (*NAMES, "temporal"), (), ())[0]
    assert bonus.weights == {"letters": 1.0, "short": 0.1, "temporal": 0.3}
    assert bonus.held_weights == {"letters": 1.0, "short": 0.1}


@pytest.mark.parametrize("method", ["dr_grpo", "gdpo"])
def test_each_kind_is_judged_by_its_own_weights(method):
    """Joined verdicts are the single ones; GDPO's normalisation over the batch stays within a kind."""
    one = judge([[[1.0, 0.0], [0.0, 0.0]]], ["letters", "short"], {"letters": 2.0}, METHODS[method])
    other = judge([[[1.0], [0.0]], [[1.0], [1.0]]], ["exact"], {"exact": 1.0}, METHODS[method])
    both = joined([one, other])
    assert both.names == ("letters", "short", "exact")
    assert torch.equal(both.advantages, torch.cat([one.advantages, other.advantages]))
    assert both.flat.tolist() == [False, False, True]
    assert both.parts[0, 0].isnan().tolist() == [False, False, True]
    assert both.parts[1, 0].isnan().tolist() == [True, True, False]
    if method == "dr_grpo":
        assert both.advantages.tolist() == [[1.0, -1.0], [0.5, -0.5], [0.0, 0.0]]


def test_a_run_logs_kinds_apart(tmp_path):
    run(tmp_path, steps=2, eval_every=2)
    for name in ("reward_letters", "reward_exact", "replay_reward_exact", "replay_flat", "p_easy", "replay_p_what"):
        assert len(logged(tmp_path, name)) == 2, name
    assert set(logged(tmp_path, "held_letters")) == set(logged(tmp_path, "replay_held_exact")) == {2}
    assert logged(tmp_path, "replay_reward_letters") == {}
    assert all(0 < value <= 6 for value in logged(tmp_path, "replay_length").values())


def test_without_kinds_beside_nothing_changes(tmp_path):
    """What the own puzzles sample does not depend on who stands beside them."""
    run(tmp_path / "beside", steps=1)
    backbone = own()
    made = puzzles(backbone)
    train_grpo(recipe(steps=1), backbone, made, tmp_path / "alone")
    for name in ("reward", "length", "flat", "p_easy"):
        assert logged(tmp_path / "beside", name) == logged(tmp_path / "alone", name)
    assert logged(tmp_path / "beside", "norm") != logged(tmp_path / "alone", "norm")


@pytest.mark.slow
def test_a_run_with_kinds_goes_on_exactly(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "short")
    (tmp_path / "short" / "checkpoint-00000006.pt").unlink()
    assert checkpoint.last_step(tmp_path / "short") == 4
    run(tmp_path / "short")
    for name in ("loss", "norm", "reward", "replay_reward", "replay_p_what", "p_hard"):
        assert logged(tmp_path / "short", name) == logged(tmp_path / "whole", name), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": ""}, "there must be a name, puzzles, at least 1 a step"),
        ({"count": 0}, "0 a step"),
        ({"puzzles": []}, "stand 0 named"),
        ({"weights": {"exact": 0.0}}, "a weight that is not 0"),
        ({"weights": {"order": 1.0}}, "replay names 'order'; its rewards have the parts exact"),
        ({"success": "order"}, "replay names 'order'"),
    ],
)
def test_wrong_kinds_are_refused(changes, said):
    with pytest.raises(LongtakeError, match=said):
        replay(**changes)


def test_kinds_that_do_not_go_together_are_refused():
    made = [Letters(name="p", tokens=None)]
    with pytest.raises(LongtakeError, match="kinds beside are replay, replay; give each its own name"):
        kinds_of(recipe(), made, NAMES, (), [replay(), replay()])
    with pytest.raises(LongtakeError, match="replay stands beside puzzles that a teacher judges"):
        kinds_of(recipe(method="opd"), made, NAMES, (), [replay()])
