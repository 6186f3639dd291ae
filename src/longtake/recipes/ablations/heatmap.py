"""Needles by depth and length to 8,192 frames: a decoder on a DTS with ReCoT, on one without, and the packaged model.

The packaged model's decoder reads long videos. Two arms fork it, each with a fresh projector, and learn for the same
steps from a frozen DTS: one pre-trained with ReCoT, one with random weights. Questions are about one card, or chained:
what came right after a card.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from longtake.backbones.own import OwnVideoLLM
from longtake.data.bank import GROUP, Mixer, cut_units, read_events
from longtake.data.haystack import Clip
from longtake.data.probe import make_video
from longtake.data.questions import TASKS, Question, ask_all, score
from longtake.data.regroup import group_frames
from longtake.eval.ablation import Estimate, difference, estimate
from longtake.eval.ablation_report import AblationTable, Finding, Row
from longtake.eval.plot import heat_maps
from longtake.eval.probe import ANSWER_TOKENS, QUESTIONS_A_VIDEO
from longtake.eval.report import DEPTHS
from longtake.model import Model
from longtake.models.video_llm import VideoLLM
from longtake.recipes.ablations.arms import Arm, Pretraining, compressor_of
from longtake.recipes.ablations.replies import Sight, remember
from longtake.recipes.ablations.selector import save
from longtake.recipes.ablations.world import BANK_FRAMES, GROUNDED_LAYER, World
from longtake.recipes.operations import Part
from longtake.recipes.work_folder import named
from longtake.train.checkpoint import Cycle
from longtake.train.decoder import DecoderRecipe, Phase, train_decoder
from longtake.train.groups import BankGroups, frozen_tokens
from longtake.train.lookback import look_back

KINDS = {"single": ("what",), "chained": ("after",)}
PACKAGED = "packaged"
STEP_SECONDS = 3.6  # core-seconds of a decoder's step, about: docs/training/decoder.jsonl, steps 1,100 to 1,400
SIGHT = Sight(size=GROUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapSize:
    """lengths: frames of the videos, that many of each. questions: about each that name a card that is there."""

    lengths: tuple[int, ...] = (64, 256, 1024, 4096, 8192)
    videos: int = 20
    questions: int = 12
    steps: int = 600
    tokens: int = 6144


FULL = HeatmapSize()
SMALLEST = HeatmapSize(lengths=(32, 64), videos=2, steps=2, tokens=1024)


def arms_of(world: World) -> dict[str, Arm]:
    """With and without ReCoT."""
    before = Pretraining(steps=2 * world.size.pretraining_steps)
    return {"ReCoT": Arm(pretraining=before), "random DTS": Arm(start="random")}


def decoder_recipe(size: HeatmapSize, seed: int) -> DecoderRecipe:
    """From short videos to those of 512 frames, some of them thinned from 8,192, as the packaged model was trained."""
    half = max(1, size.steps // 2)
    shared: dict[str, Any] = {"cards": 6, "tasks": TASKS, "questions": 12, "tokens": size.tokens}
    return DecoderRecipe(
        phases=(
            Phase(until_step=half, groups=(2, 24), stretch=8, **shared),
            Phase(until_step=size.steps, groups=(8, 128), stretch=16, **shared),
        ),
        cycles=(Cycle(until_step=size.steps),),
        warmup=min(50, size.steps),
        grounded_layer=GROUNDED_LAYER,
        seed=seed,
    )


def trained(world: World, size: HeatmapSize, arm: Arm, seed: int) -> tuple[OwnVideoLLM, nn.Module]:
    """A fork of the packaged decoder on an arm's compressor, resuming from its folder."""
    torch.manual_seed(seed)
    model = VideoLLM(copy.deepcopy(world.packaged.config))  # a backbone changes its model's
    look_back(model.language_model.model)
    scorer = world.packaged.scorer
    assert scorer is not None
    begin = {"decoder": world.packaged.language_model.state_dict(), "scorer": scorer.state_dict()}
    chosen = compressor_of(world, arm, seed)
    settings = {"arm": dataclasses.asdict(arm), "world": dataclasses.asdict(world.size), "seed": seed}
    folder = world.work / named("long", settings | dataclasses.asdict(size))
    model.to(world.device)  # type: ignore[arg-type]  # wrapped by transformers
    groups = BankGroups(world.features, group_frames(world.blocks, GROUP))
    tokens = frozen_tokens(groups, chosen.to(world.device), world.pool, world.device)
    mixer = Mixer(cut_units(read_events(world.bank), BANK_FRAMES // GROUP), "train")
    train_decoder(decoder_recipe(size, seed), model, world.tokenizer, tokens, mixer, folder, begin=begin)
    return world.backbone(model.cpu()), chosen.cpu()


def run_heatmap(world: World, size: HeatmapSize, seed: int) -> AblationTable:
    """Train both arms, then watch every video once for all models, and ask; a video's answers are kept."""
    models = {name: trained(world, size, arm, seed) for name, arm in arms_of(world).items()}
    models[PACKAGED] = (world.backbone(world.packaged), world.packaged.dts)
    names = {name: backbone.name for name, (backbone, _) in models.items()}
    folder = world.work / named("heatmap", {**names, **dataclasses.asdict(size), "footage": world.footage_names})
    clips = world.clips("test")
    rows: list[dict[str, Any]] = []
    for number in range(size.videos):
        for frames in size.lengths:
            file = folder / f"{frames}-{number}.json"
            if not file.exists():
                begun = time.perf_counter()
                save(file, ask_video(world, models, size, clips, frames, number))
                print(f"{frames} frames, video {number}: {time.perf_counter() - begun:.0f} s", flush=True)
            rows += json.loads(file.read_text())
    return table_of(size, rows)


@torch.no_grad()
def ask_video(
    world: World,
    models: Mapping[str, tuple[OwnVideoLLM, nn.Module]],
    size: HeatmapSize,
    clips: list[Clip],
    frames: int,
    number: int,
) -> list[dict[str, Any]]:
    """A row a question: what it is about, and which models were right."""
    rng = np.random.default_rng([number, frames, 6])
    cards = int(rng.integers(3, 7)) if frames >= 48 else None
    video = make_video(number, split="test", clips=clips, num_frames=frames, num_cards=cards)
    asked = chosen_questions(ask_all(video, rng, 4 * QUESTIONS_A_VIDEO), size.questions)
    features = torch.cat([world.encode(torch.from_numpy(chunk.pixels)) for chunk in video.frames()])
    rows: list[dict[str, Any]] = [
        {
            "task": question.task,
            "frames": frames,
            "video": number,
            "depth": question.event.start_seconds / frames if question.event else None,
            "right": {},
        }
        for question in asked
    ]
    for name, (backbone, compressor) in models.items():
        model, memory = Model(backbone=backbone), remember(backbone, compressor, SIGHT, features)
        for row, question in zip(rows, asked, strict=True):
            answer = model.ask(memory, question.text, max_new_tokens=ANSWER_TOKENS)
            row["right"] |= {name: score(question, answer.text)}
    return rows


def chosen_questions(questions: Sequence[Question], limit: int) -> list[Question]:
    """Questions that name a card that is there, the two kinds in turn, as far as there are any."""
    kinds = [[q for q in questions if q.task in tasks and q.event is not None] for tasks in KINDS.values()]
    longest = max(len(kind) for kind in kinds)
    mixed = [kind[n] for n in range(longest) for kind in kinds if n < len(kind)]
    return mixed[:limit]


def of_kind(rows: Sequence[dict[str, Any]], kind: str, frames: int | None = None) -> list[dict[str, Any]]:
    """Rows of one kind of question, of one length or all."""
    return [row for row in rows if row["task"] in KINDS[kind] and frames in (None, row["frames"])]


def right_of(rows: Sequence[dict[str, Any]], model: str) -> NDArray[np.float64]:
    """1 where a model was right, ``(1, questions)``."""
    return np.array([[row["right"][model] for row in rows]], np.float64)


def videos_of(rows: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
    """Videos of different lengths are different ones."""
    return np.array([row["video"] + 100_000 * row["frames"] for row in rows])


def table_of(size: HeatmapSize, rows: Sequence[dict[str, Any]]) -> AblationTable:
    """A row a model; with ReCoT against without, by length and in all."""
    names = list(rows[0]["right"])
    measures = {
        f"{kind}, {frames:,} frames" if frames else f"{kind}, all lengths": of_kind(rows, kind, frames)
        for kind in KINDS
        for frames in (*size.lengths, None)
    }
    asked = {measure: some for measure, some in measures.items() if some}
    findings = [
        Finding(
            arm=names[0],
            against=names[1],
            measure=measure,
            found=difference(right_of(some, names[0]), right_of(some, names[1]), videos_of(some)),
        )
        for measure, some in asked.items()
    ]
    cells: dict[str, dict[str, Estimate]] = {
        name: {measure: estimate(right_of(some, name), videos_of(some)) for measure, some in asked.items()}
        for name in names
    }
    maps = {f"{name}, {kind}": depth_map(size, of_kind(rows, kind), name) for name in names for kind in KINDS}
    return AblationTable(
        name="heatmap",
        title="Needles by depth and length, with ReCoT and without",
        notes=(
            "One seed, exploratory. ReCoT and random DTS: forks of the packaged decoder with a fresh projector, as "
            "many steps each, the DTS frozen. Packaged: as it is, for comparison; it was trained much longer.",
            "Single: what is on a card. Chained: what came right after a card.",
        ),
        rows=tuple(Row(arm=name, cells=own) for name, own in cells.items()),
        findings=tuple(findings),
        settings={"depth by length": maps},
    )


def depth_map(size: HeatmapSize, rows: Sequence[dict[str, Any]], model: str) -> list[list[float | None]]:
    """Share of right answers by depth of the card asked about and length, ``(depths, lengths)``; None of none."""
    cells: list[list[float | None]] = []
    for depth in range(DEPTHS):
        here = [row for row in rows if min(DEPTHS - 1, int(row["depth"] * DEPTHS)) == depth]
        asked = [[row for row in here if row["frames"] == frames] for frames in size.lengths]
        cells.append([round(float(right_of(own, model).mean()), 3) if own else None for own in asked])
    return cells


def parts_of(size: HeatmapSize, render: float) -> list[Part]:
    """What it costs from the start, roughly; render: core-seconds of rendering and encoding a frame."""
    watched = size.videos * sum(size.lengths) * render
    return [
        Part(name="decoders", times=2, seconds=size.steps * STEP_SECONDS),
        Part(name="videos, rendered and encoded", times=1, seconds=watched),
    ]


def picture(table: AblationTable, size: HeatmapSize, folder: Path) -> None:
    """A heat-map a model and kind of question."""
    panels = {name: np.array(cells, np.float64) for name, cells in table.settings["depth by length"].items()}
    scratch = folder / f"{table.name}.tmp.png"
    heat_maps(table.title, panels, size.lengths, scratch)
    scratch.replace(folder / f"{table.name}.png")
