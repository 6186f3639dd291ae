"""Probes on frozen features: classifiers against plain fits, examples as they should be, and the command."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import longtake.model
import tiny
import world
from longtake import cli
from longtake.data.probe_world import haystack
from longtake.data.probe_world.haystack import drawn_clip
from longtake.data.probe_world.needles import Card, Mover
from longtake.data.probe_world.probe import centre
from longtake.eval import classifier
from longtake.eval.classifier import accuracy, classified, fit, into_span, new_classifier
from longtake.eval.features import (
    TASKS,
    FeatureRun,
    arms_of,
    compressed_by,
    draw_example,
    evaluate,
    extract,
    flat_places,
    summary,
    table,
    tower_features,
)
from longtake.model import Model
from longtake.models.preprocess import normalised_pixels
from longtake.types import LongtakeError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_span_keeps_all_inner_products():
    train, test = torch.randn(12, 40, generator=generator()) * 3 + 1, torch.randn(5, 40, generator=generator(1))
    train[:, 7] = test[:, 7] = 4.0  # never changes
    known, seen = into_span(train, test)
    assert known.shape == (12, 11)  # centred: one dimension fewer than examples
    deviation = train.std(0)
    deviation[7] = torch.inf
    standard, other = (train - train.mean(0)) / deviation, (test - train.mean(0)) / deviation
    size = standard.square().sum(1).mean()
    torch.testing.assert_close(known @ known.T, standard @ standard.T / size, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen @ known.T, other @ standard.T / size, rtol=1e-4, atol=1e-4)
    assert known.square().sum(1).mean().item() == pytest.approx(1, rel=1e-4)


def test_a_fit_in_the_span_is_the_fit_in_all_dimensions():
    """Of a penalised linear classifier; the full one by plain gradient descent, in double precision."""
    train, test = torch.randn(20, 60, generator=generator()), torch.randn(9, 60, generator=generator(1))
    labels = torch.arange(20) % 3
    known, seen = into_span(train, test)
    with torch.no_grad():
        found = fit(new_classifier("linear", known.shape[1], 3, 0), known, labels, 0.01)(seen)
    standard, other = (train - train.mean(0)) / train.std(0), (test - train.mean(0)) / train.std(0)
    size = standard.square().sum(1).mean().sqrt()
    standard, other = standard.double() / size, other.double() / size
    weight, bias = torch.zeros(3, 60, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for _ in range(8000):
        error = (F.softmax(standard @ weight.T + bias, 1) - F.one_hot(labels, 3)) / 20
        weight -= 1.5 * (error.T @ standard + 0.01 * weight)
        bias -= 1.5 * error.sum(0)
    torch.testing.assert_close(found.double(), other @ weight.T + bias, rtol=0.02, atol=0.02)


def clusters(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two features whose signs decide together: a line can't tell these classes apart."""
    corners = torch.randint(0, 2, (count, 2), generator=generator(seed))
    noise = torch.randn(count, 2, generator=generator(seed + 1))
    return 2.0 * corners - 1 + 0.1 * noise, corners.sum(1) % 2


def share_right(kind: str, *examples) -> float:
    return float(classified(kind, *examples, classes=2).float().mean())


def test_the_mlp_tells_what_a_line_cannot():
    train, test = clusters(200, 0), clusters(200, 5)
    assert share_right("mlp", train, test) > 0.98
    assert share_right("linear", train, test) < 0.8
    sums = [(features, (features[:, 0] > 0).long()) for features, _ in (train, test)]
    assert share_right("linear", *sums) > 0.98
    noise = [(torch.randn(200, 30, generator=generator(seed)), labels) for seed, (_, labels) in ((2, train), (3, test))]
    assert abs(share_right("linear", *noise) - 0.5) < 0.12


