"""The DTS against a second implementation, its size, its layouts and its start."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dts_reference
from longtake.models.dts import DynamicTokenSynthesizer, scramble
from longtake.models.group_norm import group_norm


def randomised(dim: int, frames: int, layout: str = "correct") -> DynamicTokenSynthesizer:
    """In float64, every weight drawn, the ones that start at zero or one too."""
    torch.manual_seed(1)
    dts = DynamicTokenSynthesizer(dim, frames, layout).double()
    for name, parameter in dts.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=0.1)
    return dts


@pytest.mark.parametrize(("frames", "stages"), [(2, 1), (4, 2), (8, 3)])
@pytest.mark.parametrize("layout", ["correct", "legacy"])
def test_numbers_are_those_of_the_formulas(frames: int, stages: int, layout: str) -> None:
    dts = randomised(64, frames, layout)
    x = torch.randn(2, frames, 3, 2, 64, dtype=torch.float64)
    weights = {name: value.numpy() for name, value in dts.state_dict().items()}
    expected = dts_reference.dts(x.numpy(), weights, stages, legacy=layout == "legacy")
    with torch.no_grad():
        actual = dts(x).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)  # both in float64; order of sums differs
    assert np.abs(expected).max() > 1


def test_size_at_the_published_width() -> None:
    with torch.device("meta"):
        dts = DynamicTokenSynthesizer(1152)
    assert sum(parameter.numel() for parameter in dts.parameters()) == 93_526_272


def test_legacy_layout_is_the_released_view() -> None:
    groups, frames, rows, columns, dim = 3, 4, 2, 5, 6
    x = torch.randn(groups, frames, rows, columns, dim)
    channels_first = x.permute(0, 1, 4, 2, 3).contiguous()
    viewed = channels_first.view(groups, dim, frames, rows, columns)
    assert torch.equal(scramble(x), viewed.permute(0, 2, 3, 4, 1))
    assert not torch.equal(scramble(x), x)


def test_group_norm_is_pytorch_s() -> None:
    norm = torch.nn.GroupNorm(32, 96, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(3, 7, 96) * 5 + 20
    torch.testing.assert_close(group_norm(x, norm), norm(x.transpose(1, 2)).transpose(1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batch", "length"), [(3, 7), (5, 1)])
def test_group_norm_has_pytorch_s_gradients(batch: int, length: int) -> None:
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 12, eps=1e-6).double()
    torch.nn.init.normal_(norm.weight)
    x = (torch.randn(batch, length, 12) * 5 + 20).double().requires_grad_()
    wanted = torch.randn(batch, length, 12).double()
    given = x, norm.weight, norm.bias
    ours = torch.autograd.grad((group_norm(x, norm) * wanted).sum(), given)
    theirs = torch.autograd.grad((norm(x.transpose(1, 2)).transpose(1, 2) * wanted).sum(), given)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_group_norm_of_bfloat16_is_worked_out_in_float32(weights: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 12, eps=1e-6).to(weights)
    x = (torch.randn(3, 50, 12) * 0.1 + 20).bfloat16().requires_grad_()
    found = group_norm(x, norm)
    assert found.dtype == torch.bfloat16
    exact = torch.nn.functional.group_norm(x.double().transpose(1, 2), 4, eps=1e-6).transpose(1, 2)
    assert (found.double() - exact).norm() < 0.004 * exact.norm()
    found.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert norm.weight.grad.dtype == weights


def test_gradient_reaches_every_weight_once_the_zeros_have_moved() -> None:
    torch.manual_seed(0)
    dts = DynamicTokenSynthesizer(32)
    x = torch.randn(2, 4, 4, 4, 32)
    optimizer = torch.optim.SGD(dts.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        dts(x).square().mean().backward()
        optimizer.step()
    idle = [name for name, parameter in dts.named_parameters() if parameter.grad.abs().max() == 0]
    assert idle == []


def test_temporal_attention_starts_as_the_identity_and_can_leave_it() -> None:
    dts = DynamicTokenSynthesizer(32)
    block = dts.stages[0].temporal
    x = torch.randn(1, 4, 3, 3, 32)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.proj_out.weight.grad.abs().max() > 0


def test_groups_do_not_see_each_other() -> None:
    dts = randomised(32, 4)
    x = torch.randn(3, 4, 4, 4, 32, dtype=torch.float64)
    with torch.no_grad():
        together = dts(x)
        apart = torch.cat([dts(one[None]) for one in x])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("dim", "frames", "match"), [(32, 3, "power of two"), (32, 1, "power of two"), (48, 4, "32")])
def test_impossible_sizes_are_refused(dim: int, frames: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DynamicTokenSynthesizer(dim, frames)
    with pytest.raises(ValueError, match="a group holds 3 frames"):
        DynamicTokenSynthesizer(32, 4)(torch.zeros(1, 3, 2, 2, 32))


@pytest.mark.parametrize("frames", [2, 4, 8])
def test_a_start_as_the_mean_gives_means_and_still_learns(frames: int) -> None:
    torch.manual_seed(0)
    dts = DynamicTokenSynthesizer(32, frames)
    dts.start_as_mean()
    x = torch.randn(2, frames, 3, 3, 32)
    found = dts(x)
    torch.testing.assert_close(found, x.mean(1) + dts.temporal_encoding.mean(0), rtol=0, atol=1e-5)
    (found - x[:, 0]).square().mean().backward()
    for stage in dts.stages:
        for weight in (stage.conv.weight, stage.spatial.proj_out.weight):
            assert weight.grad is not None
            assert weight.grad.any()
