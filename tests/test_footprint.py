"""Memory by formula, against the bytes of tensors that are alive in real steps of small models."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

import tiny
from live_bytes import LiveBytes
from longtake import LongtakeError
from longtake.backbones.base import Prompt
from longtake.backbones.own import OwnVideoLLM
from longtake.models import dts
from longtake.models.processor import VideoLLMProcessor
from longtake.models.recot import ReCoT
from longtake.train import footprint, lora
from longtake.train.estimate import PARTS, Workload, parameters
from test_estimate import big, learn, loss_of, small

DTYPES = {"float32": torch.float32, "autocast": torch.float32, "mixed": torch.bfloat16, "bfloat16": torch.bfloat16}
STAGES = [("projector",), ("projector", "decoder"), ("dts", "projector", "decoder"), PARTS]
SAVED = 0.03  # beside what the formula has: rotary tables, masks, ids and statistics of a few numbers a column
PEAK = 0.15  # the formula names the largest passing tensors, not every operation's, and these models are small
PASSING = 0.02  # of what frozen parts pass, and of answering: these are named one by one
PRETRAINING = 0.02  # on a CPU autocast pads in float32, which the formula leaves out
WORK = Workload(frames=16, text_tokens=60, stamp_tokens=3, batch=2)


VISION = small().config.vision_config.to_dict()
SHAPES = {
    "small": {},
    "wide MLP": {
        "vision_config": VISION | {"hidden_size": 96, "intermediate_size": 384, "image_size": 48, "patch_size": 6},
        "dts_grid": None,
    },
    "wide, resized": {
        "vision_config": VISION | {"hidden_size": 192, "intermediate_size": 700, "image_size": 126, "patch_size": 14},
        "dts_grid": 8,
        "frames_per_group": 8,
    },
    "narrow MLP": {
        "vision_config": VISION | {"hidden_size": 128, "intermediate_size": 128, "image_size": 96},
        "dts_grid": 12,
        "frames_per_group": 2,
    },
}


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Attention as a device computes it: the formula is a device's, and products are what a CPU trains on."""
    monkeypatch.setattr(dts, "pays", lambda query, key: False)


def step(work: Workload, **changes: object):
    """A step with AdamW: its config, and bytes alive before it, saved by its forward pass, and at most."""
    model = small(**changes).train().to(DTYPES[work.precision])
    learn(model, work.trainable)
    if work.lora_rank:
        lora.add(model.language_model, work.lora_rank, 8.0)
    if work.checkpointing:
        model.activation_checkpointing_enable()
        model.disable_input_require_grads()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, fused=True)
    with LiveBytes(model.parameters()) as live:
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimiser.step()
        before = live.now
        with torch.autocast("cpu", torch.bfloat16) if work.precision == "autocast" else nullcontext():
            loss = loss_of(model, work, dtype=DTYPES[work.precision])
            saved = live.now - before
        loss.backward()
        optimiser.step()
    return model.config, before, saved, live.peak


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("trainable", STAGES)
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
def test_a_step_takes_what_the_formula_says(precision, trainable, checkpointing):
    work = replace(WORK, trainable=frozenset(trainable), precision=precision, checkpointing=checkpointing)
    check_step(work)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_a_step_by_lora_takes_what_the_formula_says(precision, checkpointing):
    work = replace(WORK, trainable=frozenset({"dts", "projector"}), lora_rank=4, precision=precision)
    check_step(replace(work, checkpointing=checkpointing))


def test_a_small_step_takes_what_the_formula_says():
    check_step(replace(WORK, frames=4, trainable=frozenset({"projector", "decoder"}), precision="bfloat16"))


def check_step(work: Workload) -> None:
    config, before, saved, peak = step(work)
    found = footprint.training_memory(config, work)
    assert found.weights_bytes + found.gradients_bytes + found.states_bytes == pytest.approx(before, rel=1e-3)
    log_softmax = 4 * work.batch * work.logits(config) * config.text_config.vocab_size
    assert found.activations_bytes + log_softmax == pytest.approx(saved, rel=SAVED)
    assert found.total_bytes == pytest.approx(peak, rel=PEAK)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
def test_frozen_parts_take_what_the_formula_says(precision, shape):
    """Of the projector's training hardly anything is saved, so that the DTS's passing tensors make the peak."""
    work = Workload(frames=64, text_tokens=1, trainable=frozenset({"projector"}), precision=precision)
    work = replace(work, stamp_tokens=0, logit_tokens=1)
    config, _, _, peak = step(work, **SHAPES[shape])
    assert footprint.training_memory(config, work).total_bytes == pytest.approx(peak, rel=PASSING)


