"""Asking: ``longtake ask``, ``watch`` and ``info``."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longtake.cli.console import DeviceOption, JsonOption, ModelOption, check_picture, load_model, progress
from longtake.cli.latents import check_latents, looks_fields
from longtake.types import LongtakeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longtake.model import Model
    from longtake.select import Selector
    from longtake.types import Answer, Memory, Sampling, VideoInfo

FpsOption = Annotated[float | None, typer.Option("--fps", help="Frames a second of video to watch; 1 if not given.")]
MaxFramesOption = Annotated[int | None, typer.Option("--max-frames", help="Watch at most so many frames, evenly.")]
StartOption = Annotated[float | None, typer.Option("--start", help="Begin at this second.")]
StopOption = Annotated[float | None, typer.Option("--stop", help="End before this second.")]


class Select(StrEnum):
    """How to choose visual tokens when they do not fit the context, or a budget is given."""

    query = "query"
    uniform = "uniform"
    random = "random"


def ask(
    video_or_memory: Annotated[str, typer.Argument(help="A video file, or a memory that `longtake watch` saved.")],
    question: Annotated[str, typer.Argument(help="The model in the package knows drawn cards and shapes.")],
    also: Annotated[
        list[str] | None, typer.Option("--also", help="Another question, answered beside the first; may be repeated.")
    ] = None,
    model: ModelOption = None,
    fps: FpsOption = None,
    max_frames: MaxFramesOption = None,
    start: StartOption = None,
    stop: StopOption = None,
    select: Annotated[
        Select, typer.Option(help="When not all visual tokens fit: by the question (query), evenly, or at random.")
    ] = Select.query,
    budget: Annotated[int | None, typer.Option(help="Keep at most so many visual tokens.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 64,
    latents: Annotated[
        int | None, typer.Option(help="How many latents to think in; 0: none; default: as trained.", min=0)
    ] = None,
    show_latents: Annotated[
        Path | None, typer.Option(help="Draw where each latent looks in the video; --json tells it too.")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer questions about a video, with the moments that the answers relied on."""
    from longtake.memory import is_memory, load_memory

    questions = [question, *(also or ())]
    _check_questions(questions, show_latents)
    if is_memory(video_or_memory):
        given = {"--fps": fps, "--max-frames": max_frames, "--start": start, "--stop": stop}
        if useless := [name for name, value in given.items() if value is not None]:
            raise LongtakeError(
                f"{', '.join(useless)}: {video_or_memory} is a watched memory; give the video, or leave that out"
            )
        memory, loaded = load_memory(video_or_memory), load_model(model, device)
        check_latents(loaded, latents, show_latents)
    else:
        sampling = _sampling(video_or_memory, fps, max_frames, start, stop)
        loaded = load_model(model, device)
        check_latents(loaded, latents, show_latents)
        memory = _watch(loaded, video_or_memory, sampling, None)
    answers = loaded.ask_all(
        memory,
        questions,
        selector=_selector(select),
        budget_tokens=budget,
        max_new_tokens=max_new_tokens,
        latents=latents,
        show_latents=show_latents is not None,
    )
    if show_latents is not None and answers[0].latents is not None:
        from longtake.eval.plot import latent_looks

        latent_looks(question, answers[0].latents, show_latents)
    _print_answers(questions, answers, as_json)


def watch(
    video: Annotated[str, typer.Argument(help="A video file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to save the memory to.")],
    model: ModelOption = None,
    fps: FpsOption = None,
    max_frames: MaxFramesOption = None,
    start: StartOption = None,
    stop: StopOption = None,
    device: DeviceOption = None,
) -> None:
    """Watch a video once and save the memory; called again after an interruption, it continues."""
    from longtake.memory import check_target

    check_target(output)
    sampling = _sampling(video, fps, max_frames, start, stop)
    memory = _watch(load_model(model, device), video, sampling, output)
    print(f"{output}: {memory.provenance.frames} frames, {len(memory.tokens)} tokens")


def info(video: Annotated[str, typer.Argument(help="A video file.")], as_json: JsonOption = False) -> None:
    """What a video file holds."""
    import longtake.video

    found: VideoInfo = longtake.video.open(video)
    fields = dataclasses.asdict(found)
    if as_json:
        print(json.dumps(fields))
        return
    for name, value in fields.items():
        print(f"{name:18} {', '.join(value) if isinstance(value, tuple) else value}")


def _sampling(
    video: str, fps: float | None, max_frames: int | None, start: float | None, stop: float | None
) -> Sampling:
    """The sampling that the options ask for; they and the file are checked before a model takes its time to load."""
    import longtake.video
    from longtake.types import Sampling

    sampling = Sampling(
        fps=1.0 if fps is None else fps, max_frames=max_frames, start_seconds=start, stop_seconds=stop
    )
    longtake.video.open(video)
    return sampling


def _watch(model: Model, video: str, sampling: Sampling, target: Path | None) -> Memory:
    with progress("watching") as report:
        return model.watch(video, sampling=sampling, target=target, progress=report)


def _selector(choice: Select) -> Selector:
    from longtake.select import Random, TopK, Uniform

    methods: dict[Select, Selector] = {Select.query: TopK(), Select.uniform: Uniform(), Select.random: Random()}
    return methods[choice]


def _check_questions(questions: Sequence[str], show_latents: Path | None) -> None:
    """Refuse what can't be asked before anything is watched."""
    from longtake.types import Query

    for question in questions:
        Query(text=question)
    if show_latents is not None:
        check_picture(show_latents)
        if len(questions) > 1:
            raise LongtakeError(f"--show-latents draws {show_latents} for one question; ask the others without it")


def _print_answers(questions: Sequence[str], answers: Sequence[Answer], as_json: bool) -> None:
    """One answer as it is, several each with its question."""
    if as_json:
        for question, answer in zip(questions, answers, strict=True):
            print(json.dumps(({"question": question} if len(questions) > 1 else {}) | _answer_fields(answer)))
        return
    texts = [_answer_text(answer) for answer in answers]
    print("\n\n".join(texts if len(texts) == 1 else map("\n".join, zip(questions, texts, strict=True))))


def _answer_fields(answer: Answer) -> dict[str, Any]:
    usage = dataclasses.asdict(answer.usage)
    fields = {"answer": answer.text, "evidence": [dataclasses.asdict(span) for span in answer.evidence], "usage": usage}
    return fields if answer.latents is None else fields | {"latents": looks_fields(answer.latents)}


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
