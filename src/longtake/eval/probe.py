"""Questions about videos of the probe world, with controls beside them: blind, random, uniform, oracle, majority.

Videos come from the test split and are rendered afresh; each is watched once and asked about 20 questions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from longtake.backbones.base import Prompt
from longtake.backbones.thinking import think, thinking_of
from longtake.data.probe_world.haystack import Clip
from longtake.data.probe_world.probe import Event, ProbeVideo, make_video
from longtake.data.probe_world.questions import Question, ask_all
from longtake.eval.report import Asked, ProbeRun, report
from longtake.model import Model
from longtake.select import Oracle, Random, Selector, Uniform
from longtake.types import Answer, Memory, Sampling
from longtake.watch import watch_frames

QUESTIONS_A_VIDEO = 20
ANSWER_TOKENS = 24
OTHER_VIDEOS = 100  # whose commonest answers are the control "majority"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A video of the probe world, what a model remembers of it, and what is asked about it."""

    number: int
    video: ProbeVideo
    memory: Memory
    questions: tuple[Question, ...]


def evaluate_each(
    model: Model, runs: Sequence[ProbeRun], clips: list[Clip], progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Ask every question under every condition; one JSON-ready object a run.

    runs: they differ in how many tokens they keep, so that each video is watched once.
    """
    begun = time.perf_counter()
    asked: list[list[Asked]] = [[] for _ in runs]
    for number in range(runs[0].num_videos):
        watched = watch_video(model, runs[0], clips, number)
        for rows, run in zip(asked, runs, strict=True):
            rows += ask_watched(model, run, watched)
        if progress is not None:
            progress(number + 1, runs[0].num_videos)
    spent = {"seconds": round(time.perf_counter() - begun, 1)}  # of all runs together
    others = [
        question
        for number in range(runs[0].num_videos, runs[0].num_videos + OTHER_VIDEOS)
        for question in draw_video(runs[0], clips, number)[1]
    ]
    return [report(run, rows, clips, others) | spent for run, rows in zip(runs, asked, strict=True)]


def draw_video(run: ProbeRun, clips: list[Clip], number: int) -> tuple[ProbeVideo, tuple[Question, ...]]:
    """One video of a run, not rendered yet, and its questions."""
    seed = run.seed * 100_003 + number
    rng = np.random.default_rng([seed, 4])
    cards = int(rng.integers(3, 7)) if run.num_frames >= 48 else None
    video = make_video(seed, split=run.split, clips=clips, num_frames=run.num_frames, num_cards=cards)
    return video, tuple(later(question, run.begin_seconds) for question in ask_all(video, rng, QUESTIONS_A_VIDEO))


def watch_video(model: Model, run: ProbeRun, clips: list[Clip], number: int) -> Watched:
    """Render and watch one video, and draw its questions."""
    video, questions = draw_video(run, clips, number)
    frames = (replace(chunk, seconds=chunk.seconds + run.begin_seconds) for chunk in video.frames())
    memory = watch_frames(
        model.backbone,
        frames,
        Sampling(fps=1.0),
        duration_seconds=run.begin_seconds + run.num_frames,
        num_planned=run.num_frames,
    )
    return Watched(number=number, video=video, memory=memory, questions=questions)


def ask_watched(model: Model, run: ProbeRun, watched: Watched) -> list[Asked]:
    """Every question about one video under every condition."""
    conditions = _conditions(run, watched, model)
    replies = {name: answered(watched.questions) for name, answered in conditions.items()}
    blind = ask_blind(model, [question.text for question in watched.questions])
    asked = []
    for place, question in enumerate(watched.questions):
        answers = {name: answer[place].text for name, answer in replies.items()} | {"blind": blind[place]}
        hit, share = evidence(watched.video, question, replies["model"][place])
        event = question.event
        depth = None if event is None else (event.start_seconds - run.begin_seconds) / run.num_frames
        asked.append(
            Asked(
                video=watched.number,
                question=question,
                answers=answers,
                depth=depth,
                evidence_hit=hit,
                evidence_share=share,
            )
        )
    return asked


def later(question: Question, seconds: int) -> Question:
    """A question with its event and its time ``seconds`` later: about a video whose first frame has that time."""
    event, answer = question.event, question.answer
    if event is not None:
        event = later_event(event, seconds)
    if question.task == "when":
        answer = f"{int(answer.removesuffix(' s')) + seconds} s"
    return replace(question, event=event, answer=answer)


def later_event(event: Event, seconds: int) -> Event:
    """An event moved ``seconds`` later."""
    return replace(event, start_seconds=event.start_seconds + seconds, stop_seconds=event.stop_seconds + seconds)


def _conditions(
    run: ProbeRun, watched: Watched, model: Model
) -> dict[str, Callable[[Sequence[Question]], list[Answer]]]:
    """How each condition answers questions. The controls keep as many tokens as the model's own selection may.

    Uniform keeps whole groups, so the budget is a whole number of them, at least one.
    """
    memory = watched.memory
    tokens, (_, rows, columns) = len(memory.tokens), memory.tokens.grid
    group = rows * columns
    budget = None if run.keep is None else max(group, int(tokens * run.keep) // group * group)

    def asker(selector: Selector | None, budget: int | None) -> Callable[[Sequence[Question]], list[Answer]]:
        settings: dict[str, Any] = {"selector": selector, "budget_tokens": budget, "max_new_tokens": ANSWER_TOKENS}
        return lambda asked: model.ask_all(memory, [question.text for question in asked], **settings)

    def oracle(asked: Sequence[Question]) -> list[Answer]:
        answers: list[Answer] = []
        for question in asked:
            chosen = Oracle(groups=needle_groups(watched, run, question), seed=run.seed)
            answers += asker(chosen, budget)([question])
        return answers

    asks = {"model": asker(None, budget)}
    if budget is not None or tokens >= model.backbone.context_tokens:
        asks |= {"random": asker(Random(seed=run.seed), budget), "uniform": asker(Uniform(), budget)}
    if run.oracle:
        asks["oracle"] = oracle
    if budget is not None and tokens < model.backbone.context_tokens:
        asks["all"] = asker(None, None)
    return asks


def needle_groups(watched: Watched, run: ProbeRun, question: Question) -> tuple[int, ...]:
    """The time groups that show what a question is about; every card for questions about all of them."""
    if question.task in ("order", "count", "after"):
        events = [later_event(event, run.begin_seconds) for _, event in watched.video.cards]
    else:
        events = [question.event] if question.event else []
    starts = watched.memory.tokens.seconds[:: math.prod(watched.memory.tokens.grid[1:])].numpy()
    stops = starts + watched.memory.group_seconds
    shown = [(starts < event.stop_seconds) & (stops > event.start_seconds) for event in events]
    return tuple(np.flatnonzero(np.any(shown, axis=0)).tolist()) if shown else ()


@torch.no_grad()
def ask_blind(model: Model, questions: Sequence[str], max_new_tokens: int = ANSWER_TOKENS) -> list[str]:
    """Answers without any video; a model that thinks before it answers thinks here too."""
    backbone, cache = model.backbone, None
    inputs = backbone.prepare([Prompt(question=question) for question in questions])
    thinking = thinking_of(backbone, None)
    if thinking is not None:
        thought = think(backbone, inputs, thinking=thinking)
        inputs, cache = thought.inputs, thought.cache
    return [rollout.text for rollout in backbone.generate(inputs, cache, max_new_tokens=max_new_tokens)]


def evidence(video: ProbeVideo, question: Question, answer: Answer) -> tuple[bool | None, float]:
    """Whether the best span overlaps what the question is about, and the share of the video in all spans."""
    share = sum(span.stop_seconds - span.start_seconds for span in answer.evidence) * video.fps / video.num_frames
    if question.event is None:
        return None, share
    if not answer.evidence:
        return False, share
    best = answer.evidence[0]
    return best.start_seconds < question.event.stop_seconds and best.stop_seconds > question.event.start_seconds, share
