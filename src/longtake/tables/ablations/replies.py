"""What a model answers about test videos whose tower features are kept, through ``ask`` as of any watched video."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longtake.backbones.own import OwnVideoLLM
from longtake.eval.measures import Span
from longtake.eval.probe import ANSWER_TOKENS, ask_blind
from longtake.model import Model
from longtake.tables.ablations.world import Exam
from longtake.tables.replies import Replies
from longtake.train.embedded.compressor import compress
from longtake.train.embedded.groups import GROUPS_PER_PASS
from longtake.types import Memory, Provenance, Sampling, VisualTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """How a video at a frame a second is seen: one frame in ``every``, in groups of ``size``."""

    size: int
    every: int = 1


@torch.no_grad()
def ask_seen(backbone: OwnVideoLLM, compressor: nn.Module, sight: Sight, exam: Exam) -> Replies:
    """What a model answers to every question about every test video."""
    answers: list[str] = []
    spans: list[Span | None] = []
    for features, questions in zip(exam.features, exam.questions, strict=True):
        memory = remember(backbone, compressor, sight, features)
        model = Model(backbone=backbone)  # with its own cache of what was read
        for answer in model.ask_all(memory, [question.text for question in questions], max_new_tokens=ANSWER_TOKENS):
            best = answer.evidence[0] if answer.evidence else None
            answers.append(answer.text)
            spans.append(None if best is None else (best.start_seconds, best.stop_seconds))
    return Replies(answers=tuple(answers), spans=tuple(spans))


def ask_unseen(backbone: OwnVideoLLM, exam: Exam) -> Replies:
    """What a model answers to the questions without the videos."""
    model = Model(backbone=backbone)
    answers = [a for asked in exam.questions for a in ask_blind(model, [question.text for question in asked])]
    return Replies(answers=tuple(answers), spans=(None,) * len(answers))


@torch.no_grad()
def remember(backbone: OwnVideoLLM, compressor: nn.Module, sight: Sight, features: Tensor) -> Memory:
    """A memory of one video at a frame a second, from its tower features ``(frames, tokens, dim)``."""
    config, seen = backbone.model.config, features[:: sight.every]
    parts = torch.split(seen.view(-1, sight.size, *seen.shape[1:]), GROUPS_PER_PASS)
    with torch.autocast("cpu", torch.bfloat16):
        groups = torch.cat([compress(compressor, part, config.pool) for part in parts])
    position = torch.cartesian_prod(*(torch.arange(n) for n in (len(groups), *config.token_grid)))
    group_seconds = float(sight.size * sight.every)
    tokens = VisualTokens(
        features=backbone.model.projector(groups.float()).flatten(0, 1),
        position=position,
        seconds=position[:, 0].double() * group_seconds,
        weight=torch.full((len(position),), float(sight.size * config.pool**2)),
        grid=(len(groups), *config.token_grid),
    )
    provenance = Provenance(
        model=backbone.name,
        video="",
        video_identity="",
        sampling=Sampling(fps=1 / sight.every),
        frames=len(seen),
        duration_seconds=float(len(features)),
    )
    return Memory(tokens=tokens, group_seconds=group_seconds, start_seconds=0.0, provenance=provenance)
