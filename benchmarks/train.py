"""What compression saves in training, and what stored features save: seconds of a step, samples a second, peak memory.

    python benchmarks/train.py arms [--size embedded] [--frames 64 256 1024] [--repeats 3] [--threads 1] [--json]
    python benchmarks/train.py arms --size 3b --device cuda --learns projector decoder --checkpointing --budget-gb 80
    python benchmarks/train.py store [--size embedded] [--stage recot align] [--videos 8] [--batch 4] [--json]

``arms``: one video and one answer a step, forward, backward and AdamW, with a frozen tower; ``--learns`` learn. Both
arms (see ``arms.py``) share their weights and take turns; medians count, and peak memory is that of one more process
each. ``step`` begins from the tower's features; ``whole`` adds the tower, as when they are not stored. ``ceiling`` is
what ``whole`` would gain if nothing but the tower took time; ``compressor`` is its forward and backward pass alone.

``store``: samples of 16 frames at 1 a second of drawn videos (640x360, 30 frames a second, H.264). Either each step
reads and encodes its videos (4, as a micro-batch of the recipe ``embedded``), or it takes the tower's features from a
``FeatureStore`` that was filled before. ``decoded`` is the gain where reading a video costs nothing. Medians of each
part of a sample count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from arms import (
    ARMS,
    SIZES,
    Arm,
    Clock,
    add_options,
    build_model,
    chunks,
    formula_config,
    group_tokens,
    in_arm,
    in_own_process,
    limit_device,
    peaks,
    surroundings,
)
from torch import Tensor

from longtake import video
from longtake.backbones.language import pixels_of
from longtake.backbones.products import train_by_products
from longtake.data.features import FeatureStore
from longtake.models import VideoLLMConfig
from longtake.models.preprocess import normalised_pixels
from longtake.models.recot import ReCoT
from longtake.models.video_llm import FRAMES_PER_PASS, resized
from longtake.train.estimate import PARTS, ModelPart, Workload, total, training_flops
from longtake.types import Frames, Sampling

MODULES: dict[ModelPart, str] = {"dts": "dts", "projector": "projector", "decoder": "language_model"}
TEXT, STAMP, ANSWER = 40, 5, 16  # tokens: of the question and its frame, of each stamp, learned
CLIP = Sampling(count=16)
CPU = torch.device("cpu")
CLIP_SECONDS, CLIP_FPS = 16, 30


class Trainer:
    """A model with a frozen tower, and AdamW on the parts that learn."""

    def __init__(self, size: str, device: str, learns: list[ModelPart], checkpointing: bool) -> None:
        """At real size weights are bfloat16, as nothing else fits one device; else float32 under autocast."""
        self.device = device
        whole = size == "3b"
        self.model = build_model(size, device, torch.bfloat16 if whole else torch.float32).train()
        self.model.requires_grad_(False)
        for part in learns:
            self.model.get_submodule(MODULES[part]).requires_grad_(True)
        train_by_products(self.model.language_model)
        if checkpointing:
            self.model.language_model.activation_checkpointing_enable()
        self.optimiser = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-5, fused=True)
        self.autocast = nullcontext() if whole else torch.autocast(device, torch.bfloat16)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 frames to the frozen tower's features, in passes."""
        with self.autocast:
            parts = [self._encode(part) for part in pixels.to(self.device).split(FRAMES_PER_PASS)]
        return torch.cat(parts)

    def _encode(self, pixels: Tensor) -> Tensor:
        side = self.model.config.vision_config.image_size
        return self.model.encode_frames(normalised_pixels(pixels, (side, side)).to(self.model.dtype)).bfloat16()

    def answer_step(self, arm: Arm, features: Tensor, videos: int = 1) -> None:
        """One step on videos of one length, each with an answer of ``ANSWER`` tokens.

        features: of all videos, ``(frames, rows, columns, dim)``.
        """
        model = self.model
        ids = prompt(model.config, arm, len(features) // videos).expand(videos, -1).to(self.device)
        with self.autocast, in_arm(model, arm):
            tokens = model.project(model.group_tokens(features.to(model.dtype))).flatten(0, 2)
            embedded = model.get_input_embeddings()(ids)
            visual = (ids == model.config.video_token_id)[..., None]
            embedded = embedded.masked_scatter(visual, tokens.to(embedded.dtype))
            states = model.language_model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            logits = model.language_model.lm_head(states[:, -ANSWER - 1 : -1]).float()
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, -ANSWER:].flatten())
        self.learn(loss)

    def compressor_pass(self, features: Tensor) -> None:
        """The DTS alone, forward and, where it learns, backward."""
        with self.autocast:
            groups = self.model.group_tokens(features.to(self.model.dtype))
        if groups.requires_grad:
            groups.float().sum().backward()
            self.optimiser.zero_grad()

    def learn(self, loss: Tensor) -> None:
        """Backward and one update."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in self.optimiser.param_groups for p in group["params"]], 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()


def prompt(config: VideoLLMConfig, arm: Arm, num_frames: int) -> Tensor:
    """Ids of text, stamps, places for visual tokens and an answer, int64 ``(1, length)``."""
    group = [10] * STAMP + [config.video_token_id] * group_tokens(config, arm)
    groups = -(-num_frames // config.frames_per_group)
    return torch.tensor([[10] * (TEXT // 2) + group * groups + [11] * (TEXT - TEXT // 2) + [12] * ANSWER])


def random_pixels(config: VideoLLMConfig, num_frames: int) -> Tensor:
    """Random frames of the model's own size."""
    return torch.cat([torch.from_numpy(frames.pixels) for frames in chunks(config, num_frames)])


