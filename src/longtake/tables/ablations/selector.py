"""The embedded model's selector: accuracy by task and share of tokens, beside random, uniform and oracle choices."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtake.backbones.base import Backbone
from longtake.data.probe_world.haystack import Clip
from longtake.data.probe_world.questions import TASKS, Question, normal, score
from longtake.eval.ablation import Estimate, difference, estimate
from longtake.eval.ablation_report import AblationTable, Finding, Row, TaskStart
from longtake.eval.plot import curves
from longtake.eval.probe import QUESTIONS_A_VIDEO, ask_watched, watch_video
from longtake.eval.report import Asked, ProbeRun
from longtake.model import Model, load
from longtake.outputs import write_json
from longtake.tables.ablations.jobs import Site, follow, processes, test_clips_at, world_at
from longtake.tables.ablations.tables import start_of
from longtake.tables.ablations.world import World
from longtake.tables.compare import open_tasks
from longtake.tables.operations import Part
from longtake.tables.work_folder import named
from longtake.types import Frames, Memory, Provenance, Sampling, VisualTokens

SHARES = (0.75, 0.5, 0.25, 0.1, 0.05)
CHOICES = ("selector", "random", "uniform", "oracle")
WHOLE = "all questions"
NOTES = (
    "One trained model, so one seed: intervals are over videos, and all findings are exploratory.",
    "Choices are compared by task where the model with all tokens is open. At the ceiling no choice could be seen to "
    f'gain, only to lose. "{WHOLE}" is compared wherever it stands: a selector is asked how little it loses.',
    "The oracle keeps the groups that show what is asked about and fills up at random.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorSize:
    """How large the table is. frames: of a video. videos: for each seed, which draws others."""

    frames: int = 1024
    videos: int = 5


FULL = SelectorSize()
SMALLEST = SelectorSize(frames=64, videos=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """All questions in a row: their video, task and true answer, and whether each choice at each share was right.

    right: by "choice at share", ``(questions,)``; "all" and "blind" beside them.
    """

    video: NDArray[np.int64]
    task: tuple[str, ...]
    truth: tuple[str, ...]
    right: dict[str, NDArray[np.float64]]


def named_choice(choice: str, share: float) -> str:
    """What a row is called."""
    return f"{choice} at {share:.0%}"


def run_selector(world: World, size: SelectorSize, seeds: Sequence[int]) -> AblationTable:
    """Watch and ask what is missing; a video's answers are kept when all of it has been asked."""
    model = load(world.model, device="cpu")
    clips = world.clips("test")
    folder = folder_of(world, size, model)
    rows: list[dict[str, Any]] = []
    for video, (seed, number) in enumerate(product(seeds, range(size.videos))):
        rows += [row | {"video": video} for row in cached_answers(model, size, seed, number, clips, folder)]
    return table_of(size, gathered(rows))


def cached_answers(
    model: Model, size: SelectorSize, seed: int, number: int, clips: list[Clip], folder: Path
) -> list[dict[str, Any]]:
    """What was answered about a video, asked now where it has not been."""
    file = folder / f"{seed}-{number}.json"
    if not file.exists():
        begun = time.perf_counter()
        write_json(file, ask_video(model, size, seed, number, clips))
        print(f"selector: video {number} of seed {seed} in {time.perf_counter() - begun:.0f} s", flush=True)
    rows: list[dict[str, Any]] = json.loads(file.read_text())
    return rows


def run_jobs(site: Site, size: SelectorSize, seeds: Sequence[int], jobs: int) -> None:
    """Ask about the videos in ``jobs`` processes; the table is put together afterwards."""
    with processes(jobs) as pool:
        follow([pool.submit(_ask, site, size, seed, number) for seed, number in product(seeds, range(size.videos))])


@lru_cache(maxsize=1)
def _model_at(site: Site) -> Model:
    return load(site.model, device="cpu")


def _ask(site: Site, size: SelectorSize, seed: int, number: int) -> None:
    world, model = world_at(site), _model_at(site)
    cached_answers(model, size, seed, number, test_clips_at(site), folder_of(world, size, model))


def folder_of(world: World, size: SelectorSize, model: Model) -> Path:
    """Where the answers about each video are kept."""
    key = {**dataclasses.asdict(size), "shares": SHARES, "model": model.backbone.name, "footage": world.footage_names}
    return world.work / named("selector", key)


def parts_of(world: World, size: SelectorSize, seeds: Sequence[int], render: float) -> list[Part]:
    """What is still to be done. render: core-seconds of rendering and encoding a frame.

    The selector and the oracle keep other tokens for every question, so the decoder reads them anew; what random and
    uniform keep it reads once.
    """
    model = load(world.model, device="cpu")
    memory = made_up_memory(model.backbone, size.frames)
    seconds = size.frames * render
    for share in (None, *SHARES):
        begun = time.process_time()
        budget = None if share is None else int(share * len(memory.tokens))
        model.ask(memory, "What is on the red card?", budget_tokens=budget, max_new_tokens=5)
        spent = time.process_time() - begun
        seconds += spent if share is None else (2 * QUESTIONS_A_VIDEO + 3) * spent
    folder = folder_of(world, size, model)
    left = [1 for seed, n in product(seeds, range(size.videos)) if not (folder / f"{seed}-{n}.json").exists()]
    return [Part(name=f"videos of {size.frames:,} frames", times=len(left), seconds=seconds)]


