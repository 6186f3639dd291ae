"""Looking at made training data: ``longtake inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longtake.cli.console import PAGES
from longtake.outputs import check_output, replaced


def inspect(
    folder: Annotated[Path, typer.Argument(help="What longtake synth wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the page goes; inspect.html in the folder.")
    ] = None,
    count: Annotated[int, typer.Option(help="Puzzles to show, as many of each level.", min=1)] = 20,
) -> None:
    """One self-contained HTML page of puzzles: context, gap, candidates, truth."""
    from longtake.data.puzzles.sheets import contact_page

    if output is not None:
        check_output(output, endings=PAGES)
    page = contact_page(folder, count)
    target = folder / "inspect.html" if output is None else output
    with replaced(target) as scratch:
        scratch.write_text(page, encoding="utf-8")
    print(target)
