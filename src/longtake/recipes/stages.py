"""Runs a recipe's stages one after the other in an output folder, each from what the one before it left.

``start/`` holds the model before any stage, ``features/`` the frozen tower's features, ``groups/`` what a frozen DTS
makes of those, and each stage's folder its settings, log, checkpoints and result.
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longtake.backbones.base import Backbone
from longtake.backbones.identity import weights_hash
from longtake.backbones.own import OwnVideoLLM
from longtake.data.clips import StoreClips
from longtake.data.conversations.conversations import Conversation, read_conversations
from longtake.data.conversations.media import MediaReader
from longtake.data.conversations.order import Source
from longtake.data.features import FeatureStore
from longtake.data.groups import GroupStore
from longtake.data.left_out import Broken
from longtake.models.preprocess import normalised_pixels
from longtake.models.processor import VideoLLMProcessor
from longtake.models.video_llm import VideoLLM
from longtake.outputs import write_json
from longtake.recipes.costs import estimate
from longtake.recipes.recipe import STAGES, DataFiles, Recipe
from longtake.recipes.settings import flat
from longtake.train import left_out
from longtake.train.align import train_align
from longtake.train.checkpoint import room_in
from longtake.train.dialogues import Material
from longtake.train.latent import train_latent
from longtake.train.latent_data import questions_of
from longtake.train.latent_recipe import LatentRecipe
from longtake.train.puzzles import QuestionPuzzle
from longtake.train.recot import WEIGHTS, ReCoTRecipe, load_dts, train_recot
from longtake.train.run import start_processes
from longtake.train.saving import load_model, save_model
from longtake.train.sft import train_sft
from longtake.types import Frames, LongtakeError, Sampling

if TYPE_CHECKING:
    from accelerate import Accelerator

# settings that decide how a stage runs and not what it learns: a stopped run may go on with others
FREE = ("shard", "zero", "offload", "checkpointing", "log_every", "save_every", "keep", "threads", "max_broken")


def run(recipe: Recipe, stages: Sequence[str], data: DataFiles | None, output: Path) -> bool:
    """Run these stages, in the recipe's order; a stage that was stopped goes on, one that is finished is passed over.

    data: None: what the recipe makes itself. Returns whether this process is the one that speaks for all.

    Raises LongtakeError for an unknown stage, for data that are neither given nor made, and for an output folder that
    holds a run of other settings; for what a chosen stage needs of the processes, before any of them runs.
    """
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise LongtakeError(f"the stage is {unknown[0]!r}; it must be one of {', '.join(STAGES)}")
    chosen = [stage for stage in STAGES if stage in stages]
    processes = start_processes(*(getattr(recipe, stage).fit for stage in chosen))
    if data is None:
        with processes.main_process_first():
            data = recipe.start.data(output / "data")
    if data is None:
        raise LongtakeError(f"the recipe {recipe.name} makes no data; give --data FILE and --media DIR")
    other = recipe.start.other_family() if chosen == ["latent"] else None
    if other is not None:
        think_stage(recipe.latent, other, other.name, data, output / "latent", processes)
        return bool(processes.is_main_process)
    begin(recipe, output, processes)
    for stage in chosen:
        run_stage(recipe, stage, data, output, processes)
    return bool(processes.is_main_process)


def begin(recipe: Recipe, output: Path, processes: Accelerator) -> None:
    """Save the model that all stages begin from, once."""
    folder = output / "start"
    settings = flat(recipe.start) | {"recipe": recipe.name}
    if processes.is_main_process:
        check_settings(folder, settings)
        if not (folder / "model").exists():
            save_model(*recipe.start.model(), folder / "model")
    processes.wait_for_everyone()


def run_stage(recipe: Recipe, stage: str, data: DataFiles, output: Path, processes: Accelerator) -> None:
    """One stage, from the newest model before it."""
    folder, own = output / stage, getattr(recipe, stage)
    model, processor, origin = model_before(stage, output)
    if stage == "latent":
        think_stage(own, OwnVideoLLM(model, processor), origin, data, folder, processes)
        return
    if processes.is_main_process:
        check_settings(folder, stage_settings(own, data, origin))
        print(estimate(stage, own, model.config, sources_of(data), processes.num_processes), flush=True)
    store = feature_store(model, output / "features", own.fit.precision)

    def groups() -> GroupStore:
        return group_store(model, output / "groups", own.fit.precision, processes.device)

    if stage == "recot":
        train = clips_of(own, store, conversations_of(data))
        held = held_clips_of(own, store, read_conversations(data.held, data.media)) if data.held else None
        model.vision_tower.to(processes.device)
        train_recot(own, model.config, train, folder, held=held, start_from=model.dts)
    elif stage == "align":
        train_align(own, model, processor, material(data, store, groups()), folder)
    else:
        kept = material(data, None if own.train_tower else store, groups() if own.frozen_before_projector else None)
        train_sft(own, model, processor, kept, folder)


def stage_settings(recipe: Any, data: DataFiles, origin: str) -> dict[str, Any]:
    """A stage's settings with those of its data, and what its model was made of, as they are kept beside it."""
    return flat(recipe) | {f"data.{name}": value for name, value in flat(data).items()} | {"from": origin}


