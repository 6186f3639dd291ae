"""Training: ``longtake train``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longtake.train.extra import require_extra
from longtake.types import LongtakeError

if TYPE_CHECKING:
    from longtake.recipes.mvp import MvpRecipe
    from longtake.recipes.recipe import DataFiles

RECIPES = {
    "debug": "longtake.recipes.debug",
    "embedded": "longtake.recipes.embedded",
    "latent": "longtake.recipes.latent",
    "video_xl_pro_3b": "longtake.recipes.video_xl_pro",
}
ON_PUZZLES = dict.fromkeys(("mvp", "mvp_embedded", "mvp_debug"), "longtake.recipes.mvp")


def train(
    recipe: Annotated[str, typer.Argument(help=f"One of: {', '.join(RECIPES | ON_PUZZLES)}.")],
    puzzles: Annotated[
        Path | None, typer.Argument(help="What longtake synth mvp wrote, for a recipe on puzzles.", show_default=False)
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="recot, align, sft, latent; puzzles compare, order, warm, grpo, supervised; else its own."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="JSON or JSONL of conversations, FILE or FILE=WEIGHT; several times.")
    ] = None,
    media: Annotated[Path | None, typer.Option(help="What media paths count from; else the first file's.")] = None,
    held: Annotated[Path | None, typer.Option(help="Conversations to measure on.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where everything goes; else .cache/train/RECIPE.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="name=value of the recipe, as sft.fit.lr=1e-5; several times.")
    ] = None,
) -> None:
    """Train a model by a recipe; called again after an interruption, it continues."""
    check_given(recipe, puzzles, conversations=bool(data or media or held))
    require_extra()
    from transformers.utils.logging import disable_progress_bar

    from longtake.recipes.settings import changed
    from longtake.train.run import end_processes

    disable_progress_bar()  # saving a model is no news
    chosen = getattr(import_module((RECIPES | ON_PUZZLES)[recipe]), recipe)()
    for assignment in settings or []:
        chosen = changed(chosen, assignment)
    target = output or Path(".cache/train") / recipe
    stages = stage or chosen.stages
    if puzzles is None:
        from longtake.recipes.stages import run

        speaks = run(chosen, stages, data_files(data or [], media, held), target)
    else:
        speaks = train_on_puzzles(chosen, stages, puzzles, target)
    if speaks:
        print(f"{target}: done; {closing_line(target, stages)}")
    end_processes()


def check_given(recipe: str, puzzles: Path | None, *, conversations: bool) -> None:
    """Raises LongtakeError for a recipe that is none, and for data that it does not take or lacks."""
    if recipe not in RECIPES | ON_PUZZLES:
        raise LongtakeError(f"the recipe is {recipe!r}; it must be one of {', '.join(RECIPES | ON_PUZZLES)}")
    if (recipe in ON_PUZZLES) != (puzzles is not None):
        rule = "takes no puzzles" if puzzles else "needs puzzles; give the folder that longtake synth mvp wrote"
        raise LongtakeError(f"the recipe {recipe} {rule}")
    if puzzles is not None and conversations:
        raise LongtakeError("--data, --media and --held are of conversations; leave them out with puzzles")


def closing_line(output: Path, stages: Sequence[str]) -> str:
    """A line for the user: how to go on with what these stages left in ``output``."""
    models = [folder for stage in stages if (folder := output / stage / "model").exists()]
    if not models:
        return "what was trained is a part of a model; the stages after it begin with it"
    shown = " or ".join(map(str, models))
    return f"a trained model answers with longtake ask VIDEO QUESTION --model {shown}"


def train_on_puzzles(recipe: MvpRecipe, stages: Sequence[str], puzzles: Path, output: Path) -> bool:
    """Run the stages and print the report; returns whether this process is the one that speaks for all."""
    from longtake.eval.mvp import table
    from longtake.recipes.mvp_stages import run_on_puzzles

    told = run_on_puzzles(recipe, stages, puzzles, output)
    if told is not None:
        print(table(told))
    return told is not None


def data_files(files: list[str], media: Path | None, held: Path | None) -> DataFiles | None:
    """Conversations to learn from; None where none are given."""
    if not files:
        if media or held:
            raise LongtakeError("--media and --held go with --data; give --data FILE too")
        return None
    from longtake.recipes.recipe import DataFiles

    weighted = tuple(weighted_file(file) for file in files)
    for file in [path for path, _ in weighted] + ([held] if held else []):
        if not file.is_file():
            raise LongtakeError(f"{file} is no file; give a JSON or JSONL file of conversations")
    return DataFiles(files=weighted, media=media or weighted[0][0].parent, held=held)


def weighted_file(text: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE=WEIGHT``."""
    file, equals, weight = text.rpartition("=")
    if equals:
        try:
            return Path(file), float(weight)
        except ValueError:
            pass  # the file's own name has the sign
    return Path(text), 1.0
