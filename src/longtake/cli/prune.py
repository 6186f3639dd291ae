"""Pruning a data set: ``longtake prune``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longtake.cli.console import (
    DeviceOption,
    EngineChoice,
    JsonOption,
    ModelOption,
    WorkersOption,
    load_model,
    progress,
    show_named,
)
from longtake.types import LongtakeError

if TYPE_CHECKING:
    from longtake.data.pruning.prune import Pruning
    from longtake.data.pruning.redundancy import Cut, Feature, Pairs
    from longtake.data.pruning.samples import Subset
    from longtake.data.pruning.scorer import Scorer


class PairsChoice(StrEnum):
    """Which pairs of a video's frames are compared."""

    adjacent = "adjacent"
    all = "all"


class FeatureChoice(StrEnum):
    """Which features of two frames are compared: the mean of their patches, or each patch with the one at its place."""

    pooled = "pooled"
    patch = "patch"


def prune(
    data: Annotated[Path, typer.Argument(help="Conversations, LLaVA-style or OpenAI-style, JSON or JSONL.")],
    media: Annotated[Path, typer.Option(help="Folder that the data's paths start from.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the kept samples go; more files beside it.")],
    keep: Annotated[
        list[str] | None, typer.Option(help="Share of each subset to keep, 0.5; or of one, caption=0.5.")
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(help="Drop from this score on, 0.95; or of one subset, caption=0.95.")
    ] = None,
    pairs: Annotated[PairsChoice, typer.Option(help="Pairs of frames to compare.")] = PairsChoice.adjacent,
    feature: Annotated[FeatureChoice, typer.Option(help="What of a frame to compare.")] = FeatureChoice.pooled,
    workers: WorkersOption = 1,
    engine: Annotated[EngineChoice, typer.Option(help="What runs the workers.")] = EngineChoice.process,
    pictures: Annotated[bool, typer.Option(help="Draw a histogram and a sheet of examples.")] = True,
    model: ModelOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop the samples whose videos repeat themselves most, of each kind of question; continues if interrupted."""
    from longtake.data.pruning.prune import prune as run
    from longtake.eval import plot, prune_pictures

    cuts = read_cuts(keep or [], threshold or [])
    if pictures:
        plot.pyplot(otherwise=", or draw none (--no-pictures)")  # whether it is there, before the work
    make = partial(make_scorer, model, device, pairs.value, feature.value)
    with progress("scoring videos") as report:
        done = run(data, media, output, cuts, make, engine=engine.value, workers=workers, progress=report)
    if pictures:
        prune_pictures.draw(done, output)
    summary = summarise(done)
    print(json.dumps(summary) if as_json else as_text(summary))
    show_problems(done)


def make_scorer(model: str | None, device: str | None, pairs: Pairs, feature: Feature) -> Scorer:
    """A scorer with a model's tower; called once in each process."""
    from longtake.data.pruning.redundancy import FRAMES
    from longtake.data.pruning.scorer import Scorer

    backbone = load_model(model, device).backbone
    settings = {
        "model": backbone.name,
        "device": backbone.device.type,
        "frames": FRAMES,
        "pairs": pairs,
        "feature": feature,
    }
    return Scorer(
        encode=backbone.tower_features, size=backbone.frame_size, pairs=pairs, feature=feature, settings=settings
    )


def read_cuts(keep: Sequence[str], threshold: Sequence[str]) -> dict[Subset, Cut]:
    """Where each subset is cut, from ``0.5`` (all subsets without their own) and ``caption=0.5`` (that one).

    Raises LongtakeError for what is no number or subset, said twice, or missing for a subset.
    """
    from longtake.data.pruning.redundancy import Cut
    from longtake.data.pruning.samples import SUBSETS

    given: dict[str, Cut] = {}
    for field, option, texts in (("keep", "--keep", keep), ("threshold", "--threshold", threshold)):
        for text in texts:
            subset, _, value = text.rpartition("=")
            if subset and subset not in SUBSETS:
                raise LongtakeError(f"{option} {text}: {subset!r} is no subset; name one of {', '.join(SUBSETS)}")
            if subset in given:
                named = subset or "what has no cut of its own"
                raise LongtakeError(f"{option} {text}: {named} is cut twice; give one --keep or --threshold for it")
            try:
                given[subset] = Cut(**{field: float(value)})
            except ValueError as error:
                if isinstance(error, LongtakeError):
                    raise
                raise LongtakeError(f"{option} {text}: {value!r} is no number; give one, for example 0.5") from error
    missing = [subset for subset in SUBSETS if subset not in given and "" not in given]
    if missing:
        raise LongtakeError(f"nothing says where to cut {', '.join(missing)}; give --keep 0.5 or --threshold 0.95")
    return {subset: given.get(subset) or given[""] for subset in SUBSETS}


def summarise(done: Pruning) -> dict[str, Any]:
    """The figures of a pruning, JSON-ready."""
    subsets: dict[str, Any] = {}
    for subset, line in done.lines.items():
        group = [v for v in done.verdicts if v.score is not None and v.sample.subset == subset]
        scores = sorted(v.score for v in group if v.score is not None)
        kept = sum(v.kept for v in group)
        subsets[subset] = {
            "samples": len(group),
            "kept": kept,
            "dropped": len(group) - kept,
            "dropped_from": line,
            "scores": [scores[0], scores[len(scores) // 2], scores[-1]] if scores else None,
        }
    return {
        "samples": len(done.verdicts),
        "kept": sum(v.kept for v in done.verdicts),
        "subsets": subsets,
        "without_video": sum(not v.sample.parts for v in done.verdicts),
        "left_out": sum(v.problem is not None for v in done.verdicts),
        "problems": done.problems,
        "warnings": done.warnings,
        "videos": done.videos,
        "scored_before": done.scored_before,
        "seconds": round(done.seconds, 1),
    }


def as_text(summary: dict[str, Any]) -> str:
    """The summary as a table and a line."""
    rows = [f"{'subset':18}{'samples':>8}{'kept':>8}{'dropped':>8}  dropped from  scores (lowest, median, highest)"]
    for subset, found in summary["subsets"].items():
        line = "-" if found["dropped_from"] is None else f"{found['dropped_from']:.6f}"
        scores = ", ".join(f"{score:.6f}" for score in found["scores"] or []) or "-"
        rows.append(f"{subset:18}{found['samples']:8}{found['kept']:8}{found['dropped']:8}  {line:12}  {scores}")
    rows.append(f"{'without video':18}{summary['without_video']:8}{summary['without_video']:8}{0:8}")
    rows.append(f"{'left out':18}{summary['left_out']:8}{0:8}{summary['left_out']:8}")
    rows.append(
        f"{summary['kept']} of {summary['samples']} samples kept; {summary['videos']} videos "
        f"({summary['scored_before']} scored before) in {summary['seconds']} s"
    )
    return "\n".join(rows)


def show_problems(done: Pruning) -> None:
    """Print which videos could not be scored or are odd to stderr; when there are many, the first ones."""
    show_named("left out", done.problems, ".videos.jsonl")
    show_named("odd", done.warnings, ".videos.jsonl")
