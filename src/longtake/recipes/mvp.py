"""Teach a model on puzzles from unlabelled footage: a warm-up on the answer's form, then policy optimisation.

Run: longtake train mvp PUZZLES -o FOLDER [--set start.folder=FOLDER], or mvp_embedded

PUZZLES is what ``longtake synth mvp`` wrote. Task and policy optimisation on it: MVP, arXiv 2601.03781, whose figures
are not public; all sizes and rates here are ours, for a model of the size of the one in the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from longtake.backbones import load_backbone
from longtake.backbones.base import Backbone
from longtake.data.puzzles.puzzle import Order
from longtake.model import EMBEDDED
from longtake.recipes.mvp_replay import Replay
from longtake.train.grpo_recipe import GrpoRecipe
from longtake.train.imitate import ImitateRecipe
from longtake.train.mvp import PuzzleControl
from longtake.train.rendering import Rendering
from longtake.train.rewards import Form, PuzzleReward
from longtake.train.rollouts import Draw
from longtake.train.run import Fit
from longtake.types import LongtakeError

BEGINNINGS = ("compare", "order", "warm")  # stages that others begin from, the last of those that were run
PUZZLE_STAGES = (*BEGINNINGS, "grpo", "supervised")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which puzzles, and how they are asked.

    levels: by name; none: all. control, times: see ``train.mvp.MvpPuzzle``; control holds for training and held-out
    puzzles alike. only_order: the missing frames and those beside their gap alone, as the stage "order" has them.
    form: of the answer; order: how its order is rewarded. rendering: of the pictures.
    watched: held-out puzzles that are asked while a stage runs; most_held: in the end; as many of each level.
    controls: under which the models are asked too in the end, where ``control`` is "none".
    """

    levels: tuple[str, ...] = ()
    control: PuzzleControl = "none"
    times: bool = True
    only_order: bool = False
    form: Form = "answer"
    order: Order = "pairs"
    rendering: Rendering = field(default_factory=Rendering)
    watched: int = 60
    most_held: int = 300
    controls: tuple[PuzzleControl, ...] = ("blind", "candidates", "foreign", "shuffled")

    def __post_init__(self) -> None:
        if self.watched < 1 or self.most_held < 1:
            raise LongtakeError(f"watched is {self.watched} and most_held {self.most_held}; both must be at least 1")
        self.scoring()

    def scoring(self) -> PuzzleReward:
        """How answers are rewarded."""
        return PuzzleReward(form=self.form, order=self.order)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartModel:
    """A saved model of any family. folder: empty for the model in the package."""

    folder: str = ""

    def backbone(self) -> Backbone:
        """The model in float32."""
        return load_backbone(self.folder or str(EMBEDDED), dtype=torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class MvpRecipe:
    """Stages on puzzles; "grpo" and "supervised" both begin from "warm", where that was run, else from what was before.

    compare: on ``copies`` lessons of ``train.copies``, whatever the puzzles. order: on what ``train.easing`` leaves of
    them, missing frames moved towards their gap ever less over the first ``ease`` of its steps.
    replay: questions beside the puzzles of every stage. teacher: the folder of a model with the same tokenizer, whose
    probabilities "grpo" learns from by a method with teaching ("opd").
    """

    name: str
    start: StartModel = field(default_factory=StartModel)
    puzzles: Choice = field(default_factory=Choice)
    compare: ImitateRecipe
    copies: int = 200
    order: ImitateRecipe
    ease: float = 0.4
    warm: ImitateRecipe
    grpo: GrpoRecipe
    supervised: ImitateRecipe
    replay: Replay = field(default_factory=Replay)
    teacher: str = ""
    stages: tuple[str, ...] = ("warm", "grpo")

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise LongtakeError(f"copies is {self.copies}; it must be at least 1")
        if not 0 < self.ease <= 1:
            raise LongtakeError(f"ease is {self.ease}; it must be above 0 and at most 1")
        learning = [stage for stage in PUZZLE_STAGES if getattr(self, stage).train_video]
        if self.replay.count and learning:
            raise LongtakeError(
                f"replay.count is {self.replay.count}, but {learning[0]}.train_video is true and replayed videos keep "
                "their tokens; set one of them to 0 or false"
            )


def mvp() -> MvpRecipe:
    """A thousand steps of eight puzzles. For a large model take LoRA: grpo.lora_rank=64, grpo.fit.lr=1e-5."""
    fit = Fit(lr=3e-5, batch=8, steps=1000, eval_every=100, save_every=50)
    learn = replace(fit, lr=1e-4, micro_batch=4)
    warm = replace(learn, lr=5e-4, steps=150, warmup=0.1)
    many = replace(learn, lr=5e-4, beta2=0.98, batch=32, micro_batch=32, steps=1000)
    compare = ImitateRecipe(fit=many, weights={"exact": 1.0}, max_new_tokens=8)
    return MvpRecipe(
        name="mvp",
        compare=compare,
        order=ImitateRecipe(fit=replace(many, lr=3e-4, warmup=0.1, steps=2000), max_new_tokens=40),
        warm=ImitateRecipe(fit=warm, target="form", max_new_tokens=40),
        grpo=GrpoRecipe(fit=fit, draw=Draw(group=8, max_new_tokens=40)),
        supervised=ImitateRecipe(fit=learn, max_new_tokens=40),
    )


def mvp_embedded() -> MvpRecipe:
    """What the tables of docs/mvp.md begin from: right answers, pictures relative and turned, and a replay.

    Half an hour of a core. The model in the package learns a shortcut by it, as relative tokens tell by their size what
    is missing. Policy optimisation goes on from what it leaves (``start.folder``).
    """
    recipe = mvp()
    fit = replace(recipe.supervised.fit, lr=6e-4, batch=16, micro_batch=16, steps=1400, eval_every=200)
    rendering = Rendering(side=2, relative=True, turned=0.9)
    return replace(
        recipe,
        name="mvp_embedded",
        puzzles=Choice(form="direct", rendering=rendering, watched=200),
        supervised=replace(recipe.supervised, fit=fit),
        replay=Replay(count=4, videos=200, held_videos=10),
        stages=("supervised",),
    )


def mvp_debug() -> MvpRecipe:
    """A few steps on the easiest level, in seconds on a CPU; it learns the answer's form and next to nothing more."""
    recipe = mvp()
    fit = Fit(lr=1e-4, batch=2, steps=4, precision="fp32", log_every=1, eval_every=2, save_every=2)
    warm = replace(fit, lr=2e-3, batch=4, micro_batch=4, steps=40, warmup=0.1, log_every=4, eval_every=40)
    return replace(
        recipe,
        name="mvp_debug",
        puzzles=Choice(levels=("L1",), watched=2, most_held=4, controls=("blind",)),
        warm=replace(recipe.warm, fit=warm, max_new_tokens=20),
        compare=replace(recipe.compare, fit=fit),
        copies=4,
        order=replace(recipe.order, fit=fit, max_new_tokens=20),
        grpo=GrpoRecipe(fit=fit, draw=Draw(group=4, max_new_tokens=20), samples_every=2),
        supervised=replace(recipe.supervised, fit=fit, max_new_tokens=20),
    )
