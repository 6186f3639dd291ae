"""Latents on the cache, against decoders with eager attention that run every column again."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

import tiny
from longtake.backbones import load_backbone
from longtake.backbones.attention import Veil, causal_attention
from longtake.backbones.base import Inputs, Prompt
from longtake.backbones.beside import FILE
from longtake.backbones.language import DecoderBackbone
from longtake.backbones.thinking import Thought, rolled, think, thinking_of, with_columns_of, with_latents
from longtake.models.latent import Thinking, matched_noise, one_repeated
from longtake.types import LongtakeError, VisualTokens
from thoughts import FAMILIES, open_gate, plain, thinker

QUESTIONS = ("What is on the red card?", "Which way did it move?", "Is it blue?")
WAYS = {
    "two passes": Thinking(latents=4, passes=2),
    "no pass": Thinking(latents=3, passes=0),
    "fewer slots": Thinking(latents=2, passes=1),
    "one by one": Thinking(latents=4, mode="autoregressive"),
    "pause": Thinking(latents=4, mode="pause"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def backbone(family: str) -> DecoderBackbone:
    return thinker(family)


@pytest.fixture(scope="module")
def tokens(backbone: DecoderBackbone) -> VisualTokens:
    with torch.no_grad():
        return backbone.encode(tiny.frames(10, 24, 40))


def prompts(tokens: VisualTokens) -> list[Prompt]:
    """Three rows of unequal length: a whole video, none, and a few tokens of one."""
    videos = (tokens, None, tokens[torch.tensor([0, 3, 9])])
    return [Prompt(question=question, tokens=video) for question, video in zip(QUESTIONS, videos, strict=True)]


def answered(backbone: DecoderBackbone, thought: Thought, count: int = 6):
    return backbone.generate(thought.inputs, thought.cache, max_new_tokens=count)


class Naive:
    """Whole sequences through eager attention, with no cache: one row, no padding."""

    def __init__(self, backbone: DecoderBackbone) -> None:
        self.decoder = copy.deepcopy(backbone.decoder)
        self.decoder.set_attn_implementation("eager")
        self.module, self.head, self.count = backbone.latent, backbone.head, 0

    def states(self, inputs: Inputs, extra: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        self.count += 1
        places = inputs.next_position[:, None] + torch.arange(len(extra))
        added = torch.stack(extra)[None] if extra else inputs.embeddings[:, :0]
        run = self.decoder(
            inputs_embeds=torch.cat([inputs.embeddings, added], dim=1),
            position_ids=torch.cat([inputs.positions, places.expand(*inputs.positions.shape[:-1], -1)], dim=-1),
            output_attentions=True,
            use_cache=False,
        )
        return run.last_hidden_state[0], run.attentions

    @torch.no_grad()
    def latents(self, inputs: Inputs, thinking: Thinking) -> list[Tensor]:
        """By the formulas: every pass runs the whole prompt again."""
        module = self.module
        visual = inputs.embeddings[:, inputs.source[0] >= 0]
        seen = module.read(visual, torch.ones(visual.shape[:2], dtype=torch.bool))
        length = inputs.ids.shape[1]
        if thinking.mode == "pause":
            slots = module.slots[: thinking.latents]
            return list(module.rms * slots / slots.square().mean(-1, keepdim=True).add(1e-6).sqrt())
        made: list[Tensor] = []
        if thinking.mode == "autoregressive":
            for slot in range(thinking.latents):
                states, _ = self.states(inputs, [module.start, *made])
                made.append(module(states[None, -1:], seen, first=slot).latents[0, 0])
            return made
        made = list(module(module.slots[None, : thinking.latents], seen).latents[0])
        for _ in range(thinking.passes):
            states, _ = self.states(inputs, [module.start, *made])
            made = list(module(states[None, length + 1 :], seen).latents[0])
        return made


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_cached_path_equals_full_recomputation(backbone: DecoderBackbone, tokens: VisualTokens, way: Thinking):
    inputs, naive = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)]), Naive(backbone)
    thought = think(backbone, inputs, thinking=way, record=True)
    latents = naive.latents(inputs, way)
    torch.testing.assert_close(thought.latents[0], torch.stack(latents), atol=1e-4, rtol=1e-3)
    (rollout,) = answered(backbone, thought)
    module, said = backbone.latent, []
    for chosen, logprob in zip(rollout.ids, rollout.logprobs, strict=True):
        words = list(backbone.embed(torch.tensor(said, dtype=torch.int64)).detach())
        with torch.no_grad():
            states, layers = naive.states(inputs, [module.start, *latents, module.end, *words])
            logits = backbone.head(states[-1])
        logits[backbone._banned] = float("-inf")
        assert chosen == int(logits.argmax())
        assert logprob == pytest.approx(float(logits.log_softmax(-1)[chosen]), abs=1e-3)
        if not said:
            rows = torch.stack([layers[layer][0] for layer in backbone.evidence_layers]).mean(dim=(0, 1))
            first = inputs.ids.shape[1] + 1
            torch.testing.assert_close(
                thought.attended[0], rows[first : first + way.latents], atol=1e-4, rtol=1e-3
            )
        said.append(chosen)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_padded_batch_equals_single_items(backbone: DecoderBackbone, tokens: VisualTokens, way: Thinking):
    asked = prompts(tokens)
    together = think(backbone, backbone.prepare(asked), thinking=way, record=True)
    said = answered(backbone, together)
    for row, prompt in enumerate(asked):
        alone = think(backbone, backbone.prepare([prompt]), thinking=way, record=True)
        torch.testing.assert_close(together.latents[row], alone.latents[0], atol=1e-4, rtol=1e-3)
        length = alone.inputs.ids.shape[1]
        for name in ("attended", "reread"):
            own, other = getattr(together, name), getattr(alone, name)
            if way.mode == "pause" and name == "reread":
                assert own is other is None
                continue
            torch.testing.assert_close(own[row][:, -length:], other[0], atol=1e-4, rtol=1e-3)
            assert not own[row][:, :-length].any()
        (single,) = answered(backbone, alone)
        assert said[row].ids == single.ids
        assert said[row].logprobs == pytest.approx(single.logprobs, abs=1e-3)


def test_no_latents_equal_the_base_model_exactly(family: str, backbone: DecoderBackbone, tokens: VisualTokens):
    base = plain(family)
    asked = prompts(tokens)
    for batch in (asked, asked[:1]):
        inputs = backbone.prepare(batch)
        thought = think(backbone, inputs, thinking=Thinking(latents=0))
        assert thought.inputs is inputs
        assert torch.equal(thought.cache.logits, base.prefill(base.prepare(batch)).logits)
        assert answered(backbone, thought) == base.generate(base.prepare(batch), max_new_tokens=6)


def test_latents_change_the_answer_and_the_video_changes_the_latents(backbone: DecoderBackbone, tokens: VisualTokens):
    inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)])
    with torch.no_grad():
        other = backbone.encode(tiny.frames(10, 24, 40, seed=5))
    swapped = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=other)])
    way = WAYS["two passes"]
    own, foreign = think(backbone, inputs, thinking=way), think(backbone, swapped, thinking=way)
    assert float((own.latents - foreign.latents).abs().max()) > 1e-2
    with_foreign = think(backbone, inputs, thinking=way, given=foreign.latents)
    again = think(backbone, inputs, thinking=way, given=own.latents[0])
    assert float((with_foreign.cache.logits - own.cache.logits).abs().max()) > 1e-2
    torch.testing.assert_close(again.cache.logits, own.cache.logits, atol=1e-5, rtol=1e-4)


def test_columns_of_another_video(backbone: DecoderBackbone, tokens: VisualTokens):
    """Keys and values are the other row's at the latents and the own elsewhere; the end marker sees them."""
    with torch.no_grad():
        videos = (tokens, backbone.encode(tiny.frames(10, 24, 40, seed=5)))
    inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=video) for video in videos])
    way = WAYS["two passes"]
    kept = copy.deepcopy(think(backbone, inputs, thinking=way))
    same = with_columns_of(backbone, think(backbone, inputs, thinking=way), torch.tensor([0, 1]))
    torch.testing.assert_close(same.cache.logits, kept.cache.logits, atol=1e-5, rtol=1e-4)
    other = with_columns_of(backbone, think(backbone, inputs, thinking=way), torch.tensor([1, 0]))
    first = inputs.ids.shape[1] + 1
    for own, new in zip(kept.cache.key_values.layers, other.cache.key_values.layers, strict=True):
        for name in ("keys", "values"):
            before, after = getattr(own, name), getattr(new, name)
            assert torch.equal(after[:, :, :first], before[:, :, :first])
            assert torch.equal(after[0, :, first : first + 4], before[1, :, first : first + 4])
            assert after.shape == before.shape
    assert torch.equal(other.latents, kept.latents.flip(0))
    given = think(backbone, inputs, thinking=way, given=other.latents).cache.logits
    for logits in (kept.cache.logits, given):
        assert float((other.cache.logits - logits).abs().max()) > 1e-2


