"""The benchmarks of answering and training, at a size of no use: every figure they promise is there and fits."""

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import grpo_runs
from longtake.train.rollouts import Draw, roll

FOLDER = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    """A file of benchmarks/, which is no package; the two import ``arms`` from beside them."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


infer, train, grpo = benchmark("infer"), benchmark("train"), benchmark("grpo")
arms = sys.modules["arms"]
LEARNS = ["dts", "projector", "decoder"]


@pytest.fixture(scope="module")
def trainer():
    return train.Trainer("tiny", "cpu", LEARNS, checkpointing=False)


@pytest.mark.parametrize("arm", arms.ARMS)
def test_an_arms_tokens_are_those_of_its_groups(arm):
    """Plain tokens are the frames' own through pool and projector; compressed ones the model's."""
    model = arms.build_model("tiny", "cpu", torch.float32).eval()
    frames = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        whole = model.video_tokens(frames)
        with arms.in_arm(model, arm):
            tokens = model.video_tokens(frames)
        features = model.encode_frames(frames)
        every = model.project(features).flatten(0, 2)
        assert torch.equal(model.video_tokens(frames), whole)
    assert len(tokens) == 2 * arms.group_tokens(model.config, arm)
    assert torch.equal(tokens, whole if arm == "compressed" else every)


def test_the_formulas_arms_have_the_benchmarks_tokens():
    for arm in arms.ARMS:
        config = arms.formula_config("3b", arm)
        assert 4 // config.frames_per_group * config.tokens_per_group == arms.group_tokens(arms.SIZES["3b"](), arm)


def test_answering_has_all_its_stages():
    found = infer.times("tiny", 16, 3, 1, "cpu")
    compressed, plain = found["compressed"], found["plain"]
    assert plain["prompt_tokens"] - compressed["prompt_tokens"] == 4 * 3 * 4  # 4 groups, 3 frames more, 4 tokens each
    for row in found.values():
        assert all(row[f"{name}_seconds"] > 0 for name in infer.STAGES)
        assert row["language_seconds"] == pytest.approx(row["prefill_seconds"] + row["generate_seconds"])
        assert row["total_seconds"] == pytest.approx(row["first_token_seconds"] + row["generate_seconds"])
    ratios = infer.ratios("tiny", 16, 3, found)
    assert ratios["language"] == plain["language_seconds"] / compressed["language_seconds"]
    assert ratios["ceiling"] > 1
    assert 0 < ratios["compressor_share"] < 1
    assert ratios["expected_language"] > 1


# Qwen2.5-3B: products with weights and, for a pair of positions, in attention; SigLIP, DTS and projector by the frame
WEIGHTS, PAIR = 2 * 36 * (2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 11008), 4 * 36 * 2048
TOWER, DTS, PROJECTOR = 0.642e12, 0.2065e12 / 4, 2 * 576 * (1152 * 2048 + 2048**2)


def test_answering_at_real_size_has_the_ratios_worked_by_hand():
    positions = {"compressed": 39_484, "plain": 39_484 + 1024 * 108}
    found = infer.expected_ratios("3b", 1024, 1, {arm: {"prompt_tokens": n} for arm, n in positions.items()})
    decoder = {arm: n * WEIGHTS + n**2 / 2 * PAIR for arm, n in positions.items()}
    assert found["language"] == pytest.approx(decoder["plain"] / decoder["compressed"], rel=0.01)
    compressed = decoder["compressed"] + 1024 * (TOWER + DTS + PROJECTOR / 4)
    assert found["total"] == pytest.approx((decoder["plain"] + 1024 * (TOWER + PROJECTOR)) / compressed, rel=0.01)


def test_a_process_of_its_own_has_memory_too():
    row = infer.memory("tiny", 8, 2, "cpu", "plain")
    assert row["peak_mb"] > 100
    assert row["over_loaded_mb"] >= 0
    assert row["prompt_tokens"] > 8 * 4


def test_a_step_learns_what_it_says_and_the_tower_not(trainer):
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    features = trainer.encode(train.random_pixels(trainer.model.config, 8))
    trainer.answer_step("compressed", features)
    changed = {
        name.split(".")[0] for name, weight in trainer.model.named_parameters() if not weight.equal(before[name])
    }
    assert changed == {"dts", "projector", "language_model"}


def test_training_has_all_its_figures(trainer):
    found = train.times(trainer, 16, 1)
    for arm in arms.ARMS:
        found[arm] |= train.memory(trainer, 16, arm)
        assert found[arm]["whole_seconds"] == found[arm]["step_seconds"] + found[arm]["tower_seconds"]
        assert found[arm]["peak_mb"] > 100
    assert found["plain"]["positions"] - found["compressed"]["positions"] == 4 * 3 * 4
    options = Namespace(size="tiny", learns=LEARNS, checkpointing=False)
    ratios = train.ratios(options, 16, found)
    assert set(ratios) == {"step", "whole", "ceiling", "compressor_share", "expected_step", "expected_whole"}
    assert all(value > 0 for value in ratios.values())


def test_training_at_real_size_has_the_ratios_worked_by_hand():
    """Of the decoder's products with weights all but the last of each layer are computed again, of attention all."""
    options = Namespace(size="3b", learns=["projector", "decoder"], checkpointing=True)
    step, whole = train.expected_ratios(options, 256)
    cost = {}
    for arm, group, shrink in (("compressed", 144, 4), ("plain", 576, 1)):
        n = 64 * (group + train.STAMP) + train.TEXT + train.ANSWER
        last = n * 36 * 2 * 2048 * 11008
        cost[arm] = n * WEIGHTS * 4 - last + n**2 / 2 * PAIR * 4.5 + 256 * PROJECTOR / shrink * 2.6
    cost["compressed"] += 256 * DTS
    assert step == pytest.approx(cost["plain"] / cost["compressed"], rel=0.01)
    assert whole == pytest.approx((cost["plain"] + 256 * TOWER) / (cost["compressed"] + 256 * TOWER), rel=0.01)


