"""The arms of an ablation: a compressor, perhaps pre-trained, and a decoder that learns from it; kept where it is named.

One base decoder has learned to answer from means of four frames. Every arm forks it, with a fresh projector, on its own
compressor's tokens; arms with one seed see the same videos and questions in the same order.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longtake.ask import ask
from longtake.backbones.own import OwnVideoLLM
from longtake.data.clips import BankClips, ClipSource
from longtake.data.questions import Question, normal, score
from longtake.data.regroup import RegroupedMixer
from longtake.eval.measures import Span
from longtake.eval.probe import ask_blind
from longtake.models.dts import DynamicTokenSynthesizer
from longtake.models.masking import Policy
from longtake.models.mean import TemporalMean
from longtake.models.recot import ReCoT
from longtake.models.video_llm import VideoLLM
from longtake.recipes.ablation_world import BANK_FRAMES, BLOCK, GROUNDED_LAYER, Size, Tests, World, kept, named
from longtake.train import checkpoint
from longtake.train.checkpoint import Cycle
from longtake.train.compressor import compress
from longtake.train.decoder import DecoderRecipe, Phase, train_decoder
from longtake.train.groups import LiveTokens, frozen_tokens
from longtake.train.optimiser import Optimiser
from longtake.types import Memory, Provenance, Sampling, VisualTokens

ALL_TASKS = ("what", "is_there", "order", "count", "when", "after", "direction")
ANSWER_TOKENS = 24
Kind = Literal["none", "mean", "DTS"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    """How a DTS was pre-trained; ReCoT with the settings that an ablation varies."""

    steps: int
    policy: Policy = "semantic"
    mask_ratio: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to make tokens of a video, and how long a decoder learns from them.

    size: frames of a group. every: of a video's frames only each n-th is seen. frames: of a video. pretraining: None
    leaves a DTS as it starts. trainable: the DTS is trained along with the decoder. data: which videos of the bank are
    learned from, by name; see ``ablation_pruning``.
    """

    kind: Kind = "DTS"
    size: int = 4
    every: int = 1
    frames: int = 16
    pretraining: Pretraining | None = None
    trainable: bool = False
    steps: int = 0
    data: str = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """What an arm answered to all questions about the test videos, in their order.

    spans: the best evidence span of each answer, None where there is none.
    """

    answers: tuple[str, ...]
    spans: tuple[Span | None, ...]

    def right(self, questions: Sequence[Question]) -> NDArray[np.float64]:
        """1 where an answer is right, ``(questions,)``."""
        return np.array([score(q, a) for q, a in zip(questions, self.answers, strict=True)], np.float64)


def new_compressor(arm: Arm, dim: int, seed: int) -> nn.Module:
    """An arm's compressor as it starts; DTSs with the same seed and group start equal."""
    if arm.kind != "DTS":
        return TemporalMean(arm.size)
    torch.manual_seed(seed)
    return DynamicTokenSynthesizer(dim, arm.size)


def compressor(world: World, arm: Arm, seed: int) -> nn.Module:
    """An arm's compressor before the decoder learns: fresh, or as its pre-training left it."""
    fresh = new_compressor(arm, world.size.dim, seed)
    if arm.pretraining is not None:
        trained = pretrain(world, arm.size, arm.pretraining, seed)
        fresh.load_state_dict(trained.dts.state_dict())
    return fresh


def new_recot(size: Size, frames_per_group: int, settings: Pretraining, seed: int) -> ReCoT:
    """A pre-training's model as it starts."""
    dts = new_compressor(Arm(size=frames_per_group), size.dim, seed)
    assert isinstance(dts, DynamicTokenSynthesizer)
    return ReCoT(size.dim, frames_per_group, policy=settings.policy, mask_ratio=settings.mask_ratio, dts=dts)


