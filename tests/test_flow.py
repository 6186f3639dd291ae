"""The whole way on real (tiny, random) models of both families: file, memory, saved memory, questions."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import longtake
import tiny
from fakes import write_video
from longtake import Model, Sampling, cli, load_memory
from longtake.ask import PrefixCache, ask
from longtake.backbones.base import Prompt
from longtake.select import Uniform
from longtake.types import Frames
from longtake.watch import watch_frames

QUESTIONS = ("What is on the red card?", "Is there a blue card?")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"own": tiny.save_video_llm(root / "own"), "qwen": tiny.save_qwen_vl(root / "qwen")}


@pytest.fixture(scope="module", params=["own", "qwen"])
def model(request, folders) -> Model:
    return longtake.load(folders[request.param], device="cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    levels = np.random.default_rng(0).integers(0, 256, 90).tolist()
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", levels, fps=2)


def test_a_file_is_watched_saved_and_asked(model, video, tmp_path):
    memory = model.watch(video, fps=0.2, target=tmp_path / "m")
    assert memory.provenance.frames == 9
    first = [model.ask(memory, question, max_new_tokens=8) for question in QUESTIONS]
    again = [model.ask(load_memory(tmp_path / "m"), question, max_new_tokens=8) for question in QUESTIONS]
    fresh = [ask(model.backbone, memory, question, max_new_tokens=8) for question in QUESTIONS]
    for one, two, three in zip(first, again, fresh, strict=True):
        assert one.text == two.text == three.text
        for span, other in zip(one.evidence, three.evidence, strict=True):
            assert dataclasses.astuple(span) == pytest.approx(dataclasses.astuple(other), abs=1e-5)
        assert one.evidence
        assert all(0 <= span.start_seconds < span.stop_seconds <= 45 for span in one.evidence)


def test_chunks_give_the_features_of_one_encoding(model):
    frames = tiny.frames(10, 40, 64)
    parts = [Frames(pixels=frames.pixels[a:b], seconds=frames.seconds[a:b]) for a, b in ((0, 1), (1, 6), (6, 10))]
    memory = watch_frames(model.backbone, parts, Sampling(fps=1.0))
    with torch.no_grad():
        whole = model.backbone.encode(frames)
    assert memory.tokens.grid == whole.grid
    assert torch.equal(memory.tokens.position, whole.position)
    assert torch.equal(memory.tokens.seconds, whole.seconds)
    # other batch sizes sum in another order, and the random weights are large
    torch.testing.assert_close(memory.tokens.features, whole.features, rtol=1e-3, atol=1e-3)


def test_a_long_video_is_selected_to_fit(folders):
    model = longtake.load(folders["own"], device="cpu")
    memory = watch_frames(model.backbone, [tiny.frames(640, 32, 32)], Sampling(fps=1.0))
    assert len(memory.tokens) > model.backbone.context_tokens
    for selector in (None, Uniform()):
        usage = model.ask(memory, QUESTIONS[0], selector=selector, max_new_tokens=8).usage
        assert 0.9 * model.backbone.context_tokens <= usage.prompt_tokens + 8 <= model.backbone.context_tokens
    kept_again = model.ask(memory, QUESTIONS[1], selector=Uniform(), max_new_tokens=8)
    assert kept_again.text == ask(model.backbone, memory, QUESTIONS[1], selector=Uniform(), max_new_tokens=8).text


def test_a_family_without_a_scorer_says_so(folders):
    model = longtake.load(folders["qwen"], device="cpu")
    memory = watch_frames(model.backbone, [tiny.frames(8, 40, 64)], Sampling(fps=1.0))
    with pytest.raises(longtake.LongtakeError, match="no trained scorer .*Uniform"):
        model.ask(memory, QUESTIONS[0], budget_tokens=10)
    assert model.ask(memory, QUESTIONS[0], budget_tokens=100, selector=Uniform(), max_new_tokens=4).usage.frames == 8


def test_a_prefix_cache_survives_questions_in_turn(model):
    memory = watch_frames(model.backbone, [tiny.frames(8, 40, 64)], Sampling(fps=1.0))
    cache = PrefixCache()
    asked = [ask(model.backbone, memory, question, max_new_tokens=6, cache=cache) for question in QUESTIONS * 2]
    assert len(cache) == 1
    assert (asked[0].text, asked[1].text) == (asked[2].text, asked[3].text)
    prefix = model.backbone.prepare([Prompt(question=QUESTIONS[0], tokens=memory.tokens)]).prefix
    assert 0 < prefix < asked[0].usage.prompt_tokens


def test_command_line_with_a_real_model(folders, video, monkeypatch, capsys):
    arguments = ["ask", str(video), QUESTIONS[0], "--json", "--model", str(folders["own"]), "--fps", "0.2"]
    monkeypatch.setattr(sys, "argv", ["longtake", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    streams = capsys.readouterr()
    assert left.value.code in (0, None), streams.err
    assert set(json.loads(streams.out)) == {"answer", "evidence", "usage"}
    assert streams.err == ""