def test_accuracy_and_summary_by_hand():
    logits = torch.tensor([[1.0, 2], [3, 0], [0, 1]])
    assert accuracy(torch.nn.Identity(), logits, torch.tensor([1, 1, 1])) == pytest.approx(2 / 3)
    assert summary([0.5, 0.7]) == {"mean": 0.6, "std": 0.1414, "values": [0.5, 0.7]}
    assert summary([0.5])["std"] is None


def test_places_are_averaged_and_laid_end_to_end():
    tokens = torch.arange(32.0).view(1, 2, 4, 4, 1).expand(-1, -1, -1, -1, 3) * torch.tensor([1.0, 10, 100])
    one = torch.tensor([2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5])  # means of 2x2 places, frame by frame
    expected = torch.stack([one[:4], 10 * one[:4], 100 * one[:4], one[4:], 10 * one[4:], 100 * one[4:]]).flatten()
    torch.testing.assert_close(flat_places(tokens, 2)[0], expected)


@pytest.mark.parametrize("split", ["train", "test"])
def test_examples_show_what_their_label_says(split):
    draw, seen = rng(), set()
    for _ in range(16):
        video, label = draw_example("content", draw, split, world.clips(), 4)
        (event,) = video.events
        assert isinstance(event.what, Card)
        assert event.what.split == split
        assert TASKS["content"][label] == event.what.content
        assert video.num_frames == 1
        plain = video.shots[0].picture(0.0, video.size)
        assert not np.array_equal(video.picture(0.0), plain)
        video, label = draw_example("direction", draw, split, world.clips(), 4)
        (event,) = video.events
        assert isinstance(event.what, Mover)
        assert event.what.split == split
        assert event.start_seconds <= 0
        assert event.stop_seconds > 3  # all four frames show it
        (x0, y0), (x1, y1) = (centre(event, at, video.size[::-1], split) for at in (0.0, 3.0))
        moves = {"left": x0 - x1, "right": x1 - x0, "up": y0 - y1, "down": y1 - y0}
        assert max(moves, key=moves.get) == TASKS["direction"][label]
        seen.add(label)
    assert seen == {0, 1, 2, 3}


@torch.no_grad()
def test_the_dts_gets_what_it_gets_in_the_model():
    model = tiny.video_llm(dts_grid=2)
    draw = rng()
    videos = [draw_example("direction", draw, "train", world.clips(), 4)[0] for _ in range(3)]
    features = tower_features(model, videos, 4)
    assert features.shape == (3, 4, 2, 2, 32)
    found = compressed_by(model.dts)(features)
    for video, tokens in zip(videos, found, strict=True):
        pixels = torch.from_numpy(np.ascontiguousarray(next(video.frames()).pixels))
        own = model.group_tokens(model.encode_frames(normalised_pixels(pixels, (32, 32))))
        torch.testing.assert_close(tokens, own, rtol=1e-3, atol=1e-3)


def test_every_arm_sees_the_same_clips():
    model, run = tiny.video_llm(), FeatureRun(samples=10, seeds=1, frames=8, side=2)
    features, labels = extract(model, "direction", "test", world.clips(), 6, 0, run, arms_of(model)(0))
    values = 2 * 2 * 32  # a frame of tokens
    shapes = {name: tuple(rows.shape) for name, rows in features.items()}
    grouped = (6, 2 * values)
    assert shapes == {"tower": (6, 8 * values), "mean": grouped, "random DTS": grouped, "DTS": grouped}
    frames = features["tower"].view(6, 2, 4, values)
    torch.testing.assert_close(features["mean"], frames.mean(2).flatten(1), rtol=1e-4, atol=1e-5)
    assert labels.shape == (6,)
    again, _ = extract(model, "direction", "test", world.clips(), 6, 0, run, arms_of(model)(0))
    other, _ = extract(model, "direction", "test", world.clips(), 6, 1, run, arms_of(model)(1))
    assert all(torch.equal(features[name], again[name]) for name in features)
    assert not torch.equal(features["tower"], other["tower"])
    image, _ = extract(model, "content", "test", world.clips(), 3, 0, run, arms_of(model)(0))
    copies = image["tower"].view(3, 8, values)
    assert torch.equal(copies, copies[:, :1].expand_as(copies))


