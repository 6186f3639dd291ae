"""The benchmarks of answering and training, at a size of no use: every figure they promise is there and fits."""

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import grpo_runs
from longtake.data.probe_world.haystack import drawn_clip
from longtake.data.probe_world.probe import make_video
from longtake.data.probe_world.questions import ask_all
from longtake.model import EMBEDDED
from longtake.models.latent import LatentSettings
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


infer, train, grpo, latent = map(benchmark, ("infer", "train", "grpo", "latent"))
arms, latent_arms, latent_formula, latent_lessons = (
    sys.modules[name] for name in ("arms", "latent_arms", "latent_formula", "latent_lessons")
)
LEARNS = ["dts", "projector", "decoder"]
THOUGHTS = latent.ARMS


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


def test_where_the_compressor_does_not_learn_a_step_begins_behind_it():
    trainer = train.Trainer("tiny", "cpu", ["projector"], False)
    features = trainer.encode(train.random_pixels(trainer.model.config, 8))
    tokens = trainer.compressor_pass(features)
    moved = []
    for step in (lambda: trainer.answer_step("compressed", features), lambda: trainer.align_step(tokens, 8)):
        trainer.learn = lambda loss: moved.append(torch.autograd.grad(loss, trainer.model.projector.parameters()))  # type: ignore[method-assign]
        step()
    for whole, stored in zip(*moved, strict=True):
        torch.testing.assert_close(stored, whole)
    found = train.times(train.Trainer("tiny", "cpu", ["projector"], False), 8, 1)
    ratios = train.ratios(Namespace(size="tiny", learns=["projector"], checkpointing=False), 8, found)
    assert ratios["stored"] == found["plain"]["step_seconds"] / found["compressed"]["stored_seconds"]
    assert ratios["expected_stored"] > ratios["expected_step"]


