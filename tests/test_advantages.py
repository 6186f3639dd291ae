"""Advantages against hand-worked numbers and closed forms."""

import math

import pytest
import torch

from longtake.train.advantages import (
    EPSILON,
    Credit,
    decoupled_advantages,
    group_advantages,
    is_flat,
    segment_advantages,
    temporal_bonus,
)
from longtake.types import LongtakeError

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 3.0, 1.0]])


def close(found, expected, **more):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), **more)


def test_grpo_by_hand():
    """Half right: deviation 1/sqrt(3), so +-0.5 sqrt(3); (0, 0, 3, 1): mean 1, deviation sqrt(2)."""
    half, root = 0.5 / (3**-0.5 + EPSILON), 1 / (2**0.5 + EPSILON)
    close(group_advantages(REWARDS), [[half, -half, -half, half], [-root, -root, 2 * root, 0.0]])


def test_dr_grpo_by_hand():
    close(group_advantages(REWARDS, scale="none"), [[0.5, -0.5, -0.5, 0.5], [-1, -1, 2, 0]])


def test_rloo_is_the_reward_less_the_mean_of_the_others():
    found = group_advantages(REWARDS, baseline="leave_one_out", scale="none")
    others = [[r - (sum(row) - r) / 3 for r in row] for row in REWARDS.tolist()]
    close(found, others)
    close(found, (group_advantages(REWARDS, scale="none") * 4 / 3).tolist())


def test_the_batch_s_deviation():
    deviation = REWARDS.flatten().std() + EPSILON
    close(group_advantages(REWARDS, scale="batch"), (group_advantages(REWARDS, scale="none") / deviation).tolist())


def test_gdpo_tells_apart_what_a_sum_does_not():
    """Two groups whose sums are alike after normalisation: (0, 1) and (0, 2) right of two parts. By hand."""
    parts = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
    summed = group_advantages(parts.sum(2))
    close(summed[0], summed[1].tolist(), atol=2e-4, rtol=0)
    found = decoupled_advantages(parts, torch.ones(2))
    part = 0.5 / (0.5**0.5 + EPSILON)  # +-0.7071 for a part that differs
    flat = torch.tensor([-part, part, -2 * part, 2 * part])
    close(found.flatten(), (flat / (flat.std() + EPSILON)).tolist())
    assert found[1, 1] == pytest.approx(2 * float(found[0, 1]))


def test_gdpo_weighs_parts_after_normalising():
    """A part ten times as large counts no more; one with twice the weight counts twice."""
    parts = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0))
    large = parts * torch.tensor([1.0, 10.0])
    torch.testing.assert_close(
        decoupled_advantages(large, torch.ones(2)), decoupled_advantages(parts, torch.ones(2)), atol=2e-3, rtol=0
    )
    only = decoupled_advantages(parts, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(only, decoupled_advantages(parts[..., :1], torch.ones(1)))


def test_flat_groups_are_found_and_teach_nothing():
    """All right, all wrong, and one that differs by rounding: whose normalised advantages would be as large as any."""
    rewards = torch.tensor([[1.0, 1, 1], [0, 0, 0], [0.3, 0.3, 0.3 + 1e-6], [0, 0, 1]])
    assert is_flat(rewards).tolist() == [True, True, True, False]
    for scale in ("group", "batch", "none"):
        assert (group_advantages(rewards, scale=scale)[:3] == 0).all()
    apart = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])  # flat as a sum, not part by part
    assert is_flat(apart.sum(2)).tolist() == [True, True]
    assert is_flat(apart).tolist() == [False, True]
    both = torch.ones(2)
    assert Credit().is_flat(apart, both).tolist() == [True, True]
    assert Credit(decoupled=True).is_flat(apart, both).tolist() == [False, True]
    assert Credit(decoupled=True).is_flat(apart, torch.tensor([0.0, 1.0])).tolist() == [False, True]


def test_credit_weighs_the_parts():
    parts = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    close(Credit(scale="none").advantages(parts, torch.tensor([3.0, 1.0])), [[1.0, -1.0]])
    assert torch.equal(
        Credit(decoupled=True).advantages(parts, torch.tensor([3.0, 1.0])),
        decoupled_advantages(parts, torch.tensor([3.0, 1.0])),
    )


def test_segments_by_hand():
    found = segment_advantages(torch.tensor([1.0, 2, 3]), torch.tensor([-1.0, -2, -3]), torch.tensor([2, 0, 4]), 4)
    close(found, [[1, 1, -1, -1], [-2, -2, -2, -2], [3, 3, 3, 3]])
    with pytest.raises(ValueError, match="from 0 to 4"):
        segment_advantages(torch.zeros(1), torch.zeros(1), torch.tensor([5]), 4)


def test_temporal_bonus_by_hand():
    """Means in order 0.5 and 0.25; shuffled 0.6 (0.5 >= 0.48) and 0.5 (0.25 < 0.4). Only right answers earn it."""
    ordered = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    shuffled = torch.tensor([[1.0, 0.2], [1.0, 0.0]])
    close(temporal_bonus(ordered, shuffled), [[0.3, 0.3, 0, 0], [0, 0, 0, 0]])
    close(temporal_bonus(ordered, shuffled, bonus=1.0, ratio=1.0), [[0.0] * 4] * 2)
    partly = torch.tensor([[0.1, 0.11]])
    close(temporal_bonus(partly, torch.zeros(1, 2)), [[0.0, 0.3]])


def test_a_closed_form_of_the_group_normalised_advantage():
    """k right of n: right ones get sqrt((n - k)(n - 1) / (k n)), wrong ones -sqrt(k (n - 1) / ((n - k) n))."""
    for right in range(1, 8):
        rewards = torch.tensor([[1.0] * right + [0.0] * (8 - right)], dtype=torch.float64)
        found = group_advantages(rewards)
        up = math.sqrt((8 - right) * 7 / (right * 8))
        down = math.sqrt(right * 7 / ((8 - right) * 8))
        close(found[0], [up] * right + [-down] * (8 - right), atol=2e-3, rtol=0)


def test_what_cannot_be_is_refused():
    with pytest.raises(LongtakeError, match="the group has 1 completion"):
        group_advantages(torch.ones(2, 1))
    with pytest.raises(LongtakeError, match="decoupled is true"):
        Credit(decoupled=True, scale="none")