def pretrain(world: World, frames_per_group: int, settings: Pretraining, seed: int) -> ReCoT:
    """ReCoT on clips of eight frames of the bank, resuming from its folder in the work folder."""
    size = world.size
    model = new_recot(size, frames_per_group, settings, seed)
    key = {**dataclasses.asdict(settings), "size": dataclasses.asdict(size), "group": frames_per_group, "seed": seed}
    folder = world.work / named(f"recot-{frames_per_group}-{settings.policy}-{settings.steps}-{seed}", key)
    optimiser = Optimiser({"recot": model}, 1e-3, 3e-3, 0.05)
    start = checkpoint.resume(folder, {"recot": model}, optimiser)
    if start == settings.steps:
        return model
    clips = bank_clips(world)
    log = checkpoint.Log(folder / "log.jsonl", settings.steps, start)
    for step in range(start, settings.steps):
        loss = recot_step(model, clips, size.clips, [seed, step])
        optimiser.update(loss, checkpoint.cosine(step, settings.steps, min(size.warmup, settings.steps)))
        log.add(loss=loss.item())
        if (step + 1) % 50 == 0 or step + 1 == settings.steps:
            log.write(step + 1)
        if (step + 1) % 200 == 0 or step + 1 == settings.steps:
            checkpoint.save(folder, step + 1, {"recot": model}, optimiser)
    return model


def recot_step(model: ReCoT, clips: ClipSource, count: int, seeds: list[int]) -> Tensor:
    """The loss of one batch, which the seeds decide; paired pre-trainings see the same clips."""
    drawn = clips.draw(np.random.default_rng([*seeds, 17]), count)
    generator = torch.Generator().manual_seed(int(np.random.default_rng([*seeds, 18]).integers(1 << 62)))
    with torch.autocast("cpu", torch.bfloat16):
        return model(drawn.features, drawn.is_image, generator=generator, oracle=drawn.oracle).loss


def bank_clips(world: World) -> BankClips:
    """Clips of eight frames of the bank."""
    return BankClips(world.bank, BANK_FRAMES, BLOCK)


def decoder_recipe(size: Size, steps: int, frames: int, seed: int) -> DecoderRecipe:
    """Videos of one length with all kinds of questions; the rate rises once and falls once."""
    blocks = frames // BLOCK
    phase = Phase(
        until_step=steps,
        groups=(blocks, blocks),
        cards=6,
        tasks=ALL_TASKS,
        questions=size.questions,
        late=0.0,
        videos=size.videos,
    )
    return DecoderRecipe(
        phases=(phase,),
        cycles=(Cycle(until_step=steps),),
        warmup=min(size.warmup, steps),
        jumps=0.0,
        thin=0.0,
        grounded_layer=GROUNDED_LAYER,
        seed=seed,
    )


BASE = Arm(kind="mean", size=4)


def base(world: World) -> VideoLLM:
    """The decoder that arms fork: it has learned from the means of four frames."""
    return _train(world, dataclasses.replace(BASE, steps=world.size.base_steps), 0, forked=False)[0]


def arm_folder(world: World, arm: Arm, seed: int, forked: bool = True) -> Path:
    """Where an arm's weights and answers are kept."""
    key = {**dataclasses.asdict(arm), "size": dataclasses.asdict(world.size), "seed": seed, "forked": forked}
    pretrained = "" if arm.pretraining is None else "-recot"
    live = "-live" if arm.trainable else ""
    readable = f"{'arm' if forked else 'base'}-{arm.kind}-{arm.size}{pretrained}{live}-{arm.steps}-{seed}"
    return world.work / named(readable, key)


def _train(world: World, arm: Arm, seed: int, forked: bool = True) -> tuple[VideoLLM, nn.Module]:
    """An arm's decoder and compressor, trained or as kept."""
    folder = arm_folder(world, arm, seed, forked)
    model, chosen = world.fresh_model(seed), compressor(world, arm, seed)
    along = {"compressor": chosen} if arm.trainable else {}
    if checkpoint.last_step(folder / "decoder") == arm.steps:
        state = checkpoint.modules_of(folder / "decoder")
        model.projector.load_state_dict(state["projector"])
        model.language_model.load_state_dict(state["decoder"])
        if arm.trainable:
            chosen.load_state_dict(state["compressor"])
        return model, chosen
    print(folder.name, flush=True)
    begin = None
    if forked:
        base(world)
        started = checkpoint.modules_of(arm_folder(world, _base_arm(world), 0, forked=False) / "decoder")
        begin = {name: started[name] for name in ("decoder", "ledger")}
    groups = world.groups(arm.size, arm.every)
    tokens = LiveTokens(groups, chosen, world.pool) if arm.trainable else frozen_tokens(groups, chosen, world.pool)
    recipe = decoder_recipe(world.size, arm.steps, arm.frames, seed)
    mixer = RegroupedMixer(mixer=world.mixer_of(arm.data), size=arm.size, every=arm.every)
    train_decoder(recipe, model, world.tokenizer, tokens, mixer, folder / "decoder", begin=begin, along=along)
    return model, chosen