def test_controls_take_the_latents_places(backbone: DecoderBackbone, tokens: VisualTokens):
    inputs, naive = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)]), Naive(backbone)
    module = backbone.latent
    noise = matched_noise(module, 1, 4, torch.Generator().manual_seed(0))[0].detach()
    controls = {"markers": noise[:0], "noise": noise, "repeated": one_repeated(module, 4).detach()}
    for name, given in controls.items():
        thought = think(backbone, inputs, thinking=WAYS["two passes"], given=given)
        with torch.no_grad():
            states, _ = naive.states(inputs, [module.start, *given, module.end])
            torch.testing.assert_close(thought.cache.logits[0], backbone.head(states[-1]), atol=1e-4, rtol=1e-3)
        assert thought.latents.shape[1] == len(given), name


@pytest.mark.parametrize(
    ("way", "columns"),
    [
        (Thinking(latents=4, passes=2), [5, 4, 5]),
        (Thinking(latents=4, passes=1), [5, 5]),
        (Thinking(latents=4, passes=0), [6]),
        (Thinking(latents=4, mode="autoregressive"), [1, 1, 1, 1, 2]),
        (Thinking(latents=4, mode="pause"), [6]),
    ],
)
def test_passes_after_the_prompt_are_few(backbone: DecoderBackbone, tokens: VisualTokens, monkeypatch, way, columns):
    """T, K one by one, or none: what is known beforehand is read with the prompt. An answer of n takes n - 1 more."""
    inputs, widths = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)]), []
    stock = type(backbone).run

    def run(self, embeddings, *rest, **more):
        widths.append(embeddings.shape[1])
        return stock(self, embeddings, *rest, **more)

    monkeypatch.setattr(type(backbone), "run", run)
    thought = think(backbone, inputs, thinking=way)
    assert widths == [inputs.ids.shape[1] + columns[0], *columns[1:]]
    answered(backbone, thought, 5)
    assert widths[len(columns) :] == [1] * 4


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_prompt_may_be_read_in_pieces(backbone: DecoderBackbone, tokens: VisualTokens, monkeypatch, way: Thinking):
    """Also where a piece would end among the latents."""
    inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)])
    whole = think(backbone, inputs, thinking=way, record=True)
    monkeypatch.setattr("longtake.backbones.language.PREFILL_COLUMNS", inputs.ids.shape[1] + 3)
    apart = think(backbone, inputs, thinking=way, record=True)
    torch.testing.assert_close(apart.latents, whole.latents, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(apart.attended, whole.attended, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(apart.cache.logits, whole.cache.logits, atol=1e-4, rtol=1e-3)


def test_one_prefix_cache_serves_several_thoughts(backbone: DecoderBackbone, tokens: VisualTokens):
    asked = [backbone.prepare([Prompt(question=question, tokens=tokens)]) for question in QUESTIONS]
    cache = backbone.prefill(asked[0], stop=asked[0].prefix)
    for way in WAYS.values():
        for inputs in asked:
            fresh = think(backbone, inputs, thinking=way)
            reused = think(backbone, inputs, cache, thinking=way)
            torch.testing.assert_close(reused.latents, fresh.latents, atol=1e-4, rtol=1e-3)
            assert answered(backbone, reused)[0].ids == answered(backbone, fresh)[0].ids


def test_several_rollouts_go_on_from_one_thought(backbone: DecoderBackbone, tokens: VisualTokens):
    thought = think(backbone, backbone.prepare(prompts(tokens)), thinking=WAYS["two passes"])
    drawn = backbone.generate(
        thought.inputs, thought.cache, max_new_tokens=4, num_rollouts=2, temperature=1.0,
        generators=[torch.Generator().manual_seed(row) for row in range(len(thought.inputs.ids))],
    )  # fmt: skip
    with torch.no_grad():
        given = backbone.logprobs(thought.inputs, [rollout.ids for rollout in drawn])
    for row, rollout in enumerate(drawn):
        assert given[row, : len(rollout.ids)].tolist() == pytest.approx(rollout.logprobs, abs=1e-3)


@pytest.mark.parametrize("mode", ["parallel", "autoregressive"])
def test_only_the_last_making_has_a_gradient(family: str, tokens: VisualTokens, mode: str):
    """Against the last making run by hand from the latents before it, detached: the same gradients everywhere."""
    made = {}
    for hand in (False, True):
        backbone = thinker(family)
        way = Thinking(latents=4, passes=2, mode=mode)
        inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)])
        module, length = backbone.latent, inputs.ids.shape[1]
        if hand:
            naive = Naive(backbone)
            naive.decoder = backbone.decoder
            before = naive.latents(inputs, Thinking(latents=4, passes=1, mode=mode))
            begun, first = (before, length + 1) if mode == "parallel" else (before[:-1], length)
            whole = with_latents(inputs, torch.stack(before)[None], module)
            key_values = backbone.prefill(whole, stop=first).key_values
            columns = with_latents(inputs, torch.stack(begun)[None], module)
            span = slice(first, first + 4)
            states = backbone.run(columns.embeddings[:, span], columns.positions[..., span], None, key_values)
            visual = inputs.embeddings[:, inputs.source[0] >= 0]
            latents = module(states, module.read(visual, torch.ones(visual.shape[:2], dtype=torch.bool))).latents
        else:
            latents = rolled(backbone, inputs, None, way)[0].latents
        weight = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        (latents * weight).sum().backward()
        grads = {name: p.grad for name, p in backbone.model.named_parameters() if p.grad is not None}
        made[hand] = {name: gradient for name, gradient in grads.items() if gradient.any()}
    assert made[False].keys() == made[True].keys()
    assert any("q_proj" in name for name in made[True])
    for name, gradient in made[True].items():
        torch.testing.assert_close(made[False][name], gradient, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mode", ["parallel", "autoregressive"])
def test_through_all_makings_the_gradient_is_the_slope(mode: str):
    """By finite differences of the module's projection, on which the prompt's cache does not depend."""
    backbone = thinker("own")
    with torch.no_grad():
        video = backbone.encode(tiny.frames(4, 24, 40))
    inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=video)])
    backbone.model.double()
    inputs = replace(inputs, embeddings=inputs.embeddings.detach().double())
    assert backbone.latent is not None
    weight = backbone.latent.project[0].weight
    aim, way = torch.randn(4, 32, dtype=torch.float64), torch.randn_like(weight)

    def value(through: bool = True) -> torch.Tensor:
        thinking = Thinking(latents=4, passes=3, mode=mode)
        return (rolled(backbone, inputs, None, thinking, through=through)[0].latents * aim).sum()

    slopes = {}
    for through in (True, False):
        (gradient,) = torch.autograd.grad(value(through), weight)
        slopes[through] = float((gradient * way).sum())
    with torch.no_grad():
        weight += 1e-3 * way
        more = value()
        weight -= 2e-3 * way
        slope = float((more - value()) / 2e-3)
    assert slopes[True] == pytest.approx(slope, rel=1e-4)
    assert slopes[False] != pytest.approx(slope, rel=0.05)


