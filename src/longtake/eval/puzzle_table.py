"""Answers to held-out puzzles, of several seeds and under controls, as an ablation's table. Ours.

Intervals resample sources. Arms are compared at a level only where one of them is at least 10 points above chance in
exact answers and not all are above 90%: ``ablation.standing_of_all``, with chance as the guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtake.eval.ablation import Estimate, Standing, difference, estimate, standing_of_all
from longtake.eval.ablation_report import AblationTable, Finding, Row
from longtake.eval.mvp import BEST, CHANCE

MEASURES = ("exact", "selection", "pairs", "kendall")
TRAINED = ("grpo", "supervised")
ALL = "all"

Parts = Mapping[str, NDArray[np.float64]]  # by measure, (puzzles,)
Where = NDArray[np.bool_]  # (puzzles,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A run's answers by row. levels, sources: of each puzzle, in the rows' order. baselines: rows without a model."""

    rows: Mapping[str, Parts]
    levels: tuple[str, ...]
    sources: NDArray[np.int64]
    baselines: tuple[str, ...]

    @staticmethod
    def read(file: Path, baselines: tuple[str, ...]) -> Answers:
        """What ``recipes.mvp_stages`` wrote as ``answers.jsonl``."""
        told = [json.loads(line) for line in file.read_text().splitlines()]
        first = [line for line in told if line["row"] == CHANCE]
        names = {source: number for number, source in enumerate(sorted({line["source"] for line in first}))}
        rows: dict[str, dict[str, list[float]]] = {}
        for line in told:
            own = rows.setdefault(line["row"], {measure: [] for measure in MEASURES})
            for measure in MEASURES:
                own[measure].append(float(line[measure]))
        return Answers(
            rows={row: {name: np.array(values) for name, values in own.items()} for row, own in rows.items()},
            levels=tuple(line["level"] for line in first),
            sources=np.array([names[line["source"]] for line in first]),
            baselines=baselines,
        )


def held_table(
    by_seed: Sequence[Mapping[str, Parts]], once: Mapping[str, Parts], about: Answers
) -> AblationTable:
    """Rows of everything that answered, and what policy optimisation is worth beside it.

    by_seed: rows of each paired seed. once: rows of the first seed alone. about: the puzzles, and which rows are
    baselines; the best of these in a measure is compared with, chosen on the same puzzles, which favours it.
    """
    rows = {name: [seed[name] for seed in by_seed] for name in by_seed[0]} | {n: [p] for n, p in once.items()}
    places = places_of(about.levels)
    stands = {level: stand_of(rows, TRAINED, where) for level, where in places.items()}
    others = [name for name in rows if name not in (*about.baselines, CHANCE, "grpo") and "supervised," not in name]
    findings = []
    for level, where in opened(places, stands).items():
        for measure in MEASURES:
            best = max(about.baselines, key=lambda name: float(rows[name][0][measure][where].mean()))
            for label, other in [*((name, name) for name in others), (CHANCE, CHANCE), (BEST, best)]:
                found = _difference(rows["grpo"], rows[other], measure, where, about.sources)
                findings.append(Finding(arm="grpo", against=label, measure=f"{level} {measure}", found=found))
    return AblationTable(
        name="mvp-held",
        title="Puzzles of held-out sources",
        notes=notes_of(about.sources, stands),
        rows=tuple(Row(arm=name, cells=cells(parts, places, about.sources)) for name, parts in rows.items()),
        findings=tuple(findings),
    )


def compared(
    rows: Mapping[str, Sequence[Parts]],
    pairs: Sequence[tuple[str, str]],
    places: Mapping[str, Where],
    sources: NDArray[np.int64],
) -> tuple[Finding, ...]:
    """How the arms of some pairs differ at the levels that are given, over the seeds that both have."""
    return tuple(
        Finding(
            arm=arm,
            against=against,
            measure=f"{level} {measure}",
            found=_difference(rows[arm], rows[against], measure, where, sources),
        )
        for arm, against in pairs
        for level, where in places.items()
        for measure in MEASURES
    )


def places_of(levels: Sequence[str]) -> dict[str, Where]:
    """Which puzzles are of each level; and all of them, where there are several levels."""
    places = {level: np.array([own == level for own in levels]) for level in sorted(set(levels))}
    return places | ({ALL: np.ones(len(levels), bool)} if len(places) > 1 else {})


def overall(measures: Sequence[str]) -> list[str]:
    """Of a table's measures those over all puzzles, and those that are of no level."""
    if not any(name.startswith(f"{ALL} ") for name in measures):
        return list(measures)
    return [name for name in measures if name.startswith(f"{ALL} ") or name.split()[-1] not in MEASURES]


def opened(places: Mapping[str, Where], stands: Mapping[str, Standing]) -> dict[str, Where]:
    """The levels where arms may be compared."""
    return {level: where for level, where in places.items() if stands[level] == "open"}


def notes_of(sources: NDArray[np.int64], stands: Mapping[str, Standing]) -> tuple[str, ...]:
    """What was asked, and where arms are compared."""
    told = ", ".join(f"{level} {stand}" for level, stand in stands.items())
    return (
        f"{len(sources)} puzzles of {len(np.unique(sources))} sources; intervals resample sources.",
        f"Where arms are compared (floor: none is 10 points above chance; ceiling: all are above 90%): {told}.",
    )


def stand_of(rows: Mapping[str, Sequence[Parts]], trained: Sequence[str], where: Where) -> Standing:
    """Whether arms may be compared on some puzzles, from the trained arms' exact answers and chance."""
    reached = [float(np.mean([seed["exact"][where].mean() for seed in rows[name]])) for name in trained]
    return standing_of_all(reached, float(rows[CHANCE][0]["exact"][where].mean()))


def cells(
    seeds: Sequence[Parts], places: Mapping[str, Where], sources: NDArray[np.int64]
) -> dict[str, Estimate]:
    """What a row reached, by level and measure."""
    return {
        f"{level} {measure}": estimate(np.stack([seed[measure][where] for seed in seeds]), sources[where])
        for level, where in places.items()
        for measure in MEASURES
    }


def _difference(
    arm: Sequence[Parts], other: Sequence[Parts], measure: str, where: Where, sources: NDArray[np.int64]
) -> Estimate:
    """Over the seeds that both have."""
    pairs = [(one[measure][where], two[measure][where]) for one, two in zip(arm, other, strict=False)]
    one, two = (np.stack(side) for side in zip(*pairs, strict=True))
    return difference(one, two, sources[where])
