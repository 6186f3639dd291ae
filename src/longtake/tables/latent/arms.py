"""The arms of the tables about latents: what is said before an answer, how it is learned, and what is then answered.

Every arm goes on from one model, that in the package or one that has learned from answers alone for a while, with one
seed through the same questions in the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtake.backbones import load_backbone
from longtake.backbones.base import Backbone
from longtake.backbones.thinking import think, with_columns_of
from longtake.data.probe_world.hops import LONGEST_TRACE, conclusion
from longtake.models.latent import LatentSettings, Thinking, matched_noise, mean_latents, one_repeated
from longtake.tables.latent.world import HopExam, HopWorld, Setting
from longtake.tables.replies import Replies
from longtake.tables.work_folder import named
from longtake.train.embedded.compressor import CPU
from longtake.train.latent import train_latent
from longtake.train.latent_recipe import Begin, Hides, LatentRecipe, Teacher
from longtake.train.puzzles import QuestionPuzzle
from longtake.train.run import Fit
from longtake.types import VisualTokens

ROWS = 16  # questions that are answered together
FOR_MEAN = 256  # training questions whose latents make the mean
NONE = Thinking(latents=0)

Given = Literal["markers", "repeated", "noise", "swapped", "mean"]
Control = Given | Literal["columns"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentArm:
    """One way to come to an answer. thinking: latents before it, none by default; traced: a chain of thought in words.

    The rest is as in ``LatentRecipe``, and counts where there are latents.
    """

    steps: int = 0
    traced: bool = False
    thinking: Thinking = NONE
    align: float = 0.1
    diverse: float = 0.1
    bottleneck: float = 0.15
    spell: float = 0.0
    hides: Hides = "video"
    through: bool = False
    begin: Begin = "drawn"
    teacher: Teacher = "self"
    reread: bool = True


def pausing(latents: int) -> LatentArm:
    """Learned vectors in the place of latents: nothing is fed back, read again, aligned or kept diverse.

    The bottleneck stays, so that what is compared is what latents hold, and not how they are taught.
    """
    thinking = Thinking(latents=latents, mode="pause")
    return LatentArm(thinking=thinking, align=0.0, diverse=0.0, reread=False)


def recipe_of(world: HopWorld, setting: Setting, arm: LatentArm, seed: int) -> LatentRecipe:
    """How an arm is trained."""
    size = world.size
    fit = Fit(
        lr=setting.lr, batch=size.batch, micro_batch=size.batch, steps=max(1, arm.steps), weight_decay=0.01,
        warmup=0.05, seed=seed, log_every=20, eval_every=max(1, world.curve_every), save_every=100, keep=1,
    )  # fmt: skip
    if not arm.thinking.latents:
        return LatentRecipe(fit=fit, together=size.together, thinks=False)
    return LatentRecipe(
        fit=fit,
        together=size.together,
        settings=LatentSettings(thinking=arm.thinking, width=size.width, heads=size.heads, reread=arm.reread),
        align=arm.align,
        diverse=arm.diverse,
        bottleneck=arm.bottleneck,
        spell=arm.spell,
        hides=arm.hides,
        through=arm.through,
        begin=arm.begin,
        teacher=arm.teacher,
    )


def base_arm(setting: Setting) -> LatentArm:
    """The arm that all others go on from."""
    return LatentArm(steps=setting.base_steps)


def folder_of(world: HopWorld, setting: Setting, arm: LatentArm, seed: int, *, forked: bool = True) -> Path:
    """Where an arm's weights and answers are kept, its log with the curve among them; the base has none."""
    size = world.size
    begun = setting if forked else dataclasses.replace(setting, steps=0)  # settings may share a base
    key: dict[str, object] = {
        "setting": dataclasses.asdict(begun), "arm": dataclasses.asdict(arm), "seed": seed, "forked": forked,
        "size": [size.train_videos, size.batch, size.together, size.width, size.heads],
        "footage": world.footage_names, "model": world.start_name, "questions": world.digest("train", setting.frames),
    }  # fmt: skip
    if forked and world.curve_every:
        key["curve"] = [world.curve_every, world.digest("curve", setting.frames)]
    silent = f"{arm.thinking.mode}-{arm.thinking.latents}" if arm.thinking.latents else "answer"
    says = "trace" if arm.traced else silent
    return world.work / named(f"{'arm' if forked else 'base'}-{says}-{arm.steps}-{seed}", key)


def trained(world: HopWorld, setting: Setting, arm: LatentArm, seed: int, *, forked: bool = True) -> Backbone:
    """An arm's model, trained now, on from where it was stopped, or as kept; a base of no steps is the package's."""
    if not forked and not arm.steps:
        return world.start()
    folder = folder_of(world, setting, arm, seed, forked=forked)
    if not (folder / "model").exists():
        begin = trained(world, setting, base_arm(setting), 0, forked=False) if forked else world.start()
        print(folder.name, flush=True)
        dense = dense_of(world, setting) if arm.teacher == "dense" else None
        puzzles = world.puzzles("train", setting.frames, traced=arm.traced)
        exam = halfway(world, setting, begin, arm.thinking) if forked and world.curve_every else None
        train_latent(recipe_of(world, setting, arm, seed), begin, puzzles, folder, dense=dense, exam=exam)
    for file in folder.glob("checkpoint-*.pt"):
        file.unlink()  # the model is whole, and there are many arms
    return load_backbone(str(folder / "model"), CPU, torch.float32)


