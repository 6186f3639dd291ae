"""The arms of an ablation: a compressor, perhaps pre-trained, and a decoder that learns from it, kept by its settings.

One base decoder has learned to answer from means of four frames. Every arm forks it, with a fresh projector, on its own
compressor's tokens; arms with one seed see the same videos and questions in the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from longtake.data.clips import BankClips, ClipSource
from longtake.data.probe_world.questions import TASKS
from longtake.data.probe_world.regroup import RegroupedMixer, group_frames
from longtake.models.dts import DynamicTokenSynthesizer
from longtake.models.masking import Policy
from longtake.models.mean import TemporalMean
from longtake.models.recot import ReCoT, ReCoTOutput
from longtake.models.video_llm import VideoLLM
from longtake.tables.ablations.data import Kept, Samples, dataset
from longtake.tables.ablations.replies import Sight, ask_seen, ask_unseen
from longtake.tables.ablations.world import BANK_FRAMES, BLOCK, GROUNDED_LAYER, Exam, Size, World
from longtake.tables.replies import Replies
from longtake.tables.work_folder import named
from longtake.train import checkpoint
from longtake.train.checkpoint import Cycle
from longtake.train.embedded.decoder import DecoderRecipe, Phase, train_decoder
from longtake.train.embedded.groups import BankGroups, LiveTokens, frozen_tokens
from longtake.train.embedded.optimiser import Optimiser

LR, MUON_LR, WEIGHT_DECAY = 2e-4, 1e-3, 0.05  # of pre-training; a start at means does not survive higher ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    """How a DTS is pre-trained: ReCoT with the settings that ablations vary."""

    steps: int
    policy: Policy = "semantic"
    mask_ratio: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to make tokens of a video, and how long a decoder learns from them.

    size: frames of a group. every: of a video's frames only each n-th is seen. frames: of a video. start: a DTS begins
    as the mean of its frames, from which ReCoT goes on, or with random weights. pretraining: None leaves a DTS as it
    starts. trainable: the DTS is trained along with the decoder. samples, kept: what is learned from; see
    ``data.py``.
    """

    kind: Literal["mean", "DTS"] = "DTS"
    size: int = 4
    every: int = 1
    frames: int = 16
    start: Literal["mean", "random"] = "mean"
    pretraining: Pretraining | None = None
    trainable: bool = False
    steps: int = 0
    samples: Samples = "bank"
    kept: Kept = "all"

    @property
    def sight(self) -> Sight:
        """How the arm sees a video."""
        return Sight(size=self.size, every=self.every)


def new_compressor(arm: Arm, dim: int, seed: int) -> nn.Module:
    """An arm's compressor as it starts; DTSs with the same seed and group start equal."""
    if arm.kind == "mean":
        return TemporalMean(arm.size)
    torch.manual_seed(seed)
    dts = DynamicTokenSynthesizer(dim, arm.size)
    if arm.start == "mean":
        dts.start_as_mean()
    return dts


def compressor_of(world: World, arm: Arm, seed: int) -> nn.Module:
    """An arm's compressor before the decoder learns: fresh, or as its pre-training left it."""
    chosen = new_compressor(arm, world.size.dim, seed)
    if arm.pretraining is not None:
        chosen.load_state_dict(pretrain(world, arm.size, arm.pretraining, seed).dts.state_dict())
    return chosen


def new_recot(size: Size, frames_per_group: int, settings: Pretraining, seed: int) -> ReCoT:
    """A pre-training's model as it starts."""
    dts = new_compressor(Arm(size=frames_per_group), size.dim, seed)
    assert isinstance(dts, DynamicTokenSynthesizer)
    return ReCoT(size.dim, frames_per_group, policy=settings.policy, mask_ratio=settings.mask_ratio, dts=dts)


