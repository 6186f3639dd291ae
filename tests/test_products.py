"""Attention as products: its values and gradients beside exact ones and the fused kernel's, and when it is used."""

import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen2Config, Qwen2Model

from longtake.backbones import attention
from longtake.backbones import products as named
from longtake.backbones.attention import Veil, causal_attention
from longtake.models import dts, products

SCALING = 0.25


def states(batch: int, heads: int, columns: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(batch, heads, columns, 16, generator=torch.Generator().manual_seed(seed))
    return drawn.bfloat16().requires_grad_()


def exact(query, key, value, allowed):
    """In float64, a head at a time."""
    groups = query.shape[1] // key.shape[1]
    rows = []
    for head in range(query.shape[1]):
        q, k, v = (t[:, h].double() for t, h in ((query, head), (key, head // groups), (value, head // groups)))
        scores = (q @ k.transpose(1, 2) * SCALING).masked_fill(~allowed[:, 0], float("-inf"))
        rows.append(scores.softmax(-1) @ v)
    return torch.stack(rows, dim=1)


def gradients(output: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return [output.double().detach(), *torch.autograd.grad((output.double() * weights).sum(), inputs)]


@pytest.mark.parametrize("at_once", [1, 10**9])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("seen", ["all", "causal", "some"])
def test_it_is_as_exact_as_the_fused_kernel(monkeypatch, seen, key_heads, at_once):
    monkeypatch.setattr(products, "SCORES_AT_ONCE", at_once)
    inputs = states(3, 4, 20, 1), states(3, key_heads, 33, 2), states(3, key_heads, 33, 3)
    allowed = torch.ones(1, 1, 20, 33, dtype=torch.bool)
    if seen != "all":
        allowed = products.causal(20, 33)
        assert torch.equal(allowed, torch.ones(1, 1, 20, 33, dtype=torch.bool).tril(13))
    if seen == "some":
        allowed = allowed & (torch.rand(3, 1, 20, 33, generator=torch.Generator().manual_seed(4)) < 0.5)
        allowed[..., 0] = True
    plain = gradients(
        products.by_products(*inputs, None if seen == "all" else allowed, scaling=SCALING), inputs
    )
    fused = gradients(
        F.scaled_dot_product_attention(*inputs, attn_mask=allowed.expand(3, 1, -1, -1), scale=SCALING, enable_gqa=True),
        inputs,
    )
    truth = gradients(exact(*inputs, allowed), inputs)
    for ours, theirs, true in zip(plain, fused, truth, strict=True):
        error, fused_error = ((one.double() - true).norm() / true.norm() for one in (ours, theirs))
        assert error < 0.012
        assert error < 4 * fused_error


def test_it_is_used_where_short_rows_are_trained_on_in_bfloat16(monkeypatch):
    query, key = states(1, 2, 8, 1), states(1, 2, 8, 2)
    assert products.pays(query, key)
    assert not products.pays(query.detach(), key.detach())
    assert not products.pays(query.float(), key.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert products.pays(query.float(), key.float())
    with torch.no_grad():
        assert not products.pays(query, key)
    monkeypatch.setattr(products, "MOST_SCORES", 63)
    assert not products.pays(query, key)


def test_causal_attention_is_the_same_with_padding_and_a_veil(monkeypatch):
    inputs = states(2, 2, 12, 1), states(2, 2, 12, 2), states(2, 2, 12, 3)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, :4] = False
    columns = torch.arange(12)
    veil = Veil(hidden=((columns > 4) & (columns < 8)).expand(2, -1), blind=(columns > 8).expand(2, -1))
    for own, veiled in ((None, None), (mask, None), (mask, veil), (None, veil)):
        plain = gradients(causal_attention(*inputs, own, scaling=SCALING, veil=veiled), inputs)
        with monkeypatch.context() as patched:
            patched.setattr(attention, "pays", lambda query, key: False)
            fused = gradients(causal_attention(*inputs, own, scaling=SCALING, veil=veiled), inputs)
        for ours, theirs in zip(plain, fused, strict=True):
            assert (ours.double() - theirs.double()).norm() < 0.02 * theirs.double().norm()


def test_a_decoder_of_transformers_takes_it_by_name(monkeypatch):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = Qwen2Model(config)
    embeddings = torch.randn(2, 10, 32)
    padded = torch.ones(2, 10, dtype=torch.int64)
    padded[1, 7:] = 0
    calls = []
    by_products = products.by_products
    monkeypatch.setattr(named, "by_products", lambda *given, **more: calls.append(1) or by_products(*given, **more))
    found = {}
    for name in ("sdpa", named.NAME):
        model.set_attn_implementation(name)
        with torch.autocast("cpu", torch.bfloat16):
            found[name] = model(inputs_embeds=embeddings, attention_mask=padded).last_hidden_state.float()
    assert len(calls) == 2
    assert torch.allclose(found["sdpa"][0], found[named.NAME][0], atol=0.05)
    with torch.no_grad():
        ours = model(inputs_embeds=embeddings).last_hidden_state
        model.set_attn_implementation("sdpa")
        assert torch.equal(ours, model(inputs_embeds=embeddings).last_hidden_state)
    assert len(calls) == 2


def test_only_a_decoder_with_the_fused_kernel_is_changed():
    config = Qwen2Config(vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    for name, after in (("sdpa", named.NAME), ("eager", "eager"), ("longtake_sdpa", "longtake_sdpa")):
        model = Qwen2Model(config)
        model.set_attn_implementation(name)
        named.train_by_products(model)
        assert model.config._attn_implementation == after


def test_places_of_a_frame_attend_by_products_in_training_alone(monkeypatch):
    inputs = states(3, 1, 20, 1), states(3, 1, 20, 2), states(3, 1, 20, 3)
    calls = []
    by_products = products.by_products
    monkeypatch.setattr(dts, "by_products", lambda *given, **more: calls.append(1) or by_products(*given, **more))
    plain = gradients(dts.attend(*inputs), inputs)
    assert calls == [1]
    fused = gradients(F.scaled_dot_product_attention(*inputs), inputs)
    for ours, theirs in zip(plain, fused, strict=True):
        assert (ours.double() - theirs.double()).norm() < 0.02 * theirs.double().norm()
    with torch.no_grad():
        assert torch.equal(dts.attend(*inputs), F.scaled_dot_product_attention(*inputs))
    assert calls == [1]
