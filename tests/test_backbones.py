"""What both families share, against stock decoders with eager attention and no cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, tokenization_utils_base

import tiny
from longtake.backbones import attention, language, load_backbone
from longtake.backbones.attention import causal_attention
from longtake.backbones.base import Inputs, Part, Prompt
from longtake.backbones.language import DecoderBackbone
from longtake.backbones.own import OwnVideoLLM
from longtake.backbones.qwen_vl import QwenVL
from longtake.models.processor import VideoLLMProcessor
from longtake.types import Frames, LongtakeError, Rollout, VisualTokens, first_line

QUESTIONS = ("What is on the red card?", "Which way did it move?", "Is it blue?")


def own(seed: int = 0, **changes: object) -> OwnVideoLLM:
    model = tiny.video_llm(seed, **changes)
    return OwnVideoLLM(model, VideoLLMProcessor.from_config(tiny.tokenizer(), model.config))


def qwen() -> QwenVL:
    return QwenVL(tiny.qwen_vl(), tiny.tokenizer(), min_tokens=4, max_tokens=24)


def stock_decoder(family: str) -> tuple[PreTrainedModel, torch.nn.Module]:
    """The same random weights as the backbone's, behind transformers' eager attention."""
    if family == "own":
        whole = tiny.video_llm().language_model
        decoder = whole.model
    else:
        whole = tiny.qwen_vl()
        decoder = whole.model.language_model
    decoder.set_attn_implementation("eager")
    return decoder, whole.lm_head


@pytest.fixture(scope="module", params=["own", "qwen_vl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def backbone(family: str) -> DecoderBackbone:
    return own() if family == "own" else qwen()


@pytest.fixture(scope="module")
def tokens(backbone: DecoderBackbone) -> VisualTokens:
    with torch.no_grad():
        return backbone.encode(tiny.frames(10, 24, 40))


@pytest.fixture(scope="module")
def naive(family: str) -> Callable[[Inputs, list[int]], tuple[Tensor, tuple[Tensor, ...]]]:
    """Logits (columns, vocabulary) and each layer's attention of one row and a completion, computed in one piece."""
    decoder, head = stock_decoder(family)

    @torch.no_grad()
    def run(inputs: Inputs, completion: list[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
        extra = decoder.get_input_embeddings()(torch.tensor([completion], dtype=torch.int64))
        places = inputs.next_position[:, None] + torch.arange(len(completion))
        out = decoder(
            inputs_embeds=torch.cat([inputs.embeddings, extra], dim=1),
            position_ids=torch.cat([inputs.positions, places.expand(*inputs.positions.shape[:-1], -1)], dim=-1),
            output_attentions=True,
            use_cache=False,
        )
        return head(out.last_hidden_state)[0], out.attentions

    return run


def assert_greedy(
    backbone: DecoderBackbone, naive: Callable[..., tuple[Tensor, tuple[Tensor, ...]]], inputs: Inputs, rollout: Rollout
) -> None:
    """Each token is the likeliest that may be said, and as likely as it says, by running everything before it anew."""
    ids: list[int] = []
    for chosen, logprob in zip(rollout.ids, rollout.logprobs, strict=True):
        logits = naive(inputs, ids)[0][-1]
        logits[backbone._banned] = float("-inf")
        assert chosen == int(logits.argmax())
        assert logprob == pytest.approx(float(logits.log_softmax(-1)[chosen]), abs=1e-4)
        ids.append(chosen)


def test_cached_generation_equals_full_recomputation(
    backbone: DecoderBackbone, tokens: VisualTokens, naive: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
) -> None:
    inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)])
    (rollout,) = backbone.generate(inputs, max_new_tokens=12)
    assert_greedy(backbone, naive, inputs, rollout)
    assert len(rollout.ids) == 12


