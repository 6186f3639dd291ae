"""Reading what a policy sampled: ``longtake samples``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longtake.cli.console import PAGES
from longtake.outputs import check_output
from longtake.types import LongtakeError


def samples(
    run: Annotated[Path, typer.Argument(help="The folder of a run of policy optimisation.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="An HTML page; else text, to stdout.")] = None,
    puzzles: Annotated[
        Path | None, typer.Option(help="What longtake synth mvp wrote: shows the puzzles' pictures and truth, with -o.")
    ] = None,
    last: Annotated[int, typer.Option(help="How many of the newest groups; 0: all.", min=0)] = 20,
) -> None:
    """Show prompts, completions and rewards that a run kept while it trained."""
    from longtake.train import viewer

    if output is not None:
        check_output(output, endings=PAGES)
    elif puzzles is not None:
        raise LongtakeError(f"--puzzles is {puzzles}, but text has no pictures; give --output FILE.html, too")
    rows = viewer.read(run)[-last:]
    if output is None:
        print(viewer.as_text(rows))
    else:
        viewer.write(rows, output, viewer.pictures_of(rows, puzzles) if puzzles is not None else None)
