"""Puzzles from embeddings: de-duplication, masks and distractors by hand, and what must hold of every puzzle."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from longtake.data.puzzles import puzzle
from longtake.data.puzzles.distractors import choose_distractors
from longtake.data.puzzles.draws import seeds_of, uniform
from longtake.data.puzzles.likeness import (
    HIGHEST,
    Likeness,
    apart_at,
    neighbour_cosines,
    num_kept,
    rounded_units,
    threshold_at,
)
from longtake.data.puzzles.mvp import (
    FEW_DISTRACTORS,
    FEW_FRAMES,
    LEVELS,
    REPEATED,
    Level,
    Rules,
    draw_masks,
    draw_sequences,
    gaps,
    make_puzzles,
)
from longtake.types import LongtakeError


def at_angles(degrees: list[float], reach: int = 128) -> Likeness:
    """Frames as directions in the plane: the cosine of two is that of the angle between them."""
    radians = np.radians(degrees)
    return Likeness(units=rounded_units(np.stack([np.cos(radians), np.sin(radians)], axis=1)), reach=reach)


def wander(frames: int, seed: int = 0, dim: int = 24) -> Likeness:
    """Embeddings that drift and now and then stand still, as a video's do."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(frames, dim)) * rng.choice([0.0, 0.05, 0.4], size=(frames, 1), p=[0.2, 0.4, 0.4])
    return Likeness(units=rounded_units(np.cumsum(steps, axis=0) + rng.normal(size=dim)))


# -- likeness and de-duplication ------------------------------------------------------------------------------------


def test_cosines_by_hand():
    likeness = at_angles([0, 60, 90, 90])
    expected = [[1, 0.5, 0, 0], [1, math.sqrt(0.75), math.sqrt(0.75), 2], [1, 1, 2, 2], [1, 2, 2, 2]]
    assert likeness.band[:, :4] == pytest.approx(np.array(expected), abs=3e-4)
    assert likeness.of(np.array([0, 2]), np.array([1, 0])) == pytest.approx([0.5, 0], abs=3e-4)
    assert at_angles([0, 60, 90, 90], reach=2).of(np.array([0, 1]), np.array([2, 0])).tolist() == pytest.approx(
        [2, 0.5], abs=3e-4
    )
    assert likeness.of(np.array([0, 1, 3]), np.array([-1, 4, 2**62])).tolist() == [2, 2, 2]
    assert neighbour_cosines(likeness.units) == pytest.approx([0.5, math.sqrt(0.75), 1], abs=3e-4)
    assert neighbour_cosines(likeness.units, apart=2) == pytest.approx([0, math.sqrt(0.75)], abs=3e-4)


def test_cosines_do_not_depend_on_the_order_of_addition():
    likeness = wander(300, dim=700)
    exact = likeness.units.astype(np.int64) @ likeness.units.astype(np.int64).T
    assert np.abs(exact).max() < 2**24
    lengths = np.sqrt(np.diag(exact)).astype(np.float32)
    for apart in (0, 1, 64, 127):
        row = np.arange(300 - apart)
        expected = exact[row, row + apart].astype(np.float32) / (lengths[row] * lengths[row + apart])
        assert np.array_equal(likeness.band[: 300 - apart, apart], expected)
        assert (likeness.band[300 - apart :, apart] == 2).all()


def test_greedy_de_duplication_by_hand():
    # from 0: 10 and 20 are too near to 0; 40 is kept and 55 is near to it; 80 is kept; 0 again is far from 80
    likeness = at_angles([0, 10, 20, 40, 55, 80, 0])
    following = likeness.following(math.cos(math.radians(29)))
    assert following.tolist() == [3, 3, 4, 5, 6, 6, 7, 7]
    sequences = likeness.sequences(math.cos(math.radians(29)), 5)
    assert sequences[[0, 1, 4]].tolist() == [[0, 3, 5, 6, -1], [1, 3, 5, 6, -1], [4, 6, -1, -1, -1]]
    assert num_kept(following) == 4


def test_greedy_de_duplication_is_what_a_loop_keeps():
    likeness, kappa = wander(400), 0.97
    vectors = likeness.units.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = [17]
    for frame in range(18, 400):
        if vectors[kept[-1]] @ vectors[frame] <= kappa:
            kept.append(frame)
    assert likeness.sequences(kappa, len(kept) + 1)[17].tolist() == [*kept, -1]


