"""Selectors: one matrix of rules for all, and hand-worked values for each."""

import pytest
import torch

from longtake.select import Oracle, Random, TopK, Uniform
from longtake.types import VisualTokens

SELECTORS = [TopK(), Uniform(), Random(seed=3), Oracle(groups=(2, 7), seed=3)]


def tokens_of(num_groups: int, rows: int = 2, columns: int = 2) -> VisualTokens:
    position = torch.cartesian_prod(*(torch.arange(n) for n in (num_groups, rows, columns)))
    n = len(position)
    return VisualTokens(
        features=torch.zeros(n, 3),
        position=position,
        seconds=position[:, 0].double() * 4,
        weight=torch.ones(n),
        grid=(num_groups, rows, columns),
    )


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda selector: type(selector).__name__)
@pytest.mark.parametrize("budget", [1, 3, 4, 7, 20, 39, 40, 100])
def test_every_selector_keeps_budget_order_and_repeats(selector, budget):
    tokens = tokens_of(10)
    scores = torch.rand(40, generator=torch.Generator().manual_seed(1))
    kept = selector.select(tokens, budget, scores)
    assert 1 <= len(kept) <= min(budget, 40)
    assert torch.equal(kept, kept.unique(sorted=True))
    assert torch.equal(kept, selector.select(tokens, budget, scores))
    if budget >= 40:
        assert kept.tolist() == list(range(40))
    if not isinstance(selector, Uniform):
        assert len(kept) == min(budget, 40)


def test_top_k_by_hand():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.0, 0.5, 0.7, 0.2])
    assert TopK().select(tokens_of(2), 3, scores).tolist() == [1, 3, 6]


def test_top_k_keeps_the_earlier_of_equal_scores():
    assert TopK().select(tokens_of(100), 5, torch.zeros(400)).tolist() == [0, 1, 2, 3, 4]
    assert TopK().select(tokens_of(1), 3, torch.tensor([0.5, 1.0, 0.5, 0.5])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("scores", [None, torch.zeros(7), torch.zeros(8, 1)], ids=["none", "short", "2-d"])
def test_top_k_refuses_scores_of_another_shape(scores):
    with pytest.raises(ValueError, match=r"top-k needs scores of shape \(8,\)"):
        TopK().select(tokens_of(2), 3, scores)


def test_uniform_by_hand():
    tokens = tokens_of(10)
    kept = Uniform().select(tokens, 8)  # two groups: the middles of 0-4 and 5-9
    assert tokens.position[kept, 0].tolist() == [2] * 4 + [7] * 4
    assert tokens.position[Uniform().select(tokens, 11), 0].unique().tolist() == [2, 7]  # a third group does not fit
    assert tokens.position[Uniform().select(tokens, 12), 0].unique().tolist() == [1, 5, 8]
    assert tokens.position[Uniform().select(tokens, 3)].tolist() == [[5, 0, 0], [5, 0, 1], [5, 1, 0]]


def test_random_is_seeded_nested_and_fair():
    tokens = tokens_of(250)
    small, large = Random(seed=1).select(tokens, 100), Random(seed=1).select(tokens, 500)
    assert torch.isin(small, large).all()
    assert not torch.equal(large, Random(seed=2).select(tokens, 500))
    assert abs(float(large.double().mean()) - 499.5) < 3 * (1000**2 / 12 / 500) ** 0.5


def test_an_oracle_keeps_what_matters_first():
    tokens = tokens_of(10)
    chosen = Oracle(groups=(2, 7))
    matters = {*range(8, 12), *range(28, 32)}
    assert set(chosen.select(tokens, 8).tolist()) == matters
    assert set(chosen.select(tokens, 3).tolist()) < matters
    more = set(chosen.select(tokens, 20).tolist())
    assert matters < more
    assert len(more) == 20
    assert Oracle(groups=()).select(tokens, 5).tolist() == Random().select(tokens, 5).tolist()
