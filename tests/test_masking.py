"""Masking: scores by hand, equal counts, what each policy spares, and the gradient that moves the queries."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch

from longtake.models.masking import (
    Masking,
    Policy,
    lowest,
    min_max_of_clips,
    semantic_places,
    token_scores,
    tube_places,
)
from longtake.types import LongtakeError

POLICIES = get_args(Policy)


def clips(seed: int = 0, shape: tuple[int, ...] = (3, 8, 3, 5, 16)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masking(policy: Policy = "semantic", **changes) -> Masking:
    torch.manual_seed(1)
    return Masking(16, policy, **changes).double()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def needles(features: torch.Tensor, share: float = 0.3) -> torch.Tensor:
    return torch.rand(features.shape[:4], generator=generator(9)) < share


def scores_in_a_loop(features: np.ndarray, temp: np.ndarray, spatio: np.ndarray, images: set[int]) -> np.ndarray:
    """One token at a time, every query for itself."""
    clips_, frames, rows, columns, dim = features.shape
    centred = features - features.mean(-1, keepdims=True)
    x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    found = np.zeros((clips_, frames, rows, columns))
    for c, t, i, j in itertools.product(range(clips_), range(frames), range(rows), range(columns)):
        token, mean = x[c, t, i, j], sum(x[c, t, a, b] for a in range(rows) for b in range(columns)) / (rows * columns)
        for query in temp:
            if t > 0 and c not in images:
                found[c, t, i, j] += token @ (query * x[c, t - 1, i, j])
        for query in spatio:
            found[c, t, i, j] += token @ (query * mean) / len(spatio)
    return found / np.sqrt(dim)


def test_scores_are_those_of_a_loop_over_tokens_and_queries():
    features = clips(shape=(2, 3, 2, 3, 8)) * 4 + 1
    temp, spatio = clips(1, (2, 8)), clips(2, (2, 8))
    is_image = torch.tensor([False, True])
    found = token_scores(features, temp, spatio, is_image)
    expected = scores_in_a_loop(features.numpy(), temp.numpy(), spatio.numpy(), {1})
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)  # both in float64
    assert torch.equal(token_scores(features, temp, spatio)[0], found[0])
    assert not torch.allclose(token_scores(features, temp, spatio)[1, 1:], found[1, 1:])


def test_scores_by_hand():
    """Tokens (1, -1) and (-1, 1): their norm keeps them; two frames of two places."""
    one, other = [1.0, -1.0], [-1.0, 1.0]
    features = torch.tensor([[[[one, other]], [[one, one]]]], dtype=torch.float64)
    temp = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    spatio = torch.tensor([[2.0, 2.0], [4.0, 6.0]], dtype=torch.float64)
    # frame 0: no frame before, and its mean is 0. frame 1: +-(1 + 2 + 3 + 4), and (4 + 10) / 2 from its mean, (1, -1)
    expected = torch.tensor([[[[0.0, 0.0]], [[17.0, -3.0]]]], dtype=torch.float64) / 2**0.5
    torch.testing.assert_close(token_scores(features, temp, spatio), expected, rtol=1e-4, atol=1e-4)  # the norm's eps


def test_scores_are_stretched_clip_by_clip():
    scores = torch.tensor([[1.0, 3, 2, 5], [7, 7, 7, 7]]).view(2, 1, 2, 2).requires_grad_()
    stretched = min_max_of_clips(scores)
    assert stretched.flatten(1).tolist() == [[0, 0.5, 0.25, 1], [0, 0, 0, 0]]
    stretched.square().sum().backward()
    assert torch.isfinite(scores.grad).all()
    assert torch.equal(scores.grad[1], torch.zeros(1, 2, 2))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75])
def test_every_policy_masks_as_many(policy: Policy, ratio: float):
    features = clips()
    part = masking(policy, mask_ratio=ratio)
    found = part(features, generator=generator(), oracle=needles(features))
    expected = 0 if policy == "none" else round(15 * ratio) * 8
    assert found.mask.flatten(1).sum(1).tolist() == [expected] * 3
    assert found.num_masked == expected
    assert torch.equal(found.tokens[~found.mask], features[~found.mask])
    assert (found.tokens[found.mask] == part.mask_token).all()
    assert found.scores.shape == features.shape[:4]


@pytest.mark.parametrize("policy", ["semantic", "random", "tube", "oracle"])
def test_the_generator_alone_decides(policy: Policy):
    features = clips()
    part = masking(policy)
    one, same, other = (
        part(features, generator=generator(seed), oracle=needles(features)).mask for seed in (4, 4, 5)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_masked_in_eval_mode(policy: Policy):
    features = clips()
    found = masking(policy).eval()(features)
    assert not found.mask.any()
    assert found.num_masked == 0
    assert torch.equal(found.tokens, features)


def test_semantic_spares_the_highest_and_draws_from_all_others():
    scores = clips(shape=(40, 4, 5, 5, 1))[..., 0]
    mask = semantic_places(scores, 50, 0.75, generator())
    ranks = scores.flatten(1).argsort(1).argsort(1).view(scores.shape)
    assert not mask[ranks >= 75].any()
    assert mask.flatten(1).sum(1).tolist() == [50] * 40
    share = torch.stack([mask[(ranks >= low) & (ranks < low + 25)].float().mean() for low in (0, 25, 50)])
    assert share.tolist() == pytest.approx([2 / 3] * 3, abs=0.05)  # 1,000 draws each


def test_with_no_more_candidates_than_places_the_lowest_are_masked():
    scores = clips(shape=(5, 4, 5, 5, 1))[..., 0]
    mask = semantic_places(scores, 50, 0.5, generator())
    assert torch.equal(mask, scores <= scores.flatten(1).kthvalue(50).values[:, None, None, None])


def test_ties_are_broken_at_random():
    """Scores of a clip that is flat say nothing: no place may be preferred for its number."""
    mask = lowest(torch.zeros(400, 10), 5, generator())
    assert mask.sum(1).tolist() == [5] * 400
    assert mask.float().mean(0).tolist() == pytest.approx([0.5] * 10, abs=0.1)


def test_a_tube_hides_the_same_places_on_all_frames_of_its_group():
    mask = tube_places(torch.zeros(3, 8, 4, 5), 80, 4, generator())
    groups = mask.view(6, 4, 20)
    assert (groups == groups[:, :1]).all()
    assert groups[:, 0].sum(1).tolist() == [10] * 6
    assert len({tuple(row) for row in groups[:, 0].tolist()}) == 6


def test_oracle_spares_needles_until_nothing_else_is_left():
    features = clips()
    where = torch.zeros(features.shape[:4], dtype=torch.bool)
    where[0, :, :2] = True  # 80 of 120: 24 of them must go, with 40 other tokens
    where[1, 3, 1] = True
    mask = masking("oracle", mask_ratio=8 / 15)(features, generator=generator(), oracle=where).mask
    assert (mask & where).flatten(1).sum(1).tolist() == [24, 0, 0]
    assert mask[0, :, 2].all()
    with pytest.raises(ValueError, match="pass oracle"):
        masking("oracle")(features)


def test_copies_of_an_image_score_alike():
    frame = clips(shape=(2, 1, 3, 5, 16))
    features = frame.expand(-1, 4, -1, -1, -1)
    part = masking()
    image = part(features, torch.tensor([True, True]), generator=generator())
    assert torch.equal(image.scores, image.scores[:, :1].expand(-1, 4, -1, -1))
    assert image.scores[:, 0].flatten(1).std(1).min() > 0.1
    as_video = part(features, torch.tensor([True, False]), generator=generator()).scores
    assert torch.equal(as_video[0], image.scores[0])
    assert not torch.allclose(as_video[1], image.scores[1])


def test_half_precision_tokens_come_out_as_they_went_in():
    features = clips().bfloat16()
    found = masking().float()(features, generator=generator())
    assert found.tokens.dtype == torch.bfloat16
    assert found.scores.dtype == torch.float32
    assert torch.equal(found.tokens[~found.mask], features[~found.mask])


@pytest.mark.parametrize("policy", POLICIES)
def test_queries_get_the_gradient_of_visible_tokens_alone(policy: Policy):
    """d loss / d score is <d loss / d token, token> where the token is seen, and 0 where it is not."""
    features = clips()
    part = masking(policy)
    found = part(features, generator=generator(), oracle=needles(features))
    found.scores.retain_grad()
    pull = clips(3, tuple(features.shape))
    (found.tokens * pull).sum().backward()
    expected = (pull * features).sum(-1) * ~found.mask
    torch.testing.assert_close(found.scores.grad, expected)
    for query in (part.temp_query, part.spatio_query):
        assert query.grad.abs().max() > 1e-3


def test_scores_move_towards_tokens_that_help():
    """A loss that falls when bright tokens grow teaches the queries to score these higher within some steps."""
    features = clips(shape=(4, 8, 4, 4, 16))
    bright = torch.rand(features.shape[:4], generator=generator(2)) < 0.3
    features[bright] += torch.linspace(-2, 2, 16, dtype=torch.float64)
    part = masking("semantic")
    optimiser = torch.optim.Adam(part.parameters(), lr=0.01)
    before, gaps = None, []
    for step in range(30):
        found = part(features, generator=generator(step))
        before = found.scores.detach() if before is None else before
        gaps.append(float((found.scores[bright].mean() - found.scores[~bright].mean()).detach()))
        seen = found.tokens.square().mean(-1)
        loss = -(seen * bright).sum() / bright.sum() + (seen * ~bright).sum() / (~bright).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (found.scores.detach() - before).abs().mean() > 0.1
    assert gaps[-1] > gaps[0] + 0.2
    kept = [~found.mask[where] for where in (bright, ~bright)]
    assert kept[0].double().mean() > kept[1].double().mean() + 0.2


def test_bad_shares_and_policies_are_refused():
    with pytest.raises(LongtakeError, match=r"mask_ratio is 0.8 and candidates 0.75.*0 <= mask_ratio <= candidates"):
        Masking(16, mask_ratio=0.8)
    with pytest.raises(LongtakeError, match="candidates 1.5"):
        Masking(16, candidates=1.5)
    with pytest.raises(LongtakeError, match="'semantical'; it must be one of semantic, random, tube, none, oracle"):
        Masking(16, "semantical")
