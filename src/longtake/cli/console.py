"""What all commands share: options, a model, progress on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from longtake.model import Model

errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

ModelOption = Annotated[str | None, typer.Option("--model", help="Folder of a model; else the one in the package.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; the accelerator if there is one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def load_model(path: str | None, device: str | None) -> Model:
    from transformers.utils.logging import disable_progress_bar

    from longtake.model import load

    disable_progress_bar()  # type: ignore[no-untyped-call]  # the bar of loading weights is no news
    return load(path, device=device)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left on stderr, gone when done; nothing when stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, planned: bar.update(task, completed=done, total=planned)
