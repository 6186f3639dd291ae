"""Options, a model and progress on stderr: what all commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from longtake.outputs import check_output

if TYPE_CHECKING:
    from longtake.backbones.tower import Tower
    from longtake.model import Model

errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

ModelOption = Annotated[
    str | None, typer.Option("--model", help="A model's folder or hub id; default: the one in the package.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Decides all that is drawn.", min=0, max=2**32 - 1)]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; the accelerator if there is one.")]
WorkersOption = Annotated[int, typer.Option("--workers", help="Processes, one thread each.", min=1)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

MOST_NAMED = 20  # files on the terminal
PICTURES, PAGES = (".png", ".pdf", ".svg"), (".html", ".htm")


class EngineChoice(StrEnum):
    """What runs the workers."""

    process = "process"
    ray = "ray"


def load_model(path: str | None, device: str | None) -> Model:
    from transformers.utils.logging import disable_progress_bar

    from longtake.model import load

    disable_progress_bar()  # the bar of loading weights is no news
    return load(path, device=device)


def load_tower(folder: Path, device: str | None) -> Tower:
    from transformers.utils.logging import disable_progress_bar

    from longtake.backbones.tower import Tower

    disable_progress_bar()
    return Tower.load(folder, device)


def check_picture(file: Path) -> None:
    """Refuse a picture that could not be drawn, before the work for it."""
    from longtake.eval import plot

    check_output(file, endings=PICTURES)
    plot.pyplot()


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left on stderr, gone when done; nothing when stderr is no terminal."""
    with stages_progress(label) as report:
        yield lambda done, planned: report(label, done, planned)


@contextmanager
def stages_progress(*labels: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each of several things, by label, as they come; those named are there from the start."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        tasks = {label: bar.add_task(label, total=None) for label in labels}

        def report(label: str, done: int, planned: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(label, total=None)
            bar.update(tasks[label], completed=done, total=planned)

        yield report


def show_named(word: str, told: Mapping[str, str], file: str) -> None:
    """Print what is to be said of some files to stderr, a line each; of many only the first, ``file`` has the rest."""
    for name, line in list(told.items())[:MOST_NAMED]:
        errors.print(f"{word}: {name}: {line}", style="yellow")
    if len(told) > MOST_NAMED:
        errors.print(f"{word}: {len(told) - MOST_NAMED} more videos, named in {file}", style="yellow")
