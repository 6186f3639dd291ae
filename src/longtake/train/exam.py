"""Held-out puzzles: greedy answers, and the same with controls that hide what the answer should need."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from longtake.backbones.base import Backbone, Prompt
from longtake.train.puzzles import Puzzle
from longtake.train.rewards import total
from longtake.train.rollouts import answered, shuffled
from longtake.train.run import Run

Control = Literal["blind", "shuffled"]


@torch.no_grad()
def held_figures(
    run: Run,
    backbone: Backbone,
    held: Sequence[Puzzle],
    names: Sequence[str],
    weights: Mapping[str, float],
    max_new_tokens: int,
    controls: Sequence[Control] = (),
) -> dict[str, float]:
    """Means over all held puzzles: the weighted reward, each part, and both again by control. All processes call it.

    Rewards of a control stand under its name: ``blind_exact``. Blind: no video; shuffled: its groups in random order.
    """
    run.module.eval()
    found: dict[str, float] = {}
    for control in ("held", *controls):
        sums = dict.fromkeys(("reward", *names), 0.0)
        for number in range(run.accelerator.process_index, len(held), run.accelerator.num_processes):
            with run.accelerator.autocast():
                prompt = changed(held[number].prompt(backbone), control, number)
                rollout = answered(backbone, held[number], max_new_tokens, prompt)
            sums["reward"] += total(rollout.rewards, weights)
            for name in names:
                sums[name] += rollout.rewards[name]
        means = (value / len(held) for value in run.total(*sums.values()))
        found |= {f"{control}_{name}": mean for name, mean in zip(sums, means, strict=True)}
    run.module.train()
    return found


def changed(prompt: Prompt, control: str, seed: int) -> Prompt:
    """A prompt under a control; "held" leaves it as it is."""
    if control == "blind":
        return dataclasses.replace(prompt, tokens=None)
    if control == "shuffled" and prompt.tokens is not None:
        return dataclasses.replace(prompt, tokens=shuffled(prompt.tokens, (seed,)))
    return prompt
