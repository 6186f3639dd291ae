"""What a model answered to a row of questions, kept as a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtake.data.probe_world.questions import Question, score
from longtake.eval.measures import Span, overlap
from longtake.outputs import write_json


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
        """Write the replies as JSON, whole or not at all."""
        write_json(file, dataclasses.asdict(self))

    @classmethod
    def load(cls, file: Path) -> Replies:
        """Read what ``save`` wrote."""
        state = json.loads(file.read_text())
        spans = tuple(None if span is None else (span[0], span[1]) for span in state["spans"])
        return cls(answers=tuple(state["answers"]), spans=spans)
