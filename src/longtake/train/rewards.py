"""Rewards of a selection-and-order puzzle: strict parsing, and the parts of the answer's score, to be weighed.

A puzzle shows a pool of candidates, numbered from 1, and asks for the ``m`` true ones in their order. The task is that
of Masked Video Prediction (arXiv 2601.03781); its "fine-grained reward" is not public, so the formula is ours. The
score is that of ``data/puzzles/puzzle.py``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from longtake.data.puzzles.puzzle import ORDERS, Order, is_valid, score
from longtake.types import LongtakeError

Form = Literal["direct", "answer", "think"]

TAG = re.compile(r"</?(?:think|answer)>")
LIST = re.compile(r"[1-9][0-9]{0,5}(?:\s*,\s*[1-9][0-9]{0,5})*")
SHAPES: dict[Form, re.Pattern[str]] = {
    "direct": re.compile(r"\s*(?P<answer>[^<>]*?)\s*"),
    "answer": re.compile(r"\s*<answer>(?P<answer>[^<>]*)</answer>\s*"),
    "think": re.compile(r"\s*<think>(?P<thought>.*?\S.*?)</think>\s*<answer>(?P<answer>[^<>]*)</answer>\s*", re.DOTALL),
}
TAGS: dict[Form, list[str]] = {
    "direct": [],
    "answer": ["<answer>", "</answer>"],
    "think": ["<think>", "</think>", "<answer>", "</answer>"],
}

# ours, but for what Visual Jigsaw takes for repetition
WEIGHTS: Mapping[str, float] = {"selection": 0.45, "order": 0.45, "exact": 0.1, "format": 0.1, "repetition": -0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """An answer as it was read from a completion.

    well_formed: the whole completion has the asked form. numbers: the one answer's numbers; None where it is no list.
    """

    well_formed: bool
    numbers: tuple[int, ...] | None


def parse(completion: str, form: Form = "answer") -> Parsed:
    """A completion's list of numbers, read strictly.

    form: "direct": the list and nothing else. "answer": ``<answer>3, 1</answer>``. "think": something other than blanks
    between ``<think>`` and ``</think>`` before it. The list is commas between numbers from 1, in plain digits: words,
    "or", brackets, ranges and leading zeros make it none. Words around a single answer cost the form but not the
    answer; a second answer, even the same, one within a thought, or a tag out of place leaves no answer at all.
    """
    whole = SHAPES[form].fullmatch(completion)
    tags = TAG.findall(completion)
    if form == "direct":
        answer = whole.group("answer") if whole else None
    elif tags[-2:] == TAGS["answer"] and tags[:-2] in ([], TAGS["think"][:2]):
        answer = completion[completion.index("<answer>") + len("<answer>") : completion.index("</answer>")].strip()
    else:
        answer = None
    listed = None if answer is None else LIST.fullmatch(answer.strip())
    numbers = tuple(int(number) for number in answer.split(",")) if listed and answer is not None else None
    return Parsed(well_formed=whole is not None and tags == TAGS[form] and numbers is not None, numbers=numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PuzzleReward:
    """The parts of a puzzle's reward. form: of the answer, see ``parse``. order: a measure of ``ORDERS``.

    The total is made by whoever weighs the parts; ``WEIGHTS`` are our defaults (0.45 of a valid answer for selection,
    0.45 for order, 0.1 for all of it, 0.1 for the form, and -0.5 for a line said over and over).
    """

    form: Form = "answer"
    order: Order = "pairs"

    def __post_init__(self) -> None:
        if self.form not in SHAPES:
            raise LongtakeError(f"form is {self.form!r}; it must be one of {', '.join(SHAPES)}")
        if self.order not in ORDERS:
            raise LongtakeError(f"order is {self.order!r}; it must be one of {', '.join(ORDERS)}")

    def parts(self, completion: str, truth: Sequence[int], pool: int) -> dict[str, float]:
        """ "format" and "repetition", 0 or 1, and the parts of the answer's ``PuzzleScore``.

        truth: the right numbers in order, from 1 to ``pool``.
        """
        if not is_valid(truth, len(truth), pool) or not truth:
            raise ValueError(f"the truth {tuple(truth)} must be one or more distinct numbers from 1 to {pool}")
        found = parse(completion, self.form)
        parts = {"format": float(found.well_formed), "repetition": float(repeats_itself(completion))}
        return parts | score(found.numbers or (), truth, pool, self.order).parts()


def total(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted sum. A part without a weight counts nothing. Raises LongtakeError for a weight without a part."""
    if unknown := sorted(weights.keys() - parts.keys()):
        raise LongtakeError(f"a weight is given to {unknown[0]!r}; it must be one of the reward's: {', '.join(parts)}")
    return sum(weight * parts[name] for name, weight in weights.items())


def repeats_itself(text: str, *, words: int = 7, times: int = 3) -> bool:
    """Whether a line of at least so many words stands there more than ``times`` times, as Visual Jigsaw punishes it."""
    lines = Counter(line.strip() for line in TAG.sub("\n", text).splitlines())
    return any(count > times and len(line.split()) >= words for line, count in lines.items())
