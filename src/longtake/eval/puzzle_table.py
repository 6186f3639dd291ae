"""Answers to held-out puzzles, of several seeds and under controls, as an ablation's table. Ours.

Every source weighs the same, however many of the puzzles it has, and intervals resample sources. Arms are compared in a
measure at a level only where one of them is at least 10 points above chance there and not all are above 90%:
``ablation.standing_of_all``, with chance as the guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtake.data.puzzles.puzzle import pairwise
from longtake.eval.ablation import Estimate, Standing, estimate, standing_of_all
from longtake.eval.ablation_report import AblationTable, Finding, Row
from longtake.eval.mvp import BEST, CHANCE

PARTS = ("exact", "selection", "pairs", "kendall")  # of an answer, as ``recipes.mvp_stages`` writes them
MEASURES = (*PARTS, "pairwise")
TRAINED = ("grpo", "supervised")
ALL = "all"

Parts = Mapping[str, NDArray[np.float64]]  # of ``PARTS``, (puzzles,)
Where = NDArray[np.bool_]  # (puzzles,)
Stands = Mapping[tuple[str, str], Standing]  # by level and measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A run's answers by row. levels, domains, sources: of each puzzle, in the rows' order. baselines: rows without a
    model."""

    rows: Mapping[str, Parts]
    levels: tuple[str, ...]
    domains: tuple[str, ...]
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
            own = rows.setdefault(line["row"], {part: [] for part in PARTS})
            for part in PARTS:
                own[part].append(float(line[part]))
        return Answers(
            rows={row: {name: np.array(values) for name, values in own.items()} for row, own in rows.items()},
            levels=tuple(line["level"] for line in first),
            domains=tuple(line["domain"] for line in first),
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
    places = places_of(about.levels, about.domains)
    stands = stands_of(rows, TRAINED, places, about.sources)
    others = [name for name in rows if name not in (*about.baselines, CHANCE, "grpo") and "supervised," not in name]
    findings = []
    for level, measure in opened(stands):
        where = places[level]
        means = {name: mean_of(rows[name][:1], measure, where, about.sources) for name in about.baselines}
        best = max(means, key=lambda name: means[name])
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
    stands: Stands,
    sources: NDArray[np.int64],
) -> tuple[Finding, ...]:
    """How the arms of some pairs differ where they may be compared, over the seeds that both have."""
    return tuple(
        Finding(
            arm=arm,
            against=against,
            measure=f"{level} {measure}",
            found=_difference(rows[arm], rows[against], measure, places[level], sources),
        )
        for arm, against in pairs
        for level, measure in opened(stands)
    )


def places_of(levels: Sequence[str], domains: Sequence[str]) -> dict[str, Where]:
    """Which puzzles are of each level, all of them where there are several levels, and of each of several domains."""
    places = {level: np.array([own == level for own in levels]) for level in sorted(set(levels))}
    if len(places) > 1:
        places[ALL] = np.ones(len(levels), bool)
    if len(set(domains)) > 1:
        places |= {domain: np.array([own == domain for own in domains]) for domain in sorted(set(domains))}
    return places


def overall(measures: Sequence[str]) -> list[str]:
    """Those of a table's measures that are over all puzzles, or the only level's, and those that are of no level."""
    places = [name.rsplit(" ", 1)[0] for name in measures if name.split()[-1] in MEASURES]
    whole = ALL if ALL in places else next(iter(places), ALL)  # ``places_of`` has levels before domains
    return [name for name in measures if name.startswith(f"{whole} ") or name.split()[-1] not in MEASURES]


def opened(stands: Stands) -> list[tuple[str, str]]:
    """Levels and measures where arms may be compared."""
    return [place for place, stand in stands.items() if stand == "open"]


def notes_of(sources: NDArray[np.int64], stands: Stands) -> tuple[str, ...]:
    """What was asked, and where arms are not compared."""
    counts = np.unique(sources, return_counts=True)[1]
    closed = [f"{level} {measure} {stand}" for (level, measure), stand in stands.items() if stand != "open"]
    return (
        f"{len(sources)} puzzles of {len(counts)} sources, the largest with {counts.max()}; every source weighs the "
        "same, and intervals resample sources.",
        "Where arms are not compared (floor: none is 10 points above chance; ceiling: all are above 90%): "
        f"{', '.join(closed) or 'nowhere'}.",
    )


def stands_of(
    rows: Mapping[str, Sequence[Parts]],
    trained: Sequence[str],
    places: Mapping[str, Where],
    sources: NDArray[np.int64],
) -> Stands:
    """Whether arms may be compared, by level and measure, from the trained arms and chance."""
    found: dict[tuple[str, str], Standing] = {}
    for level, where in places.items():
        for measure in MEASURES:
            means = [mean_of(rows[name], measure, where, sources) for name in trained]
            found[level, measure] = standing_of_all(means, mean_of(rows[CHANCE], measure, where, sources))
    return found


def cells(
    seeds: Sequence[Parts], places: Mapping[str, Where], sources: NDArray[np.int64]
) -> dict[str, Estimate]:
    """What a row reached, by level and measure."""
    return {
        f"{level} {measure}": estimate(reached(seeds, measure, where, sources))
        for level, where in places.items()
        for measure in MEASURES
    }


def _difference(
    arm: Sequence[Parts], other: Sequence[Parts], measure: str, where: Where, sources: NDArray[np.int64]
) -> Estimate:
    """How an arm differs from another in a measure at a place, over the seeds that both have."""
    both = min(len(arm), len(other))
    one, two = (reached(side[:both], measure, where, sources) for side in (arm, other))
    return estimate(one - two)


def mean_of(seeds: Sequence[Parts], measure: str, where: Where, sources: NDArray[np.int64]) -> float:
    """The mean over seeds and sources, each of which weighs the same."""
    return float(reached(seeds, measure, where, sources).mean())


def reached(
    seeds: Sequence[Parts], measure: str, where: Where, sources: NDArray[np.int64]
) -> NDArray[np.float64]:
    """What was reached with each source's puzzles at a place, ``(seeds, sources)``.

    "pairwise" is of the means of its two parts, see ``pairwise``. Others are means over puzzles.
    """

    def means(part: str) -> NDArray[np.float64]:
        return by_source(np.stack([seed[part][where] for seed in seeds]), sources[where])

    if measure != "pairwise":
        return means(measure)
    return pairwise(means("kendall"), means("pairs"))


def by_source(values: NDArray[np.float64], sources: NDArray[np.int64]) -> NDArray[np.float64]:
    """Means of values ``(seeds, puzzles)`` over each source's puzzles, ``(seeds, sources)``."""
    _, place, counts = np.unique(sources, return_inverse=True, return_counts=True)
    return np.stack([np.bincount(place, seed) / counts for seed in values])
