"""Questions of one to four hops about videos of the probe world, with controls beside the answers: blind, majority.

Videos come from the test split, one a question, and are rendered afresh. A model that was taught to think aloud is
judged by what it concludes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longtake.data.probe_world.haystack import Clip, unique_minutes
from longtake.data.probe_world.hops import (
    FORMS,
    LONGEST_TRACE,
    MOST_HOPS,
    Hop,
    conclusion,
    draw_hop,
    form_of,
    hop_video,
)
from longtake.data.probe_world.needles import Split
from longtake.eval.probe import ask_blind
from longtake.eval.report import Asked, Cell, always, interval, right_by, shown
from longtake.model import Model
from longtake.types import Sampling
from longtake.watch import watch_frames

OTHERS = 600  # questions, whose commonest answers are the control "majority"


@dataclass(frozen=True, slots=True, kw_only=True)
class HopRun:
    """What is measured: questions of 1, 2, 3, 4 hops in turn, each about its own video at 1 frame a second."""

    questions: int = 100
    frames: int = 16
    seed: int = 0
    split: Split = "test"


def hop_of(run: HopRun, number: int) -> Hop:
    """A run's question ``number``."""
    return draw_hop(np.random.default_rng([run.seed, number, 52]), run.split, form_of(number), run.frames)


def evaluate(
    model: Model, run: HopRun, clips: list[Clip], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Ask every question with its video and without; returns one JSON-ready object."""
    asked: list[Asked] = []
    for number in range(run.questions):
        asked.append(ask(model, run, clips, number))
        if progress is not None:
            progress(number + 1, run.questions)
    others = [hop_of(run, number) for number in range(run.questions, run.questions + OTHERS)]
    return report(run, asked, clips, others)


def ask(model: Model, run: HopRun, clips: list[Clip], number: int) -> Asked:
    """Ask one question, with its video and without."""
    hop = hop_of(run, number)
    video = hop_video(hop, clips, run.frames, run.seed * 100_003 + number)
    memory = watch_frames(
        model.backbone, video.frames(), Sampling(fps=1.0), duration_seconds=run.frames, num_planned=run.frames
    )
    said = model.ask(memory, hop.text, max_new_tokens=LONGEST_TRACE).text
    (blind,) = ask_blind(model, [hop.text], LONGEST_TRACE)
    answers = {"model": conclusion(said), "blind": conclusion(blind)}
    return Asked(
        video=number, question=hop.question, answers=answers, depth=None, evidence_hit=None, evidence_share=0.0
    )


def report(run: HopRun, asked: Sequence[Asked], clips: list[Clip], others: Sequence[Hop]) -> dict[str, Any]:
    """The figures by hops and by form as one JSON-ready object.

    others: questions about other videos, whose commonest answer to each form is the control "majority".
    """
    rng = np.random.default_rng(run.seed)
    conditions = {"model": right_by("model"), "blind": right_by("blind")}
    conditions["majority"] = always([hop.question for hop in others])

    def cells(some: list[Asked]) -> dict[str, Cell]:
        return {name: interval(some, right, rng) for name, right in conditions.items()}

    by_hops = {
        str(hops): cells([a for a in asked if FORMS[a.question.task].hops == hops]) for hops in range(1, MOST_HOPS + 1)
    }
    by_form = {form: cells([a for a in asked if a.question.task == form]) for form in FORMS}
    return {
        "run": dataclasses.asdict(run),
        "haystack": {"clips": len(clips), "unique_minutes": round(unique_minutes(clips), 1)},
        "all": cells(list(asked)),
        "by_hops": by_hops,
        "by_form": by_form,
        "chance": {form: round(1 / len(kind.answers), 4) for form, kind in FORMS.items()},
    }


def table(result: dict[str, Any]) -> str:
    """The figures as text: a line for each number of hops, and for each form."""
    conditions = ("model", "blind", "majority")
    lines = ["".ljust(26) + "".join(name.rjust(22) for name in conditions)]

    def row(name: str, cells: dict[str, Cell]) -> None:
        lines.append(name.ljust(26) + "".join(shown(cells[own]).rjust(22) for own in conditions))

    row("all questions", result["all"])
    for hops, cells in result["by_hops"].items():
        row(f"{hops} hop{'s' if hops != '1' else ''}", cells)
    for form, cells in result["by_form"].items():
        row(f"{FORMS[form].hops}: {form}", cells)
    return "\n".join(lines)
