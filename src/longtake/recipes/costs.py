"""What a stage is going to take, told before it starts: memory and time by formula, at a rate measured here."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from longtake.data.conversations.order import Source
from longtake.models.video_llm import VideoLLMConfig
from longtake.train.align import AlignRecipe
from longtake.train.estimate import Device, ModelPart, Workload, recot_flops, seconds, total, training_flops
from longtake.train.footprint import Sharding, recot_memory, training_memory
from longtake.train.recot import ReCoTRecipe
from longtake.train.sft import SftRecipe

TEXT_TOKENS = 200  # of a row beside its video; ours
UTILISATION = 0.4  # of the rate of a large product; ours


def measured_device() -> Device:
    """This device and the rate of a bfloat16 (on a CPU float32) matrix product on it."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = found or torch.device("cpu")
    side = 512 if found is None else 8192
    dtype = torch.float32 if found is None else torch.bfloat16
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the product
        times.append(time.perf_counter() - begun)
    name = "this CPU" if found is None else torch.cuda.get_device_name() if found.type == "cuda" else found.type
    return Device(name=name, flops_per_second=2 * side**3 / min(times))


def estimate(
    stage: str,
    recipe: ReCoTRecipe | AlignRecipe | SftRecipe,
    config: VideoLLMConfig,
    sources: Sequence[Source],
    processes: int,
) -> str:
    """A stage's steps, memory on a device and time, in one line, for rows as long as the recipe allows."""
    fit, device = recipe.fit, measured_device()
    rows = sum(source.rows_per_epoch for source in sources)
    steps = fit.steps or fit.epochs * math.ceil(rows / fit.batch)
    sharding: Sharding = "full" if fit.shard else "zero2" if fit.zero else "none"
    ranks = 1 if sharding == "none" else processes
    if isinstance(recipe, ReCoTRecipe):
        flops = total(recot_flops(config, recipe.frames, stored_features=True))
        shown = f"clips of {recipe.frames} frames"
        needed = recot_memory(
            config,
            recipe.frames,
            clips=fit.micro_batch,
            precision="autocast" if fit.precision == "bf16" else "float32",
            sharding=sharding,
            ranks=ranks,
        )
    else:
        work = workload(recipe, config)
        flops = total(training_flops(config, work)) / work.batch
        shown = f"rows of {work.frames} frames"
        needed = training_memory(config, work, sharding=sharding, ranks=ranks)
    if fit.offload:
        needed = replace(needed, gradients_bytes=0.0, states_bytes=0.0)  # in the machine's memory
    spent = seconds(flops * fit.batch * steps / processes, device, UTILISATION)
    return (
        f"{stage}: {steps} steps of {fit.batch} {shown}: {needed.total_bytes / 1e9:.2f} GB on each device, "
        f"about {_clock(spent)} on {processes} x {device.name} "
        f"(estimate at {UTILISATION:.0%} of {device.flops_per_second / 1e12:.3g} TFLOP/s)"
    )


def workload(recipe: AlignRecipe | SftRecipe, config: VideoLLMConfig) -> Workload:
    """One micro-batch of the longest rows that the recipe allows."""
    parts: set[ModelPart] = {"projector"}
    stored = True
    if isinstance(recipe, SftRecipe):
        stored = not recipe.train_tower
        learns: dict[ModelPart, bool] = {
            "tower": recipe.train_tower,
            "dts": recipe.train_dts,
            "decoder": not recipe.lora_rank,
        }
        parts |= {part for part, learned in learns.items() if learned}
    frames = recipe.reading.sampling.max_frames
    if recipe.reading.max_tokens is not None:
        groups = max(1, (recipe.reading.max_tokens - TEXT_TOKENS) // (config.tokens_per_group + 10))
        frames = min(frames, groups * config.frames_per_group)
    return Workload(
        frames=frames,
        text_tokens=TEXT_TOKENS,
        batch=recipe.fit.micro_batch,
        logit_tokens=TEXT_TOKENS // 2,
        trainable=frozenset(parts),
        lora_rank=recipe.lora_rank if isinstance(recipe, SftRecipe) else 0,
        precision="autocast" if recipe.fit.precision == "bf16" else "float32",
        checkpointing=recipe.fit.checkpointing,
        stored_features=stored,
    )


def _clock(spent_seconds: float) -> str:
    """A time in its own unit."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if spent_seconds >= 2 * length:
            return f"{spent_seconds / length:.1f} {unit}"
    return f"{spent_seconds:.1f} s"
