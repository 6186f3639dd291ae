"""The injection module against loops in float64, and what its settings refuse."""

import math

import pytest
import torch
from torch import Tensor

from longtake.models.latent import (
    LatentInjection,
    LatentSettings,
    Seen,
    Thinking,
    matched_noise,
    mean_latents,
    one_repeated,
)
from longtake.types import LongtakeError

DIM, WIDTH, HEADS, SLOTS = 10, 8, 2, 3


def module(*, reread: bool = True, gate: float = 0.8) -> LatentInjection:
    torch.manual_seed(0)
    made = LatentInjection(
        DIM, LatentSettings(thinking=Thinking(latents=SLOTS), width=WIDTH, heads=HEADS, reread=reread)
    ).double()
    for parameter in made.parameters():
        parameter.data.normal_(std=0.5)
    if reread:
        made.gate.data.fill_(gate)
    made.rms.fill_(0.3)
    return made.requires_grad_(False)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(layer: torch.nn.Linear, x: list[float]) -> list[float]:
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def layer_norm(norm: torch.nn.LayerNorm, x: list[float]) -> list[float]:
    mean = sum(x) / len(x)
    spread = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + norm.eps)
    scaled = zip(x, norm.weight.tolist(), norm.bias.tolist(), strict=True)
    return [(v - mean) / spread * w + b for v, w, b in scaled]


def unit(x: list[float]) -> list[float]:
    size = math.sqrt(sum(v * v for v in x) / len(x) + 1e-6)
    return [v / size for v in x]


def by_hand(made: LatentInjection, state: list[float], visual: list[list[float]], slot: int):
    """One latent: its value, its content, and where it looked."""
    normal = layer_norm(made.state_norm, state)
    inner = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in linear(made.project[0], normal)]
    content, looks = linear(made.project[2], inner), [0.0] * len(visual)
    if made.settings.reread:
        query = [a + b for a, b in zip(linear(made.query, normal), made.slot_queries[slot].tolist(), strict=True)]
        both = [linear(made.key_value, layer_norm(made.visual_norm, token)) for token in visual]
        side, mixed = WIDTH // HEADS, []
        for head in range(HEADS):
            part = slice(head * side, (head + 1) * side)
            scores = [
                sum(a * b for a, b in zip(query[part], token[part], strict=True)) / math.sqrt(side) for token in both
            ]
            powers = [math.exp(score) for score in scores]
            shares = [power / sum(powers) for power in powers]
            looks = [look + share / HEADS for look, share in zip(looks, shares, strict=True)]
            values = [token[WIDTH:][part] for token in both]
            mixed += [sum(s * value[i] for s, value in zip(shares, values, strict=True)) for i in range(side)]
        read = linear(made.output, mixed)
        content = [c + math.tanh(float(made.gate)) * r for c, r in zip(content, read, strict=True)]
    content = unit(content)
    summed = [c + s for c, s in zip(content, made.slots[slot].tolist(), strict=True)]
    return [float(made.rms) * v for v in unit(summed)], content, looks


@pytest.mark.parametrize("reread", [True, False])
def test_latents_by_hand(reread):
    """Two samples, the second with two tokens of padding, at slots 1 and 2."""
    made = module(reread=reread)
    states, visual = drawn(2, 2, DIM), drawn(2, 5, DIM, seed=2)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    found = made(states, made.read(visual, mask), first=1)
    for sample, count in ((0, 5), (1, 3)):
        for n in range(2):
            latent, content, looks = by_hand(
                made, states[sample, n].tolist(), visual[sample, :count].tolist(), n + 1
            )
            assert found.latents[sample, n].tolist() == pytest.approx(latent, abs=1e-9)
            assert found.content[sample, n].tolist() == pytest.approx(content, abs=1e-9)
            if reread:
                assert found.looks[sample, n].tolist() == pytest.approx(looks + [0.0] * (5 - count), abs=1e-9)
    assert (found.looks is None) is not reread