@torch.no_grad()
def made_up_memory(backbone: Backbone, frames: int, draw: Callable[..., Tensor] = torch.randn) -> Memory:
    """A memory of random tokens. draw: makes their features, given ``(tokens, hidden)`` as two numbers."""
    together = backbone.frames_per_group
    black = np.zeros((together, 3, *(backbone.frame_size or (224, 224))), np.uint8)
    group = backbone.encode(Frames(pixels=black, seconds=np.arange(together, dtype=np.float64)))
    grid = (frames // together, *group.grid[1:])
    position = torch.cartesian_prod(*map(torch.arange, grid))
    tokens = VisualTokens(
        features=draw(len(position), group.features.shape[1]),
        position=position,
        seconds=position[:, 0].double() * together,
        weight=torch.ones(len(position)),
        grid=grid,
    )
    provenance = Provenance(
        model=backbone.name,
        video="",
        video_identity="",
        sampling=Sampling(fps=1.0),
        frames=frames,
        duration_seconds=float(frames),
    )
    return Memory(tokens=tokens, group_seconds=float(together), start_seconds=0.0, provenance=provenance)


def ask_video(
    model: Model, size: SelectorSize, seed: int, number: int, clips: list[Clip]
) -> list[dict[str, Any]]:
    """What is answered about one video with all its tokens and at every share: a row a question."""
    runs = [ProbeRun(num_frames=size.frames, seed=seed, keep=share, oracle=True) for share in SHARES]
    watched = watch_video(model, runs[0], clips, number)
    whole = ask_watched(model, ProbeRun(num_frames=size.frames, seed=seed), watched)
    rows: list[dict[str, Any]] = [
        {
            "task": a.question.task,
            "truth": normal(a.question.answer),
            "right": {"all": _right(a, "model"), "blind": _right(a, "blind")},
        }
        for a in whole
    ]
    for run, share in zip(runs, SHARES, strict=True):
        for row, a in zip(rows, ask_watched(model, run, watched), strict=True):
            for choice in CHOICES:
                right = _right(a, "model" if choice == "selector" else choice)
                row["right"][named_choice(choice, share)] = right
    return rows


def _right(asked: Asked, condition: str) -> bool:
    return score(asked.question, asked.answers[condition])


def gathered(rows: Sequence[dict[str, Any]]) -> Answered:
    """Rows of questions as columns."""
    return Answered(
        video=np.array([row["video"] for row in rows]),
        task=tuple(row["task"] for row in rows),
        truth=tuple(row["truth"] for row in rows),
        right={name: np.array([row["right"][name] for row in rows], np.float64) for name in rows[0]["right"]},
    )


def table_of(size: SelectorSize, answered: Answered) -> AblationTable:
    """A row a choice and share; the selector against all tokens and against each other choice."""
    names = [named_choice(choice, share) for choice in CHOICES for share in SHARES]
    rows = [Row(arm=name, cells=cells(answered, name)) for name in ("all", *names, "blind")]
    tasks = task_starts(answered)
    measures = {WHOLE: np.ones(len(answered.task), np.bool_)}
    measures |= {task: of_task(answered, task) for task in open_tasks(tasks)}
    findings = []
    for share in SHARES:
        own = named_choice("selector", share)
        for against in ("all", *(named_choice(choice, share) for choice in CHOICES[1:])):
            one, other = (answered.right[name][None] for name in (own, against))
            findings += [
                Finding(
                    arm=own,
                    against=against,
                    measure=measure,
                    found=difference(one[:, some], other[:, some], answered.video[some]),
                )
                for measure, some in measures.items()
            ]
    return AblationTable(
        name="selector",
        title=f"The selector by share of tokens kept, {size.frames:,} frames",
        notes=NOTES,
        rows=tuple(rows),
        findings=tuple(findings),
        tasks=tasks,
    )


def of_task(answered: Answered, task: str) -> NDArray[np.bool_]:
    """Which questions are of a task."""
    return np.array([own == task for own in answered.task])


def cells(answered: Answered, name: str) -> dict[str, Estimate]:
    """Accuracy of one choice, of all questions and by task."""
    right = answered.right[name]
    found = {WHOLE: estimate(right[None], answered.video)}
    for task in TASKS:
        own = of_task(answered, task)
        if own.any():
            found[task] = estimate(right[None, own], answered.video[own])
    return found


def task_starts(answered: Answered) -> dict[str, TaskStart]:
    """Where the model with all tokens stands."""
    starts = {}
    for task in TASKS:
        own = of_task(answered, task)
        if own.any():
            truths = [truth for truth, is_own in zip(answered.truth, own, strict=True) if is_own]
            asked = [Question(task=task, text="", answer=truth) for truth in truths]
            starts[task] = start_of(asked, answered.right["all"][own], answered.right["blind"][own])
    return starts


def picture(table: AblationTable, folder: Path) -> None:
    """A panel a task, a line a choice, over the share of tokens."""
    by_arm = {row.arm: row.cells for row in table.rows}
    panels: dict[str, dict[str, list[tuple[float, Estimate]]]] = {}
    for measure in table.measures:
        panels[measure] = {
            choice: [
                *((share, by_arm[named_choice(choice, share)][measure]) for share in reversed(SHARES)),
                (1.0, by_arm["all"][measure]),
            ]
            for choice in CHOICES
        }
    axes: dict[str, Any] = {"across": "share of the visual tokens kept", "up": "right answers", "limits": (0, 1.02)}
    curves(table.title, panels, folder / f"{table.name}.png", log=True, **axes)
