"""Held-out puzzles: policy optimisation against right answers on the same puzzles, and against itself under controls.

Each seed has one warm-up, from which both arms begin; "supervised" gets the steps that cost as many operations as
policy optimisation's. Ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from longtake.backbones.base import Backbone
from longtake.eval.ablation_report import AblationTable
from longtake.eval.puzzle_table import Answers, held_table
from longtake.recipes.mvp import MvpRecipe
from longtake.recipes.mvp_stages import run_on_puzzles
from longtake.tables.mvp.site import Site, cached_costs, missing, one_step, seeded, training
from longtake.tables.operations import Cost, Part

STAGES = ("warm", "grpo", "supervised")
BLIND = "grpo, trained blind"


def held_costs(site: Site) -> dict[str, Cost]:
    """What one step of each stage costs, pictures known."""

    def steps(model: Callable[[], Backbone]) -> dict[str, Callable[[Path], object]]:
        material = site.material()
        return {stage: one_step(getattr(site.recipe, stage), model(), material.train) for stage in STAGES}

    return cached_costs(site, "costs-held.json", steps)


def equal_steps(recipe: MvpRecipe, costs: dict[str, Cost]) -> int:
    """Steps of supervised learning that cost the operations of policy optimisation."""
    assert recipe.grpo.fit.steps is not None
    return costs["supervised"].steps(recipe.grpo.fit.steps * costs["grpo"].operations)


def held_parts(site: Site, seeds: Sequence[int], costs: dict[str, Cost]) -> list[Part]:
    """What is still to be trained; what was begun counts in full, and asking comes on top."""
    recipe = seeded(site.recipe, 0, equal_steps(site.recipe, costs))
    folders = {stage: [site.folder(seed) for seed in seeds] for stage in STAGES}
    blind = site.blind(seeds[0])
    folders["warm"], folders["grpo"] = [*folders["warm"], blind], [*folders["grpo"], blind]
    return [
        training(
            stage, getattr(recipe, stage).fit.steps, costs[stage], missing(f / stage / "model" for f in folders[stage])
        )
        for stage in STAGES
    ]


def run_held(site: Site, seeds: Sequence[int], costs: dict[str, Cost]) -> AblationTable:
    """Train and ask what is missing, and put the table together."""
    steps = equal_steps(site.recipe, costs)
    answers = []
    for seed in seeds:
        recipe = seeded(site.recipe, seed, steps)
        answers.append(_answers(recipe, STAGES, site.puzzles, site.folder(seed)))
    unseeing = replace(seeded(site.recipe, seeds[0], steps), puzzles=replace(site.recipe.puzzles, control="blind"))
    blind = _answers(unseeing, STAGES[:2], site.puzzles, site.blind(seeds[0]))
    found = held_table([one.rows for one in answers], {BLIND: blind.rows["grpo"]}, answers[0])
    notes = (*found.notes, f"supervised: {steps} steps, the operations of {site.recipe.grpo.fit.steps} of grpo")
    return replace(found, notes=notes)


def _answers(recipe: MvpRecipe, stages: Sequence[str], puzzles: Path, output: Path) -> Answers:
    """The answers of a run, trained and asked where that is not done."""
    file = output / "answers.jsonl"
    if not file.exists():
        run_on_puzzles(recipe, stages, puzzles, output)
    report = json.loads((output / "report.json").read_text())
    return Answers.read(file, tuple(report["baselines"]))
