"""Compressed tokens of stored clips: computed once, named apart, and the same as those made anew."""

import dataclasses

import numpy as np
import pytest
import torch

import lessons
import tiny
from longtake.data.conversations.examples import evenly
from longtake.data.features import Features
from longtake.data.groups import GroupStore
from longtake.recipes.stages import group_store
from longtake.train.answers import AnswerLoss
from test_answers import columns

CPU = torch.device("cpu")


def clip(frames: int, name: str = "clip", seed: int = 0) -> Features:
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(frames, 4, 4, 32, generator=rng)
    return Features(features=values.bfloat16(), seconds=np.arange(float(frames)), name=name)


class Doubling:
    """Every second frame twice, in float32; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        assert not torch.is_grad_enabled()
        return features[::2].float() * 2


def test_each_clip_is_compressed_once(tmp_path):
    compress = Doubling()
    store, one, other = GroupStore(tmp_path, "a", compress), clip(4), clip(4, "other", seed=1)
    first = store.get(one)
    assert torch.equal(first, one.features[::2].float() * 2)
    assert torch.equal(store.get(one), first)
    assert compress.calls == 1
    assert not torch.equal(store.get(other), first)
    assert torch.equal(GroupStore(tmp_path, "a", compress).get(one), first)
    assert compress.calls == 2
    GroupStore(tmp_path, "another", compress).get(one)
    assert compress.calls == 3
    assert not list(tmp_path.rglob("*.part"))


def test_a_damaged_file_is_made_again(tmp_path):
    compress = Doubling()
    store, one = GroupStore(tmp_path, "a", compress), clip(4)
    first = store.get(one).clone()
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    assert torch.equal(store.get(one), first)
    assert compress.calls == 2


def test_a_clip_that_lost_frames_is_another(tmp_path):
    compress = Doubling()
    store, one = GroupStore(tmp_path, "a", compress), clip(8)
    short = evenly(one, 4)
    assert store.get(one).shape[0] == 4
    assert torch.equal(store.get(short), one.features[[1, 5]].float() * 2)  # the middles of four parts: 1, 3, 5, 7
    assert compress.calls == 2


def test_features_without_a_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="these features have no name"):
        GroupStore(tmp_path, "a", Doubling()).get(evenly(clip(8, ""), 4))


@pytest.mark.parametrize("changes", [{}, {"pool_after_projector": True}], ids=["pooled before", "pooled after"])
@pytest.mark.parametrize("rows", [([8], [6, 1], []), ([], [])], ids=["videos", "text"])
def test_kept_groups_give_the_loss_and_gradient_of_groups_made_anew(tmp_path, rows, changes):
    model = tiny.video_llm(**changes)
    model.requires_grad_(False)
    model.projector.requires_grad_(True)
    batch = lessons.batch(model, *rows)
    clips = tuple(clip(len(shown), f"clip{n}", n) for n, shown in enumerate(batch.clips))
    batch = dataclasses.replace(batch, clips=clips)
    found = []
    for groups in (None, group_store(model, tmp_path, "fp32", CPU)):
        model.zero_grad()
        loss = AnswerLoss(model, groups)(batch, columns(model, batch))
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.projector.parameters() if p.grad is not None)])
    assert len(found[0]) == 5
    for anew, kept in zip(*found, strict=True):
        torch.testing.assert_close(kept, anew)


def test_another_dts_or_pool_keeps_its_own(tmp_path):
    model, one = tiny.video_llm(), clip(4)
    first = group_store(model, tmp_path, "fp32", CPU).get(one)
    assert first.shape == (1, *model.config.token_grid, 32)
    with torch.no_grad():
        model.dts.temporal_encoding.add_(1.0)
    assert not torch.equal(group_store(model, tmp_path, "fp32", CPU).get(one), first)
    model.config.pool_after_projector = True
    assert group_store(model, tmp_path, "fp32", CPU).get(one).shape == (1, *model.config.grid, 32)
    assert group_store(model, tmp_path, "bf16", CPU).folder != group_store(model, tmp_path, "fp32", CPU).folder
