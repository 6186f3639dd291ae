"""What the commands that make tables share: options, the estimate before, the settings in a table, and its end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from longtake.eval.ablation_report import AblationTable, as_text, write
from longtake.tables.operations import Part


def common_parser(family: str, about: str | None, tables: Iterable[str], work: str) -> argparse.ArgumentParser:
    """A command line with the options of all families of tables.

    family: the folder that is run. about: what it does. work: the work folder where none is named.
    """
    parser = argparse.ArgumentParser(prog=f"python -m longtake.tables.{family}", description=about)
    parser.add_argument("table", choices=list(tables))
    footage = "a folder of videos for the probe world; drawn scenes alone without it"
    parser.add_argument("--footage", type=Path, default=None, help=footage)
    parser.add_argument("--work", type=Path, default=Path(work))
    kept = "where the table goes; default: docs/results, of the smallest size WORK/results"
    parser.add_argument("--results", type=Path, default=None, help=kept)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", choices=["smallest", "full"], default="full")
    parser.add_argument("--dry-run", action="store_true", help="print the estimated cost and stop")
    return parser


def options_of(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says; the smallest size never takes the place of a table in docs unless it is told to."""
    options = parser.parse_args(arguments)
    if options.results is None:
        options.results = options.work / "results" if options.size == "smallest" else Path("docs/results")
    return options


def estimate_text(parts: Sequence[Part]) -> str:
    """Core-seconds by part, and core-hours in all."""
    lines = [f"{p.times:3d} x {p.seconds:7.0f} core-seconds  {p.name}" for p in parts if p.times]
    total = sum(p.times * p.seconds for p in parts)
    return "\n".join([*lines, f"about {total / 3600:.2f} core-hours still to be done"])


def finish(table: AblationTable, folder: Path) -> None:
    """Print a table and keep it."""
    print(as_text(table), flush=True)
    write(table, folder)


def settings_of(
    options: argparse.Namespace, family: str, folders: Sequence[str] = ("footage",), own: Sequence[str] = ()
) -> dict[str, Any]:
    """What it takes to run a table again, but for the machine's own paths: "command" and "versions".

    family: of tables, the folder that is run. folders: options that name one. own: the family's own options that
    decide what is in a table, left out where they are None; one that was given several times is told each time.
    """
    seeds = " ".join(map(str, options.seeds))
    named = "".join(f" --{name} FOLDER" for name in folders if getattr(options, name))
    more = "".join(f" --{name} {value}" for name in own for value in _given(getattr(options, name)))
    command = f"python -m longtake.tables.{family} {options.table}{named} --seeds {seeds} --size {options.size}{more}"
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    return {"command": command, "versions": versions}


def _given(value: Any) -> list[Any]:
    """An option's values: none, one or several."""
    if isinstance(value, list):
        return value
    return [] if value is None else [value]
