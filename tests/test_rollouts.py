"""Groups and answers of several prompts at once."""

from types import SimpleNamespace

import pytest
import torch

from grpo_runs import own, puzzles, qwen, sampled_logprobs
from longtake.backbones.attention import Abreast, abreast_attention, causal_attention
from longtake.train import rollouts
from longtake.train.puzzles import QuestionPuzzle
from longtake.train.rollouts import Draw, answer_each, answer_greedily, roll, roll_each

DRAW = Draw(group=3, max_new_tokens=6)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("family", ["own", "qwen"])
def test_groups_and_answers_are_the_same_beside_others(family):
    """Prompts of two lengths, padded to one."""
    backbone = own() if family == "own" else qwen()
    asked = [*puzzles(backbone, 2), QuestionPuzzle(name="blind", question="Why?", answers=("so",))]
    seeds = [(1, place) for place in range(3)]
    together = roll_each(backbone, asked, DRAW, seeds)
    for puzzle, seed, group in zip(asked, seeds, together, strict=True):
        alone = roll(backbone, puzzle, DRAW, seed)
        assert group.puzzle is puzzle
        assert [r.ids for r in group.rollouts] == [r.ids for r in alone.rollouts]
        torch.testing.assert_close(sampled_logprobs(group), sampled_logprobs(alone), atol=1e-4, rtol=1e-4)
    said = answer_each(backbone, asked, 4)
    assert [rollout.ids for rollout in said] == [answer_greedily(backbone, puzzle, 4).ids for puzzle in asked]


def test_branches_abreast_see_the_stem_and_themselves():
    """Grouped heads and padding, against each branch by itself."""
    generator = torch.Generator().manual_seed(0)
    stem, count, steps = 5, 3, 4
    query = torch.randn(2, 4, count, 8, generator=generator)
    key, value = (torch.randn(2, 2, stem + count * steps, 8, generator=generator) for _ in range(2))
    mask = torch.ones(2, stem + count * steps, dtype=torch.bool)
    mask[1, :2] = False
    together = abreast_attention(query, key, value, mask, Abreast(stem=stem, count=count), scaling=0.3)
    for branch in range(count):
        own = [*range(stem), *range(stem + branch, stem + count * steps, count)]
        newest = query[:, :, branch : branch + 1]
        alone = causal_attention(newest, key[:, :, own], value[:, :, own], mask[:, own], scaling=0.3)
        torch.testing.assert_close(together[:, :, branch : branch + 1], alone)


def test_prompts_stand_together_while_their_columns_fit(monkeypatch):
    monkeypatch.setattr(rollouts, "COLUMNS_AT_ONCE", 10)
    backbone = SimpleNamespace(prompt_tokens=len)
    asked = ["aa", "a", "aaa", "a" * 12, "", "", "aa", ""]
    assert list(rollouts.batches(backbone, asked, 1)) == [["aa", "a"], ["aaa"], ["a" * 12], ["", "", "aa"], [""]]
    assert list(rollouts.batches(backbone, [], 1)) == []