def think_stage(
    recipe: LatentRecipe, backbone: Backbone, origin: str, data: DataFiles, folder: Path, processes: Accelerator
) -> None:
    """Every question of every conversation, whatever its file's weight, with its video encoded once for all steps.

    Every process reads all of them, so that each knows what cannot be read.
    """
    if processes.is_main_process:
        check_settings(folder, stage_settings(recipe, data, origin))
    backbone.model.to(processes.device).eval()
    asked = conversations_of(data)
    held = read_conversations(data.held, data.media) if data.held else []
    broken, held_broken = (Broken(count=len(each), share=recipe.reading.max_broken) for each in (asked, held))
    books = left_out.books_of(broken, held_broken)

    def questions(conversations: Sequence[Conversation], broken: Broken, times: int = 1) -> list[QuestionPuzzle]:
        sampling = recipe.reading.sampling.denser(times)
        reader = MediaReader(sampling, seed=recipe.fit.seed, frame_size=backbone.frame_size)
        return questions_of(conversations, reader, backbone, broken)

    with left_out.written(folder, books):
        dense = questions(asked, broken, 2) if recipe.teacher == "dense" and recipe.align else []
        learned, watched = questions(asked, broken), questions(held, held_broken)
    if processes.is_main_process:
        left_out.announce(folder, books)
    by_name = {puzzle.name: puzzle.tokens for puzzle in dense if puzzle.tokens is not None}
    train_latent(recipe, backbone, learned, folder, held=watched, dense=by_name)


def begun(folder: Path) -> bool:
    """Whether a stage has learned something in here, or a model was saved."""
    return ended(folder) or (folder / "log.jsonl").exists() or any(folder.glob("checkpoint-*.pt"))


def ended(folder: Path) -> bool:
    """Whether a stage has left its result in here."""
    return (folder / "model").exists() or (folder / WEIGHTS).exists()


def model_before(stage: str, output: Path) -> tuple[VideoLLM, VideoLLMProcessor, str]:
    """The model a stage begins from, its processor, and what it was made of.

    Raises LongtakeError where a stage before it was begun and not ended.
    """
    for earlier in STAGES[: STAGES.index(stage)]:
        if begun(output / earlier) and not ended(output / earlier):
            raise LongtakeError(
                f"{output / earlier} holds a run that was stopped, and {stage} would begin without it; "
                f"run --stage {earlier} to its end first, or delete the folder"
            )
    for earlier in {"sft": ("align",), "latent": ("sft", "align")}.get(stage, ()):
        if (output / earlier / "model").exists():
            model, processor = load_model(output / earlier / "model")
            return model, processor, earlier
    model, processor = load_model(output / "start" / "model")
    if stage == "recot" or not (output / "recot" / WEIGHTS).exists():
        return model, processor, "start"
    load_dts(model.dts, output / "recot")
    return model, processor, "start and recot"


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Keep a folder's settings with it. Raises LongtakeError where it holds a run of others that learned something."""
    file = folder / "settings.json"
    found = json.loads(json.dumps(settings))
    if file.exists() and begun(folder):
        kept = json.loads(file.read_text())
        names = [n for n in sorted(kept.keys() | found.keys()) if n.rsplit(".", 1)[-1] not in FREE]
        if other := [name for name in names if kept.get(name) != found.get(name)]:
            name = other[0]
            raise LongtakeError(
                f"{folder} holds a run with {name} = {kept.get(name)}, not {found.get(name)}; "
                "give the same settings to go on, or another --output"
            )
    with room_in(folder, "the settings file"):
        write_json(file, found, indent=1)


