"""What training on puzzles is worth, on puzzles of held-out sources: policy optimisation against right answers.

Run: python -m longtake.recipes.mvp_ablations held --puzzles FOLDER [--work FOLDER] [--size smallest|full] [--dry-run]

FOLDER is what ``longtake synth mvp`` wrote. Ours. Each seed has one warm-up, from which both arms begin; "supervised"
gets the steps that cost as many operations as policy optimisation's. A command that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from longtake.data.puzzle_file import PUZZLES
from longtake.data.whole import replaced
from longtake.eval.ablation_report import AblationTable, as_text, write
from longtake.eval.puzzle_table import Answers, held_table
from longtake.recipes.ablation_cost import ON_CPU, Cost, Part
from longtake.recipes.mvp import Choice, MvpRecipe, mvp, mvp_debug
from longtake.recipes.mvp_stages import Material, gather, run_on_puzzles
from longtake.recipes.settings import flat
from longtake.train.grpo import train_grpo
from longtake.train.imitate import train_imitation

STAGES = ("warm", "grpo", "supervised")
BLIND = "grpo, trained blind"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a table is made: puzzles, the work folder and the recipe of one seed."""

    puzzles: Path
    work: Path
    recipe: MvpRecipe

    def folder(self, seed: int) -> Path:
        """Of a seed's run."""
        return self.work / f"seed-{seed}"

    @property
    def blind(self) -> Path:
        """Of the run that never sees a picture, with the first seed."""
        return self.work / "blind"


def seeded(recipe: MvpRecipe, seed: int, supervised_steps: int) -> MvpRecipe:
    """With one seed for all stages, and so many steps of supervised learning."""
    return replace(
        recipe,
        warm=replace(recipe.warm, fit=replace(recipe.warm.fit, seed=seed)),
        grpo=replace(recipe.grpo, fit=replace(recipe.grpo.fit, seed=seed)),
        supervised=replace(
            recipe.supervised, fit=replace(recipe.supervised.fit, seed=seed, steps=supervised_steps)
        ),
    )


def stage_costs(site: Site) -> dict[str, Cost]:
    """Of one step of each stage, pictures known: counted and timed once, then kept in the work folder."""
    file = site.work / "costs.json"
    if not file.exists():
        site.work.mkdir(parents=True, exist_ok=True)
        material = gather(site.recipe, site.puzzles, site.work / "costs")
        found = {stage: _cost(site.recipe, stage, material) for stage in STAGES}
        told = {stage: {"operations": cost.operations, "seconds": cost.seconds} for stage, cost in found.items()}
        with replaced(file) as scratch:
            scratch.write_text(json.dumps(told, indent=1) + "\n")
    return {stage: Cost(**cost) for stage, cost in json.loads(file.read_text()).items()}


def _cost(recipe: MvpRecipe, stage: str, material: Material) -> Cost:
    backbone = recipe.start.backbone()
    with tempfile.TemporaryDirectory() as name:
        for turn in ("pictures", "counted"):
            begun = time.process_time()
            with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
                _one_step(recipe, stage, material, backbone, Path(name) / turn)
            spent = time.process_time() - begun
    return Cost(operations=counter.get_total_flops(), seconds=spent)


def _one_step(recipe: MvpRecipe, stage: str, material: Material, backbone: Any, folder: Path) -> None:
    own = getattr(recipe, stage)
    single = replace(own, fit=replace(own.fit, steps=1))
    if stage == "grpo":
        train_grpo(single, backbone, material.train, folder)
    else:
        train_imitation(single, backbone, material.train, folder)


def equal_steps(recipe: MvpRecipe, costs: dict[str, Cost]) -> int:
    """Steps of supervised learning that cost the operations of policy optimisation."""
    assert recipe.grpo.fit.steps is not None
    return max(1, round(recipe.grpo.fit.steps * costs["grpo"].operations / costs["supervised"].operations))


