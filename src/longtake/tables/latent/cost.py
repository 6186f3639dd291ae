"""What arms of the tables about latents cost: operations, counted, and core-seconds, measured, on one video's tokens.

Operations are those of the passes forward and back of one batch, the rollout included; the tower's are told apart, as
tokens are made once for all arms. Seconds are the process's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from longtake.data.probe_world.haystack import drawn_clip
from longtake.data.probe_world.hops import draw_hop, form_of, hop_video, word_of
from longtake.data.probe_world.probe import ProbeVideo
from longtake.tables.latent.arms import LatentArm, answers, recipe_of
from longtake.tables.latent.world import HopWorld, Setting
from longtake.tables.operations import Cost, Operations
from longtake.tables.token_files import encoded
from longtake.train.forcing import Forcing, Rows
from longtake.train.latent_recipe import prepare
from longtake.train.puzzles import QuestionPuzzle
from longtake.types import VisualTokens


class LatentCosts:
    """What arms cost, each measured once."""

    def __init__(self, world: HopWorld, setting: Setting) -> None:
        self.world, self.setting = world, setting
        self._arm = lru_cache(maxsize=None)(lambda arm: arm_cost(world, setting, arm))
        self._asked = lru_cache(maxsize=None)(lambda arm: asking_seconds(world, setting, arm))

    def arm(self, arm: LatentArm) -> Cost:
        """What a training step after the bottleneck costs."""
        return self._arm(replace(arm, steps=0))

    def asked(self, arm: LatentArm) -> float:
        """Core-seconds of one question, with a trace of the longest kind where the arm says one."""
        return self._asked(replace(arm, steps=0))

    def encoding(self) -> Cost:
        """What encoding one video costs; measured anew, as it is kept by who asks."""
        return encoding_cost(self.world, self.setting)

    def operations(self, arm: LatentArm) -> float:
        """Operations of an arm's whole training."""
        return arm.steps * self.arm(arm).operations

    def as_costly(self, arm: LatentArm, as_arm: LatentArm) -> LatentArm:
        """An arm with as many steps as another's operations buy, within ``most_steps``."""
        return replace(arm, steps=self.arm(arm).steps(self.operations(as_arm), self.world.size.most_steps))


def made_up(world: HopWorld, setting: Setting) -> list[QuestionPuzzle]:
    """A batch of questions with the tokens of one video, without the footage."""
    tokens = drawn_tokens(world, setting)
    rng = np.random.default_rng(0)
    hops = [draw_hop(rng, "train", form_of(n), setting.frames) for n in range(world.size.batch)]
    return [
        QuestionPuzzle(
            name=str(n),
            question=hop.text,
            answers=(hop.answer, hop.trace),
            tokens=tokens,
            steps=tuple(map(word_of, hop.way)),
        )
        for n, hop in enumerate(hops)
    ]


def drawn_tokens(world: HopWorld, setting: Setting, fps: float = 1.0) -> VisualTokens:
    """Tokens of one video over a drawn scene, float32."""
    video = drawn_video(setting)
    tokens = encoded(world.start(), replace(video, fps=fps, num_frames=round(video.num_frames * fps)))
    return replace(tokens, features=tokens.features.float())


def drawn_video(setting: Setting) -> ProbeVideo:
    """One video over a drawn scene."""
    hop = draw_hop(np.random.default_rng(0), "train", form_of(0), setting.frames)
    return hop_video(hop, [drawn_clip(0, 4.0)], setting.frames, 0)


@torch.no_grad()
def encoding_cost(world: HopWorld, setting: Setting) -> Cost:
    """What encoding one rendered video costs."""
    backbone, video = world.start(), drawn_video(setting)
    (frames,) = video.frames(video.num_frames)
    return measured(lambda: backbone.encode(frames))


def arm_cost(world: HopWorld, setting: Setting, arm: LatentArm) -> Cost:
    """What one step of an arm's training costs."""
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
        steps=tuple(puzzle.steps for puzzle in puzzles),
        together=recipe.together,
        dense=(drawn_tokens(world, setting, fps=2.0),) * len(puzzles) if arm.teacher == "dense" else (),
    )

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = forcing(rows)[0]
        loss.backward()

    return measured(step)


def measured(step: Callable[[], object]) -> Cost:
    """What a step costs: operations as it is done once, core-seconds as it is done again."""
    with Operations() as counter:
        step()
    begun = time.process_time()
    step()
    return Cost(operations=counter.total, seconds=time.process_time() - begun)


def asking_seconds(world: HopWorld, setting: Setting, arm: LatentArm) -> float:
    """Core-seconds of one question; the model in the package, untrained for it, says about as much as a trace."""
    backbone, puzzles = world.start(), made_up(world, setting)
    if arm.thinking.latents:
        prepare(recipe_of(world, setting, arm, 0), backbone)
    begun = time.process_time()
    answers(backbone, puzzles, arm.thinking)
    return (time.process_time() - begun) / len(puzzles)


def video_seconds(world: HopWorld, setting: Setting) -> float:
    """Core-seconds of rendering and encoding one video, loading the model included."""
    begun = time.process_time()
    drawn_tokens(world, setting)
    return time.process_time() - begun
