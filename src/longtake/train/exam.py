"""Held-out puzzles: greedy answers, and the same with controls that hide what the answer should need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch

from longtake.backbones.base import Backbone, Prompt
from longtake.train.puzzles import Puzzle
from longtake.train.rewards import total
from longtake.train.rollouts import answer_each, shuffled
from longtake.train.run import Run, gathered

if TYPE_CHECKING:
    from accelerate import Accelerator

Control = Literal["blind", "shuffled"]
Parts = Mapping[str, float]  # of one completion's reward
Summary = Callable[[Sequence[Puzzle], Sequence[Parts]], dict[str, float]]


@torch.no_grad()
def held_figures(
    run: Run,
    backbone: Backbone,
    held: Sequence[Puzzle],
    weights: Mapping[str, float],
    max_new_tokens: int,
    controls: Sequence[Control] = (),
    summary: Summary | None = None,
) -> dict[str, float]:
    """Figures over all held puzzles: the weighted reward, each part, and both again by control. All processes call it.

    Rewards of a control stand under its name: ``blind_exact``. Blind: no video; shuffled: its groups in random order.
    summary: of the answers' parts, "reward" among them; else ``means``.
    """
    run.module.eval()
    found: dict[str, float] = {}
    for control in ("held", *controls):
        parts = answers(run.accelerator, backbone, held, max_new_tokens, control)
        rewarded = [{"reward": total(each, weights), **each} for each in parts]
        found |= {f"{control}_{name}": value for name, value in (summary or means)(held, rewarded).items()}
    run.module.train()
    return found


@torch.no_grad()
def answers(
    processes: Accelerator, backbone: Backbone, puzzles: Sequence[Puzzle], max_new_tokens: int, control: str = "held"
) -> list[Parts]:
    """The parts of each puzzle's greedy answer, spread over the processes. All of them must call it, in eval mode."""
    numbers = range(processes.process_index, len(puzzles), processes.num_processes)
    prompts = (apply_control(puzzles[number].prompt(backbone), control, number) for number in numbers)
    with processes.autocast():
        said = answer_each(backbone, [puzzles[number] for number in numbers], max_new_tokens, prompts)
    return gathered({number: rollout.rewards for number, rollout in zip(numbers, said, strict=True)})


def means(puzzles: Sequence[Puzzle], parts: Sequence[Parts]) -> dict[str, float]:
    """The mean of each part of the rewards over all puzzles."""
    return {name: sum(each[name] for each in parts) / len(puzzles) for name in parts[0]}


def apply_control(prompt: Prompt, control: str, seed: int) -> Prompt:
    """A prompt under a control; "held" leaves it as it is."""
    if control == "blind":
        return prompt.unseen()
    if control == "shuffled" and prompt.tokens is not None:
        return dataclasses.replace(prompt, tokens=shuffled(prompt.tokens, (seed,)))
    if control == "shuffled":
        mixed = (
            part if part.tokens is None else dataclasses.replace(part, tokens=shuffled(part.tokens, (seed, place)))
            for place, part in enumerate(prompt.parts)
        )
        return dataclasses.replace(prompt, parts=tuple(mixed))
    return prompt
