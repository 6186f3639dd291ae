"""Questions about videos of the probe world, with controls beside them: blind, random, uniform, majority.

Videos come from the test split and are rendered afresh; each is watched once and asked about 20 questions. Intervals
are 95%, bootstrapped by video, because questions about one video are not independent.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from longtake.backbones.base import Prompt
from longtake.data.haystack import Clip, unique_minutes
from longtake.data.needles import Split
from longtake.data.probe import ProbeVideo, make_video
from longtake.data.questions import TASKS, Question, ask_all, normal, score
from longtake.model import Model
from longtake.select import Random, Selector, Uniform
from longtake.types import Answer, Memory, Sampling
from longtake.watch import watch_frames

DEPTHS = 5
QUESTIONS_A_VIDEO = 20
RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRun:
    """What is measured: videos of ``num_frames`` frames at 1 frame a second.

    keep: share of the visual tokens that the selector may keep; None keeps all that fit the context.
    """

    num_frames: int
    num_videos: int = 25
    seed: int = 0
    keep: float | None = None
    split: Split = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question with every condition's answer. depth: where in the video what it asks about begins, 0 to 1."""

    video: int
    question: Question
    answers: dict[str, str]
    depth: float | None
    evidence_hit: bool | None  # does the best span overlap the needle
    evidence_share: float  # of the video that all spans cover