def test_a_standstill_beyond_reach_ends_a_sequence():
    likeness = at_angles([0, 0, 0, 0, 90], reach=3)
    assert likeness.following(0.5).tolist() == [5, 5, 4, 4, 5, 5]


def test_thresholds():
    assert threshold_at(np.array([0.1, 0.2, 0.3, 0.4, 1.0, 1.0]), 0.7) == 0.3
    assert threshold_at(np.array([0.9999999, 1.0]), 0.7) == HIGHEST
    assert threshold_at(np.array([1.0]), 0.7) == threshold_at(np.array([]), 0.5) == HIGHEST
    assert (apart_at(1.0, 1.0), apart_at(4.286, 1.0), apart_at(0.5, 1.0)) == (1, 4, 1)


@pytest.mark.parametrize("vectors", [np.zeros((2, 3)), np.full((2, 3), np.nan), np.ones((2, 40_000)), np.ones(3)])
def test_embeddings_without_direction_are_refused(vectors):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=r"no direction|must be \(frames, dim\)"):
        rounded_units(vectors)


# -- draws, masks, distractors --------------------------------------------------------------------------------------


def test_draws_are_even_and_depend_on_their_seed_alone():
    seeds = seeds_of(("a", 1), 2000)
    assert seeds_of(("a", 1), 1000, first=1000).tolist() == seeds[1000:].tolist()
    assert len(set(seeds.tolist()) | set(seeds_of(("a", 2), 2000).tolist())) == 4000
    drawn = uniform(seeds[:, None], np.arange(50))
    assert uniform(seeds[7:8], np.array([3])) == drawn[7, 3]
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 4 * math.sqrt(1 / 12 / drawn.size)
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.1
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.1


def test_masks_lie_inside_with_context_on_both_sides():
    seeds = seeds_of(("masks",), 4000)
    lengths = np.where(np.arange(4000) % 2, 8, 10)
    rules = Rules(kappa=0.9, near=0.9, frames=10)
    masked = draw_masks(seeds, lengths, 3, rules)
    assert (np.diff(masked, axis=1) == 1).all()
    for length, begins in ((8, {2, 3}), (10, {2, 3, 4, 5})):
        assert set(masked[lengths == length, 0].tolist()) == begins
    counts = np.bincount(masked[lengths == 10, 0])[2:]
    assert np.square(counts - 500).sum() / 500 < 16.3  # chi-square, 3 degrees of freedom, p = 0.001
    scattered = draw_masks(seeds, lengths, 3, Rules(kappa=0.9, near=0.9, frames=10, mask="scattered"))
    assert (np.diff(scattered, axis=1) > 0).all()
    assert (scattered >= 2).all()
    assert (scattered[:, -1] < lengths - 2).all()
    assert (np.diff(scattered, axis=1) > 1).any()
    before = draw_masks(seeds[:2], lengths[:2], 3, Rules(kappa=0.9, near=0.9, frames=10, mask="before"))
    after = draw_masks(seeds[:2], lengths[:2], 3, Rules(kappa=0.9, near=0.9, frames=10, mask="after"))
    assert before.tolist() == [[0, 1, 2]] * 2
    assert after.tolist() == [[7, 8, 9], [5, 6, 7]]


HAND = [-80, -60, 0, 10, 30, 60, 70, 90, 120, 150, 152, 175, 200]  # kept from 0 on, 30 degrees apart: 2 4 5 7 8 9


def hand_distractors(near_degrees: float, count: int, pick: str) -> list[int]:
    likeness = at_angles(HAND)
    kept, masked = np.array([[2, 4, 5, 7, 8, 9, -1]]), np.array([[2, 3]])
    low, high = gaps(kept, np.array([6]), masked)
    assert (low.tolist(), high.tolist()) == ([[4, 5]], [[7, 8]])
    missing = np.array([[5, 7]])  # 60 and 90 degrees; beside them 30 and 120
    near = math.cos(math.radians(near_degrees))
    seeds = seeds_of((pick,), 1)
    options = {"near": near, "count": count, "pick": pick}
    return choose_distractors(likeness, seeds, kept, missing, low, high, **options)[0].tolist()


