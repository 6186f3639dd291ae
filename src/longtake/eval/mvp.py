"""What a model makes of held-out puzzles, beside chance and the best that needs no understanding, level by level."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longtake.backbones.base import Backbone
from longtake.data.puzzles.footage import Embed
from longtake.data.puzzles.framefile import FrameFile
from longtake.data.puzzles.puzzle import PuzzleScore, chance, score
from longtake.data.puzzles.puzzle_file import PuzzleRecord, by_file
from longtake.eval.leaks import baseline_answers
from longtake.train.mvp import MvpPuzzle, figures

MEASURES = ("exact", "selection", "pairwise", "kendall")
CHANCE, BEST = "chance", "best baseline"
ALONE = "order alone"  # in a report, the same of what the stage "order" leaves of the puzzles

Parts = Mapping[str, float]  # of one answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Answers to all held puzzles, in their order. row: who answered, and under which control."""

    row: str
    parts: Sequence[Parts]


def baselines(folder: Path, records: Sequence[PuzzleRecord], embedders: Mapping[str, Embed]) -> Iterator[Asked]:
    """Chance, as it is on average, and each baseline's answers. folder: of the synthesis."""
    found: dict[str, dict[str, list[int]]] = {}
    for file, group in by_file(records).items():
        with FrameFile(folder / file) as frames:
            found |= {record.id: answers for record, answers in baseline_answers(group, frames, embedders)}
    yield Asked(row=CHANCE, parts=[chance_parts(record) for record in records])
    for name in next(iter(found.values())):
        scores = [score(found[record.id][name], record.truth, len(record.candidates)) for record in records]
        yield Asked(row=name, parts=[_parts(one) for one in scores])


@torch.no_grad()
def by_size(puzzles: Sequence[MvpPuzzle], backbone: Backbone) -> Iterator[Asked]:
    """The candidates whose tokens are smallest, or largest, as they are shown, in the order of their size.

    What a rendering tells of the answer by itself: a model that weighs single pictures has compared none.
    """
    orders = [_sizes(dataclasses.replace(one, control="none", shown=one.record), backbone).argsort() for one in puzzles]
    for row, step in (("smallest tokens", 1), ("largest tokens", -1)):
        parts = []
        for order, puzzle in zip(orders, puzzles, strict=True):
            truth = puzzle.record.truth
            chosen = (order[::step][: len(truth)] + 1).tolist()
            parts.append(_parts(score(chosen, truth, len(order))))
        yield Asked(row=row, parts=parts)


def _sizes(puzzle: MvpPuzzle, backbone: Backbone) -> NDArray[np.float64]:
    """The mean square of each candidate's tokens, ``(candidates,)``."""
    shown = [part.tokens for part in puzzle.prompt(backbone).parts if part.tokens is not None]
    pool = shown[-len(puzzle.record.candidates) :]
    return np.array([float(tokens.features.square().mean()) for tokens in pool])


def chance_parts(record: PuzzleRecord) -> Parts:
    """What a valid answer drawn at random gets on average."""
    return _parts(chance(len(record.truth), len(record.candidates)))


def _parts(found: PuzzleScore) -> Parts:
    parts = found.parts()
    return {name: parts[name] for name in ("valid", "exact", "selection", "pairs", "kendall")}


def report(puzzles: Sequence[MvpPuzzle], asked: Sequence[Asked], rules: Sequence[str]) -> dict[str, Any]:
    """Figures by level, and over all where there are several, and by row; JSON-ready.

    rules: the baselines' rows; the best of them in each measure is added.
    """
    levels: dict[str, dict[str, dict[str, float]]] = {}
    names = sorted({puzzle.level for puzzle in puzzles})
    for level in (*names, "all") if len(names) > 1 else names:
        chosen = [number for number, puzzle in enumerate(puzzles) if level in (puzzle.level, "all")]
        rows = {
            one.row: figures([puzzles[number] for number in chosen], [one.parts[number] for number in chosen])
            for one in asked
        }
        shown = {row: {m: round(found[m], 4) for m in ("valid", *MEASURES)} for row, found in rows.items()}
        best = {m: max(shown[row][m] for row in rules) for m in MEASURES}
        levels[level] = {CHANCE: shown.pop(CHANCE), BEST: {"valid": 1.0, **best}, **shown}
    counts = {level: sum(level in (puzzle.level, "all") for puzzle in puzzles) for level in levels}
    return {"puzzles": counts, "baselines": list(rules), "levels": levels}


def table(told: Mapping[str, Any]) -> str:
    """The report as text: by level chance, the best baseline of each measure, and every row that is no baseline."""
    lines = []
    for level, rows in told["levels"].items():
        head = f"{level}, {told['puzzles'][level]} held-out puzzles"
        lines.append(f"{head:36}" + "".join(f"{name:>11}" for name in MEASURES))
        for row, found in rows.items():
            if row not in told["baselines"]:
                lines.append(f"{row:36}" + "".join(f"{found[name]:11.3f}" for name in MEASURES))
        lines.append("")
    if told.get(ALONE):
        lines += [f"{ALONE}: the frames beside the gap and the missing ones", table(told[ALONE])]
    return "\n".join(lines).rstrip()
