"""Asking with latents: what it equals, what it costs, and what is shown of where they looked."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tiny
from longtake.ask import PrefixCache, ask
from longtake.backbones.base import Prompt
from longtake.backbones.thinking import think
from longtake.cli import app
from longtake.cli.latents import looks_fields
from longtake.eval.plot import latent_looks
from longtake.evidence import place_scores
from longtake.memory import save_memory
from longtake.model import Model
from longtake.types import LatentLooks, LongtakeError, Memory, Sampling
from longtake.watch import watch_frames
from thoughts import FAMILIES, plain, thinker

QUESTION = "What is on it?"


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request):
    return thinker(request.param)


@pytest.fixture(scope="module")
def memory(backbone) -> Memory:
    return watch_frames(backbone, [tiny.frames(16, 32, 32)], Sampling(fps=1.0))


def test_no_latents_are_the_answer_of_the_base_model(backbone, memory):
    base = plain("own" if backbone.scorer else "qwen")
    found = ask(backbone, memory, QUESTION, latents=0, max_new_tokens=5)
    origin = dataclasses.replace(memory.provenance, model=base.name)
    expected = ask(base, dataclasses.replace(memory, provenance=origin), QUESTION, max_new_tokens=5)
    assert (found.text, found.evidence, found.latents) == (expected.text, expected.evidence, None)
    assert "think" not in found.usage.seconds


def test_a_model_thinks_as_trained_and_is_cached(backbone, memory):
    cache, (trained, cached, fewer) = PrefixCache(), (None, None, None)
    trained = ask(backbone, memory, QUESTION, max_new_tokens=5)
    for _ in range(2):
        cached = ask(backbone, memory, QUESTION, max_new_tokens=5, cache=cache, latents=4)
        assert cached.text == trained.text
    fewer = ask(backbone, memory, QUESTION, max_new_tokens=5, cache=cache, latents=1)
    assert fewer.text != trained.text
    assert fewer.usage.prompt_tokens == trained.usage.prompt_tokens
    assert trained.usage.seconds["think"] > 0


def test_latents_need_room():
    backbone = thinker("own")
    memory = watch_frames(backbone, [tiny.frames(16, 32, 32)], Sampling(fps=1.0))
    long = "x" * (512 - 64 - 30)
    with pytest.raises(LongtakeError, match="leaves 442 beside"):
        ask(backbone, memory, long + "x" * 60)
    ask(backbone, memory, "x", latents=0)


def test_looks_are_those_of_the_thought(backbone, memory):
    answer = ask(backbone, memory, QUESTION, show_latents=True, max_new_tokens=3)
    looks = answer.latents
    assert looks.attended.shape == looks.reread.shape == (4, *memory.tokens.grid)
    inputs = backbone.prepare([Prompt(question=QUESTION, tokens=memory.tokens)])
    thought = think(backbone, inputs, thinking=backbone.latent.settings.thinking, record=True)
    places = memory.tokens.position.tolist()
    for latent in range(4):
        for kind, found in (("attended", looks.attended), ("reread", looks.reread)):
            row = getattr(thought, kind)[0, latent]
            by_hand = {tuple(place): 0.0 for place in places}
            for column, source in enumerate(inputs.source[0].tolist()):
                if source >= 0:
                    by_hand[tuple(places[source])] += float(row[column])
            whole = sum(by_hand.values())
            for place, value in by_hand.items():
                assert float(found[latent][place]) == pytest.approx(value / whole, abs=1e-4)
    assert looks.openness == pytest.approx(0.6044, abs=1e-4)
    assert len(looks.times) == memory.tokens.grid[0]


def test_evidence_is_of_latents_and_answer(backbone, memory):
    """The scores of spans, with a threshold of 0 one a group, against the mean of five looks."""
    inputs = backbone.prepare([Prompt(question=QUESTION, tokens=memory.tokens)])
    thought = think(backbone, inputs, thinking=backbone.latent.settings.thinking, record=True)
    (rollout,) = backbone.generate(thought.inputs, thought.cache, max_new_tokens=3, record_attention=True)
    looks = [*thought.attended[0], rollout.attention]
    assert len(looks) == 5
    mean = sum(look / 5 for look in looks)
    by_group = torch.zeros(memory.tokens.grid[0], dtype=torch.float64)
    for column, source in enumerate(thought.inputs.source[0].tolist()):
        if source >= 0:
            by_group[int(memory.tokens.position[source, 0])] += float(mean[column])
    answer = ask(backbone, memory, QUESTION, max_new_tokens=3)
    best = answer.evidence[0]
    starts = memory.tokens.seconds.unique().tolist()
    places = [at for at, start in enumerate(starts) if best.start_seconds <= start < best.stop_seconds]
    assert best.score == pytest.approx(float(by_group[places].sum() / by_group.sum()), abs=1e-4)
    assert int(by_group.argmax()) in places


def test_place_scores_by_hand(memory):
    grid = (2, 1, 2)
    tokens = dataclasses.replace(
        memory.tokens[torch.arange(3)], position=torch.tensor([[0, 0, 1], [1, 0, 0], [1, 0, 1]]), grid=grid
    )
    attention = torch.tensor([[0.1, 0.2, 0.1, 0.3, 0.3], [1.0, 0.0, 0.0, 0.0, 0.0]])
    found = place_scores(attention, torch.tensor([-1, 0, 1, -1, 2]), tokens)
    assert found[0].flatten().tolist() == pytest.approx([0, 1 / 3, 1 / 6, 1 / 2])
    assert not found[1].any()


def test_what_is_told_of_looks():
    attended = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    attended[0, 1, 0, 1], attended[0, 0, 1, 0] = 0.75, 0.25
    looks = LatentLooks(attended=attended, reread=None, openness=0.5, times=((0.0, 4.0), (4.0, 8.0)))
    assert looks_fields(looks) == {
        "openness": 0.5,
        "each": [
            {
                "attended": {
                    "times": [
                        {"start_seconds": 4.0, "stop_seconds": 8.0, "share": 0.75},
                        {"start_seconds": 0.0, "stop_seconds": 4.0, "share": 0.25},
                    ],
                    "cells": [
                        {"start_seconds": 4.0, "stop_seconds": 8.0, "row": 0, "column": 1, "share": 0.75},
                        {"start_seconds": 0.0, "stop_seconds": 4.0, "row": 1, "column": 0, "share": 0.25},
                    ],
                }
            }
        ],
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Path]:
    """A thinking model's folder and a memory of it."""
    folder = tmp_path_factory.mktemp("thinker")
    backbone = thinker("own")
    backbone.save(folder / "model")
    save_memory(watch_frames(backbone, [tiny.frames(16, 32, 32)], Sampling(fps=1.0)), folder / "a.memory")
    return folder / "a.memory", folder / "model"