def test_a_padded_batch_equals_single_items(backbone: DecoderBackbone, tokens: VisualTokens) -> None:
    kept = tokens[torch.tensor([0, 3, 9])]
    videos = (tokens, None, kept)
    prompts = [Prompt(question=q, tokens=t) for q, t in zip(QUESTIONS, videos, strict=True)]
    inputs = backbone.prepare(prompts)
    assert inputs.prefix == 0
    together = backbone.generate(inputs, max_new_tokens=8, record_attention=True)
    for row, prompt in enumerate(prompts):
        single = backbone.prepare([prompt])
        (alone,) = backbone.generate(single, max_new_tokens=8, record_attention=True)
        length = single.ids.shape[1]
        assert together[row].ids == alone.ids
        assert together[row].logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        torch.testing.assert_close(together[row].attention[-length:], alone.attention, atol=1e-5, rtol=1e-4)
        assert not together[row].attention[:-length].any()
        assert not inputs.mask[row, :-length].any()


def test_a_prompt_is_counted_without_embedding_it(
    backbone: DecoderBackbone, tokens: VisualTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [Prompt(question="What is on the red card?", tokens=tokens), Prompt(question="How many?")]
    lengths = [backbone.prepare([prompt]).ids.shape[1] for prompt in prompts]
    monkeypatch.delattr(DecoderBackbone, "embed")
    assert [backbone.prompt_tokens(prompt) for prompt in prompts] == lengths


@pytest.fixture(scope="module")
def parts(backbone: DecoderBackbone, tokens: VisualTokens) -> tuple[Part, ...]:
    """A video, text, another video that lost some tokens, and two pictures with text before them."""
    with torch.no_grad():
        pictures = [backbone.encode(tiny.frames(1, 24, 40, seed=n)) for n in range(2)]
    return (
        Part(tokens=tokens),
        Part(text="[3 missing]"),
        Part(text="then", tokens=tokens[torch.tensor([1, 3, 9])]),
        *(Part(text=f"{n}: ", tokens=picture, timed=False) for n, picture in enumerate(pictures, start=1)),
    )


def test_one_video_as_a_part_is_the_one_video(backbone: DecoderBackbone, tokens: VisualTokens) -> None:
    for seen in (tokens, tokens[torch.tensor([0, 3, 9])], tokens[:0]):
        plain = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=seen)])
        found = backbone.prepare([Prompt(question=QUESTIONS[0], parts=(Part(tokens=seen),))])
        for name in ("embeddings", "positions", "mask", "source", "ids", "next_position"):
            assert torch.equal(getattr(found, name), getattr(plain, name)), name
        assert found.prefix == plain.prefix
    with pytest.raises(ValueError, match="one video's tokens or parts, not both"):
        Prompt(question=QUESTIONS[0], tokens=tokens, parts=(Part(text="a"),))


def test_parts_stand_in_their_order(backbone: DecoderBackbone, parts: tuple[Part, ...]) -> None:
    prompt = Prompt(question=QUESTIONS[0], parts=parts)
    inputs = backbone.prepare([prompt])
    assert backbone.prompt_tokens(prompt) == inputs.ids.shape[1]
    seen = torch.cat([part.tokens.features for part in parts if part.tokens is not None])
    columns = inputs.source[0] >= 0
    assert inputs.source[0, columns].tolist() == list(range(len(seen)))
    assert torch.equal(inputs.embeddings[0, columns], seen)
    said = str(backbone.tokenizer.decode(inputs.ids[0, ~columns]))
    places = [said.index(text) for text in ("[3 missing]", "then", "1: ", "2: ", QUESTIONS[0])]
    assert places == sorted(places)
    counts = [int((inputs.source[0, : inputs.prefix] >= 0).sum()), int((inputs.source[0, inputs.prefix :] >= 0).sum())]
    assert counts == [len(seen), 0]


def test_a_picture_has_no_stamp(parts: tuple[Part, ...]) -> None:
    model = own()
    picture = model.encode(tiny.frames(1, 24, 40))
    timed, untimed = (
        str(model.tokenizer.decode(model.prepare([prompt]).ids[0]))
        for prompt in (
            Prompt(question="q", parts=(Part(text="a ", tokens=picture, timed=on),)) for on in (True, False)
        )
    )
    assert timed.replace("a 0:", "a ") == untimed != timed