def test_training_at_real_size_has_the_ratios_worked_by_hand():
    """Of the decoder's products with weights all but the last of each layer are computed again, of attention all."""
    options = Namespace(size="3b", learns=["projector", "decoder"], checkpointing=True)
    step, stored, whole = train.expected_ratios(options, 256)
    cost = {}
    for arm, group, shrink in (("compressed", 144, 4), ("plain", 576, 1)):
        n = 64 * (group + train.STAMP) + train.TEXT + train.ANSWER
        last = n * 36 * 2 * 2048 * 11008
        cost[arm] = n * WEIGHTS * 4 - last + n**2 / 2 * PAIR * 4.5 + 256 * PROJECTOR / shrink * 2.6
    assert stored == pytest.approx(cost["plain"] / cost["compressed"], rel=0.01)
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


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A tiny model and four questions, of one to four hops."""
    return latent_arms.Bench(latent_options(tmp_path_factory.mktemp("asked")), 16)


def latent_options(folder: Path) -> Namespace:
    return Namespace(
        size="tiny", device="cpu", latents=8, passes=2, questions=1, batch=2, group=3, folder=folder, film_fps=1.0
    )


def test_a_thought_costs_what_the_formulas_say(asked):
    """Passes are counted at the language model, and operations by PyTorch: the benchmark checks both itself."""
    rows = latent.ask_in_turn(asked, 1)
    assert [row["hops"] for row in rows] == [1, 2, 3, 4]
    for case, row in zip(asked.cases, rows, strict=True):
        thought, answer, own = len(case.thought), len(case.answer), row["arms"]
        assert [own[arm]["tokens"] for arm in THOUGHTS] == [answer] * 3 + [thought + answer]
        passes = [answer - 1, 2 + answer - 1, 8 + answer - 1, thought + answer - 1]
        assert [own[arm]["passes"] for arm in THOUGHTS] == passes
        assert (thought == 0) == (case.hop.hops == 1)
        for arm in THOUGHTS:
            assert own[arm]["apart"] < 0.01
            assert own[arm]["operations"]["read"] == 0
            assert all(own[arm]["operations"][name] > 0 for name in ("encode", "prefill", "answer"))
            thinks = thought > 0 if arm == "trace" else arm != "answer"
            assert (own[arm]["operations"]["thought"] > 0) == thinks
            (spent,) = own[arm]["seconds"]
            assert spent["read"] == own["trace"]["seconds"][0]["read"] > 0
    told = latent.ratios(rows[3:], "latents")
    trace, ours = (rows[3]["arms"][arm] for arm in ("trace", "latents"))
    assert told["passes"] == trace["passes"] / 3
    assert told["tokens and latents"] == trace["tokens"] / (8 + ours["tokens"])
    whole = [sum(own["operations"].values()) for own in (trace, ours)]
    assert told["operations end to end"] == whole[0] / whole[1]
    after = [own["seconds"][0]["thought"] + own["seconds"][0]["answer"] for own in (trace, ours)]
    assert told["seconds after the prompt"] == after[0] / after[1]


def test_a_pass_too_many_is_found(asked, monkeypatch):
    inner = asked.backbone.head.forward

    def once_more(states):
        if asked.stages._name == "answer":
            asked.backbone.decoder(inputs_embeds=states[:, None], use_cache=False)
        return inner(states)

    monkeypatch.setattr(asked.backbone.head, "forward", once_more)
    with pytest.raises(AssertionError, match="answer took 2 passes, not 1"):
        latent.ask_in_turn(asked, 0)


def test_batches_say_all_that_they_are_given(asked):
    """Shorter rows wait for the longest; afterwards the model chooses by itself again."""
    tokens = [latent_arms.cached_tokens(asked.backbone, asked.options, case) for case in asked.cases]
    choose = asked.backbone._choose
    for arm in THOUGHTS:
        asked.stages.start()
        asked.ask(arm, asked.cases, tokens)
    longest = max(len(case.thought + case.answer) for case in asked.cases)
    assert asked.stages.passes["thought"] + asked.stages.passes["answer"] == longest - 1
    assert asked.backbone._choose == choose
    assert set(latent.throughput(asked, asked.cases[3:], 1)) == set(THOUGHTS)


def test_the_shortest_trace_of_four_hops_is_told(asked):
    found = latent.shortest(asked.backbone, asked.settings.thinking, 16)
    four = found[4]
    # three cards of three words each, with a mark behind: 12 tokens, then the answer; against T + 1 passes
    assert four["fewest_passes_words"] == 13 / 3
    assert four["fewest_passes"] == (four["fewest_tokens"] - 1) / 3
    assert four["fewest_tokens"] <= four["tokens"] <= four["most_tokens"]


def test_steps_cost_what_the_formulas_say(asked):
    school = latent_lessons.School(asked.options, 16)
    found = latent_lessons.train_in_turn(school, 1, {"seconds": 1.0, "operations": 1e9})
    lessons = found["lessons"]
    assert set(lessons) == set(latent.LESSONS)
    for own in lessons.values():
        assert own["apart"] < 0.03
        assert own["seconds_end_to_end"] == own["seconds"] + found["batch"] * 1.0
    assert lessons["latents"]["ratio"] == lessons["latents"]["operations_ratio"] == 1
    assert lessons["answer"]["operations"] < lessons["trace"]["operations"] < lessons["latents"]["operations"]


def test_video_r1s_lengths_have_the_ratios_worked_by_hand():
    """6.525e9 weights beside the embedding, and 2 x 28 x 3584 for a causal pair of positions."""
    found = latent_formula.at_video_r1s_lengths(LatentSettings())
    row = found["rows"][0]
    assert (row["frames"], row["length"]) == (16, 320)
    assert row["asked"]["passes"] == 319 / 3
    assert row["asked"]["tokens"] == 160

    def weights(columns: int) -> float:
        return columns * 2 * 6.525e9

    def pairs(columns: int) -> float:
        return columns**2 / 2 * 4 * 28 * 3584

    head = 2 * 3584 * 152064
    trace = weights(1174 + 319) + pairs(1174 + 319) + 320 * head
    latents = weights(1175 + 16 + 9 + 1) + pairs(1201) + 2 * head
    assert row["asked"]["operations of the language model"] == pytest.approx(trace / latents, rel=0.01)
    first = found["first"][16]
    assert first["asked: tokens"] == 68 * 2
    assert first["asked: passes"] == 68 * 3 + 1
    assert first["asked: operations of the language model"] is None
    trained = (weights(1174 + 320) * 3 + pairs(1494) * 3.5) / (weights(1175) + weights(1186) * 3 + pairs(1186) * 4.5)
    assert row["learned"]["trace"] == pytest.approx(trained, rel=0.05)


@pytest.mark.slow
def test_thinking_has_all_its_figures(tmp_path, capsys):
    latent.main(["--small", "--size", "tiny", "--json", "--folder", str(tmp_path)])
    _, found = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(found["groups"]) == ["1 hop", "2 hops", "3 hops", "4 hops", "all"]
    for group in found["groups"].values():
        assert set(group["arms"]) == set(latent.ARMS)
        for row in group["arms"].values():
            assert all(0 < row[span]["p50"] <= row[span]["p95"] for span in latent.SPANS)
            assert row["a_second"]["of the language model"] > row["a_second"]["end to end"] > 0
        assert all(ratio > 0 for own in group["a_trace_takes"].values() for ratio in own.values())
    assert list(found["aims"].values()) == [True, True, True]  # three cards of three words: 13 passes against 3
    assert set(found["peaks"]) == set(latent.OWN)
    assert all(row["peak_mb"] > 100 for row in found["peaks"].values())
    assert set(found["training"]["lessons"]) == set(latent.LESSONS)
    latent.show(found)
    assert "aim: the same if each word and mark were one token: met" in capsys.readouterr().out


def test_the_probe_world_s_answers_have_three_tokens_on_average():
    """As ``infer.py`` takes them, the end token counted."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    clips = [drawn_clip(0, 80.0)]
    videos = [make_video(n, split="test", clips=clips, num_frames=64, num_cards=3, mover=True) for n in range(10)]
    asked = [question for n, video in enumerate(videos) for question in ask_all(video, np.random.default_rng(n))]
    lengths = [len(tokenizer(q.answer, add_special_tokens=False)["input_ids"]) + 1 for q in asked]
    assert len(lengths) > 100
    assert round(sum(lengths) / len(lengths)) == 3


