"""What the tables about puzzles share: the recipe of each seed, one warm-up a seed, and what a step costs. Ours.

Everything that is trained or answered stays in a work folder named after recipe and puzzles.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from longtake.backbones import load_backbone
from longtake.backbones.base import Backbone
from longtake.data.probe_world.haystack import footage_names
from longtake.data.puzzles.puzzle_file import PUZZLES
from longtake.outputs import write_json
from longtake.recipes.mvp import Choice, MvpRecipe, StartModel, mvp_debug
from longtake.recipes.mvp_stages import Material, gather, run_stage
from longtake.recipes.settings import flat
from longtake.tables.operations import Cost, Operations, Part
from longtake.train.beside import Beside
from longtake.train.curriculum import CurriculumRecipe
from longtake.train.grpo import train_grpo
from longtake.train.grpo_recipe import GrpoRecipe
from longtake.train.imitate import ImitateRecipe, train_imitation
from longtake.train.puzzles import Puzzle
from longtake.train.run import start_processes

EVENLY = CurriculumRecipe(by_success=False)  # what is drawn depends on the seed alone
Lessons = tuple[Sequence[Puzzle], Sequence[Beside]]  # an arm's own puzzles, and those beside them


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where tables are made: puzzles, the work folder and the recipe of one seed.

    footage: a folder of videos for the probe world's questions; None for drawn scenes.
    """

    puzzles: Path
    work: Path
    recipe: MvpRecipe
    footage: Path | None = None

    def folder(self, seed: int) -> Path:
        """The folder of a seed's run."""
        return self.work / f"seed-{seed}"

    @property
    def footage_names(self) -> list[str]:
        """Part of what names questions and those who learned from them."""
        return footage_names(self.footage)

    def blind(self, seed: int) -> Path:
        """The folder of a seed's run that never sees a picture."""
        return self.work / f"blind-{seed}"

    def material(self) -> Material:
        """The puzzles of all tables, read and split."""
        return gather(self.recipe, self.puzzles, self.work)


def work_name(recipe: MvpRecipe, puzzles: Path) -> str:
    """The work folder's name: other settings, puzzles or weights to begin from get one of their own."""
    told = flat(recipe) | {"weights": recipe.start.backbone().name}
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=5)
    if (puzzles / PUZZLES).is_file():
        digest.update((puzzles / PUZZLES).read_bytes())
    return f"puzzles-{digest.hexdigest()}"


def smallest() -> MvpRecipe:
    """``mvp_debug`` with two puzzles to be asked: whether a table comes out, not what it says."""
    return replace(mvp_debug(), puzzles=Choice(levels=("L1",), watched=2, most_held=4))


def drawn_evenly(recipe: MvpRecipe) -> MvpRecipe:
    """A recipe whose policy optimisation draws puzzles equally often, as supervised learning and what is counted do.

    By its success it would learn from other puzzles than the arm that it is compared with, and of other cost.
    """
    return replace(recipe, grpo=replace(recipe.grpo, curriculum=EVENLY))


def seeded(recipe: MvpRecipe, seed: int, supervised_steps: int = 1) -> MvpRecipe:
    """A recipe with one seed for all stages, and so many steps of supervised learning."""
    return replace(
        recipe,
        warm=replace(recipe.warm, fit=replace(recipe.warm.fit, seed=seed)),
        grpo=replace(recipe.grpo, fit=replace(recipe.grpo.fit, seed=seed)),
        supervised=replace(
            recipe.supervised, fit=replace(recipe.supervised.fit, seed=seed, steps=supervised_steps)
        ),
    )


def stage_model(site: Site, seed: int, stage: str, material: Material) -> Path:
    """The model that "warm" or "grpo" left with a seed, as the table of held-out puzzles has it; trained if not."""
    found = site.folder(seed) / stage / "model"
    if not found.exists():
        processes = start_processes(site.recipe.grpo.fit)
        run_stage(seeded(site.recipe, seed), stage, material, site.folder(seed), processes)
    return found


def arm_model(warm: Path, folder: Path, recipe: GrpoRecipe, lessons: Callable[[Backbone], Lessons]) -> Path:
    """The model that an arm of policy optimisation left in its folder, trained on from a warm-up's model if not."""
    found = folder / "model"
    if not found.exists():
        print(f"seed {recipe.fit.seed}, {folder.name}", flush=True)
        backbone = load_backbone(str(warm), dtype=torch.float32)
        backbone.model.to(start_processes(recipe.fit).device).eval()
        puzzles, beside = lessons(backbone)
        train_grpo(recipe, backbone, puzzles, folder, beside=beside)
    for file in folder.glob("checkpoint-*.pt"):
        file.unlink()  # the model is whole, and there are many arms
    return found


def frozen(folder: Path, site: Site) -> Backbone:
    """A kept model to be asked; its pictures' tokens are kept too, as no weight learns."""
    backbone = load_backbone(str(folder), start_processes(site.recipe.grpo.fit).device, torch.float32)
    backbone.model.requires_grad_(False)
    return backbone


def cached_costs(
    site: Site,
    file: str,
    steps: Callable[[Callable[[], Backbone]], Mapping[str, Callable[[Path], object]]],
    warm: str = "warm",
) -> dict[str, Cost]:
    """What each named step costs, done twice on a model after the warm-up: counted and timed the second time, and kept.

    Before there is one, all are counted on the starting model, whose answers have other lengths, and nothing is kept.
    warm: the warm-up's folder. steps: from what makes a fresh model. A name that ends in a number of items, as
    "asked/8", counts one of them.
    """
    target = site.work / file
    if target.exists():
        return {name: Cost(**cost) for name, cost in json.loads(target.read_text()).items()}
    model = min(site.work.glob(f"seed-*/{warm}/model"), default=None)
    start = site.recipe.start if model is None else StartModel(folder=str(model))
    found = {}
    for name, step in steps(start.backbone).items():
        plain, _, items = name.partition("/")
        found[plain] = measured(step, int(items or 1))
    if model is not None:
        write_json(target, {name: dataclasses.asdict(cost) for name, cost in found.items()})
    return found


def measured(step: Callable[[Path], object], items: int = 1) -> Cost:
    """What a step costs an item, the second time it is done; each time in a new folder."""
    with tempfile.TemporaryDirectory() as name:
        step(Path(name) / "first")
        begun = time.process_time()
        with Operations() as counter:
            step(Path(name) / "counted")
        spent = time.process_time() - begun
    return Cost(operations=counter.total / items, seconds=spent / items)


def one_step(
    recipe: GrpoRecipe | ImitateRecipe, backbone: Backbone, puzzles: Sequence[Any]
) -> Callable[[Path], None]:
    """A step on a model, to be measured; pictures are known from the second time on."""
    fit = replace(recipe.fit, steps=1)
    if isinstance(recipe, GrpoRecipe):
        return partial(train_grpo, replace(recipe, fit=fit), backbone, puzzles)
    return partial(train_imitation, replace(recipe, fit=fit), backbone, puzzles)


def missing(models: Iterable[Path]) -> int:
    """How many of these files are not there."""
    return sum(not model.exists() for model in models)


def training(name: str, steps: int | None, cost: Cost, times: int) -> Part:
    """A training as a part of what a table costs."""
    assert steps is not None
    return Part(name=f"{name}, {steps} steps", times=times, seconds=steps * cost.seconds)
