"""Making training data from raw video: ``longtake synth``."""

from __future__ import annotations

import json
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
    SeedOption,
    WorkersOption,
    load_model,
    load_tower,
    show_named,
    stages_progress,
)
from longtake.types import LongtakeError

if TYPE_CHECKING:
    from longtake.data.puzzles.footage import Gatherer
    from longtake.data.puzzles.framefile import Encoding
    from longtake.data.puzzles.mvp import Level
    from longtake.data.puzzles.synth import Outcome

synthesis = typer.Typer(help="Make training data from raw video.", no_args_is_help=True)


class MaskChoice(StrEnum):
    """Which frames of a puzzle are missing."""

    contiguous = "contiguous"
    scattered = "scattered"
    before = "before"
    after = "after"


class EncodingChoice(StrEnum):
    """How frames are stored."""

    jpeg = "jpeg"
    png = "png"


class EmbedderChoice(StrEnum):
    """What compares frames: the model's vision tower, or small pictures."""

    tower = "tower"
    pixels = "pixels"


@synthesis.command()
def mvp(
    videos: Annotated[list[Path], typer.Argument(help="Videos, or folders that are searched for some.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for puzzles, frames and statistics.")],
    fps: Annotated[float, typer.Option(help="Frames a second; short clips give more.", min=0.01)] = 1.0,
    size: Annotated[int, typer.Option(help="Longest side of a stored frame, in pixels.", min=16, max=8192)] = 320,
    encoding: Annotated[EncodingChoice, typer.Option(help="How frames are stored.")] = EncodingChoice.jpeg,
    level: Annotated[
        list[str] | None, typer.Option(help="L1 (easy) to L5; may be given several times; all without it.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of a puzzle, context and missing.", min=3)] = 16,
    mask: Annotated[MaskChoice, typer.Option(help="Which of them are missing.")] = MaskChoice.contiguous,
    per_minute: Annotated[float, typer.Option(help="Tries a minute of footage and level.")] = 6.0,
    quantile: Annotated[
        float, typer.Option(help="Of neighbouring frames' cosines, above which a frame repeats the last.")
    ] = 0.7,
    kappa: Annotated[
        float | None, typer.Option(help="Cosine above which a frame repeats the last; default: from --quantile.")
    ] = None,
    near: Annotated[
        float | None, typer.Option(help="Cosine up to which a distractor may be like a missing frame; default: kappa.")
    ] = None,
    seed: SeedOption = 0,
    embedder: Annotated[EmbedderChoice, typer.Option(help="What compares frames.")] = EmbedderChoice.tower,
    workers: WorkersOption = 1,
    engine: Annotated[EngineChoice, typer.Option(help="What runs the workers.")] = EngineChoice.process,
    model: ModelOption = None,
    tower: Annotated[
        Path | None, typer.Option(help="Folder of a vision tower by itself, which compares frames instead.")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Masked Video Prediction: puzzles with missing frames to be found and put in order; continues if interrupted."""
    from longtake.data.puzzles.footage import find_footage
    from longtake.data.puzzles.synth import Synthesis, synthesise

    settings = Synthesis(
        levels=read_levels(level or []),
        frames=frames,
        mask=mask.value,
        per_minute=per_minute,
        quantile=quantile,
        kappa=kappa,
        near=near,
        seed=seed,
    )
    if tower is not None and embedder is EmbedderChoice.pixels:
        raise LongtakeError(f"--tower is {tower}, but pixels compare frames; leave --tower or --embedder out")
    make = partial(make_gatherer, model, device, embedder.value, output, fps, size, encoding.value, tower)
    with stages_progress() as report:
        done = synthesise(
            find_footage(videos), output, settings, make, engine=engine.value, workers=workers, progress=report
        )
    print(json.dumps(as_fields(done)) if as_json else as_text(done))
    show_named("left out", done.problems, "statistics.json")
    show_named("copy", done.duplicates, "statistics.json")


@synthesis.command()
def scenes(
    output: Annotated[Path, typer.Argument(help="Folder for the videos.")],
    count: Annotated[int, typer.Option(help="Videos; the kinds take turns.")] = 40,
    seconds: Annotated[float, typer.Option(help="Length of each.")] = 24.0,
    fps: Annotated[float, typer.Option(help="Frames a second.")] = 5.0,
    seed: SeedOption = 0,
) -> None:
    """Drawn scenes whose things fall, bounce, roll, grow and count down, as H.264 files for synth mvp."""
    from longtake.data.puzzles.dynamics import write_scenes

    written = write_scenes(output, count=count, seconds=seconds, fps=fps, seed=seed)
    print(f"{output}: {len(written)} scenes, {len(written) * seconds / 60:.1f} minutes")


def make_gatherer(
    model: str | None,
    device: str | None,
    embedder: str,
    output: Path,
    fps: float,
    size: int,
    encoding: Encoding,
    tower: Path | None = None,
) -> Gatherer:
    """A gatherer, which reads videos, with a model's tower or one by itself; called once in each process."""
    from longtake.data.puzzles.footage import PLACES, Gatherer, frames_folder, pixel_features

    seen: dict[str, Any] = {"model": "pixels", "device": "cpu"}
    embed = pixel_features
    if tower is not None:
        eyes = load_tower(tower, device)
        seen = {"model": eyes.name, "device": eyes.model.device.type}
        embed = eyes.features
    elif embedder == "tower":
        backbone = load_model(model, device).backbone
        seen = {"model": backbone.name, "device": backbone.device.type}
        embed = backbone.tower_features
    settings = {**seen, "places": PLACES, "fps": fps, "size": size, "encoding": encoding}
    folder = frames_folder(output)
    return Gatherer(embed=embed, folder=folder, fps=fps, longest_side=size, encoding=encoding, settings=settings)


def read_levels(names: list[str]) -> tuple[Level, ...]:
    """The levels of these names, easiest first; all for none. Raises LongtakeError for what is no level."""
    from longtake.data.puzzles.mvp import LEVELS

    known = [level.name for level in LEVELS]
    for name in names:
        if name not in known:
            raise LongtakeError(f"--level {name}: there is no such level; name one of {', '.join(known)}")
    return tuple(level for level in LEVELS if not names or level.name in names)


def as_fields(done: Outcome) -> dict[str, Any]:
    """The figures, JSON-ready."""
    spent = {stage: round(seconds, 2) for stage, seconds in done.seconds.items()}
    return {**done.statistics, "frames_reused_of": done.reused, "seconds": spent}


def as_text(done: Outcome) -> str:
    """The figures as a table and lines."""
    told = done.statistics
    rows = [f"{'level':6}{'missing':>8}{'pool':>6}{'tried':>8}{'made':>8}{'a minute':>10}  not made"]
    for name, found in told["levels"].items():
        why = ", ".join(f"{reason} {count}" for reason, count in found["rejects"].items() if count) or "-"
        pool = found["masked"] + found["distractors"]
        counts = f"{found['masked']:8}{pool:6}{found['tried']:8}{found['made']:8}{found['made_per_minute']:10.2f}"
        rows.append(f"{name:6}{counts}  {why}")
    if told["calibration"] is None:
        how = "given"
    else:
        how = f"quantile {told['calibration']['quantile']:g} of {told['calibration']['neighbours']} neighbours"
    rows.append(f"kappa {told['kappa']:.6f} ({how}), near {told['near']:.6f}; {told['keep_rate']:.1%} of frames kept")
    spent = done.seconds
    stages = ", ".join(f"{stage} {spent[stage]:.1f}" for stage in ("read", "embed", "store", "puzzles"))
    rows.append(
        f"{told['puzzles']} puzzles of {told['videos']} videos ({done.reused} read before), {told['minutes']:.1f} "
        f"minutes, {told['frames']} frames, in {spent['all']:.1f} s (seconds of work: {stages})"
    )
    return "\n".join(rows)
