"""Which reward, which distractors and which method policy optimisation on puzzles should have. Ours.

All arms begin from their seed's warm-up and are asked the same held-out puzzles, whatever puzzles they learned from.
"full reward" is the policy optimisation of the table of held-out puzzles, with the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from longtake.backbones.base import Backbone
from longtake.data.puzzles.dynamics import domain_of
from longtake.data.puzzles.puzzle_file import PuzzleRecord
from longtake.eval.ablation import Estimate, figure
from longtake.eval.ablation_report import AblationTable, Row
from longtake.eval.mvp import CHANCE, chance_parts
from longtake.eval.puzzle_table import PARTS, Parts, cells, compared, notes_of, places_of, stands_of
from longtake.outputs import write_json
from longtake.recipes.mvp_stages import Material, split_of
from longtake.recipes.settings import flat
from longtake.tables.mvp.site import (
    Lessons,
    Site,
    arm_model,
    cached_costs,
    frozen,
    missing,
    one_step,
    stage_model,
    training,
)
from longtake.tables.mvp.variants import Variant, variant_records
from longtake.tables.operations import Cost, Part
from longtake.tables.planned import Starred
from longtake.tables.work_folder import named
from longtake.train.exam import answers
from longtake.train.grpo_recipe import GrpoRecipe
from longtake.train.imitate import ImitateRecipe
from longtake.train.methods import METHODS
from longtake.train.mvp import MvpPuzzle
from longtake.train.rewards import WEIGHTS
from longtake.train.run import start_processes

FULL, WARM = "full reward", "warm-up"
UPDATES = 4
FLAT, CLIPPED = "share of flat groups", "clipped share"
LOGGED = {FLAT: "flat", CLIPPED: "clipped"}


def alone(part: str) -> dict[str, float]:
    """A reward of one part, beside what is paid for the form."""
    return {name: weight for name, weight in WEIGHTS.items() if name in ("format", "repetition")} | {part: 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardArm(Starred):
    """One way of policy optimisation on puzzles."""

    name: str
    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    puzzles: Variant = "own"
    method: str = "grpo"
    updates: int = 1
    starred: bool = False

    @property
    def cost(self) -> str:
        """Which of the costs a step has."""
        return "one update" if self.updates == 1 else "four updates"


ARMS = (
    RewardArm(name=FULL, starred=True),
    RewardArm(name="exact only", weights=alone("exact"), starred=True),
    RewardArm(name="selection only", weights=alone("selection")),
    RewardArm(name="order only", weights=alone("order")),
    RewardArm(name="random distractors", puzzles="random", starred=True),
    RewardArm(name="near distractors", puzzles="near"),
    RewardArm(name="no de-duplication", puzzles="kept"),
    RewardArm(name="Dr. GRPO", method="dr_grpo"),
    RewardArm(name="GDPO", method="gdpo"),
    RewardArm(name="GRPO with four updates", updates=UPDATES),
    RewardArm(name="GSPO with four updates", method="gspo", updates=UPDATES),
    RewardArm(name="DAPO with four updates", method="dapo", updates=UPDATES),
)
PAIRS = (
    (FULL, WARM),
    *((arm.name, FULL) for arm in ARMS[1:]),
    ("near distractors", "random distractors"),
    *((arm.name, "GRPO with four updates") for arm in ARMS[-2:]),
)
NOTES = (
    "All arms begin from the warm-up of their seed, and are asked the same held-out puzzles. Parts of the reward stand "
    'alone beside what all arms are paid for the form. "order" pays for pairs that are chosen and the right way round, '
    "so it pays for choosing, too.",
    "random and near distractors: of all levels alike; else the levels have their own. no de-duplication: learned from "
    "puzzles whose sequence is every frame, so that missing frames may be alike.",
    f"All arms have the operations of {FULL}: with four updates on the same rollouts there are fewer steps; "
    "what DAPO leaves out counts, too. "
    f"{FLAT}: of groups whose rewards do not differ; {CLIPPED}: of tokens, mean over training. With one update the "
    "ratio is 1 and nothing is clipped.",
)


def reward_costs(site: Site) -> dict[str, Cost]:
    """What a step of the warm-up, of GRPO with one and with four updates, and a held-out puzzle cost."""

    def steps(model: Callable[[], Backbone]) -> dict[str, Callable[[Path], object]]:
        material, recipe = site.material(), site.recipe
        more = replace(recipe.grpo, updates=UPDATES)
        stages: dict[str, GrpoRecipe | ImitateRecipe] = {
            "warm": recipe.warm, "one update": recipe.grpo, "four updates": more
        }
        found: dict[str, Callable[[Path], object]] = {
            name: one_step(own, model(), material.train) for name, own in stages.items()
        }
        backbone, some = model(), material.watched[:8]
        processes, longest = start_processes(recipe.grpo.fit), recipe.grpo.draw.max_new_tokens
        return found | {f"asked/{len(some)}": lambda folder: answers(processes, backbone, some, longest)}

    return cached_costs(site, "costs-rewards.json", steps)


def recipe_of(site: Site, arm: RewardArm, seed: int, costs: Mapping[str, Cost]) -> GrpoRecipe:
    """How an arm is trained: with the operations of one update a rollout."""
    base = site.recipe.grpo
    assert base.fit.steps is not None
    steps = costs[arm.cost].steps(base.fit.steps * costs["one update"].operations)
    return replace(
        base,
        fit=replace(base.fit, seed=seed, steps=steps),
        method=METHODS[arm.method],
        weights=arm.weights,
        updates=arm.updates,
    )


def folder_of(site: Site, arm: RewardArm, seed: int, costs: Mapping[str, Cost]) -> Path:
    """Where an arm's weights and answers are kept."""
    if arm.name == FULL:
        return site.folder(seed) / "grpo"
    key = flat(recipe_of(site, arm, seed, costs)) | {"puzzles": arm.puzzles}
    return site.folder(seed) / named(arm.name.replace(". ", "-").replace(" ", "-"), key)


