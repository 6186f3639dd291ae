"""Needles by depth and length to 8,192 frames: a decoder on a DTS with ReCoT, on two without, and the packaged model.

The packaged model's decoder reads long videos. Three arms fork it, each with a fresh projector, and learn for the same
steps from a frozen DTS: one pre-trained with ReCoT, one as that begins, one with random weights. Questions are about
one card, or chained: what came right after a card. Answers are kept beside the weights that gave them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from longtake.backbones.own import OwnVideoLLM
from longtake.data.probe_world.bank import GROUP, Mixer, cut_units, read_events
from longtake.data.probe_world.haystack import Clip
from longtake.data.probe_world.probe import ProbeVideo, make_video
from longtake.data.probe_world.questions import TASKS, Question, ask_all
from longtake.data.probe_world.regroup import group_frames
from longtake.eval.ablation_report import AblationTable
from longtake.eval.probe import ANSWER_TOKENS, QUESTIONS_A_VIDEO
from longtake.model import Model
from longtake.models.mean import TemporalMean
from longtake.models.video_llm import VideoLLM
from longtake.tables.ablations.arms import Arm, Pretraining, compressor_of, load_weights, pretraining_folder
from longtake.tables.ablations.heatmap_table import KINDS, PACKAGED, RANDOM, RECOT, START, table_of
from longtake.tables.ablations.jobs import Site, follow, processes, test_clips_at, world_at
from longtake.tables.ablations.plans import Costs
from longtake.tables.ablations.replies import Sight, ask_seen, ask_unseen, remember
from longtake.tables.ablations.world import BANK_FRAMES, GROUNDED_LAYER, Exam, World
from longtake.tables.operations import Part
from longtake.tables.replies import Replies
from longtake.tables.work_folder import named
from longtake.train import checkpoint
from longtake.train.checkpoint import Cycle
from longtake.train.embedded.decoder import DecoderRecipe, Phase, train_decoder
from longtake.train.embedded.groups import BankGroups, frozen_tokens
from longtake.train.embedded.lookback import look_back
from longtake.types import LongtakeError

STEP_SECONDS = 3.6  # core-seconds of a decoder's step, about: docs/training/decoder.jsonl, steps 1,100 to 1,400
VIDEOS = 20  # of each length
SIGHT = Sight(size=GROUP)
Models = Mapping[str, tuple[OwnVideoLLM, nn.Module]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapSize:
    """How large the heat-map is. lengths: in frames, ``videos`` of each. questions: about each, naming a card there."""

    lengths: tuple[int, ...] = (64, 256, 1024, 4096, 8192)
    videos: int = VIDEOS
    questions: int = 12
    steps: int = 600
    tokens: int = 6144

    def key(self) -> dict[str, Any]:
        """What names of kept weights and answers are made of: all but the number of videos, which may grow."""
        return dataclasses.asdict(dataclasses.replace(self, videos=VIDEOS))


FULL = HeatmapSize()
SMALLEST = HeatmapSize(lengths=(32, 64), videos=2, steps=2, tokens=1024)


def arms_of(world: World) -> dict[str, Arm]:
    """The forks: a DTS with ReCoT, one as that begins, and one with random weights."""
    before = Pretraining(steps=2 * world.size.pretraining_steps)
    return {RECOT: Arm(pretraining=before), START: Arm(), RANDOM: Arm(start="random")}


def decoder_recipe(size: HeatmapSize, seed: int) -> DecoderRecipe:
    """Lessons from short videos to 512 frames, some of them thinned from 8,192, as the packaged model had them."""
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


def folder_of(world: World, size: HeatmapSize, arm: Arm, seed: int) -> Path:
    """Where a fork's weights and answers are kept."""
    settings = {"arm": dataclasses.asdict(arm), "world": dataclasses.asdict(world.size), "seed": seed}
    return world.begun / named("long", settings | size.key())


def new_fork(world: World, seed: int) -> VideoLLM:
    """A model with the packaged one's settings, as its file has them: a backbone changes how its model attends."""
    config = VideoLLM.from_pretrained(world.model, dtype=torch.float32).config
    torch.manual_seed(seed)
    model = VideoLLM(config)
    look_back(model.language_model.model)
    return model