def test_a_published_selector_knows_one_video() -> None:
    model = own(scorer="legacy", stamp_style="legacy")
    seen = model.encode(tiny.frames(4, 24, 40))
    assert model.prepare([Prompt(question="q", parts=(Part(text="a", tokens=seen),))]).prefix
    with pytest.raises(LongtakeError, match="shows 2 videos and pictures, but a published checkpoint's selector knows"):
        model.prepare([Prompt(question="q", parts=(Part(tokens=seen), Part(tokens=seen, timed=False)))])


def test_a_prompt_of_parts_generates_caches_pads_and_is_scored(
    backbone: DecoderBackbone,
    tokens: VisualTokens,
    parts: tuple[Part, ...],
    naive: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
) -> None:
    prompts = [Prompt(question=question, parts=parts) for question in QUESTIONS]
    asked = [backbone.prepare([prompt]) for prompt in prompts]
    prefix = asked[0].prefix
    assert all(torch.equal(inputs.ids[:, :prefix], asked[0].ids[:, :prefix]) for inputs in asked)
    cache = backbone.prefill(asked[0], stop=prefix)
    mixed = backbone.prepare([prompts[0], Prompt(question=QUESTIONS[1], tokens=tokens)])
    together = backbone.generate(mixed, max_new_tokens=6)
    for row, inputs in enumerate(asked):
        (rollout,) = backbone.generate(inputs, cache, max_new_tokens=6)
        assert_greedy(backbone, naive, inputs, rollout)
        given = backbone.logprobs(inputs, [rollout.ids, rollout.ids[:2]])
        assert given[0].tolist() == pytest.approx(rollout.logprobs, abs=1e-4)
        assert given[1, :2].tolist() == pytest.approx(rollout.logprobs[:2], abs=1e-4)
        if not row:
            assert together[0].ids == rollout.ids


def test_one_prefix_cache_answers_several_questions(backbone: DecoderBackbone, tokens: VisualTokens) -> None:
    asked = [backbone.prepare([Prompt(question=q, tokens=tokens)]) for q in QUESTIONS]
    prefix = asked[0].prefix
    assert all(torch.equal(inputs.ids[:, :prefix], asked[0].ids[:, :prefix]) for inputs in asked)
    cache = backbone.prefill(asked[0], stop=prefix)
    for inputs in [*asked, asked[0]]:
        fresh = backbone.generate(inputs, max_new_tokens=6, record_attention=True)[0]
        reused = backbone.generate(inputs, cache, max_new_tokens=6, record_attention=True)[0]
        assert reused.ids == fresh.ids
        assert reused.logprobs == pytest.approx(fresh.logprobs, abs=1e-4)
        torch.testing.assert_close(reused.attention, fresh.attention, atol=1e-5, rtol=1e-4)
        assert cache.key_values.get_seq_length() == cache.length == prefix


def test_a_cache_cropped_by_a_shorter_one_says_so(backbone: DecoderBackbone, tokens: VisualTokens) -> None:
    inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)])
    prefix = backbone.prefill(inputs, stop=inputs.prefix)
    full = backbone.prefill(inputs, prefix)
    first = backbone.generate(inputs, full, max_new_tokens=4)
    assert backbone.generate(inputs, full, max_new_tokens=4) == first  # a full cache can be asked again
    backbone.generate(inputs, prefix, max_new_tokens=4)
    with pytest.raises(AssertionError, match="cropped away"):
        backbone.generate(inputs, full, max_new_tokens=4)


