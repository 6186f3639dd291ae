"""What latents between question and answer are worth on questions of one to four hops: one table a command.

Run: python -m longtake.tables.latent TABLE --footage FOLDER --work FOLDER
with TABLE one of setting, worth, controls, parts. "setting" comes first: it looks for one in which the question can be
asked at all, and without one the others refuse. Everything that is trained or answered is kept in the work folder under
its settings, so a command that was stopped goes on where it was. ``--dry-run`` prints the estimated cost and stops.

While they learn, arms are asked a few more questions every ``--curve`` steps: "worth" and "parts" end with samples to
equal accuracy and a picture of that. ``--curve 0`` leaves it out; weights are the same, kept under other names.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence

from longtake.data.threads import use_threads
from longtake.eval.ablation_report import AblationTable
from longtake.recipes.one_line import errors_in_one_line
from longtake.tables.compare import picture, with_settings
from longtake.tables.latent.arms import LatentArm, base_arm, folder_of
from longtake.tables.latent.cost import LatentCosts, video_seconds
from longtake.tables.latent.curves import curve_picture, run_curves
from longtake.tables.latent.plans import LATENTS, PLANS
from longtake.tables.latent.tables import CONTROLS, run_controls, run_plan, run_setting
from longtake.tables.latent.world import FULL, SMALLEST, HopWorld, Setting
from longtake.tables.latent.world import Part as Videos
from longtake.tables.operations import Part
from longtake.tables.planned import Planned
from longtake.tables.table_command import common_parser, estimate_text, finish, options_of, settings_of
from longtake.tables.token_files import SHARD
from longtake.train.extra import require_extra

TABLES = ("setting", *PLANS, "controls")


def arms_of(table: str, setting: Setting, costs: LatentCosts) -> tuple[Planned[LatentArm], ...]:
    """The arms that a table needs."""
    if table in PLANS:
        return PLANS[table](costs).arms
    latents = Planned(name="latents, K = 8", arm=dataclasses.replace(LATENTS, steps=setting.steps))
    if table == "controls":
        return (latents,)
    return tuple(
        Planned(name=says, arm=LatentArm(steps=setting.steps, traced=traced), starred=False)
        for says, traced in (("answers", False), ("traces", True))
    )


def parts_of(
    world: HopWorld, table: str, setting: Setting, seeds: Sequence[int], costs: LatentCosts, render: float
) -> list[Part]:
    """What is still to be done for a table in one setting; what was begun counts in full.

    render: core-seconds of rendering and encoding one video.
    """
    videos: Videos = "search" if table == "setting" else "exam"
    arms, frames = arms_of(table, setting, costs), setting.frames
    wanted: list[tuple[Videos, float]] = [("train", 1.0), (videos, 1.0)]
    wanted += [("train", 2.0)] * any(planned.arm.teacher == "dense" for planned in arms)
    wanted += [("curve", 1.0)] * bool(world.curve_every)
    parts = []
    for own, fps in wanted:
        missing = sum(not file.exists() for file in world.shards(own, frames, fps))
        shown = min(SHARD, world.count(own))
        parts.append(Part(name=f"{shown} videos, {own}, {fps:g} fps", times=missing, seconds=shown * fps * render))
    base, asked, digest = base_arm(setting), world.count(videos), world.digest(videos, setting.frames)
    if base.steps and not (folder_of(world, setting, base, 0, forked=False) / "model").exists():
        parts.append(Part(name="base", times=1, seconds=base.steps * costs.arm(base).seconds))
    for planned in arms:
        arm = planned.arm
        folders = [folder_of(world, setting, arm, seed) for seed in planned.seeds(seeds)]
        untrained = sum(not (folder / "model").exists() for folder in folders)
        named = planned.name if planned.name.endswith(" steps") else f"{planned.name}, {arm.steps} steps"
        spent = arm.steps * costs.arm(arm).seconds
        if world.curve_every:
            asks = 3 if arm.thinking.latents and arm.thinking.mode != "pause" else 1  # and with another's latents
            spent += (1 + math.ceil(arm.steps / world.curve_every)) * asks * world.count("curve") * costs.asked(arm)
        parts.append(Part(name=named, times=untrained, seconds=spent))
        ways = ["replies", *CONTROLS] if table == "controls" else ["replies"]
        open_ways = [f for f in folders for way in ways if not (f / f"{way}-{videos}-{digest}.json").exists()]
        parts.append(
            Part(name=f"{planned.name}, asked", times=len(open_ways), seconds=asked * costs.asked(arm))
        )
    return parts


def run_search(world: HopWorld, options: argparse.Namespace) -> AblationTable | None:
    """The search for a setting; the second of two seeds is for what the first has found."""
    options.seeds = options.seeds[:2]
    for number, setting in enumerate(world.size.settings, start=1):
        costs = LatentCosts(world, setting)
        told = estimate_text(parts_of(world, "setting", setting, options.seeds, costs, video_seconds(world, setting)))
        print(f"setting {number}: {setting}\n{told}", flush=True)
    return None if options.dry_run else run_setting(world, options.seeds)


def run_table(world: HopWorld, options: argparse.Namespace) -> AblationTable | None:
    """A table in the setting that was found; with ``--dry-run`` and none found, the first one's cost."""
    stored = world.setting_file.exists() or not options.dry_run
    setting = world.setting() if stored else world.size.settings[0]
    costs = LatentCosts(world, setting)
    render = video_seconds(world, setting)
    print(f"{setting}" + ("" if stored else " (the first one; none is found yet)"))
    print(estimate_text(parts_of(world, options.table, setting, options.seeds, costs, render)), flush=True)
    if options.dry_run:
        return None
    if options.table == "controls":
        return with_settings(run_controls(world, setting, options.seeds), setting=dataclasses.asdict(setting))
    plan = PLANS[options.table](costs)
    found = run_plan(world, setting, plan, options.seeds)
    steps = {planned.name: planned.arm.steps for planned in plan.arms}
    spent = {planned.name: round(costs.operations(planned.arm) / 1e12, 3) for planned in plan.arms}
    more = {"steps": steps, "training operations, 10^12": spent}
    if world.curve_every:
        found = run_curves(found, world, setting, plan, options.seeds, costs)
    return with_settings(found, setting=dataclasses.asdict(setting), **more)


@errors_in_one_line()
def main() -> None:
    """The command line."""
    parser = common_parser("latent", __doc__, TABLES, ".cache/latent-ablations")
    parser.add_argument("--curve", type=int, default=100, help="steps between an arm's questions; 0: none, no curves")
    parser.add_argument("--threads", type=int, default=2)
    options = options_of(parser)
    size = SMALLEST if options.size == "smallest" else FULL
    require_extra()
    use_threads(options.threads)
    world = HopWorld(options.work, options.footage, size, options.curve)
    found = run_search(world, options) if options.table == "setting" else run_table(world, options)
    if found is not None:
        settings = settings_of(options, "latent", own=("curve",))
        finish(with_settings(found, **settings, size=str(dataclasses.asdict(world.size))), options.results)
        picture(found, options.results)
        if found.sections:
            curve_picture(found, options.results)


if __name__ == "__main__":
    main()
