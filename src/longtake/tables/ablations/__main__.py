"""What the compressor, its pre-training, pruning and the selector are worth on the probe world: one table a command.

Run: python -m longtake.tables.ablations TABLE --footage FOLDER --work FOLDER
with TABLE one of compression, pretraining, masking, pruning, selector, heatmap. Results go to ``docs/results`` as JSON,
Markdown and a picture. Everything that is trained or answered is kept in the work folder under its tower and settings,
so a command that was stopped goes on where it was. ``--dry-run`` prints the estimated cost and stops.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from longtake.data.threads import use_threads
from longtake.model import EMBEDDED
from longtake.recipes.one_line import errors_in_one_line
from longtake.tables.ablations import heatmap, heatmap_table, selector
from longtake.tables.ablations.arms import Arm, Pretraining, base_arm, folder_of, pretraining_folder
from longtake.tables.ablations.cost import question_seconds, video_seconds
from longtake.tables.ablations.data import dataset, shares_by_cards
from longtake.tables.ablations.jobs import Site, run_jobs
from longtake.tables.ablations.plans import PLANS, Costs
from longtake.tables.ablations.tables import Plan, run_plan
from longtake.tables.ablations.world import BANK_FRAMES, FULL, SMALLEST, World
from longtake.tables.compare import picture, with_settings
from longtake.tables.operations import Part
from longtake.tables.table_command import common_parser, estimate_text, finish, options_of, settings_of
from longtake.train import checkpoint
from longtake.types import LongtakeError

QUESTIONS_A_VIDEO = 10  # about, in short videos


def parts_of(world: World, plans: Sequence[Plan], seeds: Sequence[int], costs: Costs) -> list[Part]:
    """What is still to be done for some tables; what was begun counts in full."""
    size, render, base = world.size, video_seconds(world), base_arm(world.size)
    parts = [Part(name="bank", times=int(not world.bank_done), seconds=size.bank_videos * render)]
    left = not _done(folder_of(world, base, 0, forked=False) / "decoder", base.steps)
    parts.append(Part(name="base", times=int(left), seconds=base.steps * costs.arm(base).seconds))
    for frames in sorted({plan.frames for plan in plans}):
        seconds = size.test_videos * render * frames / BANK_FRAMES
        parts.append(
            Part(name=f"{frames}-frame test videos", times=int(not world.exam_file(frames).exists()), seconds=seconds)
        )
    before: dict[tuple[int, Pretraining], set[int]] = {}
    for planned in (planned for plan in plans for planned in plan.arms):
        arm, own = planned.arm, planned.seeds(seeds)
        asked = size.test_videos * QUESTIONS_A_VIDEO * question_seconds(world, arm)
        spent = costs.arm(arm).once + arm.steps * costs.arm(arm).seconds + asked
        missing = [seed for seed in own if not (folder_of(world, arm, seed) / "replies.json").exists()]
        parts.append(Part(name=f"{planned.name}, {arm.steps} steps", times=len(missing), seconds=spent))
        if arm.pretraining is not None:
            before.setdefault((arm.size, arm.pretraining), set()).update(own)
    for (group, how), own_seeds in before.items():
        missing = [s for s in own_seeds if not _done(pretraining_folder(world, group, how, s), how.steps)]
        seconds = how.steps * costs.pretraining(Arm(size=group, pretraining=how)).seconds
        name = f"ReCoT, stride {group}, {how.policy} {how.mask_ratio}, {how.steps} steps"
        parts.append(Part(name=name, times=len(missing), seconds=seconds))
    return parts


def _done(folder: Path, steps: int) -> bool:
    return checkpoint.last_step(folder) == steps


def site_of(world: World, options: argparse.Namespace) -> Site:
    """What other processes need to find the world."""
    return Site(
        folder=world.folder,
        footage=world.footage,
        size=world.size,
        model=world.model,
        device=options.device,
        threads=options.threads,
    )


def told_of(world: World, options: argparse.Namespace) -> dict[str, Any]:
    """What every table says of how it was made."""
    return {**settings_of(options, "ablations", ("footage", "model"), own=("videos",)), "work folder": world.work.name}


def run_plans(world: World, table: str, options: argparse.Namespace) -> None:
    """A table of arms: what it costs, then its parts one after the other."""
    costs = Costs(world)
    plans = PLANS[table](costs)
    print(estimate_text(parts_of(world, plans, options.seeds, costs)), flush=True)
    if options.dry_run:
        return
    for plan in plans:
        if options.jobs > 1:
            run_jobs(site_of(world, options), plan, options.seeds, options.jobs)
        found = run_plan(world, plan, options.seeds)
        steps = {planned.name: planned.arm.steps for planned in plan.arms}
        spent = {planned.name: round(costs.operations(planned.arm) / 1e12, 3) for planned in plan.arms}
        size = dataclasses.asdict(world.size)
        beside = {p.name: round(costs.arm(p.arm).once_operations / 1e12, 3) for p in plan.arms}
        more = {
            "size": size,
            "decoder steps": steps,
            "training operations, 10^12": spent,
            "beside these, tokenising the bank, 10^12": beside,
            **cards_told(world, plan),
        }
        finish(with_settings(found, **told_of(world, options), **more), options.results)
        picture(found, options.results)


def cards_told(world: World, plan: Plan) -> dict[str, Any]:
    """Where arms learn from other samples: how many cards their training videos show, of the first seed."""
    arms = [planned for planned in plan.arms if planned.starred and planned.arm.samples != "bank"]
    data = {planned.name: dataset(world, planned.arm.samples, planned.arm.kept, 0) for planned in arms}
    return {f"training videos by cards, {name}": shares_by_cards(own, plan.frames) for name, own in data.items()}


def run_selector(world: World, options: argparse.Namespace) -> None:
    """The selector's table: what it costs, then the table."""
    size = selector.SMALLEST if options.size == "smallest" else selector.FULL
    render = video_seconds(world) / BANK_FRAMES
    print(estimate_text(selector.parts_of(world, size, options.seeds, render)), flush=True)
    if options.dry_run:
        return
    if options.jobs > 1:
        selector.run_jobs(site_of(world, options), size, options.seeds, options.jobs)
    found = selector.run_selector(world, size, options.seeds)
    finish(with_settings(found, **told_of(world, options), size=dataclasses.asdict(size)), options.results)
    selector.picture(found, options.results)


