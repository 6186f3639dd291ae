"""What an ablation measures of compressors alone: reconstruction, where scores are high, and probes on their tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtake.data.probe_world.needles import Split
from longtake.eval.features import TASKS, FeatureRun, told_right
from longtake.eval.features import Arm as Tokens
from longtake.eval.measures import auroc
from longtake.models.recot import target_tokens, token_errors
from longtake.outputs import write_json
from longtake.tables.ablations.arms import Arm, compressor_of, folder_of, pretrain, trained
from longtake.tables.ablations.world import BLOCK, Exam, World, needle_patches
from longtake.tables.compare import MASKED, Figures

SPLITS: tuple[Split, ...] = ("train", "test")
KEPT = "figures-by-clip.json"
CLIPS_PER_PASS = 16


def figures_of(world: World, arms: Sequence[tuple[Arm, int]]) -> list[Figures]:
    """Figures of arms and their seeds, measured once and kept beside their weights.

    All that are missing are probed in one run, on the same examples. Of a compressor that is trained along with the
    decoder, the probes read what it has become.
    """
    files = [folder_of(world, arm, seed) / KEPT for arm, seed in arms]
    missing = {str(n): arms[n] for n, file in enumerate(files) if not file.exists()}
    if missing:
        print(f"figures of {len(missing)} compressors", flush=True)
    probed = probes(world, missing) if missing else {}
    for number, (arm, seed) in missing.items():
        rebuilt = reconstruction(world, arm, seed) if arm.pretraining and not arm.trainable else {}
        write_json(files[int(number)], probed[number] | rebuilt)
    return [json.loads(file.read_text()) for file in files]


def reconstruction(world: World, arm: Arm, seed: int) -> Figures:
    """Errors, as shares of the features' variance, and the AUROC on the test videos, which pre-training never saw.

    A value for each video. "error": nothing is masked. "error where masked": over masked tokens, masked as in training
    (none: left out). "AUROC": how well the masking's scores tell patches that a card or a mover covers from all others
    of the same video, where it covers any.
    """
    assert arm.pretraining is not None
    model = pretrain(world, arm.size, arm.pretraining, seed)
    exam = world.exam(16)
    rows, columns = world.packaged.config.tower_grid
    clips = exam.features.float().view(-1, BLOCK, rows, columns, world.size.dim)
    needles = torch.from_numpy(needles_of(exam, rows)).view(-1, BLOCK, rows, columns)
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {"error": [], MASKED: [], "share": [], "scores": []}
    for some, there in zip(torch.split(clips, CLIPS_PER_PASS), torch.split(needles, CLIPS_PER_PASS), strict=True):
        target = target_tokens(some, model.target)
        with torch.no_grad():
            parts["error"].append(token_errors(model.eval()(some).reconstruction, target))
            output = model.train()(some, generator=generator, oracle=there)
        parts[MASKED].append(token_errors(output.reconstruction, target) * output.mask)
        parts["share"].append(output.mask.float())
        parts["scores"].append(output.scores.float())
    tokens = {name: torch.cat(own).view(len(exam.videos), -1) for name, own in parts.items()}
    shown, variance, share = needles.view(len(exam.videos), -1), float(clips.var()), tokens["share"].mean(1)
    found = {"error": (tokens["error"].mean(1) / variance).tolist()}
    if share.all():
        found[MASKED] = (tokens[MASKED].mean(1) / share / variance).tolist()
    found["AUROC"] = [auroc(s.numpy(), n.numpy()) for s, n in zip(tokens["scores"], shown, strict=True) if n.any()]
    return found


def needles_of(exam: Exam, side: int) -> NDArray[np.bool_]:
    """Which patches show a needle, ``(videos, frames, side, side)``."""
    return np.stack([needle_patches(video, side) for video in exam.videos])


def probes(world: World, arms: Mapping[str, tuple[Arm, int]]) -> dict[str, Figures]:
    """Whether classifiers on compressors' frozen tokens are right about each test clip, 1 or 0.

    What is on a card, and which way a shape moves; by arm. The clips are the same for all arms and seeds.
    """
    run = FeatureRun(samples=world.size.probe_samples, seeds=1, frames=BLOCK)
    footage = {split: world.clips(split) for split in SPLITS}
    tokens = {name: tokens_by(world, arm, seed) for name, (arm, seed) in arms.items()}
    found: dict[str, Figures] = {name: {} for name in arms}
    for task in TASKS:
        for name, kinds in told_right(world.packaged, task, footage, 0, run, tokens)[0].items():
            found[name] |= {f"{task}, {kind}": right.float().tolist() for kind, right in kinds.items()}
    return found


def tokens_by(world: World, arm: Arm, seed: int) -> Tokens:
    """An arm's compressor on clips of tower features, as probes want it."""
    chosen = trained(world, arm, seed)[1] if arm.trainable else compressor_of(world, arm, seed)

    def tokens(features: Tensor) -> Tensor:
        clips, frames, *rest = features.shape
        groups: Tensor = chosen(features.reshape(-1, arm.size, *rest))
        return groups.view(clips, frames // arm.size, *groups.shape[1:])

    return tokens
