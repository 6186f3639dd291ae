"""The arms of each table about latents, what they cost, and what is compared with what."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from longtake.data.haystack import drawn_clip
from longtake.data.hops import draw_hop, form_of, hop_video
from longtake.models.latent import Thinking
from longtake.recipes.ablation_cost import ON_CPU, Cost
from longtake.recipes.latent_arms import LatentArm, answers, pausing, recipe_of
from longtake.recipes.latent_world import HopWorld, Setting, encoded
from longtake.train.forcing import Forcing, Rows
from longtake.train.latent_recipe import prepare
from longtake.train.puzzles import QuestionPuzzle
from longtake.types import VisualTokens

FORKED = (
    "Every arm goes on from one model that has learned from answers alone for a while; arms with one seed see the same "
    "questions in the same order. Test videos have other footage, cards and sentences than training."
)
EQUAL = (
    "Training operations are those of the latents, K = 8, unless an arm is named after its steps: those have the "
    "steps of the latents and fewer operations. A trace in words is annotation that no other arm has."
)
LATENTS = LatentArm(thinking=Thinking())
EIGHT = "latents, K = 8"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPlanned:
    """An arm of a table. starred: with every seed; else with the first one, exploratory."""

    name: str
    arm: LatentArm
    starred: bool = True

    def seeds(self, seeds: Sequence[int]) -> list[int]:
        """The seeds that it is trained with."""
        return list(seeds) if self.starred else list(seeds[:1])


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPlan:
    """One table before it is run. pairs: (arm, the arm it is compared with), by name."""

    name: str
    title: str
    notes: tuple[str, ...]
    arms: tuple[LatentPlanned, ...]
    pairs: tuple[tuple[str, str], ...]


class LatentCosts:
    """What arms cost, each measured once, on random tokens."""

    def __init__(self, world: HopWorld, setting: Setting) -> None:
        self.world, self.setting = world, setting
        self._arm = lru_cache(maxsize=None)(lambda arm: arm_cost(world, setting, arm))
        self._asked = lru_cache(maxsize=None)(lambda arm: asking_seconds(world, setting, arm))

    def arm(self, arm: LatentArm) -> Cost:
        """Of a training step after the bottleneck."""
        return self._arm(replace(arm, steps=0))

    def asked(self, arm: LatentArm) -> float:
        """Core-seconds of one question, with a trace of the longest kind where the arm says one."""
        return self._asked(replace(arm, steps=0))

    def operations(self, arm: LatentArm) -> float:
        """Of an arm's whole training."""
        return arm.steps * self.arm(arm).operations

    def as_costly(self, arm: LatentArm, as_arm: LatentArm) -> LatentArm:
        """An arm with as many steps as another's operations buy, at least one and at most ``most_steps``."""
        steps = round(self.operations(as_arm) / self.arm(arm).operations)
        return replace(arm, steps=min(self.world.size.most_steps, max(1, steps)))


def made_up(world: HopWorld, setting: Setting) -> list[QuestionPuzzle]:
    """A batch of questions with the tokens of one video, without the footage."""
    tokens = drawn_tokens(world, setting)
    rng = np.random.default_rng(0)
    hops = [draw_hop(rng, "train", form_of(n), setting.frames) for n in range(world.size.batch)]
    return [
        QuestionPuzzle(name=str(n), question=hop.text, answers=(hop.answer, hop.trace), tokens=tokens)
        for n, hop in enumerate(hops)
    ]


def drawn_tokens(world: HopWorld, setting: Setting) -> VisualTokens:
    """Of one video over a drawn scene."""
    hop = draw_hop(np.random.default_rng(0), "train", form_of(0), setting.frames)
    return encoded(world.start(), hop_video(hop, [drawn_clip(0, 4.0)], setting.frames, 0))


def arm_cost(world: HopWorld, setting: Setting, arm: LatentArm) -> Cost:
    """Of one step of an arm's training: operations counted, core-seconds measured."""
    recipe, backbone = recipe_of(world, setting, arm, 0), world.start()
    prepare(recipe, backbone)
    forcing, puzzles = Forcing(backbone, recipe), made_up(world, setting)
    slots = torch.zeros(0, 0) if backbone.latent is None else backbone.latent.slots.detach()
    rows = Rows(
        prompts=tuple(puzzle.prompt(backbone) for puzzle in puzzles),
        answers=tuple(puzzle.answers[arm.traced] for puzzle in puzzles),
        others=slots[None][:0],
        counts=torch.zeros(len(puzzles), 0, dtype=torch.bool),
        veiled=False,
        dense=tuple(puzzle.tokens for puzzle in puzzles) if arm.teacher == "dense" else (),
    )
    return measured(lambda: forcing(rows)[0])