@pytest.fixture
def hasty(monkeypatch) -> None:
    """Classifiers that are not fitted to the end: for tests of what stands around them."""
    monkeypatch.setattr(classifier, "ITERATIONS", 2)
    monkeypatch.setattr(classifier, "PENALTIES", (1e-3,))


@pytest.mark.usefixtures("hasty")
def test_a_run_has_all_figures():
    run = FeatureRun(samples=12, seeds=2, side=2)
    done = []
    clips = {"train": world.clips(), "test": world.clips(90)}
    result = evaluate(tiny.video_llm(), run, clips, progress=lambda *at: done.append(at))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for task in TASKS:
        cells = result["tasks"][task]
        assert list(cells["arms"]) == ["tower", "mean", "random DTS", "DTS"]
        for kinds in cells["arms"].values():
            for cell in kinds.values():
                assert len(cell["values"]) == 2
                assert all(round(value * 6, 2) == round(value * 6) for value in cell["values"])  # of 6 examples
    lines = table(result).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["features", "tower", "mean", "random DTS", "DTS", "chance"]
    assert json.loads(json.dumps(result)) == result


def test_a_table_by_hand():
    cell, single = {"mean": 0.5, "std": 0.1}, {"mean": 0.25, "std": None}
    arms = {"tower": {"linear": cell, "mlp": single}}
    shown = table({"tasks": {"content": {"chance": single, "arms": arms}}})
    assert shown.split("\n") == [
        "features           content, linear        content, mlp",
        "tower                0.500 ± 0.100               0.250",
        "chance                       0.250               0.250",
    ]


def test_too_few_examples_are_refused():
    with pytest.raises(LongtakeError, match="samples is 5 and seeds 1; give at least 10 and 1"):
        FeatureRun(samples=5, seeds=1)


@dataclass(frozen=True)
class Holder:
    """A backbone with nothing but its network."""

    model: torch.nn.Module
    name: str = "tiny"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("as_json", [True, False])
def test_the_command(monkeypatch, capsys, as_json):
    monkeypatch.setattr(longtake.model, "load", lambda *_, **__: Model(backbone=Holder(tiny.video_llm())))
    clips = {"train": world.clips(), "test": world.clips(90)}
    monkeypatch.setattr(haystack, "load_clips", lambda split, *_: clips[split])
    command = ["longtake", "eval", "features", "--samples", "10", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", command + ["--json"] * as_json)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out)["run"] == {"samples": 10, "seeds": 1, "frames": 4, "side": 4}
    else:
        assert out.startswith("features ")


def test_a_model_without_a_dts_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(longtake.model, "load", lambda *_, **__: Model(backbone=Holder(tiny.qwen_vl())))
    monkeypatch.setattr(sys, "argv", ["longtake", "eval", "features"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    err = capsys.readouterr().err
    assert "has no DTS to probe; give a VideoLLM's folder" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_the_embedded_compressor_keeps_direction_and_a_mean_does_not():
    network = longtake.load(device="cpu").backbone.model
    clips = {"train": [drawn_clip(seed) for seed in range(4)], "test": [drawn_clip(seed) for seed in range(1000, 1003)]}
    result = evaluate(network, FeatureRun(samples=160, seeds=1), clips)
    direction = {arm: kinds["linear"]["mean"] for arm, kinds in result["tasks"]["direction"]["arms"].items()}
    content = {arm: kinds["linear"]["mean"] for arm, kinds in result["tasks"]["content"]["arms"].items()}
    assert direction["DTS"] > 0.8
    assert direction["mean"] < 0.5
    assert min(content.values()) > 0.3  # of 24 letters, from 160 examples
