"""Muon and AdamW as one: which weights go where, and that a step is theirs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from longtake.train.embedded.optimiser import Optimiser


class Small(nn.Module):
    """An embedding, a matrix that Muon takes, and a head that it doesn't."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 64)
        self.inner = nn.Linear(64, 96)
        self.head = nn.Linear(96, 3)

    def forward(self) -> torch.Tensor:
        return self.head(self.inner(self.embedding.weight).relu()).square().sum()


def make() -> Small:
    torch.manual_seed(0)
    return Small()


def test_a_step_is_muons_for_inner_matrices_and_adamws_for_the_rest():
    one, other = make(), make()
    Optimiser({"m": one}, lr=1e-2, muon_lr=4e-2, weight_decay=0.1).update(one(), 0.5)
    rest = [other.embedding.weight, other.head.weight]
    adamw = torch.optim.AdamW(
        [{"params": rest, "weight_decay": 0.1}, {"params": [other.inner.bias, other.head.bias], "weight_decay": 0.0}],
        lr=5e-3,
        betas=(0.9, 0.98),
    )
    muon = torch.optim.Muon([other.inner.weight], lr=2e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    other().backward()
    nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    adamw.step()
    muon.step()
    for (name, a), b, start in zip(one.named_parameters(), other.parameters(), make().parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
        assert not torch.equal(a, start), name


def test_a_matrix_tied_to_an_embedding_is_adamws():
    tied = nn.ModuleDict({"embedding": nn.Embedding(80, 64), "head": nn.Linear(64, 80, bias=False)})
    tied["head"].weight = tied["embedding"].weight
    assert set(Optimiser({"m": tied}, 1e-3, 1e-3, 0.0).state_dict()) == {"adamw"}


def test_frozen_weights_stay():
    model = make()
    model.inner.requires_grad_(False)
    before = model.inner.weight.clone()
    Optimiser({"m": model}, 1e-2, 1e-2, 0.1).update(model(), 1.0)
    assert torch.equal(model.inner.weight, before)


def test_a_loaded_state_goes_on_as_if_never_stopped():
    one = make()
    optimiser = Optimiser({"m": one}, 1e-2, 1e-2, 0.1)
    optimiser.update(one(), 1.0)
    other, state = copy.deepcopy(one), copy.deepcopy(optimiser.state_dict())
    resumed = Optimiser({"m": other}, 1e-2, 1e-2, 0.1)
    resumed.load_state_dict(state)
    optimiser.update(one(), 0.7)
    resumed.update(other(), 0.7)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_gradient_is_clipped_over_all_weights():
    model = make()
    loss = 1e4 * model()
    Optimiser({"m": model}, 1e-2, 1e-2, 0.0).update(loss, 1.0)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert norm == pytest.approx(1.0, rel=1e-4)