def test_prefill_in_chunks_and_blocks_changes_nothing(
    backbone: DecoderBackbone, tokens: VisualTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [Prompt(question=q, tokens=t) for q, t in zip(QUESTIONS, (tokens, None, tokens), strict=True)]
    for inputs in (backbone.prepare(prompts), backbone.prepare(prompts[:1])):
        whole = backbone.prefill(inputs)
        monkeypatch.setattr(language, "PREFILL_COLUMNS", 17)
        monkeypatch.setattr(attention, "BLOCK_QUERIES", 5)
        chunked = backbone.prefill(inputs)
        monkeypatch.undo()
        torch.testing.assert_close(chunked.logits, whole.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(chunked.attention, whole.attention, atol=1e-5, rtol=1e-4)
        assert whole.attention.sum(dim=1).tolist() == pytest.approx([1.0] * len(inputs.ids))


def test_recorded_attention_equals_eager_rows(
    backbone: DecoderBackbone, tokens: VisualTokens, naive: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
) -> None:
    inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)])
    (rollout,) = backbone.generate(inputs, max_new_tokens=5, record_attention=True)
    length = inputs.ids.shape[1]
    _, layers = naive(inputs, list(rollout.ids[:-1]))
    chosen = torch.stack([layers[layer][0] for layer in backbone.evidence_layers])  # (layers, heads, rows, columns)
    expected = chosen[:, :, length - 1 :, :length].mean(dim=(0, 1, 2))
    torch.testing.assert_close(rollout.attention, expected, atol=1e-5, rtol=1e-4)


def test_generation_stops_at_an_end_token_whose_row_is_not_evidence(family: str, tokens: VisualTokens) -> None:
    backbone = own() if family == "own" else qwen()
    inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)])
    (free,) = backbone.generate(inputs, max_new_tokens=6, record_attention=True)
    end = next(i for i in range(1, 6) if free.ids[i] not in free.ids[:i])
    (shorter,) = backbone.generate(inputs, max_new_tokens=end, record_attention=True)
    model = tiny.video_llm() if family == "own" else tiny.qwen_vl()
    model.generation_config.eos_token_id = free.ids[end]
    if isinstance(backbone, OwnVideoLLM):
        stopping: DecoderBackbone = OwnVideoLLM(model, backbone.processor)
    else:
        stopping = QwenVL(model, tiny.tokenizer())
    (stopped,) = stopping.generate(inputs, max_new_tokens=6, record_attention=True)
    assert stopped.ids == free.ids[: end + 1]
    assert stopped.finished
    assert not free.finished
    torch.testing.assert_close(stopped.attention, shorter.attention)


def test_placeholders_are_never_generated(family: str, tokens: VisualTokens) -> None:
    backbone = own() if family == "own" else qwen()
    inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)])
    with torch.no_grad():  # every state now points at the placeholders
        states = backbone.run(inputs.embeddings, inputs.positions, None)
        backbone.head.weight = torch.nn.Parameter(backbone.head.weight.clone())
        backbone.head.weight[backbone._banned] = 100 * states[0, -1]
        assert int(backbone.head(states[0, -1]).argmax()) in backbone._banned
    (rollout,) = backbone.generate(inputs, max_new_tokens=8)
    assert not set(rollout.ids) & set(backbone._banned.tolist())


def test_sampled_logprobs_equal_given_ones_rows_first(backbone: DecoderBackbone, tokens: VisualTokens) -> None:
    prompts = [Prompt(question=QUESTIONS[0], tokens=tokens), Prompt(question=QUESTIONS[1])]
    inputs = backbone.prepare(prompts)
    cache = backbone.prefill(inputs)

    def sample() -> list[tuple[int, ...]]:
        generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        rolled = backbone.generate(
            inputs, cache, max_new_tokens=7, num_rollouts=3, temperature=1.0, generators=generators
        )
        given = backbone.logprobs(inputs, [r.ids for r in rolled])
        for row, rollout in enumerate(rolled):
            assert given[row, : len(rollout.ids)].tolist() == pytest.approx(rollout.logprobs, abs=1e-4)
        return [r.ids for r in rolled]

    first = sample()
    assert len(set(first)) == 6
    assert sample() == first
    greedy = backbone.generate(inputs, cache, max_new_tokens=7, num_rollouts=3)
    assert [r.ids for r in greedy] == [r.ids for r in backbone.generate(inputs, max_new_tokens=7) for _ in range(3)]


def test_temperature_shapes_the_distribution_that_is_recorded(backbone: DecoderBackbone, tokens: VisualTokens) -> None:
    inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)])
    cache = backbone.prefill(inputs)
    (rollout,) = backbone.generate(
        inputs, cache, max_new_tokens=1, temperature=2.0, generators=[torch.Generator().manual_seed(1)]
    )
    logits = cache.logits[0].double() / 2
    logits[backbone._banned] = float("-inf")
    assert rollout.logprobs[0] == pytest.approx(float(logits[rollout.ids[0]] - logits.logsumexp(0)), abs=1e-5)


