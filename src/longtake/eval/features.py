"""Probes on frozen features: which letter a card shows, and which way a shape moves, before and after the DTS.

Paper: Video-XL-Pro, arXiv 2503.18478, section 4.8 and Table 4: tower, or tower and compressor, as a frozen feature
extractor, then a trainable classifier, on images and on videos. The probe world takes the place of its benchmarks.

Every arm is treated alike: each frame of tokens that it gives for a clip is averaged to a grid of 4x4 places, and all
of them are laid end to end. So an arm keeps where things are and when, and one with fewer frames of tokens has
proportionally fewer values. Pooling, grid and classifiers (``eval/classifier.py``) are ours.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from longtake.backbones.language import pixels_of
from longtake.data.probe_world.haystack import Clip, random_shot
from longtake.data.probe_world.needles import (
    DIRECTIONS,
    LETTERS,
    Card,
    Mover,
    Split,
    draw_card_choice,
    draw_mover_choice,
)
from longtake.data.probe_world.probe import SIZES, Event, ProbeVideo
from longtake.eval.classifier import Kind, classified
from longtake.model import Model
from longtake.models.dts import DynamicTokenSynthesizer
from longtake.models.preprocess import normalised_pixels
from longtake.models.video_llm import VideoLLM
from longtake.types import LongtakeError

# clips of tower features (clips, frames, rows, columns, dim) to (clips, frames of tokens, rows, columns, dim)
Arm = Callable[[Tensor], Tensor]
Arms = Callable[[int], Mapping[str, Arm]]  # by seed, for what is drawn

TASKS: dict[str, tuple[str, ...]] = {"content": LETTERS, "direction": DIRECTIONS}
KINDS: tuple[Kind, ...] = ("linear", "mlp")
CLIPS_PER_PASS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRun:
    """What is measured: examples of every task, drawn anew for each seed; half as many for the test.

    frames: of a clip, 1 a second; a multiple of every arm's group. seeds: 0 to that. side: of the grid of places.
    """

    samples: int = 1000
    seeds: int = 3
    frames: int = 4
    side: int = 4

    def __post_init__(self) -> None:
        if self.samples < 10 or self.seeds < 1:
            raise LongtakeError(f"samples is {self.samples} and seeds {self.seeds}; give at least 10 and 1")


def evaluate(
    model: VideoLLM,
    run: FeatureRun,
    clips: Mapping[Split, list[Clip]],
    arms: Arms | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Accuracies of both classifiers by task and arm over the seeds, and chance; one JSON-ready object.

    clips: footage of both splits; classifiers learn on one and are tested on the other. arms: None means ``arms_of``
    the model. Chance is always giving the test's most frequent class.
    """
    begun = time.perf_counter()
    arms = arms or arms_of(model)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    chances: dict[str, list[float]] = {}
    for number, (seed, task) in enumerate((seed, task) for seed in range(run.seeds) for task in TASKS):
        told, labels = told_right(model, task, clips, seed, run, arms(seed))
        for arm, kinds in told.items():
            for kind, right in kinds.items():
                share = float(right.float().mean())
                found.setdefault(task, {}).setdefault(arm, {}).setdefault(kind, []).append(share)
        chances.setdefault(task, []).append(float(labels.bincount().max() / len(labels)))
        if progress is not None:
            progress(number + 1, run.seeds * len(TASKS))
    tasks = {
        task: {
            "chance": summary(chances[task]),
            "arms": {arm: {kind: summary(rights) for kind, rights in kinds.items()} for arm, kinds in by_arm.items()},
        }
        for task, by_arm in found.items()
    }
    return {"run": dataclasses.asdict(run), "tasks": tasks, "seconds": round(time.perf_counter() - begun, 1)}


