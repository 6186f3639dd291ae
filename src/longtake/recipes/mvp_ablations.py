"""What training on puzzles is worth: on puzzles of held-out sources, on other questions, and which reward and method.

Run: python -m longtake.recipes.mvp_ablations TABLE --puzzles FOLDER [--work FOLDER] [--size smallest|full] [--dry-run]

with TABLE one of held, transfer, rewards. FOLDER is what ``longtake synth mvp`` wrote; transfer takes ``--footage``, too.
Ours. Everything that is trained or answered is kept in the work folder, and tables share what they have in common: a
command that was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from longtake.eval.ablation_report import AblationTable
from longtake.eval.puzzle_table import overall
from longtake.recipes.ablation_command import estimate_text, finish, settings_of
from longtake.recipes.ablation_cost import Cost
from longtake.recipes.ablation_tables import picture, with_settings
from longtake.recipes.mvp import mvp
from longtake.recipes.mvp_held import held_costs, held_parts, run_held
from longtake.recipes.mvp_rewards import reward_costs, reward_parts, run_rewards
from longtake.recipes.mvp_site import Site, smallest, work_name
from longtake.recipes.mvp_transfer import run_transfer, transfer_parts
from longtake.recipes.mvp_transfer_arms import SIZE, SMALLEST, transfer_costs
from longtake.types import LongtakeError

TABLES = ("held", "transfer", "rewards")


def run(site: Site, options: argparse.Namespace) -> tuple[AblationTable, dict[str, Cost]] | None:
    """Tell what a table costs, then make it, unless that was all that was asked."""
    size = SMALLEST if options.size == "smallest" else SIZE
    if options.table == "held":
        costs = held_costs(site)
        parts = held_parts(site, options.seeds, costs)
    elif options.table == "transfer":
        costs = transfer_costs(site, size)
        parts = transfer_parts(site, size, options.seeds, costs)
    else:
        costs = reward_costs(site)
        parts = reward_parts(site, options.seeds, costs)
    print(estimate_text(parts), flush=True)
    if options.dry_run:
        return None
    if options.table == "transfer":
        return run_transfer(site, size, options.seeds, costs), costs
    make = run_held if options.table == "held" else run_rewards
    return make(site, options.seeds, costs), costs


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--puzzles", type=Path, required=True, help="what longtake synth mvp wrote")
    parser.add_argument("--footage", type=Path, default=None, help="a folder of videos for questions; else drawn scenes")
    parser.add_argument("--start", default="", help="folder of the model to begin from; else the one in the package")
    parser.add_argument("--work", type=Path, default=Path(".cache/mvp-ablations"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", choices=["smallest", "full"], default="full")
    parser.add_argument("--dry-run", action="store_true", help="print the estimated cost and stop")
    options = parser.parse_args(arguments)
    recipe = smallest() if options.size == "smallest" else mvp()
    recipe = replace(recipe, start=replace(recipe.start, folder=options.start))
    work = options.work / work_name(recipe, options.puzzles)
    site = Site(puzzles=options.puzzles, work=work, recipe=recipe, footage=options.footage)
    try:
        made = run(site, options)
    except LongtakeError as error:
        sys.exit(f"error: {error}")
    if made is not None:
        found, costs = made
        settings = settings_of(options, "mvp_ablations", ("puzzles", "footage", "start"))
        spent = {name: round(cost.operations / 1e12, 4) for name, cost in costs.items()}
        found = with_settings(found, **settings, **{"operations a step, 10^12": spent})
        finish(found, options.results)
        picture(found, options.results, overall(found.measures))


if __name__ == "__main__":
    main()