def test_logprobs_equal_a_naive_forward_and_carry_gradients(
    backbone: DecoderBackbone, tokens: VisualTokens, naive: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
) -> None:
    features = tokens.features.clone().requires_grad_()
    seen = VisualTokens(
        features=features, position=tokens.position, seconds=tokens.seconds, weight=tokens.weight, grid=tokens.grid
    )
    prompts = [Prompt(question=QUESTIONS[0], tokens=seen), Prompt(question=QUESTIONS[1], tokens=seen)]
    completions = [[5, 9, 200, 31], [77]]
    given = backbone.logprobs(backbone.prepare(prompts), completions)
    assert given.shape == (2, 4)
    assert given.dtype == torch.float32
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        inputs = backbone.prepare([prompt])
        logits = naive(inputs, completion)[0][inputs.ids.shape[1] - 1 : -1]
        logits[:, backbone._banned] = float("-inf")
        expected = logits.log_softmax(-1)[range(len(completion)), completion]
        assert given[row, : len(completion)].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert not given[1, 1:].any()
    given.sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum(dim=1).min() > 0
    assert backbone.head.weight.grad is not None
    backbone.model.zero_grad()


def test_an_answer_is_learned_with_its_end_where_it_would_be_generated(
    backbone: DecoderBackbone, tokens: VisualTokens
) -> None:
    asked = Prompt(question=QUESTIONS[0], tokens=tokens)
    taught = Prompt(question=QUESTIONS[0], tokens=tokens, answer="red 7")
    inputs, plain = backbone.prepare([taught, asked]), backbone.prepare([asked])
    expected = [*tiny.tokenizer()("red 7")["input_ids"], tiny.ID["<|im_end|>"]]
    assert inputs.labels is not None
    assert inputs.labels[0, -6:].tolist() == expected == inputs.ids[0, -6:].tolist()
    assert bool((inputs.labels[0, :-6] == -100).all())
    assert bool((inputs.labels[1] == -100).all())
    assert plain.labels is None
    start = int(plain.next_position)
    assert inputs.positions[..., 0, -6:].reshape(-1, 6)[0].tolist() == list(range(start, start + 6))
    assert inputs.next_position.tolist() == [start + 6, start]


def test_query_states_equal_a_stock_forward(backbone: DecoderBackbone, family: str) -> None:
    decoder, _ = stock_decoder(family)
    query = backbone.encode_query(" " + QUESTIONS[0])
    ids = tiny.tokenizer()(QUESTIONS[0], return_tensors="pt")["input_ids"]
    states = decoder(input_ids=ids, output_hidden_states=True).hidden_states[1]
    assert list(query.embeddings) == [f"{backbone.model.config.model_type}:layer1"]
    torch.testing.assert_close(query.embeddings[backbone.query_name], states[0], atol=1e-5, rtol=1e-4)
    with pytest.raises(LongtakeError, match="the question is empty"):
        backbone.encode_query("  ")


