"""What compression saves in training, and what stored features save: seconds of a step, samples a second, peak memory.

    python benchmarks/train.py arms [--size embedded] [--frames 64 256 1024] [--repeats 3] [--threads 1] [--json]
    python benchmarks/train.py arms --size 3b --device cuda --learns projector decoder --checkpointing --budget-gb 80
    python benchmarks/train.py store [--size embedded] [--stage recot align] [--videos 8] [--batch 4] [--lines 360 720]

``arms``: one video and one answer a step, forward, backward and AdamW, with a frozen tower; ``--learns`` learn. Both
arms (see ``arms.py``) share their weights and take turns; medians count, and peak memory is that of one more process
each. ``step`` begins from the tower's features; ``whole`` adds the tower, as when they are not stored; where the DTS
does not learn (``--learns projector [decoder]``) ``stored`` begins from its tokens, as alignment does, and fine-tuning
with ``train_dts=false``. ``ceiling`` is what ``whole`` would gain if nothing but the tower took time; ``compressor`` is
its forward and backward pass alone.

``store``: samples of 16 frames at 1 a second of drawn videos (16:9 of so many lines, 30 frames a second, H.264).
Either each step reads and encodes its videos (4, as a micro-batch of the recipe ``embedded``), or it takes from stores
that were filled before what its stage takes: ReCoT the tower's features, alignment what the frozen DTS makes of them.
``decoded`` is the gain where reading a video costs nothing. Medians of each part of a sample count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
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
from longtake.data.groups import GroupStore
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
SPANS = ("read", "tower", "compress", "step", "load")  # of a sample of ``store``


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
        ids = prompt(self.model.config, arm, len(features) // videos).expand(videos, -1)
        with self.autocast, in_arm(self.model, arm):
            loss = self.answer_loss(self.compress(features), ids.to(self.device))
        self.learn(loss)

    def align_step(self, tokens: Tensor, num_frames: int, videos: int = 1) -> None:
        """The same from what the projector takes, where nothing before it learns."""
        ids = prompt(self.model.config, "compressed", num_frames).expand(videos, -1)
        with self.autocast:
            loss = self.answer_loss(tokens, ids.to(self.device))
        self.learn(loss)

    def compress(self, features: Tensor) -> Tensor:
        """The tower's features to what the projector takes."""
        return self.model.before_projector(self.model.group_tokens(features.to(self.model.dtype)))

    def answer_loss(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """The mean loss of answers behind what the projector takes of their videos."""
        model = self.model
        embedded = model.get_input_embeddings()(ids)
        visual = (ids == model.config.video_token_id)[..., None]
        embedded = embedded.masked_scatter(visual, model.projected(tokens).flatten(0, 2).to(embedded.dtype))
        states = model.language_model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        logits = model.language_model.lm_head(states[:, -ANSWER - 1 : -1]).float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, -ANSWER:].flatten())

    def compressor_pass(self, features: Tensor) -> Tensor:
        """The DTS and pool alone, forward and, where they learn, backward."""
        with self.autocast:
            tokens = self.compress(features)
        if tokens.requires_grad:
            tokens.float().sum().backward()
            self.optimiser.zero_grad()
        return tokens

    def learn(self, loss: Tensor, optimiser: torch.optim.Optimizer | None = None) -> None:
        """Backward and one update, of other weights than the model's where another optimiser is given."""
        optimiser = optimiser or self.optimiser
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
        optimiser.step()
        optimiser.zero_grad()


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
        tokens = trainer.compressor_pass(features)
        clock.lap("compressor")
        for arm in ARMS:
            trainer.answer_step(arm, features)
            clock.lap(arm)
        if not tokens.requires_grad:
            trainer.align_step(tokens, num_frames)
            clock.lap("stored")
        for name, spent in clock.laps.items() if repeat else ():
            laps.setdefault(name, []).append(spent)
    tower, compressor, *steps = (statistics.median(laps[name]) for name in ("tower", "compressor", *ARMS))
    arms = {
        arm: {"step_seconds": step, "tower_seconds": tower, "whole_seconds": step + tower}
        for arm, step in zip(ARMS, steps, strict=True)
    }
    arms["compressed"]["compressor_seconds"] = compressor
    if "stored" in laps:
        arms["compressed"]["stored_seconds"] = statistics.median(laps["stored"])
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
    step, stored, whole = expected_ratios(options, num_frames)
    gains = {}
    if "stored_seconds" in compressed:
        gains = {"stored": plain["step_seconds"] / compressed["stored_seconds"], "expected_stored": stored}
    return gains | {
        "step": plain["step_seconds"] / compressed["step_seconds"],
        "whole": plain["whole_seconds"] / compressed["whole_seconds"],
        "ceiling": plain["whole_seconds"] / plain["tower_seconds"],
        "compressor_share": compressed["compressor_seconds"] / compressed["whole_seconds"],
        "expected_step": step,
        "expected_whole": whole,
    }


