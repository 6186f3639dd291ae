"""Reading what a policy sampled: ``longtake samples``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longtake.cli.console import PAGES
from longtake.outputs import check_output


def samples(
    run: Annotated[Path, typer.Argument(help="The folder of a run of policy optimisation.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="An HTML page; else text, to stdout.")] = None,
    last: Annotated[int, typer.Option(help="How many of the newest groups; 0: all.", min=0)] = 20,
) -> None:
    """Show prompts, completions and rewards that a run kept while it trained."""
    from longtake.train import viewer

    if output is not None:
        check_output(output, endings=PAGES)
    rows = viewer.read(run)[-last:]
    if output is None:
        print(viewer.as_text(rows))
    else:
        viewer.write(rows, output)