def test_a_text_longer_than_the_context_is_told_by_our_own_line_alone(
    backbone: DecoderBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", said.append)
    monkeypatch.setattr(backbone.tokenizer, "model_max_length", 2)
    monkeypatch.setattr(backbone.tokenizer, "deprecation_warnings", {})
    assert len(backbone.text_ids("why " * 8)) > 2
    assert said == []


def test_the_models_own_generate_still_works_on_a_padded_batch(backbone: DecoderBackbone) -> None:
    inputs = backbone.prepare([Prompt(question=q) for q in QUESTIONS])
    run = backbone.model.generate(
        input_ids=inputs.ids,
        attention_mask=inputs.mask.long(),
        do_sample=False,
        max_new_tokens=6,
        suppress_tokens=backbone._banned.tolist(),
        pad_token_id=0,
        eos_token_id=tiny.ID["<|im_end|>"],
    )
    ours = backbone.generate(inputs, max_new_tokens=6)
    for theirs, rollout in zip(run[:, inputs.ids.shape[1] :].tolist(), ours, strict=True):
        assert theirs[: len(rollout.ids)] == list(rollout.ids)


@pytest.mark.parametrize("mask", [None, [[True] * 9, [False] * 3 + [True] * 6]])
@pytest.mark.parametrize("queries", [1, 4, 9])
def test_causal_attention_in_blocks_equals_loops(
    queries: int, mask: list[list[bool]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK_QUERIES", 3)
    torch.manual_seed(0)
    q = torch.randn(2, 4, queries, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 9, 8, dtype=torch.float64)
    padding = None if mask is None else torch.tensor(mask)
    out = causal_attention(q, k, v, padding, scaling=0.3)
    assert bool(out.isfinite().all())
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(queries)).tolist():
        own_key = 9 - queries + i
        seen = [j for j in range(own_key + 1) if padding is None or padding[b, j]] or [own_key]
        weights = torch.stack([0.3 * q[b, h, i] @ k[b, h // 2, j] for j in seen]).softmax(0)
        torch.testing.assert_close(out[b, h, i], weights @ v[b, h // 2, seen])


@pytest.mark.filterwarnings("ignore")  # torch says why it takes no fused kernel here
def test_fused_attention_is_told_what_is_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, but with torch's own stand-in for the kernel."""
    torch.manual_seed(0)
    q = torch.randn(2, 4, 3, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 9, 8, dtype=torch.float64)
    in_blocks = causal_attention(q, k, v, scaling=0.3)
    monkeypatch.setattr(attention, "fuses", lambda *tensors: True)
    torch.testing.assert_close(causal_attention(q, k, v, scaling=0.3), in_blocks)


def test_name_follows_the_weights_and_not_their_floating_point_type(backbone: DecoderBackbone, family: str) -> None:
    def make(seed: int) -> DecoderBackbone:
        return own(seed=seed) if family == "own" else QwenVL(tiny.qwen_vl(seed), tiny.tokenizer())

    assert make(0).name == backbone.name == make(0).name
    assert backbone.name.startswith(f"{backbone.model.config.model_type}-")
    assert make(1).name != backbone.name
    half = make(0)
    half.model.to(torch.bfloat16)
    assert half.name == backbone.name
    with torch.no_grad():
        half.head.weight[0, 0] += 1
    assert half.name != backbone.name


class TestOwn:
    """What only our own family does."""

    def test_prompt_equals_the_processors(self) -> None:
        backbone = own()
        frames = tiny.frames(10, 24, 40, every_seconds=0.5)
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTIONS[0]}]}]
        text = backbone.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        batch = backbone.processor(text=text, videos=[frames])
        inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=backbone.encode(frames))])
        assert inputs.ids.tolist() == batch["input_ids"].tolist()
        expected = tiny.video_llm().embed(**{k: batch[k] for k in ("input_ids", "pixel_values_videos", "frame_counts")})
        torch.testing.assert_close(inputs.embeddings, expected)
        assert inputs.positions.tolist() == [list(range(inputs.ids.shape[1]))]

    def test_a_group_that_lost_its_tokens_loses_its_stamp(self) -> None:
        backbone = own()
        tokens = backbone.encode(tiny.frames(12, 24, 40, every_seconds=5.0))
        kept = torch.tensor([1, 2, 8])
        inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens[kept])])
        place = tiny.ID["<|vision_pad|>"]
        text = tiny.tokenizer().decode(inputs.ids[0].tolist())
        assert "user\n0:<|vision_pad|><|vision_pad|>40:<|vision_pad|>\nWhat" in text
        assert inputs.positions.tolist() == [list(range(inputs.ids.shape[1]))]
        columns = inputs.ids[0] == place
        assert inputs.source[0, columns].tolist() == [0, 1, 2]
        assert bool((inputs.source[0, ~columns] == -1).all())
        torch.testing.assert_close(inputs.embeddings[0, columns], tokens.features[kept])
        assert tiny.tokenizer().decode(inputs.ids[0, inputs.prefix :].tolist()).startswith("\nWhat")

    def test_a_published_checkpoints_prompt_equals_the_models(self) -> None:
        backbone = own(scorer="legacy", stamp_style="legacy", legacy_stamp_tokens=len("Time 0000.0s:"))
        frames = tiny.frames(10, 24, 40)
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTIONS[0]}]}]
        text = backbone.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        batch = backbone.processor(text=text, videos=[frames])
        expected = backbone.model.embed(
            **{k: batch[k] for k in ("input_ids", "pixel_values_videos", "frame_counts")}
        )
        tokens = backbone.encode(frames)
        asked = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens)])
        torch.testing.assert_close(asked.embeddings, expected)
        assert tiny.tokenizer().decode(asked.ids[0, asked.prefix :].tolist()).startswith("Time 0000.0s:<|vision_pad|>")
        taught = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens, answer="red")])
        torch.testing.assert_close(taught.embeddings[:, :-4], expected)  # the answer is not shown to the selector
        with pytest.raises(LongtakeError, match="a group of 4 tokens lost some"):
            backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens[torch.arange(1, 12)])])
        whole_groups = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=tokens[torch.arange(4, 12)])])
        assert bool(whole_groups.embeddings.isfinite().all())
        with pytest.raises(LongtakeError, match="no trained scorer.*--select uniform"):
            backbone.score(tokens, backbone.encode_query(QUESTIONS[0]))

    def test_encode_knows_places_times_and_weights(self) -> None:
        tokens = own().encode(tiny.frames(10, 24, 40, every_seconds=0.5))
        assert tokens.grid == (3, 2, 2)
        assert tokens.position[[0, 3, 4, 11]].tolist() == [[0, 0, 0], [0, 1, 1], [1, 0, 0], [2, 1, 1]]
        assert tokens.seconds[::4].tolist() == [0.0, 2.0, 4.0]
        assert tokens.weight.tolist() == [16.0] * 12  # 4 frames x 16 patches / 4 tokens

    def test_encode_is_differentiable_and_equal_without_gradients(self) -> None:
        backbone = own()
        frames = tiny.frames(80, 16, 16)  # more than one pass without gradients
        kept = backbone.encode(frames)
        kept.features.square().sum().backward()
        gradient = backbone.model.vision_tower.embeddings.patch_embedding.weight.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0
        with torch.no_grad():
            torch.testing.assert_close(backbone.encode(frames).features, kept.features, atol=1e-4, rtol=1e-4)

    def test_score_is_the_models_scorer_or_a_clear_refusal(self) -> None:
        backbone = own()
        tokens, query = backbone.encode(tiny.frames(8, 24, 40)), backbone.encode_query(QUESTIONS[0])
        assert backbone.scorer == backbone.query_name
        expected = backbone.model.scorer(tokens.features, query.embeddings[backbone.query_name])
        torch.testing.assert_close(backbone.score(tokens, query), expected)
        with pytest.raises(LongtakeError, match="the scorer wants longtake_video_llm:layer1"):
            backbone.score(tokens, own(scorer_layer=0).encode_query(QUESTIONS[0]))
        bare = own(scorer=None)
        assert bare.scorer is None
        with pytest.raises(LongtakeError, match="no trained scorer.*--select uniform"):
            bare.score(tokens, query)


