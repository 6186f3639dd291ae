"""The command line: results to stdout, progress and warnings to stderr; a mistake gives one line and exit code 1."""

from __future__ import annotations

import warnings
from functools import partial

import typer

from longtake.cli import ask, convert, evaluate, inspect, prune, samples, synth, train
from longtake.cli.console import errors
from longtake.recipes.one_line import errors_in_one_line

app = typer.Typer(
    help="Ask questions of hours of video.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
COMMANDS = (
    ask.ask, ask.watch, ask.info, convert.convert, prune.prune, inspect.inspect, train.train, samples.samples
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)
app.add_typer(evaluate.evaluations, name="eval")
app.add_typer(synth.synthesis, name="synth")


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    errors.print(f"warning: {message}", style="yellow")


def main() -> None:
    """The console script: typer's commands, and one line for each mistake."""
    with errors_in_one_line(partial(errors.print, style="red")), warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _show_warning  # one line, without the place in our code
        app(prog_name="longtake")
