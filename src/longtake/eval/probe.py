"""Questions about videos of the probe world, with controls beside them: blind, random, uniform, majority.

Videos come from the test split and are rendered afresh; each is watched once and asked about 20 questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from longtake.backbones.base import Prompt
from longtake.data.haystack import Clip
from longtake.data.probe import ProbeVideo, make_video
from longtake.data.questions import Question, ask_all
from longtake.eval.report import Asked, ProbeRun, report
from longtake.model import Model
from longtake.select import Random, Selector, Uniform
from longtake.types import Answer, Memory, Sampling
from longtake.watch import watch_frames

QUESTIONS_A_VIDEO = 20
ANSWER_TOKENS = 24


def evaluate(
    model: Model, run: ProbeRun, clips: list[Clip], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
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
    frames = (replace(chunk, seconds=chunk.seconds + run.begin_seconds) for chunk in video.frames())
    memory = watch_frames(
        model.backbone,
        frames,
        Sampling(fps=1.0),
        duration_seconds=run.begin_seconds + run.num_frames,
        num_planned=run.num_frames,
    )
    questions = [later(question, run.begin_seconds) for question in ask_all(video, rng, QUESTIONS_A_VIDEO)]
    conditions = _conditions(run, memory, model)
    replies = {name: [ask(question.text) for question in questions] for name, ask in conditions.items()}
    blind = ask_blind(model, [question.text for question in questions])
    asked = []
    for place, question in enumerate(questions):
        answers = {name: answer[place].text for name, answer in replies.items()} | {"blind": blind[place]}
        hit, share = evidence(video, question, replies["model"][place])
        event = question.event
        depth = None if event is None else (event.start_seconds - run.begin_seconds) / run.num_frames
        asked.append(
            Asked(video=number, question=question, answers=answers, depth=depth, evidence_hit=hit, evidence_share=share)
        )
    return asked


def later(question: Question, seconds: int) -> Question:
    """The same question, its event and its time ``seconds`` later: about a video whose first frame has that time."""
    event, answer = question.event, question.answer
    if event is not None:
        start, stop = event.start_seconds + seconds, event.stop_seconds + seconds
        event = replace(event, start_seconds=start, stop_seconds=stop)
    if question.task == "when":
        answer = f"{int(answer.removesuffix(' s')) + seconds} s"
    return replace(question, event=event, answer=answer)


def _conditions(run: ProbeRun, memory: Memory, model: Model) -> dict[str, Callable[[str], Answer]]:
    """How each condition answers. Random and uniform keep as many tokens as the model's own selection may.

    Uniform keeps whole groups, so the budget is a whole number of them, at least one.
    """
    tokens, (_, rows, columns) = len(memory.tokens), memory.tokens.grid
    group = rows * columns
    budget = None if run.keep is None else max(group, int(tokens * run.keep) // group * group)
    selectors: dict[str, Selector | None] = {"model": None}
    if budget is not None or tokens >= model.backbone.context_tokens:
        selectors |= {"random": Random(seed=run.seed), "uniform": Uniform()}

    def asker(selector: Selector | None, budget: int | None) -> Callable[[str], Answer]:
        settings: dict[str, Any] = {"selector": selector, "budget_tokens": budget, "max_new_tokens": ANSWER_TOKENS}
        return lambda text: model.ask(memory, text, **settings)

    asks = {name: asker(selector, budget) for name, selector in selectors.items()}
    if budget is not None and tokens < model.backbone.context_tokens:
        asks["all"] = asker(None, None)
    return asks


@torch.no_grad()
def ask_blind(model: Model, questions: Sequence[str]) -> list[str]:
    """Answers without any video."""
    inputs = model.backbone.prepare([Prompt(question=question) for question in questions])
    return [rollout.text for rollout in model.backbone.generate(inputs, max_new_tokens=ANSWER_TOKENS)]


def evidence(video: ProbeVideo, question: Question, answer: Answer) -> tuple[bool | None, float]:
    """Whether the best span overlaps what the question is about, and the share of the video in all spans."""
    share = sum(span.stop_seconds - span.start_seconds for span in answer.evidence) * video.fps / video.num_frames
    if question.event is None:
        return None, share
    if not answer.evidence:
        return False, share
    best = answer.evidence[0]
    return best.start_seconds < question.event.stop_seconds and best.stop_seconds > question.event.start_seconds, share
