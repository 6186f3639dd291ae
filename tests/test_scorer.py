"""The scorers against loops, and the released selector against its dense masked form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import tiny
from longtake.models.scorer import LegacySelector, QueryScorer, min_max, rotate, straight_through


@pytest.mark.parametrize("reduce", ["mean", "max"])
@torch.no_grad()
def test_scores_are_scaled_dots_with_the_question(reduce: str) -> None:
    torch.manual_seed(0)
    scorer = QueryScorer(12, 8, reduce)
    tokens, question = torch.randn(5, 12), torch.randn(3, 12)
    first, _, second = scorer.query
    expected = []
    for token in tokens:
        seen = scorer.visual.weight @ token + scorer.visual.bias
        dots = [float(seen @ second(nn.functional.gelu(first(word)))) / math.sqrt(8) for word in question]
        expected.append(sum(dots) / 3 if reduce == "mean" else max(dots))
    torch.testing.assert_close(scorer(tokens, question), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduce", ["mean", "max"])
@torch.no_grad()
def test_scores_in_bfloat16_tell_tokens_apart_and_those_in_float32_stay(reduce: str) -> None:
    torch.manual_seed(0)
    scorer = QueryScorer(12, 8, reduce)
    tokens, question = torch.randn(5000, 12), torch.randn(3, 12)
    plain = scorer.visual(tokens) @ scorer.query(question).T * 8**-0.5
    assert torch.equal(scorer(tokens, question), plain.mean(dim=1) if reduce == "mean" else plain.amax(dim=1))
    scores = scorer.bfloat16()(tokens.bfloat16(), question.bfloat16())
    assert scores.dtype == torch.float32
    assert len(scores.unique()) > 4500
    double = QueryScorer(12, 8, reduce).double()
    assert double(tokens.double(), question.double()).dtype == torch.float64


def test_min_max_by_hand_and_when_all_are_equal() -> None:
    assert min_max(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    constant = torch.full((3,), 7.0, requires_grad=True)
    stretched = min_max(constant)
    assert stretched.tolist() == [0.0, 0.0, 0.0]
    stretched.sum().backward()
    assert constant.grad.isfinite().all()


def test_straight_through_changes_no_value_and_carries_the_gradient() -> None:
    tokens = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    scores = torch.tensor([0.3, 0.9], requires_grad=True)
    out = straight_through(tokens, scores)
    assert torch.equal(out, tokens)
    (out * torch.tensor([[10.0, 1.0], [1.0, 0.5]])).sum().backward()
    assert scores.grad.tolist() == [12.0, 1.0]  # of each token: its gradient's dot product with itself


def test_rotation_is_a_complex_turn() -> None:
    x = torch.randn(7, 6)
    place = torch.arange(7.0)[:, None]
    turn = torch.polar(torch.ones(7, 3), place * 1e6 ** (-torch.arange(3.0) / 3))
    expected = torch.view_as_real(torch.view_as_complex(x.view(7, 3, 2)) * turn).flatten(1)
    torch.testing.assert_close(rotate(x), expected)


def dense_attention(selector: LegacySelector, block: Tensor, visual: Tensor, group: Tensor) -> Tensor:
    """The released form: every visual token against every time token of the video, other groups masked out."""
    heads, hidden = selector.heads, block.shape[1]
    q = selector.q_proj(block[~visual]).view(-1, heads, hidden // heads).transpose(0, 1)
    k = selector.k_proj(block[visual]).view(-1, heads, hidden // heads).transpose(0, 1)
    scores = k @ q.transpose(1, 2) / (hidden // heads) ** 0.5
    scores = scores.masked_fill(group[visual][:, None] != group[~visual][None, :], -6e4)
    return selector.out_proj((scores.softmax(-1) @ q).transpose(0, 1).reshape(-1, hidden))


@pytest.mark.parametrize(
    ("stamps", "places"),
    [((10, 10, 10), (6, 6, 6)), ((10, 11, 11), (6, 6, 6)), ((10, 10, 10), (6, 1, 4))],
    ids=["even", "from 10,000 s", "some dropped"],
)
@torch.no_grad()
def test_legacy_selector_is_the_dense_masked_form(stamps: tuple[int, ...], places: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    selector = LegacySelector(16)
    visual = torch.cat([torch.tensor([False] * n + [True] * m) for n, m in zip(stamps, places, strict=True)])
    group = torch.cat([torch.full((stamps[g] + places[g],), g) for g in range(3)])
    block, text = torch.randn(len(visual), 16), torch.randn(9, 16)
    mixed = dense_attention(selector, block, visual, group)
    torch.testing.assert_close(selector.attend(block, visual), mixed)

    raw = torch.stack([sum(token @ selector.text_mlp(word) for word in text) / 9 for token in mixed])
    expected = (raw - raw.min()) / (raw.max() - raw.min())
    embeddings, scores = selector(block, visual, text)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    turned = rotate(block)
    torch.testing.assert_close(embeddings[~visual], turned[~visual])
    torch.testing.assert_close(embeddings[visual], turned[visual] + expected[:, None], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_legacy_embedding_leaves_padding_and_text_alone() -> None:
    vlm = tiny.video_llm(scorer="legacy", legacy_stamp_tokens=2)
    pad, place = tiny.ID["<|endoftext|>"], tiny.ID["<|vision_pad|>"]
    row = [40, 41, 60, 61, *[place] * 4, 60, 62, *[place] * 4, 50]
    video = torch.randn(8, 3, 32, 32)
    alone = vlm.embed(torch.tensor([row]), video)
    ids = torch.tensor([[pad] * 3 + row])
    padded = vlm.embed(ids, video, attention_mask=(ids != pad).long())
    torch.testing.assert_close(padded[:, 3:], alone)
    words = vlm.get_input_embeddings()(torch.tensor(row))
    assert torch.equal(alone[0, [0, 1, -1]], words[[0, 1, -1]])
    visual = torch.tensor(row[2:-1]) == place
    block = words[2:-1].clone()
    block[visual] = vlm.video_tokens(video)
    torch.testing.assert_close(alone[0, 2:-1], vlm.scorer(block, visual, words[[0, 1, -1]])[0])


def test_gradient_reaches_the_scorer() -> None:
    scorer = QueryScorer(8, 4)
    tokens = torch.randn(6, 8)
    scores = min_max(scorer(tokens, torch.randn(2, 8)))
    straight_through(tokens, scores).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in scorer.query.parameters())
