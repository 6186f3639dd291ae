"""The objectives of latent self-forcing by hand, and in mixed precision."""

import math

import pytest
import torch
from torch import Tensor

from longtake.train.latent_losses import (
    alike_across,
    alike_within,
    chunk_means,
    disagreement,
    effective_rank,
    pair_cosines,
    state_distance,
)


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


@pytest.fixture
def content() -> Tensor:
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))


def test_disagreement_by_hand(content):
    target = torch.randn(content.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = disagreement(content, target)
    for row in range(2):
        pairs = zip(content[row].tolist(), target[row].tolist(), strict=True)
        assert float(found[row].detach()) == pytest.approx(1 - sum(cosine(*pair) for pair in pairs) / 3, abs=1e-5)
    own = content.requires_grad_()
    disagreement(own, target).sum().backward()
    assert target.grad is None
    assert own.grad is not None
    assert disagreement(content, content).abs().max() < 1e-6


def test_alike_within_by_hand(content):
    found = alike_within(content, 0.2)
    for row in range(2):
        rows = content[row].tolist()
        pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
        costs = [max(0.0, cosine(rows[i], rows[j]) - 0.2) ** 2 for i, j in pairs]
        assert float(found[row]) == pytest.approx(sum(costs) / 6, abs=1e-6)
        expected = sum(cosine(rows[i], rows[j]) for i, j in pairs) / 6
        assert float(pair_cosines(content)[row].mean()) == pytest.approx(expected, abs=1e-6)
    same = torch.ones(1, 4, 5)
    assert float(alike_within(same, 0.2)) == pytest.approx(0.64)
    assert alike_within(content[:, :1], 0.2).tolist() == [0.0, 0.0]


def test_alike_across_by_hand(content):
    others = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(2))
    others[1] = content[0]
    counts = torch.tensor([[True, False, True, True], [False] * 4])
    found = alike_across(content, others, counts, 0.1)
    costs = [
        max(0.0, cosine(content[0, slot].tolist(), others[other, slot].tolist()) - 0.1) ** 2
        for other in (0, 2, 3)
        for slot in range(3)
    ]
    assert found.tolist() == pytest.approx([sum(costs) / 9, 0.0], abs=1e-6)
    assert alike_across(content, others[:0], counts[:, :0], 0.1).tolist() == [0.0, 0.0]
    everyone = alike_across(content, others, torch.ones(2, 4, dtype=torch.bool), 0.1)
    assert float(everyone[0]) == pytest.approx((sum(costs) + 3 * 0.81) / 12, abs=1e-6)


def test_cosines_stay_exact_under_autocast(content):
    exact = pair_cosines(content), alike_across(content, content.flip(0), torch.ones(2, 2, dtype=torch.bool), 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = pair_cosines(content), alike_across(content, content.flip(0), torch.ones(2, 2, dtype=torch.bool), 0.0)
    assert all(torch.equal(one, other) for one, other in zip(exact, mixed, strict=True))


def test_effective_rank_by_hand():
    spread = torch.zeros(3, 4, 6)
    spread[0, :, :4] = 2 * torch.eye(4)
    spread[1, :] = torch.arange(6.0)
    spread[2, 0, 0], spread[2, 1, 1] = 3.0, 1.0
    two = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(spread).tolist() == pytest.approx([4.0, 1.0, two], abs=1e-3)


def test_chunk_means_by_hand():
    features = torch.tensor([[1.0], [2.0], [4.0], [9.0]])
    assert chunk_means(features, 2)[:, 0].tolist() == [1.5 - 4, 6.5 - 4]
    assert chunk_means(features[:2], 4)[:, 0].tolist() == [-0.5, -0.5, 0.5, 0.5]  # fewer tokens than chunks
    assert chunk_means(features, 3)[:, 0].tolist() == [1 - 4, 2 - 4, 6.5 - 4]


def test_state_distance_by_hand():
    teacher = torch.tensor([[[0.0, 2.0]], [[0.0, 4.0]]])
    student = torch.tensor([[[0.5, 2.0]], [[3.0, 4.0]]]).requires_grad_()
    deviations = math.sqrt(2.0), math.sqrt(8.0)  # of two numbers, over n - 1
    expected = ((0.5 * 0.25) / 2 / deviations[0] + (3 - 0.5) / 2 / deviations[1]) / 2
    found = state_distance(student, teacher.requires_grad_())
    assert found.tolist() == [pytest.approx(expected, abs=1e-6)]
    found.sum().backward()
    assert teacher.grad is None
