"""Groups of sampled completions with their rewards, and what an update needs of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longtake.backbones.base import Backbone, Prompt
from longtake.data.puzzles.draws import another_order
from longtake.train.puzzles import Puzzle
from longtake.types import LongtakeError, Rollout, VisualTokens

COLUMNS_AT_ONCE = 8192  # columns of prompts that are run at once, with what may follow them: bounds keys and values


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How completions are sampled. group: of each prompt. All defaults are ours."""

    group: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if self.group < 1 or self.max_new_tokens < 1:
            raise LongtakeError(f"group is {self.group}, max_new_tokens {self.max_new_tokens}; both must be at least 1")
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise LongtakeError(
                f"temperature is {self.temperature} and top_p {self.top_p}; temperature must be positive, "
                "top_p above 0 and at most 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One puzzle's completions, each with the parts of its reward."""

    puzzle: Puzzle
    rollouts: tuple[Rollout, ...]

    def parts(self, names: Sequence[str]) -> list[list[float]]:
        """The group's rewards by completion and part."""
        return [[rollout.rewards[name] for name in names] for rollout in self.rollouts]

    @property
    def mask(self) -> Tensor:
        """bool ``(group, longest)``: each completion's tokens."""
        lengths = torch.tensor([len(rollout.ids) for rollout in self.rollouts])
        return torch.arange(int(lengths.max()))[None] < lengths[:, None]


def roll(backbone: Backbone, puzzle: Puzzle, draw: Draw, seed: Sequence[int], prompt: Prompt | None = None) -> Group:
    """Sample one group. prompt: asked in place of the puzzle's own."""
    (group,) = roll_each(backbone, [puzzle], draw, [seed], None if prompt is None else [prompt])
    return group


@torch.no_grad()
def roll_each(
    backbone: Backbone,
    puzzles: Sequence[Puzzle],
    draw: Draw,
    seeds: Sequence[Sequence[int]],
    prompts: Iterable[Prompt] | None = None,
) -> list[Group]:
    """Sample each puzzle's group: a prompt is run once, its keys and values then serve the whole group.

    Small prompts are run together. A group depends on its own seed and on the weights; on the prompts beside it no more
    than rounding does. prompts: asked in place of the puzzles' own.
    """
    assert not backbone.model.training, "sampling needs eval mode: layers that are computed again keep no cache"
    asked = prompts or (puzzle.prompt(backbone) for puzzle in puzzles)
    rollouts: list[Rollout] = []
    for batch in batches(backbone, asked, draw.group * draw.max_new_tokens):
        first = len(rollouts) // draw.group
        rollouts += backbone.generate(
            backbone.prepare(batch),
            max_new_tokens=draw.max_new_tokens,
            num_rollouts=draw.group,
            temperature=draw.temperature,
            top_p=draw.top_p,
            generators=[generator_of(backbone, seed) for seed in seeds[first : first + len(batch)]],
        )
    return [
        Group(puzzle=puzzle, rollouts=tuple(with_rewards(puzzle, own) for own in rollouts[at : at + draw.group]))
        for puzzle, at in zip(puzzles, range(0, len(rollouts), draw.group), strict=True)
    ]


def answer_greedily(backbone: Backbone, puzzle: Puzzle, max_new_tokens: int) -> Rollout:
    """Answer one puzzle with the likeliest token each time; returns the completion with its rewards."""
    (found,) = answer_each(backbone, [puzzle], max_new_tokens)
    return found


@torch.no_grad()
def answer_each(
    backbone: Backbone, puzzles: Sequence[Puzzle], max_new_tokens: int, prompts: Iterable[Prompt] | None = None
) -> list[Rollout]:
    """Answer each puzzle greedily; returns the completions with their rewards. Small prompts are run together.

    prompts: asked in place of the puzzles' own.
    """
    said: list[Rollout] = []
    asked = prompts or (puzzle.prompt(backbone) for puzzle in puzzles)
    for batch in batches(backbone, asked, max_new_tokens):
        said += backbone.generate(backbone.prepare(batch), max_new_tokens=max_new_tokens)
    return [with_rewards(puzzle, rollout) for puzzle, rollout in zip(puzzles, said, strict=True)]


def batches(backbone: Backbone, prompts: Iterable[Prompt], further: int) -> Iterator[list[Prompt]]:
    """Split prompts into batches of at most ``COLUMNS_AT_ONCE`` columns, padding included; a longer one stands alone.

    further: columns behind each prompt, for what is said.
    """
    batch: list[Prompt] = []
    longest = 0
    for prompt in prompts:
        columns = backbone.prompt_tokens(prompt) + further
        if batch and max(longest, columns) * (len(batch) + 1) > COLUMNS_AT_ONCE:
            yield batch
            batch, longest = [], 0
        batch.append(prompt)
        longest = max(longest, columns)
    if batch:
        yield batch


def generator_of(backbone: Backbone, seed: Sequence[int]) -> torch.Generator:
    """The generator that one group's completions are drawn with."""
    return torch.Generator(backbone.device).manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))


def with_rewards(puzzle: Puzzle, rollout: Rollout) -> Rollout:
    """The completion with the parts of its reward."""
    return dataclasses.replace(rollout, rewards=dict(puzzle.reward(rollout.text)))


def shuffled(tokens: VisualTokens, seed: Sequence[int]) -> VisualTokens:
    """The video with its time groups in another, random order; times and places stay. All groups must be whole."""
    groups = tokens.grid[0]
    if len(tokens) != groups * tokens.grid[1] * tokens.grid[2]:
        raise LongtakeError(
            f"the video kept {len(tokens)} of {tokens.grid} tokens; shuffled frames need whole groups: "
            "use memories without dropped tokens"
        )
    order = another_order(groups, seed)
    parted = tokens.features.unflatten(0, (groups, -1))
    mixed = parted[torch.from_numpy(order).to(parted.device)].flatten(0, 1)
    return dataclasses.replace(tokens, features=mixed)


def split_after(rollout: Rollout, marker: str, decode: Callable[[list[int]], str]) -> int:
    """How many tokens there are up to and with the first ``marker``; 0 where it does not come."""
    ids = list(rollout.ids)
    return next((stop for stop in range(1, len(ids) + 1) if marker in decode(ids[:stop])), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """A group as the update sees it; tensors ``(group, longest)``.

    advantages: by completion ``(group,)`` or by token. mask: tokens that are learned from. old, reference: log-
    probabilities under the policy that sampled (None: that is the policy as it is) and under the reference.
    """

    group: Group
    advantages: Tensor
    mask: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None

    @property
    def ids(self) -> list[tuple[int, ...]]:
        """The completions' tokens."""
        return [rollout.ids for rollout in self.group.rollouts]