def pretrain(world: World, frames_per_group: int, settings: Pretraining, seed: int) -> ReCoT:
    """ReCoT on clips of eight frames of the bank, resuming from its folder in the work folder."""
    size, steps = world.size, settings.steps
    model = new_recot(size, frames_per_group, settings, seed)
    folder = pretraining_folder(world, frames_per_group, settings, seed)
    if checkpoint.last_step(folder) == steps:
        model.load_state_dict(checkpoint.modules_of(folder)["recot"])
        return model
    model.to(world.device)
    optimiser = Optimiser({"recot": model}, LR, MUON_LR, WEIGHT_DECAY)
    start = checkpoint.resume(folder, {"recot": model}, optimiser)
    print(folder.name, flush=True)
    clips, log = bank_clips(world), checkpoint.Log(folder / "log.jsonl", steps, start)
    if not start:
        model.start_at_means(clips.draw(np.random.default_rng([seed, 16]), 8 * size.clips).features.to(world.device))
    for step in range(start, steps):
        loss = recot_step(model, clips, size.clips, [seed, step]).loss
        optimiser.update(loss, checkpoint.cosine(step, steps, min(size.warmup, steps)))
        log.add(loss=loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            log.write(step + 1)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            checkpoint.save(folder, step + 1, {"recot": model}, optimiser)
    return model.cpu()


def pretraining_folder(world: World, frames_per_group: int, settings: Pretraining, seed: int) -> Path:
    """Where a pre-training is kept."""
    sizes = dataclasses.asdict(world.size)
    key = {"group": frames_per_group, "seed": seed, "settings": dataclasses.asdict(settings), "size": sizes}
    return world.work / named(f"recot-{frames_per_group}-{settings.policy}-{settings.steps}-{seed}", key)


def recot_step(model: ReCoT, clips: ClipSource, count: int, seeds: list[int]) -> ReCoTOutput:
    """One batch, which the seeds decide; paired pre-trainings see the same clips."""
    drawn = clips.draw(np.random.default_rng([*seeds, 17]), count)
    generator = torch.Generator().manual_seed(int(np.random.default_rng([*seeds, 18]).integers(1 << 62)))
    device = model.masking.mask_token.device
    needles = None if drawn.oracle is None else drawn.oracle.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        output: ReCoTOutput = model(
            drawn.features.to(device), drawn.is_image.to(device), generator=generator, oracle=needles
        )
    return output


def bank_clips(world: World, part: Literal["train", "held_out"] = "train") -> BankClips:
    """Clips of eight frames of the bank; the last tenth of its videos is held out."""
    grid = world.packaged.config.tower_grid
    settings: dict[str, Any] = {"grid": grid, "dim": world.size.dim, "frames_per_video": BANK_FRAMES, "frames": BLOCK}
    return BankClips(world.bank, part=part, **settings)


def decoder_recipe(size: Size, steps: int, frames: int, seed: int) -> DecoderRecipe:
    """Videos of one length with all kinds of questions; the rate rises once and falls once."""
    blocks = frames // BLOCK
    phase = Phase(
        until_step=steps,
        groups=(blocks, blocks),
        cards=6,
        tasks=TASKS,
        questions=size.questions,
        late=0.0,
        thin=0.0,
        videos=size.videos,
    )
    return DecoderRecipe(
        phases=(phase,),
        cycles=(Cycle(until_step=steps),),
        warmup=min(size.warmup, steps),
        jumps=0.0,
        grounded_layer=GROUNDED_LAYER,
        seed=seed,
    )


def base_arm(size: Size) -> Arm:
    """The arm that is not a fork."""
    return Arm(kind="mean", size=4, steps=size.base_steps)


def folder_of(world: World, arm: Arm, seed: int, forked: bool = True) -> Path:
    """Where an arm's weights and answers are kept."""
    sizes = dataclasses.asdict(world.size)
    key = {"forked": forked, "seed": seed, "arm": dataclasses.asdict(arm), "size": sizes}
    parts = ["arm" if forked else "base", arm.kind, arm.size, "recot" if arm.pretraining else "plain"]
    parts += ["live"] * arm.trainable + [arm.steps, seed]
    return world.work / named("-".join(map(str, parts)), key)


def trained(world: World, arm: Arm, seed: int, forked: bool = True) -> tuple[VideoLLM, nn.Module]:
    """An arm's model and compressor, trained now, on from where it was stopped, or as kept."""
    folder = folder_of(world, arm, seed, forked) / "decoder"
    model, chosen = world.fresh_model(seed), compressor_of(world, arm, seed)
    if checkpoint.last_step(folder) == arm.steps:
        load_weights(checkpoint.modules_of(folder), model, chosen)
        return model, chosen
    begin = begin_of(world) if forked else {}
    print(folder.parent.name, flush=True)
    model.to(world.device)  # type: ignore[arg-type]  # wrapped by transformers
    chosen.to(world.device)
    data = dataset(world, arm.samples, arm.kept, seed)
    groups = BankGroups(world.features, group_frames(data.blocks, arm.size, arm.every))
    make = LiveTokens if arm.trainable else frozen_tokens
    tokens = make(groups, chosen, world.pool, world.device)
    train_decoder(
        decoder_recipe(world.size, arm.steps, arm.frames, seed),
        model,
        world.tokenizer,
        tokens,
        RegroupedMixer(mixer=data.source, size=arm.size, every=arm.every),
        folder,
        begin=begin,
        along={"compressor": chosen} if arm.trainable else {},
    )
    return model.cpu(), chosen.cpu()


def begin_of(world: World) -> Mapping[str, Any]:
    """The base's weights that arms start from, trained now where there are none."""
    arm = base_arm(world.size)
    trained(world, arm, 0, forked=False)
    state = checkpoint.modules_of(folder_of(world, arm, 0, forked=False) / "decoder")
    return {name: state[name] for name in ("decoder", "ledger")}


def load_weights(state: Mapping[str, Any], model: VideoLLM, compressor: nn.Module) -> None:
    """What training left, by the names of its parts (``checkpoint.modules_of``), into a model and its compressor."""
    parts = {"projector": model.projector, "decoder": model.language_model, "compressor": compressor}
    if model.scorer is not None:
        parts["scorer"] = model.scorer
    for name, part in parts.items():
        if name in state:
            part.load_state_dict(state[name])


def run_arm(world: World, arm: Arm, seed: int, exam: Exam) -> Replies:
    """Train an arm and ask it about the test videos; kept answers are not asked for again."""
    file = folder_of(world, arm, seed) / "replies.json"
    if not file.exists():
        model, chosen = trained(world, arm, seed)
        ask_seen(world.backbone(model), chosen.eval(), arm.sight, exam).save(file)
    return Replies.load(file)


def run_base(world: World, frames: int, every: int, exam: Exam) -> tuple[Replies, Replies]:
    """The starting model's answers on videos of a length of which it sees one frame in ``every``, and blind ones."""
    arm = dataclasses.replace(base_arm(world.size), every=every)
    folder = folder_of(world, base_arm(world.size), 0, forked=False)
    seen, unseen = (folder / f"{name}-{frames}-{every}.json" for name in ("replies", "blind"))
    if not (seen.exists() and unseen.exists()):
        model, chosen = trained(world, base_arm(world.size), 0, forked=False)
        backbone = world.backbone(model)
        ask_seen(backbone, chosen, arm.sight, exam).save(seen)
        ask_unseen(backbone, exam).save(unseen)
    return Replies.load(seen), Replies.load(unseen)
