"""Several questions about one video side by side: each answer is that of the question alone."""

import pytest
import torch

import longtake.ask
import tiny
from longtake.ask import PrefixCache, ask, ask_all
from longtake.backbones.base import Prompt
from longtake.backbones.own import OwnVideoLLM
from longtake.model import EMBEDDED, Model, load
from longtake.models.processor import VideoLLMProcessor
from longtake.types import LongtakeError, Memory, Sampling
from longtake.watch import watch_frames
from thoughts import FAMILIES, plain, thinker

QUESTIONS = ("What is on it?", "When?", "Which of all the many cards that were shown came after the red one?", "When?")


@pytest.fixture(scope="module", params=[(family, thinks) for family in FAMILIES for thinks in (False, True)])
def backbone(request):
    family, thinks = request.param
    return thinker(family) if thinks else plain(family)


@pytest.fixture(scope="module")
def memory(backbone) -> Memory:
    return watch_frames(backbone, [tiny.frames(16, 32, 32)], Sampling(fps=1.0))


def same(found, alone) -> None:
    assert found.text == alone.text
    assert [(s.start_seconds, s.stop_seconds) for s in found.evidence] == [
        (s.start_seconds, s.stop_seconds) for s in alone.evidence
    ]
    for one, other in zip(found.evidence, alone.evidence, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
    assert found.usage.prompt_tokens == alone.usage.prompt_tokens
    assert found.usage.visual_tokens == alone.usage.visual_tokens


@pytest.mark.parametrize("cached", [False, True])
def test_each_is_answered_as_alone(backbone, memory, cached):
    cache = PrefixCache() if cached else None
    alone = [ask(backbone, memory, question, max_new_tokens=6, cache=cache) for question in QUESTIONS]
    for _ in range(2):  # the cache is as good afterwards
        together = ask_all(backbone, memory, QUESTIONS, max_new_tokens=6, cache=cache)
        for found, expected in zip(together, alone, strict=True):
            same(found, expected)
        same(ask(backbone, memory, QUESTIONS[0], max_new_tokens=6, cache=cache), alone[0])
    assert len({answer.text for answer in alone}) > 1


def test_looks_are_those_of_each_question(backbone, memory):
    if backbone.latent is None:
        pytest.skip("a model without latents")
    together = ask_all(backbone, memory, QUESTIONS, max_new_tokens=3, show_latents=True)
    for found, question in zip(together, QUESTIONS, strict=True):
        alone = ask(backbone, memory, question, max_new_tokens=3, show_latents=True)
        torch.testing.assert_close(found.latents.attended, alone.latents.attended, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(found.latents.reread, alone.latents.reread, atol=1e-5, rtol=1e-3)


def test_only_as_many_columns_as_allowed_are_held_at_once(backbone, memory, monkeypatch):
    alone = [ask(backbone, memory, question, max_new_tokens=4) for question in QUESTIONS]
    inputs = backbone.prepare([Prompt(question=QUESTIONS[2], tokens=memory.tokens)])
    longest = inputs.ids.shape[1] - inputs.prefix
    rows, generate = [], type(backbone).generate

    def noting(self, inputs, *given, **settings):
        rows.append(len(inputs.ids))
        return generate(self, inputs, *given, **settings)

    monkeypatch.setattr(type(backbone), "generate", noting)
    each = [1, 1, 1, 1]
    allowed = ((3 * longest, [3, 1]), (1, each), (4 * longest, [4]))
    for columns, expected in ((columns, each if backbone.latent else rows_of) for columns, rows_of in allowed):
        monkeypatch.setattr(longtake.ask, "COLUMNS_AT_ONCE", columns)
        rows.clear()
        for found, one in zip(ask_all(backbone, memory, QUESTIONS, max_new_tokens=4), alone, strict=True):
            same(found, one)
        assert rows == expected


def test_questions_for_which_other_tokens_are_kept_are_answered_apart():
    model, questions = load(EMBEDDED), ("What is on the red card?", "What is on the blue card?")
    memory = watch_frames(model.backbone, [tiny.frames(64, 128, 128)], Sampling(fps=1.0))
    alone = [model.ask(memory, question, budget_tokens=40) for question in questions]
    for found, expected in zip(model.ask_all(memory, questions, budget_tokens=40), alone, strict=True):
        same(found, expected)


def test_a_published_checkpoint_s_selector_sees_each_question():
    network = tiny.video_llm(scorer="legacy", stamp_style="legacy")
    backbone = OwnVideoLLM(network, VideoLLMProcessor.from_config(tiny.tokenizer(), network.config))
    memory = watch_frames(backbone, [tiny.frames(16, 32, 32)], Sampling(fps=1.0))
    alone = [ask(backbone, memory, question, max_new_tokens=6) for question in QUESTIONS]
    for found, expected in zip(ask_all(backbone, memory, QUESTIONS, max_new_tokens=6), alone, strict=True):
        same(found, expected)


def test_the_seconds_are_shared_and_the_video_is_read_once():
    backbone = plain("own")
    memory = watch_frames(backbone, [tiny.frames(16, 32, 32)], Sampling(fps=1.0))
    answers = ask_all(backbone, memory, QUESTIONS, max_new_tokens=2)
    assert len({answer.usage.seconds["generate"] for answer in answers}) == 1
    assert len({answer.usage.seconds["prefill"] for answer in answers}) == 1
    assert ask_all(backbone, memory, [], max_new_tokens=2) == []


def test_one_bad_question_is_told_before_any_is_answered():
    model = Model(backbone=plain("own"))
    memory = watch_frames(model.backbone, [tiny.frames(16, 32, 32)], Sampling(fps=1.0))
    with pytest.raises(LongtakeError, match="the question is empty"):
        model.ask_all(memory, ["What is on it?", " "])


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_of_one_prompt_tell_where_they_looked_too(family):
    backbone = plain(family)
    memory = watch_frames(backbone, [tiny.frames(16, 32, 32)], Sampling(fps=1.0))
    inputs = backbone.prepare([Prompt(question=QUESTIONS[0], tokens=memory.tokens)])
    (alone,) = backbone.generate(inputs, max_new_tokens=4, record_attention=True)
    for found in backbone.generate(inputs, max_new_tokens=4, num_rollouts=3, record_attention=True):
        assert found.ids == alone.ids
        torch.testing.assert_close(found.attention, alone.attention, atol=1e-5, rtol=1e-3)