def run_heatmap(world: World, options: argparse.Namespace) -> None:
    """The heat-map's table, with the first seed."""
    options.seeds = options.seeds[:1]
    size = heatmap.SMALLEST if options.size == "smallest" else heatmap.FULL
    if options.videos is not None:
        size = dataclasses.replace(size, videos=options.videos)
    render = video_seconds(world) / BANK_FRAMES
    print(f"forks and answers: {world.begun}")
    print(estimate_text(heatmap.parts_of(world, size, options.seeds[0], render)), flush=True)
    if options.dry_run:
        return
    if options.jobs > 1:
        heatmap.run_jobs(site_of(world, options), size, options.seeds[0], options.jobs)
    found = heatmap.run_heatmap(world, size, options.seeds[0])
    finish(with_settings(found, **told_of(world, options), size=dataclasses.asdict(size)), options.results)
    heatmap_table.picture(found, size.lengths, options.results)


OTHERS = {"selector": run_selector, "heatmap": run_heatmap}


@errors_in_one_line()
def main() -> None:
    """The command line."""
    parser = common_parser("ablations", __doc__, [*PLANS, *OTHERS], ".cache/ablations")
    parser.add_argument("--model", type=Path, default=None, help="a folder; without it the one in the package")
    parser.add_argument("--videos", type=int, default=None, help="the heat-map's, of each length; more may follow")
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--device", default="cpu", help="where weights are trained; answers come from the CPU")
    options = options_of(parser)
    if options.videos is not None and (options.videos < 1 or options.table != "heatmap"):
        raise LongtakeError(f"videos is {options.videos}; it is the heat-map's alone, and must be at least 1")
    size = SMALLEST if options.size == "smallest" else FULL
    world = World(options.work, options.footage, size, torch.device(options.device), options.model or EMBEDDED)
    use_threads(options.threads)
    print(f"work folder: {world.work}", flush=True)
    if options.table in OTHERS:
        OTHERS[options.table](world, options)
    else:
        run_plans(world, options.table, options)


if __name__ == "__main__":
    main()
