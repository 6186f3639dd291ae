"""What training on puzzles is worth: on puzzles of held-out sources, on other questions, and which reward and method.

Run: python -m longtake.tables.mvp TABLE --puzzles FOLDER --work FOLDER
with TABLE one of held, transfer, rewards, and FOLDER what ``longtake synth mvp`` wrote. Ours. Everything that is
trained or answered is kept in the work folder, and tables share what they have in common: a command that was stopped
goes on where it was. ``--dry-run`` prints the estimated cost and stops.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longtake.eval.ablation_report import AblationTable
from longtake.eval.puzzle_table import overall
from longtake.recipes.mvp import MvpRecipe, mvp
from longtake.recipes.one_line import errors_in_one_line
from longtake.recipes.settings import changed
from longtake.tables.compare import picture, with_settings
from longtake.tables.mvp.held import held_costs, held_parts, run_held
from longtake.tables.mvp.rewards import reward_costs, reward_parts, run_rewards
from longtake.tables.mvp.site import Site, drawn_evenly, smallest, stage_model, work_name
from longtake.tables.mvp.transfer import run_transfer, transfer_parts
from longtake.tables.mvp.transfer_arms import SIZE, SMALLEST, replay_warmed, transfer_costs
from longtake.tables.operations import Cost, Part
from longtake.tables.table_command import common_parser, estimate_text, finish, options_of, settings_of
from longtake.train.extra import require_extra

TABLES = ("held", "transfer", "rewards")
Costs = dict[str, Cost]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """How a table is made. warm: of the first seed, on which costs are counted. parts, run: by them, what is left, and
    the table itself."""

    warm: Callable[[], object]
    costs: Callable[[], Costs]
    parts: Callable[[Costs], list[Part]]
    run: Callable[[Costs], AblationTable]


def table_of(site: Site, options: argparse.Namespace) -> Table:
    """The table that was asked for."""
    seeds, size = options.seeds, SMALLEST if options.size == "smallest" else SIZE
    if options.table == "transfer":
        return Table(
            warm=lambda: replay_warmed(site, size, seeds[0], site.material()),
            costs=lambda: transfer_costs(site, size),
            parts=lambda costs: transfer_parts(site, size, seeds, costs),
            run=lambda costs: run_transfer(site, size, seeds, costs),
        )

    def warm() -> object:
        return stage_model(site, seeds[0], "warm", site.material())

    if options.table == "rewards":
        return Table(
            warm=warm,
            costs=lambda: reward_costs(site),
            parts=lambda costs: reward_parts(site, seeds, costs),
            run=lambda costs: run_rewards(site, seeds, costs),
        )
    return Table(
        warm=warm,
        costs=lambda: held_costs(site),
        parts=lambda costs: held_parts(site, seeds, costs),
        run=lambda costs: run_held(site, seeds, costs),
    )


def make(site: Site, options: argparse.Namespace) -> AblationTable | None:
    """Tell what a table costs, then make it, unless that was all that was asked."""
    table = table_of(site, options)
    print(estimate_text(table.parts(table.costs())), flush=True)
    if options.dry_run:
        return None
    table.warm()
    costs = table.costs()
    spent = {name: float(f"{cost.operations / 1e12:.3g}") for name, cost in costs.items()}
    settings = settings_of(options, "mvp", ("puzzles", "footage", "start"), own=("set",))
    return with_settings(table.run(costs), **settings, **{"operations of one, 10^12": spent})


def recipe_of(options: argparse.Namespace) -> MvpRecipe:
    """The recipe of one seed that all tables stand on."""
    recipe = smallest() if options.size == "smallest" else mvp()
    recipe = replace(recipe, start=replace(recipe.start, folder=options.start))
    for assignment in options.set:
        recipe = changed(recipe, assignment)
    return drawn_evenly(recipe)


@errors_in_one_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = common_parser("mvp", __doc__, TABLES, ".cache/mvp-ablations")
    parser.add_argument("--puzzles", type=Path, required=True, help="what longtake synth mvp wrote")
    parser.add_argument("--start", default="", help="folder of the model to begin from; else the one in the package")
    told = "name=value of the recipe, as puzzles.levels=L1,L2 or grpo.fit.steps=200; several times"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=told)
    options = options_of(parser, arguments)
    require_extra()
    recipe = recipe_of(options)
    work = options.work / work_name(recipe, options.puzzles)
    site = Site(puzzles=options.puzzles, work=work, recipe=recipe, footage=options.footage)
    found = make(site, options)
    if found is not None:
        finish(found, options.results)
        picture(found, options.results, overall(found.measures))


if __name__ == "__main__":
    main()