def times(trainer: Trainer, num_frames: int, repeats: int) -> dict[str, Any]:
    """Median seconds of the tower, the compressor alone, and each arm's step; a first round warms up."""
    laps: dict[str, list[float]] = {}
    pixels = random_pixels(trainer.model.config, num_frames)
    for repeat in range(repeats + 1):
        clock = Clock(trainer.device)
        clock.start()
        features = trainer.encode(pixels)
        clock.lap("tower")
        trainer.compressor_pass(features)
        clock.lap("compressor")
        for arm in ARMS:
            trainer.answer_step(arm, features)
            clock.lap(arm)
        for name, spent in clock.laps.items() if repeat else ():
            laps.setdefault(name, []).append(spent)
    tower, compressor, *steps = (statistics.median(laps[name]) for name in ("tower", "compressor", *ARMS))
    arms = {
        arm: {"step_seconds": step, "tower_seconds": tower, "whole_seconds": step + tower}
        for arm, step in zip(ARMS, steps, strict=True)
    }
    arms["compressed"]["compressor_seconds"] = compressor
    return arms


def memory(trainer: Trainer, num_frames: int, arm: Arm) -> dict[str, Any]:
    """Peak memory of one whole step after a small one; run in a process of its own."""
    config = trainer.model.config
    trainer.answer_step(arm, trainer.encode(random_pixels(config, config.frames_per_group)))
    before = peaks()["peak_mb"]
    try:
        trainer.answer_step(arm, trainer.encode(random_pixels(config, num_frames)))
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    positions = prompt(config, arm, num_frames).shape[1]
    return {"positions": positions, **peaks(), "over_loaded_mb": peaks()["peak_mb"] - before}


def ratios(options: argparse.Namespace, num_frames: int, arms: dict[str, dict[str, float]]) -> dict[str, float]:
    """The plain arm's seconds against the compressed one's, and the same of operations by formula."""
    compressed, plain = arms["compressed"], arms["plain"]
    step, whole = expected_ratios(options, num_frames)
    return {
        "step": plain["step_seconds"] / compressed["step_seconds"],
        "whole": plain["whole_seconds"] / compressed["whole_seconds"],
        "ceiling": plain["whole_seconds"] / plain["tower_seconds"],
        "compressor_share": compressed["compressor_seconds"] / compressed["whole_seconds"],
        "expected_step": step,
        "expected_whole": whole,
    }


