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
from longtake.models.processor import VideoLLMProcessor
from longtake.train import footprint
from longtake.train.estimate import PARTS, Workload
from test_estimate import big, learn, loss_of, small

DTYPES = {"float32": torch.float32, "autocast": torch.float32, "mixed": torch.bfloat16, "bfloat16": torch.bfloat16}
STAGES = [("projector",), ("projector", "decoder"), ("dts", "projector", "decoder"), PARTS]
SAVED = 0.03  # beside what the formula has: rotary tables, masks, ids and statistics of a few numbers a column
PEAK = 0.15  # the formula names the largest passing tensors, not every operation's, and these models are small
ANSWERING = 0.2  # the same, with hardly anything but passing tensors
WORK = Workload(frames=16, text_tokens=60, stamp_tokens=3, batch=2)


def step(work: Workload):
    """A step with AdamW: its config, and bytes alive before it, saved by its forward pass, and at most."""
    model = small().train().to(DTYPES[work.precision])
    learn(model, work.trainable)
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


def test_a_small_step_takes_what_the_formula_says():
    check_step(replace(WORK, frames=4, trainable=frozenset({"projector", "decoder"}), precision="bfloat16"))


def check_step(work: Workload) -> None:
    config, before, saved, peak = step(work)
    found = footprint.training_memory(config, work)
    assert found.weights_bytes + found.gradients_bytes + found.states_bytes == pytest.approx(before, rel=1e-3)
    log_softmax = 4 * work.batch * work.logits(config) * config.text_config.vocab_size
    assert found.activations_bytes + log_softmax == pytest.approx(saved, rel=SAVED)
    assert found.total_bytes == pytest.approx(peak, rel=PEAK)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_answering_takes_what_the_formula_says(precision):
    model = small().to(DTYPES[precision])
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
    assert found.total_bytes == pytest.approx(live.peak, rel=ANSWERING)


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


def test_checkpointing_saves_most_activations():
    work = Workload(frames=360, text_tokens=300, trainable=frozenset({"projector", "decoder"}), precision="mixed")
    kept = footprint.activations_bytes(big(), work)
    assert footprint.activations_bytes(big(), replace(work, checkpointing=True)) < kept / 20


def test_ranks_need_sharding():
    with pytest.raises(LongtakeError, match="8 ranks with sharding none; each rank of plain data parallelism"):
        footprint.training_memory(big(), Workload(frames=4, text_tokens=1), ranks=8)