def parts_of(site: Site, seeds: Sequence[int], costs: dict[str, Cost]) -> list[Part]:
    """What is still to be done; what was begun counts in full."""
    recipe = seeded(site.recipe, 0, equal_steps(site.recipe, costs))
    folders = {stage: [site.folder(seed) for seed in seeds] for stage in STAGES}
    folders["warm"], folders["grpo"] = [*folders["warm"], site.blind], [*folders["grpo"], site.blind]
    return [
        Part(
            name=f"{stage}, {getattr(recipe, stage).fit.steps} steps",
            times=sum(not (folder / stage / "model").exists() for folder in folders[stage]),
            seconds=getattr(recipe, stage).fit.steps * costs[stage].seconds,
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
    blind = _answers(unseeing, STAGES[:2], site.puzzles, site.blind)
    found = held_table([one.rows for one in answers], {BLIND: blind.rows["grpo"]}, answers[0])
    notes = (*found.notes, f"supervised: {steps} steps, the operations of {site.recipe.grpo.fit.steps} of grpo")
    return replace(found, notes=notes)


def _answers(recipe: MvpRecipe, stages: Sequence[str], puzzles: Path, output: Path) -> Answers:
    """Of a run; trained and asked where that is not done."""
    file = output / "answers.jsonl"
    if not file.exists():
        run_on_puzzles(recipe, stages, puzzles, output)
    report = json.loads((output / "report.json").read_text())
    return Answers.read(file, tuple(report["baselines"]))


def estimate_text(parts: Sequence[Part]) -> str:
    """Core-seconds by part, and core-hours in all; asking held-out puzzles comes on top."""
    lines = [f"{p.times:3d} x {p.seconds:7.0f} core-seconds  {p.name}" for p in parts if p.times]
    total = sum(p.times * p.seconds for p in parts)
    return "\n".join([*lines, f"about {total / 3600:.2f} core-hours of training still to be done"])


def work_name(recipe: MvpRecipe, puzzles: Path) -> str:
    """The work folder's name: other settings or puzzles get one of their own."""
    digest = hashlib.blake2b(json.dumps(flat(recipe), sort_keys=True).encode(), digest_size=5)
    if (puzzles / PUZZLES).is_file():
        digest.update((puzzles / PUZZLES).read_bytes())
    return f"held-{digest.hexdigest()}"


def smallest() -> MvpRecipe:
    """``mvp_debug`` with two puzzles to be asked: whether a table comes out, not what it says."""
    return replace(mvp_debug(), puzzles=Choice(levels=("L1",), watched=2, most_held=4))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=["held"])
    parser.add_argument("--puzzles", type=Path, required=True, help="what longtake synth mvp wrote")
    parser.add_argument("--start", default="", help="folder of the model to begin from; else the one in the package")
    parser.add_argument("--work", type=Path, default=Path(".cache/mvp-ablations"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", choices=["smallest", "full"], default="full")
    parser.add_argument("--dry-run", action="store_true", help="print the estimated cost and stop")
    options = parser.parse_args(arguments)
    recipe = smallest() if options.size == "smallest" else mvp()
    recipe = replace(recipe, start=replace(recipe.start, folder=options.start))
    site = Site(puzzles=options.puzzles, work=options.work / work_name(recipe, options.puzzles), recipe=recipe)
    costs = stage_costs(site)
    print(estimate_text(parts_of(site, options.seeds, costs)), flush=True)
    if options.dry_run:
        return
    seeds = " ".join(map(str, options.seeds))
    command = f"python -m longtake.recipes.mvp_ablations held --puzzles FOLDER --seeds {seeds} --size {options.size}"
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    found = replace(
        run_held(site, options.seeds, costs),
        settings={
            "command": command,
            "versions": versions,
            "operations a step, 10^12": {stage: round(cost.operations / 1e12, 4) for stage, cost in costs.items()},
        },
    )
    print(as_text(found), flush=True)
    write(found, options.results)


if __name__ == "__main__":
    main()