def expected_ratios(options: argparse.Namespace, num_frames: int) -> tuple[float, float, float]:
    """Ratios of operations, from features, from what the projector takes, and from frames."""
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
        step = whole - parts["tower"].total
        found[arm] = step, step - (parts["dts"].total if arm == "compressed" else 0.0), whole
    step, stored, whole = (a / b for a, b in zip(found["plain"], found["compressed"], strict=True))
    return step, stored, whole


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
        if "stored" in r:
            kept = f"{r['stored']:.2f} times as fast (operations: {r['expected_stored']:.2f})"
            print(f"{found['frames']:6d} frames  a step from the compressor's stored tokens {kept}")


# -- stored features ---------------------------------------------------------------------------------------------------


def write_videos(folder: Path, count: int, lines: int) -> list[Path]:
    """Gradients that drift, each video with its own, ``CLIP_SECONDS`` long."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"clip-{lines}-{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            video.write(path, _drift(np.random.default_rng(number), lines), CLIP_FPS)
    return paths


def _drift(rng: np.random.Generator, lines: int) -> Iterator[Frames]:
    columns = lines * 16 // 9
    wide, high = np.linspace(0, 6, columns)[None, None], np.linspace(0, 4, lines)[None, :, None]
    tilt = rng.uniform(-2, 2, (3, 1, 1))
    for index in range(CLIP_SECONDS * CLIP_FPS):
        picture = 127 + 100 * np.sin(wide * tilt + high + index / 15) + rng.normal(0, 4, (3, lines, columns))
        yield Frames(pixels=picture.clip(0, 255).astype(np.uint8)[None], seconds=np.array([index / CLIP_FPS]))


def compare_store(options: argparse.Namespace, lines: int, stage: str, folder: Path) -> dict[str, Any]:
    """Samples a second with and without the store, by what each sample spends its time on; every step is timed."""
    trainer = Trainer(options.size, options.device, ["projector"], options.checkpointing)
    paths = write_videos(folder / "videos", options.videos, lines)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        lesson = (AlignLesson if stage == "align" else ReCoTLesson)(trainer, Path(scratch))
        fill = Clock(options.device)
        fill.start()
        for path in paths:
            lesson.stored(path)
        fill.lap("fill")
        lesson.learn([lesson.stored(path) for path in paths[: options.batch]])
        batches = [paths[start : start + options.batch] for start in range(0, len(paths), options.batch)]
        clocks = [_batch(lesson, batch) for _ in range(options.repeats) for batch in batches]
    spent = {name: statistics.median(clock.laps[name] for clock in clocks) / options.batch for name in SPANS}
    decoded, storing = spent["tower"] + spent["compress"] + spent["step"], spent["load"] + spent["step"]
    encoding = spent["read"] + decoded
    return {
        "size": options.size,
        "stage": stage,
        "lines": lines,
        "samples": len(clocks) * options.batch,
        "batch": options.batch,
        **{f"{name}_seconds": value for name, value in spent.items()},
        "fill_seconds": fill.laps["fill"] / len(paths),
        "encode_samples_per_second": 1 / encoding,
        "store_samples_per_second": 1 / storing,
        "ratio": encoding / storing,
        "decoded_ratio": decoded / storing,
    }


class ReCoTLesson:
    """Pre-training steps from the tower's features."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.trainer, self.config = trainer, trainer.model.config
        self.side = self.config.vision_config.image_size
        self.store = FeatureStore(
            folder / "features",
            "tower",
            lambda frames: trainer.encode(pixels_of(frames, CPU)),
            frame_size=(self.side, self.side),
        )
        self.recot = ReCoT(self.config.vision_config.hidden_size, self.config.frames_per_group).to(trainer.device)
        self.optimiser = torch.optim.AdamW(self.recot.parameters(), lr=1e-4, fused=True)

    def stored(self, path: Path) -> Tensor:
        """What a step takes of a video, from the store."""
        return self.store.get(path, CLIP).features.to(self.trainer.device)

    def made(self, features: list[Tensor]) -> list[Tensor]:
        """The same, of a batch's features."""
        return features

    def learn(self, clips: list[Tensor]) -> None:
        """One update."""
        grids = torch.stack([resized(own.to(torch.float32), self.config.grid) for own in clips])
        with torch.autocast(self.trainer.device, torch.bfloat16):
            loss = self.recot(grids).loss
        self.trainer.learn(loss, self.optimiser)