def trained(world: World, size: HeatmapSize, arm: Arm, seed: int) -> tuple[OwnVideoLLM, nn.Module]:
    """A fork of the packaged decoder on an arm's compressor: as kept, or trained now, on from where it was stopped.

    Raises LongtakeError where the packaged model has no scorer, without which long videos are not read.
    """
    scorer, folder = world.packaged.scorer, folder_of(world, size, arm, seed)
    if scorer is None:
        raise LongtakeError(f"{world.model} has no scorer to choose tokens of long videos; give a model with one")
    model = new_fork(world, seed)
    chosen = compressor_of(world, arm, seed)
    if checkpoint.last_step(folder) == size.steps:
        load_weights(checkpoint.modules_of(folder), model, chosen)
        return world.backbone(model), chosen
    begin = {"decoder": world.packaged.language_model.state_dict(), "scorer": scorer.state_dict()}
    print(folder.name, flush=True)
    model.to(world.device)  # type: ignore[arg-type]  # wrapped by transformers
    groups = BankGroups(world.features, group_frames(world.blocks, GROUP))
    tokens = frozen_tokens(groups, chosen.to(world.device), world.pool, world.device)
    mixer = Mixer(cut_units(read_events(world.bank), BANK_FRAMES // GROUP), "train")
    train_decoder(decoder_recipe(size, seed), model, world.tokenizer, tokens, mixer, folder, begin=begin)
    return world.backbone(model.cpu()), chosen.cpu()


def models_of(world: World, size: HeatmapSize, seed: int) -> Models:
    """All models that are asked; forks are trained where they are not."""
    models = {name: trained(world, size, arm, seed) for name, arm in arms_of(world).items()}
    return {**models, PACKAGED: (world.backbone(world.packaged), world.packaged.dts)}


def answer_files(world: World, size: HeatmapSize, seed: int, frames: int, number: int) -> dict[str, Path]:
    """Where each model's answers about a video are or will be, and the packaged model's without it ("blind")."""
    folders = {name: folder_of(world, size, arm, seed) / "answers" for name, arm in arms_of(world).items()}
    folders[PACKAGED] = world.begun / named("answers", size.key())
    files = {name: folder / f"{frames}-{number}.json" for name, folder in folders.items()}
    return {**files, "blind": folders[PACKAGED] / f"blind-{frames}-{number}.json"}


def missing(world: World, size: HeatmapSize, seed: int) -> list[tuple[int, int]]:
    """Videos, as frames and number, that not all models have been asked about."""
    videos = ((frames, number) for number, frames in product(range(size.videos), size.lengths))
    return [v for v in videos if not all(file.exists() for file in answer_files(world, size, seed, *v).values())]


def asked_about(size: HeatmapSize, clips: list[Clip], frames: int, number: int) -> tuple[ProbeVideo, list[Question]]:
    """A video, not rendered yet, and its questions."""
    rng = np.random.default_rng([number, frames, 6])
    cards = int(rng.integers(3, 7)) if frames >= 48 else None
    video = make_video(number, split="test", clips=clips, num_frames=frames, num_cards=cards)
    return video, chosen_questions(ask_all(video, rng, 4 * QUESTIONS_A_VIDEO), size.questions)


def chosen_questions(questions: Sequence[Question], limit: int) -> list[Question]:
    """Questions that name a card that is there, the two kinds in turn, as far as there are any."""
    kinds = [[q for q in questions if q.task in tasks and q.event is not None] for tasks in KINDS.values()]
    longest = max(len(kind) for kind in kinds)
    mixed = [kind[n] for n in range(longest) for kind in kinds if n < len(kind)]
    return mixed[:limit]


@torch.no_grad()
def ask_video(
    world: World, models: Models, size: HeatmapSize, seed: int, clips: list[Clip], frames: int, number: int
) -> None:
    """Watch a video once for all models that have not been asked about it, ask them, and keep their answers."""
    begun = time.perf_counter()
    video, asked = asked_about(size, clips, frames, number)
    features = torch.cat([world.encode(torch.from_numpy(chunk.pixels)) for chunk in video.frames()])
    exam = Exam(features=features[None], videos=(video,), questions=(tuple(asked),))
    for name, file in answer_files(world, size, seed, frames, number).items():
        if not file.exists():
            backbone, compressor = models[PACKAGED if name == "blind" else name]
            unseen = name == "blind"
            (ask_unseen(backbone, exam) if unseen else ask_seen(backbone, compressor, SIGHT, exam)).save(file)
    print(f"{frames} frames, video {number}: {time.perf_counter() - begun:.0f} s", flush=True)


def rows_of(world: World, size: HeatmapSize, seed: int) -> list[dict[str, Any]]:
    """A row a question: what it is about, and who was right. All videos have been asked about."""
    clips, rows = world.clips("test"), []
    for number, frames in product(range(size.videos), size.lengths):
        _, asked = asked_about(size, clips, frames, number)
        files = answer_files(world, size, seed, frames, number)
        right = {name: Replies.load(file).right(asked) for name, file in files.items()}
        blind = right.pop("blind")
        for place, question in enumerate(asked):
            assert question.event is not None
            rows.append(
                {
                    "task": question.task,
                    "truth": question.answer,
                    "frames": frames,
                    "video": number,
                    "depth": question.event.start_seconds / frames,
                    "right": {name: bool(own[place]) for name, own in right.items()},
                    "blind": bool(blind[place]),
                }
            )
    return rows


def run_heatmap(world: World, size: HeatmapSize, seed: int) -> AblationTable:
    """Train and ask what is missing, one after the other, and put the table together."""
    left = missing(world, size, seed)
    models = models_of(world, size, seed) if left else {}
    clips = world.clips("test")
    for frames, number in left:
        ask_video(world, models, size, seed, clips, frames, number)
    recot = arms_of(world)[RECOT]
    assert recot.pretraining is not None
    before = recot.pretraining.steps * Costs(world).pretraining(recot).operations
    note = (
        f"All three forks learn for {size.steps} steps from the tokens of one bank. ReCoT has on top of them "
        f"{recot.pretraining.steps} steps of pre-training, {before / 1e12:.3g} x 10^12 operations, and the others get "
        "nothing in their place."
    )
    return table_of(size.lengths, rows_of(world, size, seed), [note])


def run_jobs(site: Site, size: HeatmapSize, seed: int, jobs: int) -> None:
    """Do in ``jobs`` processes what the table misses: forks first, then videos by number, the longest first."""
    world = world_at(site)
    left = untrained(world, size, seed)
    if left:
        _ = world.bank
    with processes(jobs) as pool:
        follow([pool.submit(_train, site, size, arm, seed) for arm in left.values()])
        videos = sorted(missing(world, size, seed), key=lambda video: (video[1], -video[0]))
        follow([pool.submit(_ask, site, size, seed, frames, number) for frames, number in videos])


def untrained(world: World, size: HeatmapSize, seed: int) -> dict[str, Arm]:
    """Forks that have not been trained to their end."""
    return {
        name: arm
        for name, arm in arms_of(world).items()
        if checkpoint.last_step(folder_of(world, size, arm, seed)) != size.steps
    }


@lru_cache(maxsize=1)
def _models_at(site: Site, size: HeatmapSize, seed: int) -> Models:
    return models_of(world_at(site), size, seed)


def _train(site: Site, size: HeatmapSize, arm: Arm, seed: int) -> None:
    trained(world_at(site), size, arm, seed)


def _ask(site: Site, size: HeatmapSize, seed: int, frames: int, number: int) -> None:
    ask_video(world_at(site), _models_at(site, size, seed), size, seed, test_clips_at(site), frames, number)


def parts_of(world: World, size: HeatmapSize, seed: int, render: float) -> list[Part]:
    """What is still to be done, roughly; render: core-seconds of rendering and encoding a frame."""
    left, videos = untrained(world, size, seed), missing(world, size, seed)
    bank = int(bool(left) and not world.bank_done)
    parts = [Part(name="bank", times=bank, seconds=world.size.bank_videos * BANK_FRAMES * render)]
    for arm in left.values():
        before = arm.pretraining
        if before is not None:
            done = checkpoint.last_step(pretraining_folder(world, arm.size, before, seed)) == before.steps
            seconds = before.steps * Costs(world).pretraining(arm).seconds
            parts.append(Part(name=f"ReCoT, {before.steps} steps", times=int(not done), seconds=seconds))
    parts.append(Part(name=f"decoders, {size.steps} steps", times=len(left), seconds=size.steps * STEP_SECONDS))
    for frames in size.lengths:
        times = sum(of_video == frames for of_video, _ in videos)
        asked = (1 + len(arms_of(world))) * asking_seconds(world, frames, size.questions) if times else 0.0
        name = f"videos of {frames:,} frames, watched and asked about"
        parts.append(Part(name=name, times=times, seconds=frames * render + asked))
    return parts


@torch.no_grad()
def asking_seconds(world: World, frames: int, questions: int) -> float:
    """Core-seconds of one model's answers about a video, measured on made-up features.

    The first question reads the memory; where the context is too short for all of it, every question does.
    """
    rows, columns = world.packaged.config.tower_grid
    features = torch.randn(frames, rows * columns, world.size.dim).bfloat16()
    backbone = world.backbone(world.packaged)
    memory, model = remember(backbone, TemporalMean(GROUP), SIGHT, features), Model(backbone=backbone)
    spent = []
    for asked in ("What is on the red card?", "What is on the blue card?"):
        begun = time.process_time()
        model.ask(memory, asked, max_new_tokens=ANSWER_TOKENS)
        spent.append(time.process_time() - begun)
    first, other = spent
    return first + (questions - 1) * other
