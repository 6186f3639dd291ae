"""What a model answers about test videos whose tower features are kept, through ``ask`` as of any watched video."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longtake.backbones.own import OwnVideoLLM
from longtake.data.questions import Question, score
from longtake.eval.measures import Span, overlap
from longtake.eval.probe import ANSWER_TOKENS, ask_blind
from longtake.model import Model
from longtake.recipes.ablation_world import Exam, kept
from longtake.train.compressor import compress
from longtake.train.groups import GROUPS_PER_PASS
from longtake.types import Memory, Provenance, Sampling, VisualTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """How a video at a frame a second is seen: one frame in ``every``, in groups of ``size``."""

    size: int
    every: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """What was answered to all questions about the test videos, in their order.

    spans: the best evidence span of each answer, None where there is none.
    """

    answers: tuple[str, ...]
    spans: tuple[Span | None, ...]

    def right(self, questions: Sequence[Question]) -> NDArray[np.float64]:
        """1 where an answer is right, ``(questions,)``."""
        return np.array([score(q, a) for q, a in zip(questions, self.answers, strict=True)], np.float64)

    def overlaps(self, questions: Sequence[Question]) -> NDArray[np.float64]:
        """How the best evidence overlaps what is asked about, ``(questions,)``; nan for questions about the whole."""
        spans = [(q.event.start_seconds, q.event.stop_seconds) if q.event else None for q in questions]
        pairs = zip(self.spans, spans, strict=True)
        return np.array([np.nan if true is None else overlap(found, true) for found, true in pairs])

    def save(self, file: Path) -> None:
        """As JSON, whole or not at all."""
        text = json.dumps(dataclasses.asdict(self))
        kept(file, lambda scratch: scratch.write_text(text))

    @classmethod
    def load(cls, file: Path) -> Replies:
        """From ``save``."""
        state = json.loads(file.read_text())
        spans = tuple(None if span is None else (span[0], span[1]) for span in state["spans"])
        return cls(answers=tuple(state["answers"]), spans=spans)


@torch.no_grad()
def ask_seen(backbone: OwnVideoLLM, compressor: nn.Module, sight: Sight, exam: Exam) -> Replies:
    """Every question about every test video."""
    answers: list[str] = []
    spans: list[Span | None] = []
    for features, questions in zip(exam.features, exam.questions, strict=True):
        memory = remember(backbone, compressor, sight, features)
        model = Model(backbone=backbone)  # with its own cache of what was read
        for question in questions:
            answer = model.ask(memory, question.text, max_new_tokens=ANSWER_TOKENS)
            best = answer.evidence[0] if answer.evidence else None
            answers.append(answer.text)
            spans.append(None if best is None else (best.start_seconds, best.stop_seconds))
    return Replies(answers=tuple(answers), spans=tuple(spans))


def ask_unseen(backbone: OwnVideoLLM, exam: Exam) -> Replies:
    """The same questions without the videos."""
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