def test_the_veil_hides_columns(backbone: DecoderBackbone, tokens: VisualTokens):
    """In blocks, with padding and on a cache, against a mask of all pairs."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 11, 8, generator=generator) for heads in (4, 2, 2))
    hidden, blind, mask = torch.zeros(2, 11).bool(), torch.zeros(2, 11).bool(), torch.ones(2, 11).bool()
    hidden[:, 2:5], blind[:, 6:9], mask[1, :3] = True, True, False
    allowed = torch.ones(11, 11).tril().bool() & mask[:, None] & ~(blind[:, :, None] & hidden[:, None])
    allowed = allowed | torch.eye(11).bool()
    wide = [part.repeat_interleave(2, dim=1) for part in (key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=allowed[:, None], scale=0.3)
    veil = Veil(hidden=hidden, blind=blind)
    found = causal_attention(query, key, value, mask, scaling=0.3, veil=veil)
    torch.testing.assert_close(found, expected)
    for last in (1, 4):
        found = causal_attention(query[:, :, -last:], key, value, mask, scaling=0.3, veil=veil)
        torch.testing.assert_close(found, expected[:, :, -last:])


def test_a_saved_model_thinks_the_same(family: str, tokens: VisualTokens, tmp_path):
    backbone = thinker(family)
    backbone.save(tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert loaded.name == backbone.name
    assert loaded.latent.settings == backbone.latent.settings
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    way = thinking_of(loaded, None)
    assert way == WAYS["two passes"]
    one, other = (think(each, each.prepare(prompts(tokens)), thinking=way) for each in (backbone, loaded))
    assert torch.equal(one.latents, other.latents)
    assert answered(backbone, one) == answered(loaded, other)


def test_transformers_loads_what_stands_beside_latents(tmp_path, capsys):
    thinker("qwen").save(tmp_path)
    stock, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {name.split(".")[0] for name in load_file(tmp_path / FILE)} >= {"slots", "start", "end", "gate"}
    (tmp_path / FILE).unlink()
    with pytest.raises(LongtakeError, match=r"latent\.safetensors is not there"):
        load_backbone(str(tmp_path))


def test_a_model_without_latents_is_as_it_was(family: str, tmp_path):
    backbone = plain(family)
    backbone.save(tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert loaded.latent is None
    assert not (tmp_path / FILE).exists()
    assert loaded.model.state_dict().keys() == backbone.model.state_dict().keys()
    assert thinking_of(loaded, None) is thinking_of(loaded, 0) is None
    with pytest.raises(LongtakeError, match="has none; train it"):
        thinking_of(loaded, 2)


def test_fewer_latents_may_be_asked_for_and_not_more(backbone: DecoderBackbone):
    assert thinking_of(backbone, 2) == Thinking(latents=2)
    assert thinking_of(backbone, 0) is None
    with pytest.raises(LongtakeError, match="latents is 5, but this model has 4"):
        thinking_of(backbone, 5)


def test_open_gates_are_needed_for_reading_again(backbone: DecoderBackbone, tokens: VisualTokens):
    other = copy.deepcopy(backbone.latent)
    open_gate(backbone, 0.0)
    closed = think(backbone, backbone.prepare(prompts(tokens)[:1]), thinking=WAYS["no pass"]).latents
    backbone.latent.load_state_dict(other.state_dict())
    opened = think(backbone, backbone.prepare(prompts(tokens)[:1]), thinking=WAYS["no pass"]).latents
    assert not torch.allclose(closed, opened, atol=1e-3)
