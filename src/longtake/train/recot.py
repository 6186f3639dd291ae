"""ReCoT pre-training: the DTS learns from unlabelled pictures and videos what one frame's tokens must keep of a group.

Paper: Video-XL-Pro, arXiv 2503.18478, sections 3.1 and 3.2. The tower is frozen and does not run: its features come
from a store or a bank. Learning rate, batch, length of clips and the share of images are not in the paper; they are
ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longtake.data.clips import Clips, ClipSource, CountedClips
from longtake.models.dts import DynamicTokenSynthesizer
from longtake.models.masking import Policy
from longtake.models.recot import ReCoT, Target, Weight, mean_frames, target_tokens, token_errors
from longtake.models.video_llm import VideoLLMConfig, resized
from longtake.outputs import replaced
from longtake.train import left_out
from longtake.train.checkpoint import room_in
from longtake.train.run import Fit, Run, micro_batches, start_processes
from longtake.train.runlog import RunLog
from longtake.types import LongtakeError

WEIGHTS = "dts.safetensors"  # in the stage's folder: the trained DTS


@dataclass(frozen=True, slots=True, kw_only=True)
class ReCoTRecipe:
    """Hyper-parameters of pre-training; all but the mean squared error are ours where the paper is silent.

    fit: its rows are clips; ``steps`` must be given. policy, mask_ratio, candidates, target, weight: as in ``ReCoT``.
    frames, fps: of a clip, and a second of video. image_share: how many clips are images. max_broken: share of the
    files above which broken ones stop the run. held_clips: measured at every evaluation.
    """

    fit: Fit
    policy: Policy = "semantic"
    mask_ratio: float = 0.5
    candidates: float = 0.75
    target: Target = "raw"
    weight: Weight = "all"
    frames: int = 4
    fps: float = 1.0
    image_share: float = 0.25
    max_broken: float = 0.01
    held_clips: int = 64

    def __post_init__(self) -> None:
        if self.fit.steps is None:
            raise LongtakeError("recot has no epochs, as clips are drawn; set recot.fit.steps")
        if self.fit.checkpointing:
            raise LongtakeError("recot computes nothing again in its backward pass; set recot.fit.checkpointing=false")
        for name in ("frames", "held_clips"):
            if getattr(self, name) < 1:
                raise LongtakeError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("image_share", "max_broken"):
            if not 0 <= getattr(self, name) <= 1:
                raise LongtakeError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1")
        if not 0 < self.fps < math.inf:
            raise LongtakeError(f"fps is {self.fps}; it must be a positive number of frames a second")


class ClipLoss(nn.Module):
    """ReCoT on one batch of clips: its loss times the clips, and errors over masked and visible tokens likewise."""

    def __init__(self, recot: ReCoT, grid: tuple[int, int]) -> None:
        super().__init__()
        self.recot, self.grid = recot, grid

    def forward(self, clips: Clips, seed: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and the errors over masked and visible tokens, three scalars. seed: decides the mask."""
        device = self.recot.masking.mask_token.device
        generator = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        oracle = clips.oracle if self.recot.masking.policy == "oracle" else None
        output = self.recot(
            on_grid(clips, self.grid, device),
            clips.is_image.to(device),
            generator=generator,
            oracle=None if oracle is None else oracle.to(device),
        )
        none = torch.zeros((), device=device)
        errors = (output.masked_error, output.visible_error)
        masked, visible = (none if error is None else error * len(clips) for error in errors)
        return output.loss * len(clips), masked, visible