class AlignLesson(ReCoTLesson):
    """Steps of the projector, from what the frozen DTS makes of the tower's features."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        super().__init__(trainer, folder)
        self.groups = GroupStore(folder / "groups", "dts", self._compressed)

    def stored(self, path: Path) -> Tensor:
        return self.groups.get(self.store.get(path, CLIP)).to(self.trainer.device)

    def made(self, features: list[Tensor]) -> list[Tensor]:
        whole = self._compressed(torch.cat(features))
        return list(whole.split(len(whole) // len(features)))

    def learn(self, clips: list[Tensor]) -> None:
        self.trainer.align_step(torch.cat(clips), len(clips[0]) * self.config.frames_per_group, len(clips))

    @torch.no_grad()
    def _compressed(self, features: Tensor) -> Tensor:
        with self.trainer.autocast:
            return self.trainer.compress(features.to(self.trainer.device))


def _batch(lesson: ReCoTLesson, paths: list[Path]) -> Clock:
    """A batch's parts: reading, encoding, compressing, learning, and loading what the store has of it, the same."""
    clock = Clock(lesson.trainer.device)
    clock.start()
    read = [video.read(path, CLIP, size=(lesson.side, lesson.side)) for path in paths]
    frames = [torch.cat([pixels_of(chunk, CPU) for chunk in chunks]) for chunks in read]
    clock.lap("read")
    features = [lesson.trainer.encode(own) for own in frames]
    clock.lap("tower")
    made = lesson.made(features)
    clock.lap("compress")
    lesson.learn(made)
    clock.lap("step")
    stored = [lesson.stored(path) for path in paths]
    clock.lap("load")
    for path, own, kept in zip(paths, made, stored, strict=True):
        torch.testing.assert_close(own, kept, msg=f"{path}: what is stored is not what a step would make")
    return clock


def print_store(found: dict[str, Any]) -> None:
    spent = ", ".join(f"{name} {1000 * found[f'{name}_seconds']:.1f}" for name in SPANS)
    print(
        f"{found['stage']:6} {found['lines']} lines, {found['samples']} samples in steps of {found['batch']}: "
        f"ms a sample: {spent}; "
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
    parser.add_argument("--lines", type=int, nargs="+", default=[360], help="of the drawn videos, of store")
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
        each = ((lines, stage) for lines in options.lines for stage in options.stage)
        show, found = print_store, (compare_store(options, *which, options.folder) for which in each)
    for row in found:
        print(json.dumps(row), flush=True) if options.json else show(row)


if __name__ == "__main__":
    main()