def _base_arm(world: World) -> Arm:
    return dataclasses.replace(BASE, steps=world.size.base_steps)


def run_arm(world: World, arm: Arm, seed: int, tests: Tests) -> Replies:
    """Train an arm and ask it about the test videos; a kept answer is not asked again."""
    file = arm_folder(world, arm, seed) / f"replies-{arm.frames}.json"
    if not file.exists():
        model, chosen = _train(world, arm, seed)
        _keep(file, replies(world.backbone(model), chosen.eval(), arm, tests, world.pool))
    return _read(file)


def run_base(world: World, frames: int, every: int, tests: Tests) -> tuple[Replies, Replies]:
    """The starting model's answers, and those without video."""
    arm = _base_arm(world)
    folder = arm_folder(world, arm, 0, forked=False)
    files = [folder / f"{name}-{frames}-{every}.json" for name in ("replies", "blind")]
    if not all(file.exists() for file in files):
        model = base(world)
        backbone = world.backbone(model)
        seen = dataclasses.replace(arm, every=every, frames=frames)
        _keep(files[0], replies(backbone, TemporalMean(arm.size), seen, tests, world.pool))
        _keep(files[1], blind_replies(backbone, tests))
    return _read(files[0]), _read(files[1])


@torch.no_grad()
def replies(backbone: OwnVideoLLM, chosen: nn.Module, arm: Arm, tests: Tests, pool: int) -> Replies:
    """Every question about every test video, asked through ``ask`` as of any watched video."""
    answers: list[str] = []
    spans: list[Span | None] = []
    for features, questions in zip(tests.features, tests.questions, strict=True):
        memory = remember(backbone, chosen, arm, features, pool)
        for question in questions:
            answer = ask(backbone, memory, question.text, max_new_tokens=ANSWER_TOKENS)
            best = answer.evidence[0] if answer.evidence else None
            answers.append(answer.text)
            spans.append(None if best is None else (best.start_seconds, best.stop_seconds))
    return Replies(answers=tuple(answers), spans=tuple(spans))


@torch.no_grad()
def remember(backbone: OwnVideoLLM, chosen: nn.Module, arm: Arm, features: Tensor, pool: int) -> Memory:
    """A memory of one video at a frame a second, from its tower features ``(frames, tokens, dim)``."""
    seen = features[:: arm.every].unflatten(0, (-1, arm.size))
    with torch.autocast("cpu", torch.bfloat16):
        groups = compress(chosen, seen, pool)
    rows, columns = backbone.model.config.token_grid
    projected = backbone.model.projector(groups.float()).flatten(0, 1)
    places = [torch.arange(n) for n in (len(groups), rows, columns)]
    position = torch.cartesian_prod(*places)
    group_seconds = float(arm.size * arm.every)
    tokens = VisualTokens(
        features=projected,
        position=position,
        seconds=position[:, 0].double() * group_seconds,
        weight=torch.full((len(position),), float(arm.size * pool**2)),
        grid=(len(groups), rows, columns),
    )
    provenance = Provenance(
        model=backbone.name,
        video="",
        video_identity="",
        sampling=Sampling(fps=1 / arm.every),
        frames=len(features[:: arm.every]),
        duration_seconds=float(len(features)),
    )
    return Memory(tokens=tokens, group_seconds=group_seconds, start_seconds=0.0, provenance=provenance)


def blind_replies(backbone: OwnVideoLLM, tests: Tests) -> Replies:
    """The same questions without the videos."""
    answers: list[str] = []
    for questions in tests.questions:
        answers += ask_blind_each(backbone, [question.text for question in questions])
    return Replies(answers=tuple(answers), spans=(None,) * len(answers))
