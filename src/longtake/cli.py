"""The command line: results to stdout, progress and warnings to stderr; a mistake gives one line and exit code 1."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from longtake.types import LongtakeError

if TYPE_CHECKING:
    from longtake.model import Model
    from longtake.select import Selector
    from longtake.types import Answer, Memory, Sampling, VideoInfo

app = typer.Typer(
    help="Ask questions of hours of video.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
_errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

ModelOption = Annotated[str | None, typer.Option("--model", help="Folder of a model; else the one in the package.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; the accelerator if there is one.")]
FpsOption = Annotated[float | None, typer.Option("--fps", help="Frames a second of video to watch; 1 if not given.")]
MaxFramesOption = Annotated[int | None, typer.Option("--max-frames", help="Watch at most so many frames, evenly.")]
StartOption = Annotated[float | None, typer.Option("--start", help="Begin at this second.")]
StopOption = Annotated[float | None, typer.Option("--stop", help="End before this second.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class Select(StrEnum):
    """How to choose visual tokens when they do not fit the context, or a budget is given."""

    query = "query"
    uniform = "uniform"
    random = "random"


@app.command()
def ask(
    video_or_memory: Annotated[str, typer.Argument(help="A video file, or a memory that `longtake watch` saved.")],
    question: str,
    model: ModelOption = None,
    fps: FpsOption = None,
    max_frames: MaxFramesOption = None,
    start: StartOption = None,
    stop: StopOption = None,
    select: Annotated[Select, typer.Option(help="How to choose visual tokens when not all fit.")] = Select.query,
    budget: Annotated[int | None, typer.Option(help="Keep at most so many visual tokens.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 64,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about a video, with the moments that the answer relied on."""
    from longtake.memory import is_memory, load_memory
    from longtake.types import Query

    Query(text=question)  # an empty one is refused before anything is watched
    if is_memory(video_or_memory):
        given = {"--fps": fps, "--max-frames": max_frames, "--start": start, "--stop": stop}
        if useless := [name for name, value in given.items() if value is not None]:
            raise LongtakeError(
                f"{', '.join(useless)}: {video_or_memory} is a watched memory; give the video, or leave that out"
            )
        memory, loaded = load_memory(video_or_memory), _load(model, device)
    else:
        sampling = _sampling(video_or_memory, fps, max_frames, start, stop)
        loaded = _load(model, device)
        memory = _watch(loaded, video_or_memory, sampling, None)
    answer = loaded.ask(
        memory, question, selector=_selector(select), budget_tokens=budget, max_new_tokens=max_new_tokens
    )
    print(json.dumps(_answer_fields(answer)) if as_json else _answer_text(answer))


@app.command()
def watch(
    video: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to save the memory to.")],
    model: ModelOption = None,
    fps: FpsOption = None,
    max_frames: MaxFramesOption = None,
    start: StartOption = None,
    stop: StopOption = None,
    device: DeviceOption = None,
) -> None:
    """Watch a video once and save the memory; called again after an interruption, it continues."""
    sampling = _sampling(video, fps, max_frames, start, stop)
    memory = _watch(_load(model, device), video, sampling, output)
    print(f"{output}: {memory.provenance.frames} frames, {len(memory.tokens)} tokens")


@app.command()
def info(video: str, as_json: JsonOption = False) -> None:
    """What a video file holds."""
    import longtake.video

    found: VideoInfo = longtake.video.open(video)
    fields = dataclasses.asdict(found)
    if as_json:
        print(json.dumps(fields))
        return
    for name, value in fields.items():
        print(f"{name:18} {', '.join(value) if isinstance(value, tuple) else value}")


evaluations = typer.Typer(help="Measure a model.", no_args_is_help=True)
app.add_typer(evaluations, name="eval")