class TestLoading:
    """load_backbone and its one-line refusals."""

    def test_both_families_come_back_as_saved(self, tmp_path: Path) -> None:
        own_folder = tiny.save_video_llm(tmp_path / "own")
        qwen_folder = tiny.save_qwen_vl(tmp_path / "qwen")
        loaded = load_backbone(str(own_folder)), load_backbone(str(qwen_folder), dtype=torch.bfloat16)
        assert [b.name for b in loaded] == [own().name, qwen().name]
        assert [b.frames_per_group for b in loaded] == [4, 2]
        assert [b.frame_size for b in loaded] == [(32, 32), None]
        assert [b.context_tokens for b in loaded] == [512, 4096]
        inputs = loaded[1].prepare([Prompt(question=QUESTIONS[0], tokens=loaded[1].encode(tiny.frames(2, 24, 40)))])
        assert inputs.embeddings.dtype == torch.bfloat16
        assert len(loaded[1].generate(inputs, max_new_tokens=3)[0].ids) == 3

    def test_another_architecture(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(LongtakeError, match=r"architecture is 'bert'.*longtake_video_llm, qwen2_5_vl") as error:
            load_backbone(str(tmp_path))
        assert "\n" not in str(error.value)

    def test_no_config(self, tmp_path: Path) -> None:
        (tmp_path / "film.mp4").write_bytes(b"")
        for path in (tmp_path, tmp_path / "film.mp4"):
            with pytest.raises(LongtakeError, match=r"no config.json in it; give the folder"):
                load_backbone(str(path))

    def test_a_broken_config(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(LongtakeError, match="neither a readable model folder nor a hub id") as error:
            load_backbone(str(tmp_path))
        assert "\n" not in str(error.value)

    def test_an_unreachable_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(*args: object, **kwargs: object) -> None:
            raise OSError("We couldn't connect to the hub.\nMore advice.")

        monkeypatch.setattr(PreTrainedConfig, "get_config_dict", offline)
        with pytest.raises(LongtakeError, match=r"^some/model: neither .* \(We couldn't connect to the hub\); check"):
            load_backbone("some/model")

    def test_of_another_s_error_the_first_line_is_told(self) -> None:
        assert [first_line(OSError(said)) for said in ("\nNo such file.\nTry again.", "")] == ["No such file", ""]

    def test_weights_that_are_missing_torn_or_of_another_size(self, tmp_path: Path) -> None:
        folder = tiny.save_video_llm(tmp_path, scorer=None)
        weights, config = folder / "model.safetensors", folder / "config.json"
        config.write_text(config.read_text().replace('"scorer": null', '"scorer": "faithful"'))
        with pytest.raises(LongtakeError, match=r"lacks \d+ weights, the first scorer"):
            load_backbone(str(folder))
        weights.write_bytes(weights.read_bytes()[:5000])
        with pytest.raises(LongtakeError, match="cannot be loaded") as error:
            load_backbone(str(folder))
        assert "\n" not in str(error.value)
        weights.unlink()
        with pytest.raises(LongtakeError, match="cannot be loaded"):
            load_backbone(str(folder))


def test_the_tower_sees_each_frame_alone(backbone: DecoderBackbone, family: str) -> None:
    frames = tiny.frames(5, 24, 40)
    with torch.no_grad():
        together = backbone.tower_features(frames)
        singles = [Frames(pixels=picture[None], seconds=frames.seconds[:1]) for picture in frames.pixels]
        alone = [backbone.tower_features(single) for single in singles]
    assert together.shape == ((5, 4, 4, 32) if family == "own" else (5, 3, 5, 32))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_own_tower_gives_what_the_dts_takes() -> None:
    backbone, frames = own(), tiny.frames(8, 24, 40)
    with torch.no_grad():
        groups = backbone.model.project(backbone.model.group_tokens(backbone.tower_features(frames)))
        torch.testing.assert_close(groups.flatten(0, 2), backbone.encode(frames).features)


def test_columns_of_a_video_are_kept_for_it_alone() -> None:
    backbone = own()
    tokens = backbone.encode(tiny.frames(16, 32, 32))
    later = dataclasses.replace(tokens, seconds=tokens.seconds + 100)
    fewer = tokens[torch.arange(3)]
    first = [backbone.layout(Prompt(question="?", tokens=shown)).ids for shown in (tokens, later, fewer)]
    picture = backbone.layout(Prompt(question="?", parts=(Part(tokens=tokens, timed=False),))).ids
    again = [backbone.layout(Prompt(question="?", tokens=shown)).ids for shown in (tokens, later, fewer)]
    fresh = [own().layout(Prompt(question="?", tokens=shown)).ids for shown in (tokens, later, fewer)]
    for one, two, three in zip(first, again, fresh, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert not torch.equal(first[0], first[1])
    assert len(picture) < len(first[0])