def measured(loss: Callable[[], Tensor]) -> Cost:
    """Of a pass forward and back."""

    def once() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            found = loss()
        found.backward()  # type: ignore[no-untyped-call]

    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        once()
    begun = time.process_time()
    once()
    return Cost(operations=counter.get_total_flops(), seconds=time.process_time() - begun)


def asking_seconds(world: HopWorld, setting: Setting, arm: LatentArm) -> float:
    """Of one question; an untrained model talks as long as it may, about as long as a trace."""
    backbone, puzzles = world.start(), made_up(world, setting)
    if arm.thinking.latents:
        prepare(recipe_of(world, setting, arm, 0), backbone)
    begun = time.process_time()
    answers(backbone, puzzles, arm.thinking)
    return (time.process_time() - begun) / len(puzzles)


def video_seconds(world: HopWorld, setting: Setting) -> float:
    """Of rendering and encoding one video."""
    begun = time.process_time()
    drawn_tokens(world, setting)
    return time.process_time() - begun


def worth(costs: LatentCosts) -> LatentPlan:
    """What latents are worth beside answers alone, a trace in words, and learned vectors in their place."""
    steps = costs.setting.steps
    eight = replace(LATENTS, steps=steps)
    arms = [
        LatentPlanned(name=f"answer-only, {steps} steps", arm=LatentArm(steps=steps)),
        LatentPlanned(name="answer-only", arm=costs.as_costly(LatentArm(), eight)),
        LatentPlanned(name=f"trace in words, {steps} steps", arm=LatentArm(steps=steps, traced=True)),
        LatentPlanned(name="pause, K = 8", arm=costs.as_costly(pausing(8), eight)),
        LatentPlanned(name=EIGHT, arm=eight),
    ]
    for count in (2, 4, 16):
        arm = costs.as_costly(replace(LATENTS, thinking=Thinking(latents=count)), eight)
        arms.append(LatentPlanned(name=f"latents, K = {count}", arm=arm, starred=False))
    short, equal, trace, pause = (planned.name for planned in arms[:4])
    return LatentPlan(
        name="latent-worth",
        title="What latents are worth, by hops",
        notes=(FORKED, EQUAL),
        arms=tuple(arms),
        pairs=(
            *((EIGHT, name) for name in (short, equal, pause, trace)),
            (trace, short),
            (pause, equal),
            *((EIGHT, planned.name) for planned in arms[5:]),
        ),
    )


def parts(costs: LatentCosts) -> LatentPlan:
    """Latents without one of their parts, and other ways to make and to teach them."""
    eight = replace(LATENTS, steps=costs.setting.steps)
    others: list[tuple[str, LatentArm, bool]] = [
        ("without alignment", replace(LATENTS, align=0.0), True),
        ("without diversity", replace(LATENTS, diverse=0.0), True),
        ("without re-reading", replace(LATENTS, reread=False), True),
        ("without the bottleneck", replace(LATENTS, bottleneck=0.0), False),
        ("teacher: stretches of the video", replace(LATENTS, teacher="video"), False),
        ("teacher: a denser video", replace(LATENTS, teacher="dense"), False),
        ("one by one, no alignment", replace(LATENTS, thinking=Thinking(mode="autoregressive"), align=0.0), False),
        *((f"T = {n}", replace(LATENTS, thinking=Thinking(passes=n)), False) for n in (0, 1, 3)),
    ]
    arms = [LatentPlanned(name=EIGHT, arm=eight)]
    arms += [LatentPlanned(name=name, arm=costs.as_costly(arm, eight), starred=s) for name, arm, s in others]
    pairs = [(EIGHT, planned.name) for planned in arms[1:]]
    return LatentPlan(
        name="latent-parts",
        title="What the parts of latents are worth, by hops (T = 2, in parallel, teacher: themselves)",
        notes=(FORKED, "All arms have the training operations of the first."),
        arms=tuple(arms),
        pairs=(*pairs, ("one by one, no alignment", "without alignment")),
    )


PLANS = {"worth": worth, "parts": parts}
