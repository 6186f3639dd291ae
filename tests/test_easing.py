"""Puzzles made easier: what of a record is left, and how far missing frames are moved, by hand."""

import dataclasses

import pytest
import torch

from footage_puzzles import make_puzzles
from grpo_runs import own, qwen
from longtake.data.puzzles.puzzle_file import PuzzleRecord, read_records
from longtake.train.album import Album
from longtake.train.easing import Easing, eased, only_order
from longtake.train.mvp import MvpPuzzle, order_alone
from longtake.types import VisualTokens


def record(context: str, masked: tuple[int, ...], candidates: str, truth: tuple[int, ...]) -> PuzzleRecord:
    return PuzzleRecord(
        id="one", video="v.mp4", path="v.mp4", identity="v", level="L2", mask="scattered", seed=0, fps=1.0, frames="f",
        context=tuple(context), context_seconds=tuple(float(ord(name)) for name in context), masked=masked,
        gaps_seconds=(), candidates=tuple(candidates), truth=truth, truth_seconds=tuple(map(float, truth)),
    )  # fmt: skip


def levels(*values: float) -> list[VisualTokens]:
    """Pictures of one token, plain."""
    return [
        VisualTokens(
            features=torch.full((1, 2), value), position=torch.zeros(1, 3, dtype=torch.int64),
            seconds=torch.zeros(1, dtype=torch.float64), weight=torch.ones(1), grid=(1, 1, 1),
        )
        for value in values
    ]  # fmt: skip


def test_what_is_left_is_order_by_hand():
    """a b [.] [.] c d, candidates x y z w of which w, then y are missing: b [.] [.] c, of y w, the second first."""
    left = only_order(record("abcd", (2, 3), "xyzw", (4, 2)))
    assert (left.context, left.context_seconds) == (("b", "c"), (98.0, 99.0))
    assert (left.masked, left.candidates, left.truth) == ((1, 2), ("y", "w"), (2, 1))


def test_several_gaps_keep_what_stands_beside_each():
    """[.] a b c [.] d [.] [.] e f: a; c and d; d and e."""
    left = only_order(record("abcdef", (0, 4, 6, 7), "pqrst", (5, 1, 3, 2)))
    assert left.context == ("a", "c", "d", "e")
    assert (left.masked, left.candidates, left.truth) == ((0, 3, 5, 6), ("p", "q", "r", "t"), (4, 1, 3, 2))


def test_missing_frames_are_moved_by_hand():
    """Context 0 8, three missing between them at 16, 4, 2 (candidates 1, 3, 2), a distractor at 30; moved by half."""
    one = record("ab", (1, 2, 3), "wxyz", (1, 3, 2))
    moved = eased(one, levels(0, 8), levels(16, 2, 4, 30), 0.5)
    assert [float(picture.features[0, 0]) for picture in moved] == [8, 5, 4, 30]
    whole = eased(one, levels(0, 8), levels(16, 2, 4, 30), 1.0)
    assert [float(picture.features[0, 0]) for picture in whole] == [0, 8, 4, 30]


def test_a_single_one_goes_to_the_middle_and_an_open_end_stays():
    """[.] a b [.] c, by all: the first stays at 5; the second, between 2 and 6, is 4."""
    moved = eased(record("abc", (0, 3), "xy", (2, 1)), levels(0, 2, 6), levels(9, 5), 1.0)
    assert [float(picture.features[0, 0]) for picture in moved] == [4, 5]


def test_the_least_share_falls_to_nothing():
    easing = Easing(steps=10)
    assert easing.drawn((0, 0, 3)) == 1.0
    for step, least in ((5, 0.5), (10, 0.0), (40, 0.0)):
        drawn = [easing.drawn((0, step, place)) for place in range(300)]
        assert least <= min(drawn) < least + 0.05
        assert sum(drawn) / 300 == pytest.approx((1 + least) / 2, abs=0.06)
    assert easing.drawn((0, 5, 1)) == easing.drawn((0, 5, 1)) != easing.drawn((0, 5, 2))


@pytest.mark.parametrize("backbone", [own, qwen])
def test_training_shows_copies_first_and_asking_shows_frames_as_they_are(tmp_path, backbone):
    model = backbone()
    model.model.requires_grad_(False)
    folder = make_puzzles(tmp_path, videos=2, levels=("L1",))
    whole = next(iter(read_records(folder)))
    album = Album(folder=folder)
    puzzle = MvpPuzzle(record=whole, album=album, shown=whole)
    (asked,) = order_alone([puzzle], Easing(steps=10))
    assert asked.name == puzzle.name
    assert asked.solution() == "<answer>{}, {}</answer>".format(*asked.record.truth)

    def pictures(shown: MvpPuzzle) -> list[torch.Tensor]:
        return [part.tokens.features for part in shown.prompt(model).parts if part.tokens is not None]

    before, after, *pool = pictures(asked.varied((0, 0, 0)))
    first, last = (pool[number - 1] for number in asked.record.truth)
    torch.testing.assert_close(first, before)
    torch.testing.assert_close(last, after)
    plain = album.tokens(model, whole.frames, asked.record.candidates)
    for found, picture in zip(pictures(asked)[2:], plain, strict=True):
        assert torch.equal(found, picture.features)
    assert asked.question == puzzle.question.replace("1 to 4", "1 to 2")
    assert dataclasses.replace(asked, easing=None).varied((0, 0, 0)).share == 0