def reward_parts(site: Site, seeds: Sequence[int], costs: Mapping[str, Cost]) -> list[Part]:
    """What is still to be done; what was begun counts in full."""
    warm = missing(site.folder(seed) / "warm" / "model" for seed in seeds)
    parts = [training(WARM, site.recipe.warm.fit.steps, costs["warm"], warm)]
    asked = [site.folder(seed) / "warm" for seed in seeds]
    for arm in ARMS:
        folders = [folder_of(site, arm, seed, costs) for seed in arm.seeds(seeds)]
        steps = recipe_of(site, arm, 0, costs).fit.steps
        left = missing(folder / "model" for folder in folders)
        parts.append(training(arm.name, steps, costs[arm.cost], left))
        asked += folders
    held = site.recipe.puzzles.most_held
    times = missing(folder / "held.json" for folder in asked)
    return [*parts, Part(name=f"{held} held-out puzzles", times=times, seconds=held * costs["asked"].seconds)]


def run_rewards(site: Site, seeds: Sequence[int], costs: Mapping[str, Cost]) -> AblationTable:
    """Train and ask what is missing, and put the table together."""
    material = site.material()
    rows: dict[str, list[Parts]] = {CHANCE: [as_parts([chance_parts(puzzle.record) for puzzle in material.held])]}
    rows[WARM] = [held_parts(site, stage_model(site, seed, "warm", material), material) for seed in seeds]
    figures: dict[str, dict[str, Estimate]] = {}
    for arm in ARMS:
        models = [trained(site, arm, seed, costs, material) for seed in arm.seeds(seeds)]
        rows[arm.name] = [held_parts(site, model, material) for model in models]
        figures[arm.name] = logged([model.parent / "log.jsonl" for model in models])
    found = table_of(rows, figures, material)
    counts = {name: len(learned_from(site, name, material)) for name in sorted({arm.puzzles for arm in ARMS})}
    steps = {arm.name: recipe_of(site, arm, 0, costs).fit.steps for arm in ARMS}
    return replace(found, settings={"puzzles learned from": counts, "steps": steps})


def table_of(
    rows: Mapping[str, Sequence[Parts]], figures: Mapping[str, Mapping[str, Estimate]], material: Material
) -> AblationTable:
    """From answers by row and seed to a table. figures: of training, by arm."""
    domains = [domain_of(puzzle.record.video) for puzzle in material.held]
    places = places_of([puzzle.level for puzzle in material.held], domains)
    names = [material.sources[puzzle.record.identity] for puzzle in material.held]
    sources = np.unique(names, return_inverse=True)[1].astype(np.int64)
    stands = stands_of(rows, [arm.name for arm in ARMS], places, sources)
    return AblationTable(
        name="mvp-rewards",
        title="Which reward, distractors and method, on puzzles of held-out sources",
        notes=(*notes_of(sources, stands), *NOTES),
        rows=tuple(
            Row(arm=name, cells={**cells(parts, places, sources), **figures.get(name, {})})
            for name, parts in rows.items()
        ),
        findings=compared(rows, PAIRS, places, stands, sources),
    )


def trained(site: Site, arm: RewardArm, seed: int, costs: Mapping[str, Cost], material: Material) -> Path:
    """An arm's model, trained now, on from where it was stopped, or as kept."""
    if arm.name == FULL:
        return stage_model(site, seed, "grpo", material)
    folder = folder_of(site, arm, seed, costs)

    def lessons(backbone: Backbone) -> Lessons:
        del backbone
        return learned_from(site, arm.puzzles, material), ()

    warm = stage_model(site, seed, "warm", material)
    return arm_model(warm, folder, recipe_of(site, arm, seed, costs), lessons)


def learned_from(site: Site, variant: Variant, material: Material) -> list[MvpPuzzle]:
    """A variant's puzzles of the sources that are learned from, at the recipe's levels."""
    if variant == "own":
        return material.train
    split = split_of(site.puzzles, (), material.digest, site.work / "split.json")
    levels = {puzzle.level for puzzle in material.train}

    def is_learned(record: PuzzleRecord) -> bool:
        return record.level in levels and not split.is_held(record)

    like = material.train[0]
    records = variant_records(site.puzzles, variant, site.work)
    return [replace(like, record=record, shown=record) for record in records if is_learned(record)]


def held_parts(site: Site, model: Path, material: Material) -> Parts:
    """What a kept model answers to the held-out puzzles; kept answers are not asked for again."""
    file = model.parent / "held.json"
    if not file.exists():
        processes = start_processes(site.recipe.grpo.fit)
        longest = site.recipe.grpo.draw.max_new_tokens
        write_json(file, answers(processes, frozen(model, site), material.held, longest))
    return as_parts(json.loads(file.read_text()))


def as_parts(told: Sequence[Mapping[str, float]]) -> Parts:
    """Parts of the answers by name."""
    return {part: np.array([each[part] for each in told]) for part in PARTS}


def logged(files: Sequence[Path]) -> dict[str, Estimate]:
    """Figures of trainings, their means over steps; one that no step has is left out."""
    logs = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    found = {}
    for name, key in LOGGED.items():
        told = [[row[key] for row in log if key in row] for log in logs]
        if all(told):
            found[name] = figure(np.array([np.mean(values) for values in told]))
    return found