@pytest.mark.slow
def test_stored_features_and_whole_commands(tmp_path, capsys):
    small = ["--size", "tiny", "--videos", "1", "--batch", "1", "--repeats", "1"]
    train.main(["store", *small, "--folder", str(tmp_path), "--json"])
    about, recot, align = map(json.loads, capsys.readouterr().out.splitlines())
    assert about["torch"] == torch.__version__
    for row, stage in ((recot, "recot"), (align, "align")):
        spent = {name: row[f"{name}_seconds"] for name in ("read", "tower", "compress", "step", "load")}
        encoding = sum(spent[name] for name in ("read", "tower", "compress", "step"))
        assert row["stage"] == stage
        assert row["ratio"] == pytest.approx(encoding / (spent["load"] + spent["step"]))
        assert row["store_samples_per_second"] / row["encode_samples_per_second"] == pytest.approx(row["ratio"])
    small = ["--size", "tiny", "--frames", "8", "--repeats", "1", "--json"]
    infer.main([*small, "--answer", "1", "2"])
    _, one, two = map(json.loads, capsys.readouterr().out.splitlines())
    assert (one["answer"], two["answer"]) == (1, 2)
    train.main(["arms", *small, "--learns", "projector"])
    _, learned = map(json.loads, capsys.readouterr().out.splitlines())
    for found in (one, two, learned):
        assert set(found["arms"]) == set(arms.ARMS)
        assert all("over_loaded_mb" in row for row in found["arms"].values())
        assert found["ratios"]["ceiling"] > 1