def on_grid(clips: Clips, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Features ``(clips, frames, rows, columns, dim)`` on the grid that the DTS works on, resized on the device."""
    return resized(clips.features.to(device).flatten(0, 1), grid).unflatten(0, clips.features.shape[:2])


def train_recot(
    recipe: ReCoTRecipe,
    config: VideoLLMConfig,
    source: CountedClips,
    folder: Path,
    *,
    held: CountedClips | None = None,
    start_from: DynamicTokenSynthesizer | None = None,
) -> None:
    """Pre-train the DTS of a model with this config, resuming from ``folder``; save it in ``folder/dts.safetensors``.

    held: clips to measure on. start_from: a DTS to go on with; None: a fresh one.

    Raises LongtakeError for the policy "oracle" where nobody knows the needles, and as ``new_recot`` and the source do.
    """
    fit = recipe.fit
    accelerator = start_processes(fit)
    torch.manual_seed(fit.seed)
    books = left_out.books_of(source.broken, held.broken if held else None)
    module = ClipLoss(new_recot(recipe, config, start_from), config.grid)
    with left_out.written(folder, books):
        first = source.draw(np.random.default_rng([fit.seed, 0, 0]), fit.micro_batch)
    if recipe.policy == "oracle" and first.oracle is None:
        raise LongtakeError("recot.policy is 'oracle', but no one knows where needles are in these files; set another")
    if config.dts_layout == "correct":
        module.recot.start_at_means(first.features, keep_dts=start_from is not None)
    run = Run(fit, accelerator, module, folder)
    steps = fit.steps or 0
    start = left_out.resume(run, books)
    log = RunLog(folder, steps, start, every=fit.log_every, writes=run.is_main)
    with left_out.written(folder, books), log:
        for step in range(start, steps):
            rate = fit.rate(step, steps)
            parts = list(own_clips(fit, source, step, run))
            clips = sum(len(part) for part, _ in parts)
            done = run.update(parts, lambda part: run.module(*part), clips, rate)
            (tokens,) = run.total(clips * recipe.frames * config.grid[0] * config.grid[1])
            figures = dict(zip(("masked_error", "visible_error"), done.more, strict=True))
            log.step(step + 1, tokens=tokens, loss=done.loss, norm=done.norm, rate=rate, **figures)
            if held is not None and fit.is_due(fit.eval_every, step + 1, steps):
                log.tell(step + 1, **held_errors(run, held, recipe.held_clips, config.grid))
            left_out.share(run, books)
            if fit.is_due(fit.save_every, step + 1, steps):
                left_out.save(run, step + 1, books)
    left_out.tell(run, books)
    write_dts(run, folder)


def new_recot(recipe: ReCoTRecipe, config: VideoLLMConfig, start_from: DynamicTokenSynthesizer | None) -> ReCoT:
    """Make the module that is trained. Raises LongtakeError for clips that are not whole groups of the model's."""
    group = config.frames_per_group
    if recipe.frames % group:
        raise LongtakeError(
            f"recot.frames is {recipe.frames}; it must be a multiple of {group}, as the model makes one of so many: "
            f"set recot.frames={-(-recipe.frames // group) * group}"
        )
    dim = config.vision_config.hidden_size
    layout = config.dts_layout
    return ReCoT(
        dim,
        config.frames_per_group,
        policy=recipe.policy,
        mask_ratio=recipe.mask_ratio,
        candidates=recipe.candidates,
        target=recipe.target,
        weight=recipe.weight,
        dts=start_from or DynamicTokenSynthesizer(dim, config.frames_per_group, layout),
    )


def own_clips(fit: Fit, source: ClipSource, step: int, run: Run) -> Iterator[tuple[Clips, tuple[int, ...]]]:
    """Draw this process's micro-batches of a step, each with a seed; a step's are the same for any number of processes.

    Raises LongtakeError where the batch can't be cut evenly.
    """
    processes = run.accelerator.num_processes
    passes = micro_batches(fit, processes)
    if passes * processes * fit.micro_batch != fit.batch:
        raise LongtakeError(
            f"batch is {fit.batch}; it must be a multiple of micro_batch {fit.micro_batch} x {processes} processes"
        )
    for turn in range(passes):
        slot = turn * processes + run.accelerator.process_index
        yield source.draw(np.random.default_rng([fit.seed, step, slot]), fit.micro_batch), (fit.seed, step, slot, 1)


@torch.no_grad()
def held_errors(run: Run, held: ClipSource, clips: int, grid: tuple[int, int]) -> dict[str, float]:
    """Errors on the same clips and masks every time, and of the group's mean in place of a reconstruction."""
    fit, accelerator = run.fit, run.accelerator
    passes = max(1, clips // (fit.micro_batch * accelerator.num_processes))
    rows = []
    for turn in range(passes):
        slot = turn * accelerator.num_processes + accelerator.process_index
        part = held.draw(np.random.default_rng([fit.seed, slot, 2]), fit.micro_batch)
        with accelerator.autocast():
            errors = [float(error) for error in run.module(part, (fit.seed, slot, 3))]
        recot = accelerator.unwrap_model(run.module).recot
        target = target_tokens(on_grid(part, grid), recot.target)
        blurred = token_errors(mean_frames(target, recot.frames_per_group), target).mean()
        rows.append([*errors, float(blurred) * len(part), float(len(part))])
    loss, masked, visible, mean, count = run.total(*map(sum, zip(*rows, strict=True)))
    names = ("held_loss", "held_masked_error", "held_visible_error", "held_mean_frame_error")
    return {name: value / count for name, value in zip(names, (loss, masked, visible, mean), strict=True)}


def write_dts(run: Run, folder: Path) -> None:
    """Save the DTS alone. Every process must call it."""
    prefix = "recot.dts."
    weights = {
        name.removeprefix(prefix): value.contiguous()
        for name, value in run.whole_weights().items()
        if name.startswith(prefix)
    }
    if run.is_main:
        with room_in(folder, "the trained compressor"), replaced(folder / WEIGHTS) as scratch:
            save_file(weights, scratch)
    run.accelerator.wait_for_everyone()


def load_dts(dts: nn.Module, folder: Path) -> None:
    """Put the weights of a finished pre-training into a model's DTS. Raises LongtakeError where there are none."""
    file = folder / WEIGHTS
    if not file.exists():
        raise LongtakeError(f"{folder} holds no {WEIGHTS}; run the stage recot first")
    dts.load_state_dict(load_file(file))
