"""The figures of a probe run: accuracy overall, by task and by depth, the controls, the evidence; and their table.

Intervals are 95%, bootstrapped by video, because questions about one video are not independent.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longtake.data.probe_world.haystack import Clip, unique_minutes
from longtake.data.probe_world.needles import Split
from longtake.data.probe_world.questions import TASKS, Question, normal, score

DEPTHS = 5
RESAMPLES = 1000
Cell = dict[str, float | int | None]  # mean, low and high (None without questions), questions
Right = Callable[["Asked"], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRun:
    """What is measured: videos of ``num_frames`` frames at 1 frame a second.

    keep: share of the visual tokens that the selector may keep; None keeps all that fit the context. begin_seconds: the
    first frame's time, as if the video were a part of a longer one. oracle: ask with the needles' groups kept, too.
    """

    num_frames: int
    num_videos: int = 25
    seed: int = 0
    keep: float | None = None
    begin_seconds: int = 0
    split: Split = "test"
    oracle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question with every condition's answer. depth: where in the video what it asks about begins, 0 to 1."""

    video: int
    question: Question
    answers: dict[str, str]
    depth: float | None
    evidence_hit: bool | None  # does the best span overlap the needle
    evidence_share: float  # of the video that all spans cover


def report(run: ProbeRun, asked: list[Asked], clips: list[Clip], others: Sequence[Question]) -> dict[str, Any]:
    """The figures of a run as one JSON-ready object.

    others: questions about other videos of the kind. Their commonest answers, task by task, are the control
    "majority"; those of the asked questions themselves, which no one could know before, "hindsight".
    """
    rng = np.random.default_rng(run.seed)
    model = right_by("model")
    controls = {name: right_by(name) for name in asked[0].answers if name != "model"}
    controls |= {"majority": always(others), "hindsight": always([a.question for a in asked])}
    by_control = {name: interval(asked, right, rng) for name, right in controls.items()}
    by_task: dict[str, Cell] = {}
    for task in TASKS:
        some = [a for a in asked if a.question.task == task]
        if some:
            means = {name: _mean(right(a) for a in some) for name, right in controls.items()}
            by_task[task] = interval(some, model, rng) | means
    seen = [a for a in asked if a.question.task == "what" and model(a)]
    return {
        "run": dataclasses.asdict(run),
        "haystack": {"clips": len(clips), "unique_minutes": round(unique_minutes(clips), 1)},
        "accuracy": interval(asked, model, rng),
        "by_task": by_task,
        "by_depth": [interval(some, model, rng) for some in _depths(asked)],
        "controls": by_control,
        "evidence": {
            "correct_what": len(seen),
            "top_span_hits": _mean(a.evidence_hit for a in seen),
            "covered_share": _mean(a.evidence_share for a in seen),
        },
    }


def right_by(condition: str) -> Right:
    """Whether a condition's answer is right."""
    return lambda asked: score(asked.question, asked.answers[condition])


def always(questions: Iterable[Question]) -> Right:
    """Giving every question the most frequent answer to its task in ``questions``."""
    counts: dict[str, Counter[str]] = {}
    for question in questions:
        counts.setdefault(question.task, Counter())[normal(question.answer)] += 1
    favourite = {task: counter.most_common(1)[0][0] for task, counter in counts.items()}
    return lambda a: normal(a.question.answer) == favourite.get(a.question.task)


def _depths(asked: list[Asked]) -> list[list[Asked]]:
    """Questions of "what is on" and "is there" about a card that is there, by the fifth of the video it begins in."""
    cells: list[list[Asked]] = [[] for _ in range(DEPTHS)]
    for a in asked:
        if a.question.task in ("what", "is_there") and a.depth is not None:
            cells[min(DEPTHS - 1, int(a.depth * DEPTHS))].append(a)
    return cells


def _mean(values: Iterable[bool | float | None]) -> float | None:
    known = [float(v) for v in values if v is not None]
    return round(sum(known) / len(known), 4) if known else None


def interval(asked: list[Asked], right: Right, rng: np.random.Generator) -> Cell:
    """Share that is right, with a 95% interval from resampling whole videos."""
    if not asked:
        return {"mean": None, "low": None, "high": None, "questions": 0}
    videos = sorted({a.video for a in asked})
    place = {video: i for i, video in enumerate(videos)}
    hits, counts = np.zeros(len(videos)), np.zeros(len(videos))
    for a in asked:
        hits[place[a.video]] += right(a)
        counts[place[a.video]] += 1
    drawn = rng.integers(0, len(videos), (RESAMPLES, len(videos)))
    low, high = np.percentile(hits[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return {
        "mean": round(float(hits.sum() / counts.sum()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "questions": len(asked),
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """The runs as text: a line a task, a column a length or a share of tokens kept."""
    frames = [str(r["run"]["num_frames"]) for r in results]
    lines = ["frames".ljust(26) + "".join(f.rjust(22) for f in frames)]
    shares = [r["run"]["keep"] for r in results]
    if any(share is not None for share in shares):
        lines.append("tokens kept".ljust(26) + "".join(f"{share or 1:.0%}".rjust(22) for share in shares))

    def row(name: str, cells: Iterable[Cell | None]) -> None:
        lines.append(name.ljust(26) + "".join(shown(cell).rjust(22) for cell in cells))

    row("all questions", (r["accuracy"] for r in results))
    for task in TASKS:
        row(task, (r["by_task"].get(task) for r in results))
    for depth in range(DEPTHS):
        row(f"depth {depth * 20}-{depth * 20 + 20}%", (r["by_depth"][depth] for r in results))
    for name in ("all", "oracle", "blind", "random", "uniform", "majority", "hindsight"):
        if any(name in r["controls"] for r in results):
            row(f"control: {name}", (r["controls"].get(name) for r in results))
    for name in ("top_span_hits", "covered_share"):
        row(f"evidence: {name}", ({"mean": r["evidence"][name]} for r in results))
    return "\n".join(lines)


def shown(cell: Cell | None) -> str:
    """A share with its interval, where it has one."""
    if cell is None or cell["mean"] is None:
        return "-"
    return f"{cell['mean']:.3f}" + (f" [{cell['low']:.3f}, {cell['high']:.3f}]" if "low" in cell else "")