def check_answering(precision: str, **changes: object) -> None:
    model = small(**changes).to(DTYPES[precision])
    backbone = OwnVideoLLM(model, VideoLLMProcessor.from_config(tiny.tokenizer(), model.config))
    frames = tiny.frames(64, *backbone.frame_size)
    with torch.no_grad(), LiveBytes(model.parameters()) as live:
        inputs = backbone.prepare([Prompt(question="Is there a red card?", tokens=backbone.encode(frames))])
        cache = backbone.prefill(inputs)
        keys = sum(t.nbytes for layer in cache.key_values.layers for t in (layer.keys, layer.values))
        assert len(backbone.generate(inputs, cache, max_new_tokens=8)) == 1
    positions = inputs.ids.shape[1]
    text = positions - int((inputs.source >= 0).sum())
    work = Workload(frames=64, text_tokens=text, stamp_tokens=0, answer_tokens=8, precision=precision)
    assert work.positions(model.config) == positions
    found = footprint.answering_memory(model.config, work)
    width = torch.finfo(DTYPES[precision]).bits // 8
    assert footprint.kv_bytes(model.config, positions, width) == keys
    assert found.total_bytes == pytest.approx(live.peak, rel=PASSING)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_answering_takes_what_the_formula_says(precision):
    check_answering(precision)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_answering_at_other_shapes_takes_what_the_formula_says(precision, shape):
    check_answering(precision, **SHAPES[shape])


@pytest.mark.parametrize(
    ("stride", "dim", "grid", "clips"), [(2, 64, 6, 2), (4, 64, 6, 2), (8, 64, 4, 4), (16, 64, 8, 2), (4, 160, 4, 1)]
)
@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_pre_training_takes_what_the_formula_says(precision, stride, dim, grid, clips):
    """Without the tower, which takes no part in a step. The last case's peak is the convolution's, the others' the
    error's.
    """
    config = small(vision_config=VISION | {"hidden_size": dim}, dts_grid=grid).config
    config.frames_per_group = stride
    recot, features = ReCoT(dim, stride).train(), torch.randn(clips, 16, grid, grid, dim).bfloat16()
    weights = list(recot.parameters())
    optimiser = torch.optim.AdamW(weights, fused=True)
    with LiveBytes([*weights, features]) as live:
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimiser.step()
        before = live.now
        with torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else nullcontext():
            loss = recot(features, torch.zeros(clips, dtype=torch.bool)).loss
            saved = live.now - before
        loss.backward()
        optimiser.step()
    found = footprint.recot_memory(config, 16, clips=clips, precision=precision)
    tower = 4 * parameters(config)["tower"]
    fixed = found.weights_bytes + found.gradients_bytes + found.states_bytes - tower
    assert fixed == pytest.approx(before - features.nbytes, rel=1e-3)
    assert found.activations_bytes == pytest.approx(saved, rel=PRETRAINING)
    assert found.total_bytes - tower == pytest.approx(live.peak, rel=PRETRAINING)
    halves = footprint.recot_memory(config, 16, clips=clips, precision=precision, sharding="full", ranks=2)
    assert halves.states_bytes * 2 == found.states_bytes
    assert halves.weights_bytes - tower == (found.weights_bytes - tower) / 2


def test_keys_and_values_at_real_size():
    assert footprint.kv_bytes(big(), 1) == 36 * 1024
    work = Workload(frames=8192, text_tokens=0)
    assert work.positions(big()) == 315_392
    assert footprint.kv_bytes(big(), work.positions(big())) == pytest.approx(11.6e9, rel=0.005)
    with torch.device("meta"):
        states = torch.empty(1, 2, 64, 128, dtype=torch.bfloat16)
        cache = DynamicCache()
        for layer in range(36):
            cache.update(states, states, layer)
    assert 64 * 36 * 1024 == sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))


def test_16384_frames_fit_into_80_gigabytes():
    work = Workload(frames=16384, text_tokens=60, answer_tokens=64, precision="bfloat16")
    assert 35e9 < footprint.answering_memory(big(), work).total_bytes < 50e9


def test_sharding_splits_what_it_says():
    work = Workload(frames=360, text_tokens=300, trainable=frozenset({"projector", "decoder"}), precision="mixed")
    alone = footprint.training_memory(big(), work)
    zero2 = footprint.training_memory(big(), work, sharding="zero2", ranks=8)
    full = footprint.training_memory(big(), work, sharding="full", ranks=8)
    assert alone.gradients_bytes + alone.states_bytes == 8 * (zero2.gradients_bytes + zero2.states_bytes)
    assert zero2.weights_bytes == alone.weights_bytes == 8 * full.weights_bytes
    assert alone.activations_bytes == zero2.activations_bytes == full.activations_bytes
    assert full.states_bytes == zero2.states_bytes
    in_float32 = replace(work, precision="autocast")
    zero2 = footprint.training_memory(big(), in_float32, sharding="zero2", ranks=8)
    full = footprint.training_memory(big(), in_float32, sharding="full", ranks=8)
    assert zero2.states_bytes == full.states_bytes * 12 / 8  # two moments, and the weight again


def test_checkpointing_saves_most_activations():
    work = Workload(frames=360, text_tokens=300, trainable=frozenset({"projector", "decoder"}), precision="mixed")
    kept = footprint.activations_bytes(big(), work)
    assert footprint.activations_bytes(big(), replace(work, checkpointing=True)) < kept / 20


def test_ranks_need_sharding():
    with pytest.raises(LongtakeError, match="8 ranks with sharding none; each rank of plain data parallelism"):
        footprint.training_memory(big(), Workload(frames=4, text_tokens=1), ranks=8)
    with pytest.raises(LongtakeError, match="8 ranks with sharding none"):
        footprint.recot_memory(big(), 4, ranks=8)
