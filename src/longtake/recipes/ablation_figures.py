"""What an ablation measures of compressors alone: reconstruction, where scores are high, and probes on their tokens."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import torch

from longtake.eval.features import KINDS, FeatureRun, evaluate
from longtake.eval.measures import auroc
from longtake.recipes.ablation_arms import Arm, compressor_of, folder_of, pretrain, trained
from longtake.recipes.ablation_world import BLOCK, Exam, World, kept, needle_patches

Figures = dict[str, float]


def figures_of(world: World, arm: Arm, seed: int) -> Figures:
    """An arm's figures, measured once and kept beside its weights.

    Of a compressor that is trained along with the decoder, the probes read what it has become.
    """
    file = folder_of(world, arm, seed) / "figures.json"
    if not file.exists():
        found = probes(world, arm, seed)
        if arm.pretraining is not None:
            found |= reconstruction(world, arm, seed)
        text = json.dumps(found)
        kept(file, lambda scratch: scratch.write_text(text))
    figures: Figures = json.loads(file.read_text())
    return figures


@torch.no_grad()
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
    for some, there in zip(clips.split(16), needles.split(16), strict=True):
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


def needles_of(exam: Exam, side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which patches show a needle, ``(videos, frames, side, side)``."""
    return np.stack([needle_patches(video, side) for video in exam.videos])


def probes(world: World, arm: Arm, seed: int) -> Figures:
    """Accuracy of classifiers on the compressor's frozen tokens: what is on a card, and which way a shape moves."""
    chosen = trained(world, arm, seed)[1] if arm.trainable else compressor_of(world, arm, seed)
    chosen.eval()  # type: ignore[no-untyped-call]
    run = FeatureRun(samples=world.size.probe_samples, seeds=1, frames=BLOCK)
    footage = {split: world.clips(split) for split in ("train", "test")}

    def tokens(features: torch.Tensor) -> torch.Tensor:
        groups = features.unflatten(1, (-1, arm.size))  # type: ignore[no-untyped-call]
        out: torch.Tensor = chosen(groups.flatten(0, 1)).unflatten(0, groups.shape[:2])  # type: ignore[no-untyped-call]
        return out

    found = evaluate(world.packaged, run, footage, lambda _: {"arm": tokens})["tasks"]
    return {f"{task}, {kind}": found[task]["arms"]["arm"][kind]["mean"] for task in found for kind in KINDS}