def halfway(
    world: HopWorld, setting: Setting, backbone: Backbone, thinking: Thinking
) -> Callable[[], dict[str, float]]:
    """Asks a model the curve's questions: the shares right of all, of those of one hop, and of several.

    Where it thinks, also what is lost, of all, with the latents of a pair's other video.
    """
    exam = world.exam("curve", setting.frames)
    single = np.array([hop.hops == 1 for hop in exam.hops])

    def figures() -> dict[str, float]:
        said = answers(backbone, exam.puzzles, thinking)
        right = right_of(said, exam)
        parts = {"right": right, "right_single": right[single], "right_several": right[~single]}
        if thinking.latents and thinking.mode != "pause":
            others = latents_of_other_videos(backbone, exam, thinking)
            parts["lost_swapped"] = right - right_of(answers(backbone, exam.puzzles, thinking, others), exam)
        return {name: float(own.mean()) for name, own in parts.items()}

    return figures


def right_of(said: Sequence[str], exam: HopExam) -> NDArray[np.float64]:
    """1 where what was said is right, ``(questions,)``."""
    return Replies(answers=tuple(said), spans=(None,) * len(said)).right(exam.asked)


def dense_of(world: HopWorld, setting: Setting) -> dict[str, VisualTokens]:
    """Training videos with twice the frames, by the question's name."""
    names = [puzzle.name for puzzle in world.puzzles("train", setting.frames)]
    return dict(zip(names, world.tokens("train", setting.frames, 2.0), strict=True))


@torch.no_grad()
def answers(
    backbone: Backbone,
    puzzles: Sequence[QuestionPuzzle],
    thinking: Thinking,
    given: Tensor | None = None,
    *,
    blind: bool = False,
    exchanged: bool = False,
) -> list[str]:
    """What is concluded, greedily. given: latents in place of its own, ``(questions, latents, dim)``.

    exchanged: the latents' columns are those of the pair's other video.
    """
    found = []
    for first in range(0, len(puzzles), ROWS):
        asked = [puzzle.prompt(backbone) for puzzle in puzzles[first : first + ROWS]]
        prompts = [prompt.unseen() for prompt in asked] if blind else asked
        latents = None if given is None else given[first : first + ROWS]
        made = think(backbone, backbone.prepare(prompts), thinking=thinking, given=latents)
        if exchanged:
            made = with_columns_of(backbone, made, torch.arange(len(prompts)) ^ 1)
        said = backbone.generate(made.inputs, made.cache, max_new_tokens=LONGEST_TRACE)
        found += [conclusion(rollout.text) for rollout in said]
    return found


@torch.no_grad()
def latents_of(backbone: Backbone, puzzles: Sequence[QuestionPuzzle], thinking: Thinking) -> Tensor:
    """The latents that each question leads to, ``(questions, latents, dim)``."""
    parts = [puzzles[first : first + ROWS] for first in range(0, len(puzzles), ROWS)]
    made = [
        think(backbone, backbone.prepare([puzzle.prompt(backbone) for puzzle in part]), thinking=thinking).latents
        for part in parts
    ]
    return torch.cat(made)


def latents_of_other_videos(backbone: Backbone, exam: HopExam, thinking: Thinking) -> Tensor:
    """The latents that each question leads to on the pair's other video, ``(questions, latents, dim)``."""
    return latents_of(backbone, exam.puzzles, thinking)[torch.arange(len(exam.puzzles)) ^ 1]


def controlled(
    world: HopWorld, setting: Setting, backbone: Backbone, exam: HopExam, thinking: Thinking, control: Given
) -> Tensor:
    """What stands in the place of each question's latents, ``(questions, latents, dim)``.

    "markers": none; "repeated": the first slot's own vector; "noise": Gaussian, of the same RMS; "swapped": those of
    the pair's other video; "mean": of training questions.
    """
    module, count, questions = backbone.latent, thinking.latents, len(exam.puzzles)
    assert module is not None
    if control == "markers":
        return module.slots[:0].detach().expand(questions, -1, -1)
    if control == "repeated":
        return one_repeated(module, count).detach().expand(questions, -1, -1)
    if control == "noise":
        return matched_noise(module, questions, count, torch.Generator().manual_seed(71)).detach()
    if control == "swapped":
        return latents_of_other_videos(backbone, exam, thinking)
    some = world.puzzles("train", setting.frames)[:FOR_MEAN]
    return mean_latents(module, latents_of(backbone, some, thinking)).detach().expand(questions, -1, -1)


def replies_of(
    world: HopWorld, setting: Setting, arm: LatentArm, seed: int, exam: HopExam, *,
    part: str = "exam", forked: bool = True, blind: bool = False, control: Control | None = None,
) -> Replies:  # fmt: skip
    """What an arm answers, trained first where it is not; kept answers are not asked for again."""
    folder = folder_of(world, setting, arm, seed, forked=forked)
    file = folder / f"{'blind' if blind else control or 'replies'}-{part}-{exam.digest}.json"
    if not file.exists():
        backbone = trained(world, setting, arm, seed, forked=forked)
        given = None
        if control is not None and control != "columns":
            given = controlled(world, setting, backbone, exam, arm.thinking, control)
        said = answers(backbone, exam.puzzles, arm.thinking, given, blind=blind, exchanged=control == "columns")
        Replies(answers=tuple(said), spans=(None,) * len(said)).save(file)
    return Replies.load(file)