@evaluations.command()
def probe(
    frames: Annotated[list[int], typer.Option(help="Frames a video, 1 a second; may be given several times.", min=8)],
    samples: Annotated[int, typer.Option(help="Videos a length, each with up to 20 questions.", min=1)] = 25,
    seed: int = 0,
    keep: Annotated[float | None, typer.Option(help="Share of the visual tokens to keep.", min=0.0001, max=1.0)] = None,
    begin: Annotated[int, typer.Option(help="Time of the first frame, as in a part of a longer video.", min=0)] = 0,
    haystack: Annotated[Path | None, typer.Option(help="Folder of footage; drawn scenes without it.")] = None,
    cache: Annotated[Path, typer.Option(help="Where decoded footage is kept.")] = Path(".cache/haystack"),
    plot: Annotated[Path | None, typer.Option(help="Write a depth-by-length heat-map here.")] = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask about needles in videos of the probe world's test split, with controls beside the answers."""
    from longtake.data.haystack import load_clips
    from longtake.eval.plot import depth_by_length
    from longtake.eval.probe import evaluate
    from longtake.eval.report import ProbeRun, table

    loaded = _load(model, device)
    clips = load_clips("test", haystack, cache)
    results = []
    for num_frames in frames:
        run = ProbeRun(num_frames=num_frames, num_videos=samples, seed=seed, keep=keep, begin_seconds=begin)
        with _progress(f"{num_frames} frames") as progress:
            results.append(evaluate(loaded, run, clips, progress))
    if plot is not None:
        depth_by_length(results, plot)
    print(json.dumps(results if len(results) > 1 else results[0]) if as_json else table(results))


class Layout(StrEnum):
    """Published checkpoint layouts that can be converted."""

    video_xl_pro = "video-xl-pro"


@app.command()
def convert(layout: Layout, source: Path, target: Path) -> None:
    """Turn a published checkpoint into a folder that --model takes."""
    from longtake.models.convert import convert as run

    run(source, target)
    print(f"{target}: converted from {layout.value}; ask with --model {target}")


def _load(path: str | None, device: str | None) -> Model:
    from transformers.utils.logging import disable_progress_bar

    from longtake.model import load

    disable_progress_bar()  # type: ignore[no-untyped-call]  # the bar of loading weights is no news
    return load(path, device=device)


def _sampling(
    video: str, fps: float | None, max_frames: int | None, start: float | None, stop: float | None
) -> Sampling:
    """What to read, with the options and the file checked before a model takes its time to load."""
    import longtake.video
    from longtake.types import Sampling

    sampling = Sampling(
        fps=1.0 if fps is None else fps, max_frames=max_frames, start_seconds=start, stop_seconds=stop
    )
    longtake.video.open(video)
    return sampling


def _watch(model: Model, video: str, sampling: Sampling, target: Path | None) -> Memory:
    with _progress("watching") as progress:
        return model.watch(video, sampling=sampling, target=target, progress=progress)


def _selector(choice: Select) -> Selector:
    from longtake.select import Random, TopK, Uniform

    methods: dict[Select, Selector] = {Select.query: TopK(), Select.uniform: Uniform(), Select.random: Random()}
    return methods[choice]


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left on stderr, gone when done; nothing when stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors, transient=True, disable=not _errors.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, planned: bar.update(task, completed=done, total=planned)


def _answer_fields(answer: Answer) -> dict[str, Any]:
    usage = dataclasses.asdict(answer.usage)
    return {"answer": answer.text, "evidence": [dataclasses.asdict(span) for span in answer.evidence], "usage": usage}


def _answer_text(answer: Answer) -> str:
    spans = ", ".join(
        f"{_clock(span.start_seconds)}-{_clock(span.stop_seconds)} ({span.score:.2f})" for span in answer.evidence
    )
    usage = answer.usage
    spent = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in usage.seconds.items() if seconds >= 0.005)
    counts = f"{usage.frames} frames, {usage.visual_tokens} visual tokens, {usage.prompt_tokens} prompt tokens"
    return f"{answer.text}\nseen at  {spans or 'no moment in particular'}\nused     {counts}; {spent}"


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss.s, without hours when there are none."""
    tenths = round(seconds * 10)
    hours, rest = divmod(tenths, 36000)
    minutes, rest = divmod(rest, 600)
    return f"{hours}:{minutes:02d}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _errors.print(f"warning: {message}", style="yellow")


def main() -> None:
    """The console script: typer's commands, and one line for each mistake."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning  # one line, without the place in our code
            app(prog_name="longtake")
    except LongtakeError as error:
        _errors.print("error: " + " ".join(str(error).split()), style="red")
        sys.exit(1)
    except KeyboardInterrupt:
        _errors.print("interrupted", style="red")
        sys.exit(130)


if __name__ == "__main__":
    main()