def feature_store(model: VideoLLM, folder: Path, precision: str) -> FeatureStore:
    """The tower's features, computed when they are asked for first, wherever the tower then is."""
    side = model.config.vision_config.image_size
    name = f"{weights_hash(model.vision_tower)}-{'normed' if model.config.vision_norm else 'raw'}-{precision}"

    def encode(frames: Frames) -> Tensor:
        device = next(model.vision_tower.parameters()).device
        pixels = normalised_pixels(torch.from_numpy(frames.pixels).to(device), (side, side))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return model.encode_frames(pixels)

    return FeatureStore(folder, name, encode, frame_size=(side, side))


def group_store(model: VideoLLM, folder: Path, precision: str, device: torch.device) -> GroupStore:
    """What the frozen DTS and pool make of the tower's features.

    It has a DTS of its own: processes that share a model's weights must call its parts equally often.
    """
    dts, config = copy.deepcopy(model.dts).to(device).eval(), model.config
    made = f"{config.grid}-{config.dts_layout}-{config.pool}-{config.pool_after_projector}-{precision}"
    name = f"{weights_hash(dts)}-{zlib.crc32(made.encode()):08x}"

    def compress(features: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return model.before_projector(dts(model.split_groups(features.to(device))))

    return GroupStore(folder, name, compress)


def sources_of(data: DataFiles) -> tuple[Source, ...]:
    """The data's files as sources by weight."""
    return tuple(
        Source(name=str(file), conversations=read_conversations(file, data.media), weight=weight)
        for file, weight in data.files
    )


def conversations_of(data: DataFiles) -> list[Conversation]:
    """All conversations of the data, without weights."""
    return [conversation for source in sources_of(data) for conversation in source.conversations]


def material(data: DataFiles, store: FeatureStore | None, groups: GroupStore | None = None) -> Material:
    """What a stage with words learns from."""
    held = Source(name="held", conversations=read_conversations(data.held, data.media)) if data.held else None
    return Material(sources=sources_of(data), held=held, store=store, groups=groups)


def clips_of(recipe: ReCoTRecipe, store: FeatureStore, conversations: Sequence[Conversation]) -> StoreClips:
    """What pre-training learns from: the media of conversations, each once, their words left aside."""
    return StoreClips(
        store,
        files_of(conversations, "video"),
        files_of(conversations, "image"),
        sampling=Sampling(fps=recipe.fps),
        frames=recipe.frames,
        image_share=recipe.image_share,
        max_broken=recipe.max_broken,
    )


def held_clips_of(recipe: ReCoTRecipe, store: FeatureStore, conversations: Sequence[Conversation]) -> StoreClips:
    """What pre-training is measured on; of media of one kind, clips of that kind. Raises LongtakeError without any."""
    videos, images = files_of(conversations, "video"), files_of(conversations, "image")
    if not (videos or images):
        raise LongtakeError("the held conversations have no media to measure recot on; run it without --held")
    share = recipe.image_share if videos and images else float(not videos)
    return clips_of(replace(recipe, image_share=share), store, conversations)


def files_of(conversations: Sequence[Conversation], kind: str) -> list[Path]:
    """Media of a kind, each once."""
    media = {medium.path: medium.kind for conversation in conversations for medium in conversation.media}
    return [path for path, found in media.items() if found == kind]
