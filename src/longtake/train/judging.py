"""Groups of one step, spread over processes, to the experiences that each process learns from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from longtake.backbones.base import Backbone
from longtake.train.advantages import segment_advantages
from longtake.train.distill import disagreement, kept_by_tvdf, teacher_advantages
from longtake.train.methods import Method, Teaching
from longtake.train.policy import Policy
from longtake.train.rewards import total
from longtake.train.rollouts import Experience, Group, answer_greedily, split_after
from longtake.train.run import gathered


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The rewards of a step's groups, of all processes.

    parts: float64 ``(prompts, group, parts)`` in the order of ``names``. advantages: ``(prompts, group)``, and
    ``before``, those of a first segment, where the method has one. flat: bool ``(prompts,)``.
    """

    names: tuple[str, ...]
    parts: Tensor
    advantages: Tensor
    before: Tensor | None
    flat: Tensor

    def mean(self, name: str) -> list[float]:
        """A part's mean over each group."""
        means: list[float] = self.parts[:, :, self.names.index(name)].mean(dim=1).tolist()
        return means


def judge(parts: Sequence[Any], names: Sequence[str], weights: Mapping[str, float], method: Method) -> Verdict:
    """Advantages of all groups of a step. parts: ``(prompts, group, parts)``; weights: of parts, by name."""
    rewards = torch.tensor(parts, dtype=torch.float64)

    def vector(weights: Mapping[str, float]) -> Tensor:
        return torch.tensor([weights.get(name, 0.0) for name in names], dtype=torch.float64)

    credit, main = method.credit, vector(weights)
    if method.teaching is not None:  # the teacher gives the advantages
        blank = torch.zeros(rewards.shape[:2], dtype=torch.float64)
        flat = torch.zeros(len(rewards), dtype=torch.bool)
        return Verdict(names=tuple(names), parts=rewards, advantages=blank, before=None, flat=flat)
    before, flat = None, credit.is_flat(rewards, main)
    if method.segments is not None:
        first = vector(method.segments.before)
        before, flat = credit.advantages(rewards, first), flat & credit.is_flat(rewards, first)
    advantages = credit.advantages(rewards, main)
    return Verdict(names=tuple(names), parts=rewards, advantages=advantages, before=before, flat=flat)


def joined(verdicts: Sequence[Verdict]) -> Verdict:
    """Verdicts on several kinds of puzzles made one, in their order. A part that a kind's reward lacks is NaN there."""
    if len(verdicts) == 1:
        return verdicts[0]
    names = tuple(dict.fromkeys(name for verdict in verdicts for name in verdict.names))
    parts = []
    for verdict in verdicts:
        own = verdict.parts.new_full((*verdict.parts.shape[:2], len(names)), math.nan)
        own[:, :, [names.index(name) for name in verdict.names]] = verdict.parts
        parts.append(own)
    before = [verdict.before for verdict in verdicts if verdict.before is not None]
    return Verdict(
        names=names,
        parts=torch.cat(parts),
        advantages=torch.cat([verdict.advantages for verdict in verdicts]),
        before=torch.cat(before) if before else None,
        flat=torch.cat([verdict.flat for verdict in verdicts]),
    )


def experience(
    group: Group, verdict: Verdict, place: int, method: Method, backbone: Backbone, *, old: Tensor | None
) -> Experience:
    """The experience that one group gives, the ``place``-th of the step."""
    mask, advantages = group.mask, verdict.advantages[place].float()
    if method.mask_truncated:
        mask = mask & torch.tensor([rollout.finished for rollout in group.rollouts])[:, None]
    if verdict.before is not None and method.segments is not None:
        marker, tokenizer = method.segments.marker, backbone.tokenizer
        splits = [split_after(rollout, marker, lambda ids: str(tokenizer.decode(ids))) for rollout in group.rollouts]
        advantages = segment_advantages(
            verdict.before[place].float(), advantages, torch.tensor(splits), mask.shape[1]
        )
    return Experience(group=group, advantages=advantages, mask=mask, old=old)


@torch.no_grad()
def judge_by_teacher(
    made: Mapping[int, Experience],
    policy: Policy,
    teacher: Backbone,
    teaching: Teaching,
    weights: Mapping[str, float],
) -> dict[int, Experience]:
    """Experiences with the teacher's advantages, masked where TVDF leaves a sample out. Every process must call it."""
    drawn: dict[int, Experience] = {}
    figures = {}
    for place, own in made.items():
        inputs = teacher.prepare([own.group.puzzle.prompt(teacher)])
        given = teacher.logprobs(inputs, own.ids, temperature=policy.draw.temperature).cpu()
        assert own.old is not None, "the student's log-probabilities come first"
        advantages = teacher_advantages(given, own.old.cpu(), own.mask)
        answer = answer_greedily(teacher, own.group.puzzle, policy.draw.max_new_tokens) if teaching.share else None
        reliability = total(answer.rewards, weights) if answer else 0.0
        figures[place] = (reliability, disagreement(advantages, own.mask).tolist())
        drawn[place] = replace(own, advantages=advantages)
    if not teaching.share:
        return drawn
    everyone = gathered(figures)
    apart = torch.tensor([row for _, rows in everyone for row in rows])
    reliable = torch.tensor([reliability for reliability, rows in everyone for _ in rows])
    kept = kept_by_tvdf(reliable, apart, least=teaching.least, share=teaching.share).view(len(everyone), -1)
    return {place: replace(own, mask=own.mask & kept[place][:, None]) for place, own in drawn.items()}