def test_distractors_by_hand():
    # frame 6 (70 degrees) lies in the gap; 3 (10) is 20 degrees from the context frame at 30, 10 (152) 32 from 120;
    # further away are 0, 1, 11 and 12
    assert hand_distractors(25, 1, "near") == [10]  # 62 degrees from the nearest missing one
    assert hand_distractors(25, 2, "near") == [10, 12]  # 11 is 23 degrees from 10; then 12 is 110 away, 1 is 120
    assert hand_distractors(25, 2, "far") == [0, 12]  # 140 degrees away; 1 is 20 from it; 12 is 110
    assert hand_distractors(15, 1, "near") == [3]  # now 20 degrees from its context frame will do
    assert set(hand_distractors(19, 4, "random")) <= {0, 1, 3, 10, 11, 12}
    assert hand_distractors(25, 4, "near") == [-1] * 4


# -- whole puzzles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["contiguous", "scattered", "before", "after"])
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_what_holds_of_every_puzzle(level, mask):
    likeness = wander(900)
    kappa, near = 0.985, 0.98
    rules = Rules(kappa=kappa, near=near, mask=mask)
    seeds = seeds_of(("hold", level.name), 300)
    made, rejects = make_puzzles(likeness, rules, level, seeds)
    assert len(made) + sum(rejects.values()) == 300
    assert len(made) > 30
    vectors = likeness.units.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    for row in range(len(made)):
        kept = made.kept[row][made.kept[row] >= 0]
        missing = kept[made.masked[row]]
        pool = made.candidates[row]
        distractors = np.setdiff1d(pool, missing)
        assert np.array_equal(pool[made.truth[row]], missing)  # the truth is in the order of time
        assert (np.diff(missing) > 0).all()
        assert len(distractors) == level.distractors
        assert not set(distractors.tolist()) & set(kept.tolist())
        assert (cosines[np.ix_(distractors, missing)] <= near + 1e-4).all()
        for one, other in itertools.combinations(distractors.tolist(), 2):
            assert cosines[one, other] <= near + 1e-4
        for one, other in itertools.combinations(missing.tolist(), 2):
            assert cosines[one, other] <= kappa + 1e-4
        assert (cosines[kept[:-1], kept[1:]] <= kappa + 1e-4).all()
        context = [frame for place, frame in enumerate(kept.tolist()) if place not in made.masked[row]]
        for frame in missing:
            before = max((c for c in context if c < frame), default=-1)
            after = min((c for c in context if c > frame), default=10**9)
            assert not any(before < d < after for d in distractors.tolist())
            for beside in {before, after} - {-1, 10**9}:
                if abs(int(np.searchsorted(kept, beside)) - int(np.searchsorted(kept, frame))) == 1:
                    assert (cosines[beside, distractors] <= near + 1e-4).all()


@pytest.mark.parametrize("pick", ["near", "far", "random"])
def test_no_distractor_comes_twice_where_everything_may_be_near(pick):
    level = replace(LEVELS[3], pick=pick)
    made, _ = make_puzzles(wander(300), Rules(kappa=0.985, near=1.0), level, seeds_of(("twice",), 100))
    assert len(made) > 30
    assert all(len(set(pool)) == len(pool) for pool in made.candidates.tolist())


def test_a_puzzle_depends_on_its_seed_alone():
    likeness, rules = wander(500), Rules(kappa=0.985, near=0.985)
    seeds = seeds_of(("alone",), 600)
    together, _ = make_puzzles(likeness, rules, LEVELS[3], seeds)
    for number in (0, 5, len(together) - 1):
        alone, _ = make_puzzles(likeness, rules, LEVELS[3], together.seeds[number : number + 1])
        for name in ("seeds", "kept", "masked", "candidates", "truth"):
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[number])
    again, _ = make_puzzles(wander(500), rules, LEVELS[3], seeds)
    assert np.array_equal(again.candidates, together.candidates)


