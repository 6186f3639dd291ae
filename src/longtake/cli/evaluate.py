"""Measuring: ``longtake eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longtake.cli.console import (
    DeviceOption,
    JsonOption,
    ModelOption,
    SeedOption,
    check_picture,
    load_model,
    load_tower,
    progress,
)

if TYPE_CHECKING:
    from longtake.data.puzzles.footage import Embed

HaystackOption = Annotated[Path | None, typer.Option(help="Folder of footage, no subfolders; default: drawn scenes.")]
TowerOption = Annotated[Path | None, typer.Option(help="Folder of a vision tower by itself, shown beside the others.")]
CacheOption = Annotated[Path, typer.Option(help="Where decoded footage is kept.")]
CACHE = Path(".cache/haystack")

evaluations = typer.Typer(help="Measure a model.", no_args_is_help=True)


@evaluations.command()
def probe(
    frames: Annotated[list[int], typer.Option(help="Frames a video, 1 a second; may be given several times.", min=8)],
    samples: Annotated[int, typer.Option(help="Videos of each length, each with up to 20 questions.", min=1)] = 25,
    seed: SeedOption = 0,
    keep: Annotated[
        list[float] | None,
        typer.Option(help="Share of the visual tokens to keep; may be given several times.", min=0.0001, max=1.0),
    ] = None,
    oracle: Annotated[bool, typer.Option(help="Ask also with what shows the answer kept: the upper bound.")] = False,
    begin: Annotated[int, typer.Option(help="As if the video began at this second of a longer one.", min=0)] = 0,
    haystack: HaystackOption = None,
    cache: CacheOption = CACHE,
    plot: Annotated[Path | None, typer.Option(help="Write a depth-by-length heat-map (needs the extra plot).")] = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask about needles in videos of the probe world's test split, with controls beside the answers."""
    from longtake.data.probe_world.haystack import load_clips
    from longtake.eval.plot import depth_by_length
    from longtake.eval.probe import evaluate_each
    from longtake.eval.report import ProbeRun, table

    if plot is not None:
        check_picture(plot)
    loaded = load_model(model, device)
    clips = load_clips("test", haystack, cache)
    results = []
    for num_frames in frames:
        settings: dict[str, Any] = {"num_videos": samples, "seed": seed, "begin_seconds": begin, "oracle": oracle}
        shares: list[float | None] = [*keep] if keep else [None]
        runs = [ProbeRun(num_frames=num_frames, keep=share, **settings) for share in shares]
        with progress(f"{num_frames} frames") as report:
            results += evaluate_each(loaded, runs, clips, report)
    print(json.dumps(results if len(results) > 1 else results[0]) if as_json else table(results))
    if plot is not None:
        depth_by_length(results, plot)


@evaluations.command()
def hops(
    frames: Annotated[int, typer.Option(help="Frames a video, 1 a second; at least 10.")] = 16,
    samples: Annotated[int, typer.Option(help="Questions, each about its own video.", min=1)] = 100,
    seed: SeedOption = 0,
    haystack: HaystackOption = None,
    cache: CacheOption = CACHE,
    model: ModelOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask questions that take one to four hops about short videos of the test split, with controls beside them."""
    from longtake.data.probe_world.haystack import load_clips
    from longtake.eval.hops import HopRun, evaluate, table

    run = HopRun(questions=samples, frames=frames, seed=seed)
    loaded = load_model(model, device)
    with progress("questions") as report:
        result = evaluate(loaded, run, load_clips("test", haystack, cache), report)
    print(json.dumps(result) if as_json else table(result))


@evaluations.command()
def features(
    samples: Annotated[int, typer.Option(help="Training examples a task; half as many for the test.", min=10)] = 1000,
    seeds: Annotated[int, typer.Option(help="Repetitions, each with examples of its own.", min=1)] = 3,
    haystack: HaystackOption = None,
    cache: CacheOption = CACHE,
    model: ModelOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train classifiers on features before and after the DTS: which letter a card shows, which way a shape moves."""
    from longtake.data.probe_world.haystack import load_clips
    from longtake.eval.features import FeatureRun, evaluate, network_of, table

    network = network_of(load_model(model, device))
    run = FeatureRun(samples=samples, seeds=seeds, frames=max(4, network.config.frames_per_group))
    train, test = load_clips("train", haystack, cache), load_clips("test", haystack, cache)
    with progress("probes") as report:
        result = evaluate(network, run, {"train": train, "test": test}, progress=report)
    print(json.dumps(result) if as_json else table(result))


@evaluations.command()
def leaks(
    folder: Annotated[Path, typer.Argument(help="What longtake synth mvp wrote.")],
    samples: Annotated[int, typer.Option(help="Puzzles of each level whose pictures are looked at.", min=1)] = 100,
    model: ModelOption = None,
    tower: TowerOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Whether puzzles give their answers away, and baselines without understanding beside chance; exit code 1 if so."""
    from longtake.eval.leaks import check_leaks
    from longtake.eval.leaks import table as leak_table

    embedders = compared(model, tower, device)
    with progress("looking at puzzles") as report:
        result = check_leaks(folder, embedders, samples=samples, progress=report)
    print(json.dumps(result) if as_json else leak_table(result))
    if not result["passed"]:
        raise typer.Exit(1)


@evaluations.command()
def neighbours(
    fps: Annotated[float, typer.Option(help="Frames a second that are compared.")] = 1.0,
    haystack: HaystackOption = None,
    cache: CacheOption = CACHE,
    tower: TowerOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Whether a frame's nearest stands beside it in time, on the test split's footage: towers, pixels and chance."""
    from longtake.data.probe_world.haystack import load_clips
    from longtake.eval.neighbours import evaluate
    from longtake.eval.neighbours import table as neighbour_table

    embedders = compared(model, tower, device)
    with progress("looking for neighbours") as report:
        result = evaluate(embedders, load_clips("test", haystack, cache), fps=fps, progress=report)
    print(json.dumps(result) if as_json else neighbour_table(result))


def compared(model: str | None, tower: Path | None, device: str | None) -> dict[str, Embed]:
    """The ways to compare frames, by name: pixels, random weights, a model's own tower, and a tower that is given."""
    from longtake.eval.leaks import embedders_of

    embedders = embedders_of(load_model(model, device).backbone)
    if tower is not None:
        embedders["given tower"] = load_tower(tower, device).features
    return embedders