def evaluate(model: Model, run: ProbeRun, clips: list[Clip], progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Ask every question under every condition; returns one JSON-ready object."""
    begun = time.perf_counter()
    asked: list[Asked] = []
    for number in range(run.num_videos):
        asked += ask_video(model, run, clips, number)
        if progress is not None:
            progress(number + 1, run.num_videos)
    return report(run, asked, clips) | {"seconds": round(time.perf_counter() - begun, 1)}


def ask_video(model: Model, run: ProbeRun, clips: list[Clip], number: int) -> list[Asked]:
    """Render, watch and ask one video."""
    seed = run.seed * 100_003 + number
    rng = np.random.default_rng([seed, 4])
    cards = int(rng.integers(3, 7)) if run.num_frames >= 48 else None
    video = make_video(seed, split=run.split, clips=clips, num_frames=run.num_frames, num_cards=cards)
    memory = watch_frames(model.backbone, video.frames(), Sampling(fps=1.0), duration_seconds=float(run.num_frames))
    questions = ask_all(video, rng, QUESTIONS_A_VIDEO)
    conditions = _conditions(run, memory, model)
    asked = []
    replies = {name: [ask(question.text) for question in questions] for name, ask in conditions.items()}
    blind = ask_blind(model, [question.text for question in questions])
    for place, question in enumerate(questions):
        answers = {name: answer[place].text for name, answer in replies.items()} | {"blind": blind[place]}
        hit, share = evidence(video, question, replies["model"][place])
        depth = None if question.event is None else question.event.start_seconds / run.num_frames
        asked.append(
            Asked(video=number, question=question, answers=answers, depth=depth, evidence_hit=hit, evidence_share=share)
        )
    return asked


def _conditions(run: ProbeRun, memory: Memory, model: Model) -> dict[str, Callable[[str], Answer]]:
    """How each condition answers. Random and uniform keep as many tokens as the model's own selection may."""
    tokens = len(memory.tokens)
    budget = None if run.keep is None else max(1, int(tokens * run.keep))
    selectors: dict[str, Selector | None] = {"model": None}
    if budget is not None or tokens >= model.backbone.context_tokens:
        selectors |= {"random": Random(seed=run.seed), "uniform": Uniform()}

    def asker(selector: Selector | None, tokens: int | None) -> Callable[[str], Answer]:
        return lambda text: model.ask(memory, text, selector=selector, budget_tokens=tokens, max_new_tokens=24)

    asks = {name: asker(selector, budget) for name, selector in selectors.items()}
    if budget is not None and tokens < model.backbone.context_tokens:
        asks["all"] = asker(None, None)
    return asks


@torch.no_grad()
def ask_blind(model: Model, questions: Sequence[str]) -> list[str]:
    """Answers without any video."""
    inputs = model.backbone.prepare([Prompt(question=question) for question in questions])
    return [rollout.text for rollout in model.backbone.generate(inputs, max_new_tokens=24)]


def evidence(video: ProbeVideo, question: Question, answer: Answer) -> tuple[bool | None, float]:
    """Whether the best span overlaps what the question is about, and the share of the video in all spans."""
    share = sum(span.stop_seconds - span.start_seconds for span in answer.evidence) * video.fps / video.num_frames
    if question.event is None:
        return None, share
    if not answer.evidence:
        return False, share
    best = answer.evidence[0]
    return best.start_seconds < question.event.stop_seconds and best.stop_seconds > question.event.start_seconds, share


def report(run: ProbeRun, asked: list[Asked], clips: list[Clip]) -> dict[str, Any]:
    """The figures of a run: accuracy overall, by task and depth, the controls, the evidence."""
    rng = np.random.default_rng(run.seed)
    conditions = [name for name in asked[0].answers if name != "model"]
    majority = _majority(asked)
    controls = {name: interval(asked, _right(name), rng) for name in conditions}
    controls["majority"] = interval(asked, lambda a: normal(a.question.answer) == majority[a.question.task], rng)
    by_task = {}
    for task in TASKS:
        some = [a for a in asked if a.question.task == task]
        if some:
            by_task[task] = interval(some, _right("model"), rng) | {
                name: round(float(np.mean([_right(name)(a) for a in some])), 4) for name in conditions
            }
            by_task[task]["majority"] = round(
                float(np.mean([normal(a.question.answer) == majority[task] for a in some])), 4
            )
    found = [a for a in asked if a.question.task in ("what", "is_there") and a.depth is not None]
    by_depth = []
    for depth in range(DEPTHS):
        some = [a for a in found if depth == min(DEPTHS - 1, int((a.depth or 0.0) * DEPTHS))]
        by_depth.append(interval(some, _right("model"), rng))
    seen = [a for a in asked if a.question.task == "what" and _right("model")(a)]
    return {
        "run": dataclasses.asdict(run),
        "haystack": {"clips": len(clips), "unique_minutes": round(unique_minutes(clips), 1)},
        "accuracy": interval(asked, _right("model"), rng),
        "by_task": by_task,
        "by_depth": by_depth,
        "controls": controls,
        "evidence": {
            "correct_what": len(seen),
            "top_span_hits": _mean(a.evidence_hit for a in seen),
            "covered_share": _mean(a.evidence_share for a in seen),
        },
    }


def _right(condition: str) -> Callable[[Asked], bool]:
    return lambda asked: score(asked.question, asked.answers[condition])


def _majority(asked: list[Asked]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = {}
    for a in asked:
        counts.setdefault(a.question.task, Counter())[normal(a.question.answer)] += 1
    return {task: counter.most_common(1)[0][0] for task, counter in counts.items()}


def _mean(values: Iterable[bool | float | None]) -> float | None:
    known = [float(v) for v in values if v is not None]
    return round(sum(known) / len(known), 4) if known else None


def interval(asked: list[Asked], right: Callable[[Asked], bool], rng: np.random.Generator) -> dict[str, float | int | None]:
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
    """The runs as text: a line a task, a column a length."""
    frames = [str(r["run"]["num_frames"]) for r in results]
    lines = ["frames".ljust(22) + "".join(f.rjust(22) for f in frames)]

    def row(name: str, cells: Iterable[dict[str, Any] | None]) -> None:
        shown = ["-" if not c or c["mean"] is None else f"{c['mean']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in cells]
        lines.append(name.ljust(22) + "".join(cell.rjust(22) for cell in shown))

    row("all questions", (r["accuracy"] for r in results))
    for task in TASKS:
        row(task, (r["by_task"].get(task) for r in results))
    for depth in range(DEPTHS):
        row(f"depth {depth * 20}-{depth * 20 + 20}%", (r["by_depth"][depth] for r in results))
    for name in ("all", "blind", "random", "uniform", "majority"):
        if any(name in r["controls"] for r in results):
            row(f"control: {name}", (r["controls"].get(name) for r in results))
    for name in ("top_span_hits", "covered_share"):
        cells = ("-" if r["evidence"][name] is None else f"{r['evidence'][name]:.3f}" for r in results)
        lines.append(f"evidence: {name}".ljust(30)[:30] + "".join(cell.rjust(22) for cell in cells)[8:])
    return "\n".join(lines)