def told_right(
    model: VideoLLM, task: str, clips: Mapping[Split, list[Clip]], seed: int, run: FeatureRun, arms: Mapping[str, Arm]
) -> tuple[dict[str, dict[Kind, Tensor]], Tensor]:
    """Which test examples each classifier gets right on each arm's features, bool ``(examples,)``; and their labels."""
    features: dict[Split, dict[str, Tensor]] = {}
    labels: dict[Split, Tensor] = {}
    counts: dict[Split, int] = {"train": run.samples, "test": run.samples // 2}
    for split, count in counts.items():
        features[split], labels[split] = extract(model, task, split, clips[split], count, seed, run, arms)
    found: dict[str, dict[Kind, Tensor]] = {}
    for arm, known in features["train"].items():
        train, test = (known, labels["train"]), (features["test"][arm], labels["test"])
        found[arm] = {kind: classified(kind, train, test, len(TASKS[task]), seed) for kind in KINDS}
    return found, labels["test"]


def summary(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (None for one value) and the values."""
    spread = round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None
    return {"mean": round(float(np.mean(values)), 4), "std": spread, "values": [round(v, 4) for v in values]}


def arms_of(model: VideoLLM) -> Arms:
    """Arms by seed: all frames of the tower, the mean of each group's, the model's DTS, and one with random weights."""
    frames = model.config.frames_per_group

    def arms(seed: int) -> dict[str, Arm]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = DynamicTokenSynthesizer(model.config.vision_config.hidden_size, frames, model.config.dts_layout)
        return {
            "tower": lambda features: features,
            "mean": lambda features: features.unflatten(1, (-1, frames)).mean(dim=2),
            "random DTS": compressed_by(fresh.to(model.device, model.dtype)),
            "DTS": compressed_by(model.dts),
        }

    return arms


def compressed_by(dts: DynamicTokenSynthesizer) -> Arm:
    """A DTS as an arm."""
    return lambda features: dts(features.unflatten(1, (-1, dts.frames_per_group)).flatten(0, 1)).unflatten(
        0, (len(features), -1)
    )


@torch.no_grad()
def extract(
    model: VideoLLM,
    task: str,
    split: Split,
    clips: list[Clip],
    count: int,
    seed: int,
    run: FeatureRun,
    arms: Mapping[str, Arm],
) -> tuple[dict[str, Tensor], Tensor]:
    """Each arm's features of ``count`` examples, float32 ``(examples, values)`` on the CPU, and labels int64."""
    rng = np.random.default_rng([seed, list(TASKS).index(task), int(split == "test"), 6])
    rows: dict[str, list[Tensor]] = {name: [] for name in arms}
    labels: list[int] = []
    for begin in range(0, count, CLIPS_PER_PASS):
        some = [draw_example(task, rng, split, clips, run.frames) for _ in range(min(CLIPS_PER_PASS, count - begin))]
        labels += [label for _, label in some]
        features = tower_features(model, [video for video, _ in some], run.frames)
        for name, arm in arms.items():
            rows[name].append(flat_places(arm(features), run.side).float().cpu())
    return {name: torch.cat(parts) for name, parts in rows.items()}, torch.tensor(labels)


def draw_example(
    task: str, rng: np.random.Generator, split: Split, clips: list[Clip], frames: int
) -> tuple[ProbeVideo, int]:
    """A picture with a card, as a video of one frame, or some seconds of a shape that moves; and its class."""
    what: Card | Mover
    if task == "content":
        frames, begin, length = 1, 0.0, 1.0
        what = draw_card_choice(rng, split, groups=(LETTERS,))
        label = TASKS[task].index(what.content)
    else:
        what = draw_mover_choice(rng, split)
        length = frames + float(rng.uniform(2.0, 5.0))  # 6 to 9 s for 4 frames, as in videos of the probe world
        begin = -float(rng.uniform(0.0, length - frames))
        label = TASKS[task].index(what.direction)
    event = Event(what=what, start_seconds=begin, stop_seconds=begin + length, seed=int(rng.integers(2**31)))
    shot = random_shot(rng, clips, 0.0)
    video = ProbeVideo(
        seed=0,
        split=split,
        fps=1.0,
        num_frames=frames,
        size=SIZES[int(rng.integers(len(SIZES)))],
        shots=(shot,),
        events=(event,),
        foreign=(shot,),
    )
    return video, label


def tower_features(model: VideoLLM, videos: list[ProbeVideo], frames: int) -> Tensor:
    """What the DTS is given, ``(videos, frames, rows, columns, dim)``; a video of one frame is repeated."""
    side = model.config.vision_config.image_size
    shown = [pixels_of(next(video.frames(frames)), model.device) for video in videos]
    values = torch.cat([normalised_pixels(pixels, (side, side)) for pixels in shown]).to(model.dtype)
    features = model.on_grid(model.encode_frames(values))
    return features.unflatten(0, (len(videos), -1)).expand(-1, frames, -1, -1, -1)


def flat_places(tokens: Tensor, side: int) -> Tensor:
    """Tokens ``(clips, frames, rows, columns, dim)`` averaged to a grid and laid end to end, ``(clips, values)``."""
    channels_first = tokens.flatten(0, 1).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(channels_first, side).unflatten(0, tokens.shape[:2]).flatten(1)


def network_of(model: Model) -> VideoLLM:
    """The network of a loaded model. Raises LongtakeError for one that has no DTS to probe."""
    network = model.backbone.model
    if not isinstance(network, VideoLLM):
        raise LongtakeError(
            f"{model.backbone.name} has no DTS to probe; give a VideoLLM's folder or hub id, "
            "or none for the model in the package"
        )
    return network


def table(result: dict[str, Any]) -> str:
    """The accuracies as text: a line an arm, a column a task and classifier."""
    tasks = result["tasks"]
    columns = [(task, kind) for task in tasks for kind in KINDS]
    lines = ["features".ljust(14) + "".join(f"{task}, {kind}".rjust(20) for task, kind in columns)]
    for arm in next(iter(tasks.values()))["arms"]:
        lines.append(arm.ljust(14) + "".join(_shown(tasks[task]["arms"][arm][kind]) for task, kind in columns))
    lines.append("chance".ljust(14) + "".join(_shown(tasks[task]["chance"]) for task, _ in columns))
    return "\n".join(lines)


def _shown(cell: dict[str, Any]) -> str:
    spread = "" if cell["std"] is None else f" ± {cell['std']:.3f}"
    return f"{cell['mean']:.3f}{spread}".rjust(20)