def test_short_and_dull_videos_are_rejected_for_a_reason():
    level, rules = LEVELS[0], Rules(kappa=0.9, near=0.9)
    seeds = seeds_of(("dull",), 20)
    for likeness, reason in (
        (at_angles([5.0] * 50), FEW_FRAMES),
        (at_angles([0.0, 90.0, 180.0]), FEW_FRAMES),
        (at_angles([0.0, 90.0] * 20), REPEATED),
        (at_angles([0.0, 40, 80, 120, 160, 200, 240, 280]), FEW_DISTRACTORS),
    ):
        made, rejects = make_puzzles(likeness, rules, Level(name="x", masked=3, distractors=2, pick="random"), seeds)
        assert len(made) == 0
        assert rejects[reason] > 0
        assert sum(rejects.values()) == 20
    kept, lengths = draw_sequences(at_angles([0.0, 40, 80]).sequences(0.9, 4), seeds)
    assert set(map(tuple, kept.tolist())) <= {(0, 1, 2, -1), (1, 2, -1, -1), (2, -1, -1, -1)}
    assert lengths.max() == 3
    assert rules.least_frames(level) == 6


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"kappa": 1.5}, "the kappa threshold is 1.5; it must be a cosine"), ({"context": 0}, "at least 1 frame")],
)
def test_bad_rules(settings, told):
    with pytest.raises(LongtakeError, match=told):
        Rules(**{"kappa": 0.9, "near": 0.9} | settings)
    with pytest.raises(LongtakeError, match="frames is 8; level L5 needs 9, give more"):
        Rules(kappa=0.9, near=0.9, frames=8).check(LEVELS[4])


# -- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((5, 2, 7, 1), (True, 1, 1, 1)),
        ((2, 5, 7, 1), (True, 1, 5 / 6, 0)),
        ((1, 7, 2, 5), (True, 1, 0, 0)),
        ((5, 2, 7, 3), (True, 0.75, 0.5, 0)),
        ((3, 4, 6, 8), (True, 0, 0, 0)),
        ((5, 2, 7), (False, 0, 0, 0)),
        ((5, 5, 2, 7), (False, 0, 0, 0)),
        ((5, 2, 7, 9), (False, 0, 0, 0)),
        ((0, 2, 7, 1), (False, 0, 0, 0)),
        ((), (False, 0, 0, 0)),
        (tuple(range(1, 9)), (False, 0, 0, 0)),
    ],
)
def test_scores_by_hand(answer, expected):
    found = puzzle.score(answer, (5, 2, 7, 1), 8)
    assert (found.valid, found.selection, found.order, found.exact) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "pairs", "tau"),
    [
        ((4, 2, 7), 1, 1),
        ((7, 2, 4), 1, -1),
        ((2, 4, 7), 1, 1 / 3),
        ((7, 1, 4), 1 / 3, -1 / 3),
        ((1, 3, 4), 0, 0),
        ((4, 4, 7), 0, 0),
        ((), 0, 0),
    ],
)
def test_pairs_and_tau_by_hand(answer, pairs, tau):
    found = puzzle.score(answer, (4, 2, 7), 8)
    assert (found.pairs, found.tau) == (pairs, tau)


def test_one_missing_frame_has_no_pairs():
    found = puzzle.score((4,), (4,), 8)
    assert (found.pairs, found.tau) == (0, 0)
    assert puzzle.chance(1, 1).pairs == 0


def test_pairwise_by_hand():
    tau, pairs = np.array([1.0, -0.5, 0.25, 0.0]), np.array([1.0, 0.5, 0.5, 0.0])
    assert puzzle.pairwise(tau, pairs).tolist() == [1.0, 0.0, 0.75, 0.5]
    tau, pairs = np.random.default_rng(0).random((2, 1000)) * [[1], [0.9]]
    one_by_one = [0.5 + float(t) / float(p) / 2 for t, p in zip(tau, pairs, strict=True)]
    assert puzzle.pairwise(tau, pairs).tolist() == one_by_one  # to the bit


@pytest.mark.parametrize(("missing", "pool"), [(1, 3), (2, 4), (3, 5)])
def test_chance_is_the_mean_over_all_answers(missing, pool):
    truth = tuple(range(2, 2 + missing))
    scores = [puzzle.score(answer, truth, pool) for answer in itertools.permutations(range(1, pool + 1), missing)]
    expected = puzzle.chance(missing, pool)
    for name in ("selection", "order", "exact", "pairs", "tau"):
        assert getattr(expected, name) == pytest.approx(np.mean([getattr(one, name) for one in scores]))
