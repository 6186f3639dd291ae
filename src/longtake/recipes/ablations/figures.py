"""What an ablation measures of compressors alone: reconstruction, where scores are high, and probes on their tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtake.data.needles import Split
from longtake.eval.features import KINDS, FeatureRun, evaluate
from longtake.eval.features import Arm as Tokens
from longtake.eval.measures import auroc
from longtake.recipes.ablations.arms import Arm, compressor_of, folder_of, pretrain, trained
from longtake.recipes.ablations.world import BLOCK, Exam, World, needle_patches
from longtake.recipes.tables import Figures
from longtake.recipes.work_folder import kept

SPLITS: tuple[Split, ...] = ("train", "test")


def figures_of(world: World, arms: Sequence[tuple[Arm, int]]) -> list[Figures]:
    """Figures of arms and their seeds, measured once and kept beside their weights.

    All that are missing are probed in one run, on the same examples. Of a compressor that is trained along with the
    decoder, the probes read what it has become.
    """
    files = [folder_of(world, arm, seed) / "figures.json" for arm, seed in arms]
    missing = {str(n): arms[n] for n, file in enumerate(files) if not file.exists()}
    if missing:
        print(f"figures of {len(missing)} compressors", flush=True)
    probed = probes(world, missing) if missing else {}
    for number, (arm, seed) in missing.items():
        rebuilt = reconstruction(world, arm, seed) if arm.pretraining and not arm.trainable else {}
        save(files[int(number)], probed[number] | rebuilt)
    return [json.loads(file.read_text()) for file in files]


def save(file: Path, figures: Figures) -> None:
    """As JSON, whole or not at all."""
    text = json.dumps(figures)
    kept(file, lambda scratch: scratch.write_text(text))


def reconstruction(world: World, arm: Arm, seed: int) -> Figures:
    """On the test videos, which pre-training never saw: errors as shares of the features' variance, and the AUROC.

    "error": nothing is masked. "error where masked": over masked tokens, masked as in training (none: nan). "AUROC":
    how well the masking's scores tell patches that a card or a mover covers from all others.
    """
    assert arm.pretraining is not None
    model = pretrain(world, arm.size, arm.pretraining, seed)
    exam = world.exam(16)
    rows, columns = world.packaged.config.tower_grid
    clips = exam.features.float().view(-1, BLOCK, rows, columns, world.size.dim)
    needles = torch.from_numpy(needles_of(exam, rows)).view(-1, BLOCK, rows, columns)
    generator = torch.Generator().manual_seed(seed)
    whole, masked, scores = [], [], []
    for some, there in zip(torch.split(clips, 16), torch.split(needles, 16), strict=True):
        with torch.no_grad():
            whole.append(float(model.eval()(some).loss) * len(some))
            output = model.train()(some, generator=generator, oracle=there)
        masked.append(float("nan") if output.masked_error is None else float(output.masked_error) * len(some))
        scores.append(output.scores.float().numpy())
    variance = float(clips.var()) * len(clips)
    return {
        "error": sum(whole) / variance,
        "error where masked": sum(masked) / variance,
        "AUROC": auroc(np.concatenate(scores).ravel(), needles.numpy().ravel()),
    }


def needles_of(exam: Exam, side: int) -> NDArray[np.bool_]:
    """Which patches show a needle, ``(videos, frames, side, side)``."""
    return np.stack([needle_patches(video, side) for video in exam.videos])


def probes(world: World, arms: Mapping[str, tuple[Arm, int]]) -> dict[str, Figures]:
    """Accuracy of classifiers on compressors' frozen tokens: what is on a card, and which way a shape moves."""
    run = FeatureRun(samples=world.size.probe_samples, seeds=1, frames=BLOCK)
    footage = {split: world.clips(split) for split in SPLITS}
    tokens = {name: tokens_by(world, arm, seed) for name, (arm, seed) in arms.items()}
    found = evaluate(world.packaged, run, footage, lambda _: tokens)["tasks"]
    return {
        name: {f"{task}, {kind}": found[task]["arms"][name][kind]["mean"] for task in found for kind in KINDS}
        for name in arms
    }


def tokens_by(world: World, arm: Arm, seed: int) -> Tokens:
    """An arm's compressor on clips of tower features, as probes want it."""
    chosen = trained(world, arm, seed)[1] if arm.trainable else compressor_of(world, arm, seed)

    def tokens(features: Tensor) -> Tensor:
        clips, frames, *rest = features.shape
        groups: Tensor = chosen(features.reshape(-1, arm.size, *rest))
        return groups.view(clips, frames // arm.size, *groups.shape[1:])

    return tokens
