"""What a model makes of held-out puzzles, beside chance and the best that needs no understanding, level by level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.data.puzzles.footage import Embed
from longtake.data.puzzles.framefile import FrameFile
from longtake.data.puzzles.puzzle import chance, score
from longtake.data.puzzles.puzzle_file import PuzzleRecord, by_file
from longtake.eval.leaks import baseline_answers
from longtake.train.mvp import MvpPuzzle, figures, order_measures

MEASURES = ("exact", "selection", "pairwise", "kendall")
CHANCE, BEST = "chance", "best baseline"

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
        yield Asked(row=name, parts=[_parts(record, found[record.id][name]) for record in records])


def chance_parts(record: PuzzleRecord) -> Parts:
    """What a valid answer drawn at random gets on average."""
    missing, pool = len(record.truth), len(record.candidates)
    mean = chance(missing, pool)
    both = missing * (missing - 1) / (pool * (pool - 1))
    return {"valid": 1.0, "exact": mean.exact, "selection": mean.selection, "pairs": both, "kendall": 0.0}


def _parts(record: PuzzleRecord, answer: Sequence[int]) -> Parts:
    found = score(answer, record.truth, len(record.candidates))
    told = {"valid": float(found.valid), "exact": found.exact, "selection": found.selection}
    return told | order_measures(answer, record.truth)


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
    """For each level chance, the best baseline of each measure, and every row that is no baseline."""
    lines = []
    for level, rows in told["levels"].items():
        head = f"{level}, {told['puzzles'][level]} held-out puzzles"
        lines.append(f"{head:36}" + "".join(f"{name:>11}" for name in MEASURES))
        for row, found in rows.items():
            if row not in told["baselines"]:
                lines.append(f"{row:36}" + "".join(f"{found[name]:11.3f}" for name in MEASURES))
        lines.append("")
    return "\n".join(lines).rstrip()
