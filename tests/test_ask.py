"""Asking: evidence by hand, when selection starts, how it fits, and what the prefix cache may share."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fakes import FakeBackbone, grey_frames, write_video
from longtake.ask import PrefixCache, ask, ask_all
from longtake.backbones.base import Prompt
from longtake.evidence import evidence_spans, group_scores
from longtake.memory import load_memory, save_memory
from longtake.model import Model
from longtake.select import Random, TopK, Uniform
from longtake.types import Frames, LongtakeError, Memory, Sampling
from longtake.watch import watch_frames

QUESTION = "When is it bright?"


def remember(num_frames: int, bright: range = range(0), duration_seconds: float = 0.0) -> Memory:
    levels = [200 if i in bright else 20 for i in range(num_frames)]
    chunks = [grey_frames(levels)]
    return watch_frames(FakeBackbone(), chunks, Sampling(fps=1.0), duration_seconds=duration_seconds)


def scored(*shares: float) -> torch.Tensor:
    return torch.tensor(shares, dtype=torch.float64)


def test_group_scores_by_hand():
    tokens = remember(12).tokens[torch.tensor([0, 5, 6, 11])]  # groups 0, 1, 1, 2 of three
    attention = torch.tensor([0.4, 0.1, 0.05, 0.2, 0.1, 0.0, 0.15])
    source = torch.tensor([-1, 0, -1, 1, 2, 3, -1])
    assert group_scores(attention, source, tokens).tolist() == pytest.approx([0.25, 0.75, 0.0])


def test_group_scores_without_attention_on_the_video_are_zero():
    tokens = remember(8).tokens
    assert group_scores(torch.tensor([1.0, 0.0]), torch.tensor([-1, 3]), tokens).tolist() == [0.0, 0.0]
    assert evidence_spans(scored(0.0, 0.0), remember(8)) == ()


def test_evidence_spans_by_hand():
    memory = remember(28, duration_seconds=27.5)  # groups at 0, 4, ... 24
    spans = evidence_spans(scored(0.1, 0.2, 0.04, 0.0, 0.06, 0.2, 0.4), memory)
    assert [(span.start_seconds, span.stop_seconds) for span in spans] == [(20.0, 27.5), (4.0, 8.0)]
    assert [span.score for span in spans] == pytest.approx([0.6, 0.2])


def test_evidence_threshold_is_relative_to_the_best_group():
    spans = evidence_spans(scored(0.02, 0.01, 0.005), remember(12), threshold=0.5)
    assert [(span.start_seconds, span.stop_seconds) for span in spans] == [(0.0, 8.0)]


@pytest.mark.parametrize("told", [True, False])
def test_evidence_stops_after_a_group_where_the_video_has_a_hole(told):
    frames = grey_frames([20] * 12)
    late = Frames(pixels=frames.pixels, seconds=frames.seconds + (frames.seconds >= 8) * 1000.0)
    memory = watch_frames(FakeBackbone(), [late], Sampling(fps=1.0))
    if not told:
        memory = before_stops_were_told(memory)
    spans = evidence_spans(scored(0.0, 0.6, 0.4), memory)
    assert [(span.start_seconds, span.stop_seconds) for span in spans] == [(4.0, 1012.0)]
    spans = evidence_spans(scored(0.0, 1.0, 0.0), memory)
    assert [(span.start_seconds, span.stop_seconds) for span in spans] == [(4.0, 8.0)]


def before_stops_were_told(memory: Memory) -> Memory:
    return dataclasses.replace(memory, group_stops=None)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(("stop_seconds", "expected"), [(6.0, (5.0, 6.0)), (None, (5.0, 7.0))])
def test_evidence_ends_with_what_was_watched(told, stop_seconds, expected):
    frames = grey_frames([20] * 5)  # at 1, 2, ... 5 s of seven seconds
    later = Frames(pixels=frames.pixels, seconds=frames.seconds + 1)
    sampling = Sampling(fps=1.0, start_seconds=1.0, stop_seconds=stop_seconds)
    memory = watch_frames(FakeBackbone(), [later], sampling, duration_seconds=7.0)
    if told:
        expected = (5.0, 6.0)  # one frame at 5 s stands for no more than a second
    else:
        memory = before_stops_were_told(memory)
    (span,) = evidence_spans(scored(0.0, 1.0), memory)
    assert (span.start_seconds, span.stop_seconds) == expected


def test_a_duration_shorter_than_the_video_clips_nothing():
    spans = evidence_spans(scored(0.0, 0.0, 1.0), remember(12, duration_seconds=3.0))
    assert [(span.start_seconds, span.stop_seconds) for span in spans] == [(8.0, 12.0)]


def test_answer_with_its_moment_and_usage():
    memory = remember(400, bright=range(100, 108))
    answer = ask(FakeBackbone(), memory, QUESTION)
    assert answer.text.startswith("column ")
    assert [(span.start_seconds, span.stop_seconds) for span in answer.evidence] == [(100.0, 108.0)]
    assert 0.5 < answer.evidence[0].score <= 1
    usage = answer.usage
    assert (usage.frames, usage.visual_tokens) == (400, 400)
    stamps = sum(len(str(second)) + 1 for second in range(0, 400, 4))
    assert usage.prompt_tokens == 2 + 400 + stamps + 5
    assert set(usage.seconds) == {"read", "encode", "compress", "select", "prefill", "generate"}
    assert usage.seconds["encode"] == memory.provenance.seconds["encode"]


def test_stages_end_when_the_device_has_done_its_work(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waits.append)
    ask(FakeBackbone(device=torch.device("cuda", 0)), remember(12), QUESTION)
    assert waits == [torch.device("cuda", 0)] * 4
    ask(FakeBackbone(), remember(12), QUESTION)
    assert len(waits) == 4


def test_asking_encodes_nothing_again():
    backbone = FakeBackbone()
    ask(backbone, remember(40), QUESTION)
    assert backbone.encoded_frames == []


def test_a_saved_memory_gives_the_same_answer(tmp_path):
    memory = remember(400, bright=range(100, 108))
    save_memory(memory, tmp_path / "m")
    answer, again = ask(FakeBackbone(), memory, QUESTION), ask(FakeBackbone(), load_memory(tmp_path / "m"), QUESTION)
    assert (answer.text, answer.evidence) == (again.text, again.evidence)


def test_selection_is_off_while_everything_fits():
    memory = remember(400)
    length = ask(FakeBackbone(), memory, QUESTION).usage.prompt_tokens
    just = FakeBackbone(context_tokens=length + 64)
    assert ask(just, memory, QUESTION).usage.visual_tokens == 400
    one_less = FakeBackbone(context_tokens=length + 63)
    with pytest.raises(LongtakeError, match=r"no trained scorer .*Uniform\(\) \(--select uniform\)"):
        ask(one_less, memory, QUESTION)
    assert ask(one_less, memory, QUESTION, selector=Uniform()).usage.visual_tokens == 396


@pytest.mark.parametrize("selector", [TopK(), Uniform(), Random()], ids=lambda selector: type(selector).__name__)
@pytest.mark.parametrize("context", [100, 300, 1000, 3000])
def test_selected_prompts_fill_the_context_but_fit(selector, context):
    memory = remember(4000, bright=range(1000, 1004))
    backbone = FakeBackbone(context_tokens=context, scorer="fake")
    usage = ask(backbone, memory, QUESTION, selector=selector, max_new_tokens=8).usage
    assert usage.prompt_tokens + 8 <= context
    assert usage.prompt_tokens + 8 >= 0.85 * context


def test_the_default_selector_finds_the_moment_beyond_the_context():
    memory = remember(4000, bright=range(1000, 1004))
    backbone = FakeBackbone(context_tokens=300, scorer="fake")
    answer = ask(backbone, memory, QUESTION)
    assert (answer.evidence[0].start_seconds, answer.evidence[0].stop_seconds) == (1000.0, 1004.0)


def test_a_budget_selects_even_when_all_would_fit():
    memory = remember(400, bright=range(100, 108))
    backbone = FakeBackbone(scorer="fake")
    answer = ask(backbone, memory, QUESTION, budget_tokens=8)
    assert answer.usage.visual_tokens == 8
    assert [(span.start_seconds, span.stop_seconds) for span in answer.evidence] == [(100.0, 108.0)]
    assert answer.usage.prompt_tokens == 2 + 8 + 4 + 4 + 5  # the stamps 100| and 104|, and no other
    assert ask(backbone, memory, QUESTION, budget_tokens=9999).usage.visual_tokens == 400


def test_bad_questions_budgets_and_models():
    memory = remember(40)
    for empty in ("", "  \n"):
        with pytest.raises(LongtakeError, match="the question is empty; ask something"):
            ask(FakeBackbone(), memory, empty)
    with pytest.raises(LongtakeError, match=r"the question is 403 tokens .* context of 200 leaves 136 .*; shorten it"):
        ask(FakeBackbone(context_tokens=200), memory, "why " * 400)
    with pytest.raises(LongtakeError, match="budget is 0 tokens; it must be at least 1"):
        ask(FakeBackbone(), memory, QUESTION, budget_tokens=0)
    with pytest.raises(LongtakeError, match="made by fake-1, the model is fake-2; load that model or watch"):
        ask(FakeBackbone(name="fake-2"), memory, QUESTION)


def test_prefix_is_shared_among_questions_and_changes_no_answer():
    memory, backbone, cache = remember(400, bright=range(100, 108)), FakeBackbone(), PrefixCache()
    first = ask(backbone, memory, QUESTION, cache=cache)
    whole = backbone.prefilled_columns
    assert whole == first.usage.prompt_tokens
    second = ask(backbone, memory, "And when is it dark?", cache=cache)
    assert backbone.prefilled_columns - whole == 6  # the second question only
    alone = ask(FakeBackbone(), memory, "And when is it dark?")
    assert (second.text, second.evidence) == (alone.text, alone.evidence)


def test_questions_together_read_the_video_once():
    memory, backbone = remember(400, bright=range(100, 108)), FakeBackbone()
    questions = [QUESTION, "And when is it dark?", "When?"]
    together = ask_all(backbone, memory, questions)
    counted = backbone.prefilled_columns
    alone = [ask(FakeBackbone(), memory, question) for question in questions]
    assert [(a.text, a.evidence) for a in together] == [(a.text, a.evidence) for a in alone]
    columns = [a.usage.prompt_tokens for a in together]
    assert columns == [a.usage.prompt_tokens for a in alone]
    shared = columns[1] - 6
    assert counted == shared + sum(count - shared for count in columns)


def test_prefixes_of_other_memories_and_kept_sets_are_kept_apart():
    dark, bright = remember(40), remember(40, bright=range(8, 12))
    backbone, cache = FakeBackbone(scorer="fake"), PrefixCache(max_entries=4)
    asks = [(dark, None), (bright, None), (bright, 4), (bright, 8), (dark, None), (bright, 4)]
    for memory, budget in asks:  # the fake itself notices a cache of another prompt
        answer = ask(backbone, memory, QUESTION, budget_tokens=budget, cache=cache)
        alone = ask(FakeBackbone(scorer="fake"), memory, QUESTION, budget_tokens=budget)
        assert (answer.text, answer.evidence) == (alone.text, alone.evidence)
    assert len(cache) == 4


def test_prefix_cache_forgets_the_one_used_longest_ago():
    memories, cache = [remember(8) for _ in range(3)], PrefixCache(max_entries=2)
    backbone = FakeBackbone()
    entry = backbone.prefill(backbone.prepare([Prompt(question="a", tokens=memories[0].tokens)]))
    cache.put(memories[0], None, entry)
    cache.put(memories[1], None, entry)
    assert cache.get(memories[0], None) is entry
    cache.put(memories[2], None, entry)
    assert cache.get(memories[1], None) is None
    assert cache.get(memories[0], None) is entry
    assert cache.get(memories[0], torch.tensor([0, 1])) is None


def test_a_replaced_video_is_noticed(tmp_path: Path):
    video = write_video(tmp_path / "a.mp4", [20] * 40)
    model = Model(backbone=FakeBackbone())
    memory = model.watch(video)
    answer = model.ask(memory, QUESTION)  # no warning: warnings are errors here
    write_video(video, [200] * 40)
    with pytest.warns(UserWarning, match="a.mp4 has changed since it was watched; the answer is about the"):
        assert model.ask(memory, QUESTION).text == answer.text
    video.unlink()
    assert model.ask(memory, QUESTION).text == answer.text


@pytest.mark.usefixtures("permissions")
@pytest.mark.parametrize("change", ["emptied", "unreadable"])
def test_a_video_that_cannot_be_read_any_more_blocks_no_memory(tmp_path: Path, change):
    video = write_video(tmp_path / "a.mp4", [20] * 40)
    model = Model(backbone=FakeBackbone())
    memory = model.watch(video)
    if change == "emptied":
        video.write_bytes(b"")
    else:
        video.chmod(0)
    with pytest.warns(UserWarning, match="a.mp4 has changed since it was watched"):
        assert model.ask(memory, QUESTION).text


def test_a_video_watched_by_a_relative_path_is_known_from_any_folder(tmp_path: Path, monkeypatch):
    for name, level in (("home", 20), ("away", 200)):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "a.mp4", [level] * 40)
    model = Model(backbone=FakeBackbone())
    monkeypatch.chdir(tmp_path / "home")
    memory = model.watch("a.mp4")
    assert memory.provenance.video == str(tmp_path / "home" / "a.mp4")
    monkeypatch.chdir(tmp_path / "away")
    model.ask(memory, QUESTION)  # no warning of another file of the name


def test_model_passes_spans_and_refuses_two_samplings(tmp_path: Path):
    video = write_video(tmp_path / "a.mp4", [20] * 40)
    model = Model(backbone=FakeBackbone())
    memory = model.watch(video, start_seconds=8.0, stop_seconds=20.0)
    assert (memory.start_seconds, memory.provenance.frames) == (8.0, 12)
    assert model.watch(video, sampling=Sampling(count=4)).provenance.frames == 4
    with pytest.raises(LongtakeError, match="max_new_tokens is 0; it must be at least 1"):
        model.ask(memory, QUESTION, max_new_tokens=0)
    with pytest.raises(LongtakeError, match="put them into the sampling"):
        model.watch(video, fps=1.0, sampling=Sampling(count=4))