def test_what_is_timed_within_another_is_not_counted_there(monkeypatch):
    clock = iter([0, 1, 4, 6, 7, 10])
    monkeypatch.setattr(arms.time, "process_time", lambda: next(clock))
    phases = grpo.Phases("cpu")
    with phases("outer"):
        with phases("inner"):
            pass
        with phases("inner"):
            pass
    assert phases.spent == {"outer": 10 - 3 - 1, "inner": 3 + 1}


def test_a_prompt_run_anew_gives_what_a_shared_one_does():
    backbone = grpo_runs.own()
    (puzzle,) = grpo_runs.puzzles(backbone, 1)
    each, draw = grpo.RowEach(backbone), Draw(group=3, max_new_tokens=5)
    ours, theirs = (roll(adapter, puzzle, draw, (4,)) for adapter in (backbone, each))
    ids = [rollout.ids for rollout in ours.rollouts]
    assert [rollout.ids for rollout in theirs.rollouts] == ids
    inputs = backbone.prepare([puzzle.prompt(backbone)])
    torch.testing.assert_close(
        each.logprobs(inputs, ids, temperature=1.0), backbone.logprobs(inputs, ids), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_a_step_has_the_same_gradients_in_all_arms(tmp_path, capsys):
    grpo.main(["--small", "--json", "--folder", str(tmp_path)])
    _, found = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(found["arms"]) == set(grpo.ARMS)
    assert found["checked"]["norm"] > 0
    assert found["checked"]["gradients_apart"] < 1e-4
    assert found["losses_apart"] < 1e-4
    for row in found["arms"].values():
        assert set(row["phases"]) == set(grpo.PHASES)
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["peak_mb"] > 100
    assert found["arms"]["package"]["ratio"] == 1
    assert found["arms"]["decoded"]["phases"]["read"] > 0
    assert found["arms"]["frames"]["phases"]["read"] == found["arms"]["features"]["phases"]["encode"] == 0


@pytest.mark.slow
def test_stored_features_and_whole_commands(tmp_path, capsys):
    train.main(["store", "--size", "tiny", "--videos", "1", "--repeats", "1", "--folder", str(tmp_path), "--json"])
    about, recot, align = map(json.loads, capsys.readouterr().out.splitlines())
    assert about["torch"] == torch.__version__
    for row, stage in ((recot, "recot"), (align, "align")):
        spent = {name: row[f"{name}_seconds"] for name in ("read", "tower", "step", "load")}
        assert row["stage"] == stage
        assert row["ratio"] == pytest.approx(
            (spent["read"] + spent["tower"] + spent["step"]) / (spent["load"] + spent["step"])
        )
        assert row["store_samples_per_second"] / row["encode_samples_per_second"] == pytest.approx(row["ratio"])
    small = ["--size", "tiny", "--frames", "8", "--repeats", "1", "--json"]
    for module, options in ((infer, [*small, "--answer", "2"]), (train, ["arms", *small, "--learns", "projector"])):
        module.main(options)
        _, found = map(json.loads, capsys.readouterr().out.splitlines())
        assert set(found["arms"]) == set(arms.ARMS)
        assert all("over_loaded_mb" in row for row in found["arms"].values())
        assert found["ratios"]["ceiling"] > 1