def test_the_first_latents_come_from_the_slots():
    made = module()
    visual = drawn(1, 4, DIM)
    found = made.begin(1, 2, made.read(visual, torch.ones(1, 4, dtype=torch.bool)))
    for slot in range(2):
        latent, _, _ = by_hand(made, made.slots[slot].tolist(), visual[0].tolist(), slot)
        assert found.latents[0, slot].tolist() == pytest.approx(latent, abs=1e-9)


def test_a_new_module_reads_nothing_and_has_the_tables_scale():
    torch.manual_seed(0)
    made = LatentInjection(DIM, LatentSettings(width=WIDTH, heads=HEADS)).requires_grad_(False)
    table = torch.stack([torch.full((DIM,), 0.1), torch.full((DIM,), -0.5)])
    made.match(table)
    assert float(made.rms) == pytest.approx(0.3)
    states, mask = drawn(1, 8, DIM).float(), torch.ones(1, 4, dtype=torch.bool)
    one, other = (made(states, made.read(drawn(1, 4, DIM, seed=seed).float(), mask)) for seed in (3, 4))
    assert torch.equal(one.latents, other.latents)
    assert float(made.openness) == 0.0
    for vector in (*one.latents[0], made.start, made.end):
        assert float(vector.square().mean().sqrt()) == pytest.approx(0.3, rel=1e-4)


def test_without_a_video_nothing_is_read():
    made, states = module(), drawn(2, 3, DIM)
    none = made(states, made.read(drawn(2, 0, DIM), torch.zeros(2, 0, dtype=torch.bool)))
    padded = made(states, made.read(drawn(2, 4, DIM), torch.zeros(2, 4, dtype=torch.bool)))
    torch.testing.assert_close(none.latents, padded.latents)
    assert none.looks.shape == (2, 3, 0)
    assert not padded.looks.any()
    assert isinstance(made.read(drawn(2, 4, DIM), torch.zeros(2, 4, dtype=torch.bool)), Seen)


def test_half_precision_is_close():
    """Norms stay in float32: only products lose digits."""
    made = module().float()
    states, visual, mask = drawn(1, 3, DIM).float(), drawn(1, 5, DIM).float(), torch.ones(1, 5, dtype=torch.bool)
    exact = made(states, made.read(visual, mask)).latents
    half = made.bfloat16()
    found = half(states.bfloat16(), half.read(visual.bfloat16(), mask))
    assert found.latents.dtype == torch.bfloat16
    assert found.content.dtype == torch.float32
    torch.testing.assert_close(found.latents.float(), exact, atol=2e-2, rtol=0)


def test_controls_have_the_latents_scale():
    made = module()
    noise = matched_noise(made, 2, SLOTS, torch.Generator().manual_seed(0))
    again = matched_noise(made, 2, SLOTS, torch.Generator().manual_seed(0))
    assert torch.equal(noise, again)
    repeated, mean = one_repeated(made, 4), mean_latents(made, drawn(6, SLOTS, DIM))
    assert torch.equal(repeated, made.pause(1, 1).latents[0].expand(4, -1))
    torch.testing.assert_close(mean, 0.3 * torch.nn.functional.normalize(drawn(6, SLOTS, DIM).mean(0)) * DIM**0.5,
                               atol=1e-4, rtol=1e-4)
    for vectors in (noise, repeated, mean):
        sizes = vectors.square().mean(-1).sqrt()
        torch.testing.assert_close(sizes, torch.full_like(sizes, 0.3), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 10, "heads": 4}, "heads must divide width"),
        ({"thinking": {"latents": 0}}, "latents is 0; a model that thinks has at least 1"),
        ({"thinking": {"passes": -1}}, "neither may be negative"),
        ({"thinking": {"mode": "loud"}}, "mode is 'loud'; it must be one of parallel, autoregressive, pause"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(LongtakeError, match=message):
        LatentSettings.of({"thinking": {}, **settings})


def test_settings_survive_a_config():
    settings = LatentSettings(thinking=Thinking(latents=3, mode="autoregressive"), width=16, heads=2, reread=False)
    assert LatentSettings.of(settings.as_config()) == settings
    assert settings.asked(None) == settings.thinking
    assert settings.asked(2).latents == 2
    with pytest.raises(LongtakeError, match="latents is 4, but this model has 3"):
        settings.asked(4)