def asked(saved, *options: object):
    memory, model = saved
    return CliRunner().invoke(app, ["ask", str(memory), QUESTION, "--model", str(model), *map(str, options)])


def test_a_question_of_money_is_no_formula(tmp_path):
    pytest.importorskip("matplotlib")
    attended = torch.full((1, 2, 2, 2), 0.125, dtype=torch.float64)
    looks = LatentLooks(attended=attended, reread=None, openness=0.5, times=((0.0, 4.0), (4.0, 8.0)))
    latent_looks(r"is it $5 or \money$?", looks, tmp_path / "looks.png")
    assert (tmp_path / "looks.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_shows_latents(saved, tmp_path):
    picture = tmp_path / "looks.png"
    done = asked(saved, "--latents", 3, "--show-latents", picture, "--json")
    assert done.exit_code == 0, done.output
    fields = json.loads(done.stdout.splitlines()[-1])
    assert len(fields["latents"]["each"]) == 3
    assert set(fields["latents"]["each"][0]) == {"attended", "reread"}
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latents", "9"], "latents is 9, but this model has 4"),
        (["--latents", "0", "--show-latents", "a.png"], "no latents to show"),
        (["--show-latents", "looks.mp3"], "looks.mp3 ends in '.mp3'; give a name that ends in .png or .pdf or .svg"),
    ],
)
def test_what_cannot_be_thought_is_refused(saved, options, message):
    done = asked(saved, *options)
    assert isinstance(done.exception, LongtakeError)
    assert message in str(done.exception)


def test_a_model_without_latents_has_none_to_ask_for(memory):
    base = plain("own")
    own = watch_frames(base, [tiny.frames(16, 32, 32)], Sampling(fps=1.0))
    with pytest.raises(LongtakeError, match="has none; train it"):
        Model(backbone=base).ask(own, QUESTION, latents=2)