def expected_ratios(options: argparse.Namespace, num_frames: int) -> tuple[float, float]:
    """Ratios of operations, from features and from frames."""
    found = {}
    groups = -(-num_frames // SIZES[options.size]().frames_per_group)
    work = Workload(
        frames=num_frames,
        text_tokens=TEXT + ANSWER + groups * STAMP,
        stamp_tokens=0,
        logit_tokens=ANSWER,
        trainable=frozenset(options.learns),
        checkpointing=options.checkpointing,
    )
    for arm in ARMS:
        parts = training_flops(formula_config(options.size, arm), work)
        whole = total(parts)
        found[arm] = whole - parts["tower"].total, whole
    step, whole = (plain / compressed for plain, compressed in zip(found["plain"], found["compressed"], strict=True))
    return step, whole


def compare_arms(options: argparse.Namespace, num_frames: int) -> dict[str, Any]:
    """Everything of one length, each measurement in a process of its own."""
    common = ["arms", "--size", options.size, "--device", options.device, "--threads", options.threads]
    common += ["--repeats", options.repeats, "--frames", num_frames, "--learns", *options.learns]
    common += ["--checkpointing"] * options.checkpointing
    common += ["--budget-gb", options.budget_gb] if options.budget_gb else []
    found = {arm: in_own_process(__file__, *common, "--one", arm) for arm in ARMS}
    result = {"size": options.size, "frames": num_frames, "learns": options.learns, "arms": found}
    if not any("out_of_memory" in arm for arm in found.values()):
        together = in_own_process(__file__, *common, "--one", "both")
        result["arms"] = {arm: found[arm] | together[arm] for arm in ARMS}
        result["ratios"] = ratios(options, num_frames, result["arms"])
    return result


def print_arms(found: dict[str, Any]) -> None:
    for arm, row in found["arms"].items():
        if "out_of_memory" in row:
            print(f"{found['frames']:6d} frames  {arm:10}  out of memory")
            continue
        timed = ""
        if "step_seconds" in row:
            timed = f"step {row['step_seconds']:.2f} s, with the tower {row['whole_seconds']:.2f} s; "
        print(
            f"{found['frames']:6d} frames  {arm:10} {row['positions']:7d} positions: {timed}peak {row['peak_mb']:.0f} "
            f"MB, over loaded {row['over_loaded_mb']:.0f} MB, on the device {row['device_peak_mb']:.0f} MB"
        )
    if "ratios" in found:
        r = found["ratios"]
        print(
            f"{found['frames']:6d} frames  a step {r['step']:.2f} times as fast (operations: "
            f"{r['expected_step']:.2f}), with the tower {r['whole']:.2f} (operations: {r['expected_whole']:.2f}; "
            f"ceiling {r['ceiling']:.2f}); the compressor takes {100 * r['compressor_share']:.1f}%"
        )


# -- stored features ---------------------------------------------------------------------------------------------------


def write_videos(folder: Path, count: int) -> list[Path]:
    """Gradients that drift, each video with its own, ``CLIP_SECONDS`` long."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"clip-{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            video.write(path, _drift(np.random.default_rng(number)), CLIP_FPS)
    return paths


def _drift(rng: np.random.Generator) -> Iterator[Frames]:
    wide, high = np.linspace(0, 6, 640)[None, None], np.linspace(0, 4, 360)[None, :, None]
    tilt = rng.uniform(-2, 2, (3, 1, 1))
    for index in range(CLIP_SECONDS * CLIP_FPS):
        picture = 127 + 100 * np.sin(wide * tilt + high + index / 15) + rng.normal(0, 4, (3, 360, 640))
        yield Frames(pixels=picture.clip(0, 255).astype(np.uint8)[None], seconds=np.array([index / CLIP_FPS]))


def compare_store(options: argparse.Namespace, stage: str, folder: Path) -> dict[str, Any]:
    """Samples a second with and without the store, by what each sample spends its time on; every step is timed."""
    trainer = Trainer(options.size, options.device, ["projector"], options.checkpointing)
    learn = _stage(trainer, stage)
    paths = write_videos(folder / "videos", options.videos)
    side = trainer.model.config.vision_config.image_size
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        store = FeatureStore(
            Path(scratch), "tower", lambda frames: trainer.encode(pixels_of(frames, CPU)), frame_size=(side, side)
        )
        fill = Clock(options.device)
        fill.start()
        store.prefill((path, CLIP) for path in paths)
        fill.lap("fill")
        learn([store.get(path, CLIP).features for path in paths[: options.batch]])
        batches = [paths[start : start + options.batch] for start in range(0, len(paths), options.batch)]
        clocks = [_batch(trainer, learn, store, batch, side) for _ in range(options.repeats) for batch in batches]
    spent = {
        name: statistics.median(clock.laps[name] for clock in clocks) / options.batch
        for name in ("read", "tower", "step", "load")
    }
    encoding, storing = spent["read"] + spent["tower"] + spent["step"], spent["load"] + spent["step"]
    return {
        "size": options.size,
        "stage": stage,
        "samples": len(clocks) * options.batch,
        "batch": options.batch,
        **{f"{name}_seconds": value for name, value in spent.items()},
        "fill_seconds": fill.laps["fill"] / len(paths),
        "encode_samples_per_second": 1 / encoding,
        "store_samples_per_second": 1 / storing,
        "ratio": encoding / storing,
        "decoded_ratio": (spent["tower"] + spent["step"]) / storing,
    }


def _batch(
    trainer: Trainer, learn: Callable[[list[Tensor]], None], store: FeatureStore, paths: list[Path], side: int
) -> Clock:
    """A batch's parts: reading, encoding, learning, and loading what the store has of it, the same features."""
    clock = Clock(trainer.device)
    clock.start()
    read = [video.read(path, CLIP, size=(side, side)) for path in paths]
    frames = [torch.cat([pixels_of(chunk, CPU) for chunk in chunks]) for chunks in read]
    clock.lap("read")
    features = [trainer.encode(own) for own in frames]
    clock.lap("tower")
    learn(features)
    clock.lap("step")
    stored = [store.get(path, CLIP).features.to(trainer.device) for path in paths]
    clock.lap("load")
    for path, own, kept in zip(paths, features, stored, strict=True):
        assert torch.equal(own, kept), f"{path}: the store's features are not the tower's"
    return clock


def _stage(trainer: Trainer, stage: str) -> Callable[[list[Tensor]], None]:
    """One update from a batch's features: the projector's (``align``), or ReCoT's."""
    if stage == "align":
        return lambda features: trainer.answer_step("compressed", torch.cat(features).to(trainer.device), len(features))
    config = trainer.model.config
    recot = ReCoT(config.vision_config.hidden_size, config.frames_per_group).to(trainer.device)
    trainer.optimiser = torch.optim.AdamW(recot.parameters(), lr=1e-4, fused=True)

    def learn(features: list[Tensor]) -> None:
        clips = torch.stack([resized(own.to(trainer.device, torch.float32), config.grid) for own in features])
        with torch.autocast(trainer.device, torch.bfloat16):
            loss = recot(clips).loss
        trainer.learn(loss)

    return learn


def print_store(found: dict[str, Any]) -> None:
    spent = ", ".join(f"{name} {1000 * found[f'{name}_seconds']:.1f}" for name in ("read", "tower", "step", "load"))
    print(
        f"{found['stage']:6} {found['samples']} samples in steps of {found['batch']}: ms a sample: {spent}; "
        f"{found['encode_samples_per_second']:.2f} samples/s encoding, {found['store_samples_per_second']:.2f} stored: "
        f"{found['ratio']:.2f} times as many (without reading {found['decoded_ratio']:.2f})"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("what", choices=("arms", "store"))
    parser.add_argument("--learns", nargs="+", choices=PARTS[1:], default=list(PARTS[1:]))
    parser.add_argument("--checkpointing", action="store_true", help="compute the decoder's layers again")
    parser.add_argument("--stage", nargs="+", choices=("recot", "align"), default=["recot", "align"])
    parser.add_argument("--videos", type=int, default=8, help="a multiple of --batch")
    parser.add_argument("--batch", type=int, default=4, help="samples a step, of store")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "longtake-benchmarks")
    options = parser.parse_args(arguments)
    if options.videos % options.batch:
        parser.error(f"--videos {options.videos} is not a multiple of --batch {options.batch}")
    torch.set_num_threads(options.threads)
    if options.one is not None:
        limit_device(options.budget_gb)
        trainer = Trainer(options.size, options.device, options.learns, options.checkpointing)
        if options.one == "both":
            print(json.dumps(times(trainer, options.frames[0], options.repeats)))
        else:
            print(json.dumps(memory(trainer, options.frames[0], options.one)))
        return
    print(json.dumps(surroundings(options.device)))
    show, found = (print_arms, (compare_arms(options, n) for n in options.frames))
    if options.what == "store":
        show, found = (print_store, (compare_store(options, stage, options.folder) for stage in options.stage))
    for row in found:
        print(json.dumps(row), flush=True) if options.json else show(row)


if __name__ == "__main__":
    main()
