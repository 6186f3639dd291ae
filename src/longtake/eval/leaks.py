"""Whether puzzles give their answers away: checks of the files, and what needs no understanding beside chance."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from longtake.backbones.base import Backbone
from longtake.data.puzzles.footage import Embed, pixel_features, stretches, vectors
from longtake.data.puzzles.framefile import FrameFile
from longtake.data.puzzles.puzzle import PuzzleScore, chance, score
from longtake.data.puzzles.puzzle_file import PuzzleRecord, by_file, read_records
from longtake.data.puzzles.sheets import choose
from longtake.eval.puzzle_baselines import BASELINES, distances, pool_order
from longtake.types import LongtakeError

LEAST_P = 0.001  # a check fails below this; ours
MOST_NAMES = 1000  # of a video, compared with each other
MEASURES = ("selection", "order", "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One property of the files. p: of the statistic if the property held; None where it is no matter of chance."""

    name: str
    passed: bool
    told: str
    p: float | None = None


def check_leaks(
    folder: Path,
    embedders: Mapping[str, Embed],
    *,
    samples: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Checks and baselines of the puzzles in the folder of a synthesis, as one JSON-ready object.

    embedders: by name, frames to features ``(frames, rows, columns, dim)``. samples: puzzles of each level whose
    pictures are looked at; all count for the positions.

    Raises LongtakeError where there are no puzzles.
    """
    records = list(read_records(folder))
    if not records:
        raise LongtakeError(f"{folder} holds no puzzles to check; give more footage")
    levels = len({record.level for record in records})
    chosen = choose(records, samples * levels)
    scores: dict[str, dict[str, list[PuzzleScore]]] = {}
    looks: list[str] = []
    sizes: list[float] = []
    dates: set[tuple[int, ...]] = set()
    files = by_file(chosen)
    for done, (file, group) in enumerate(files.items(), start=1):
        with FrameFile(folder / file) as frames:
            dates |= frames.entry_dates()
            looks += [record.id for record in group if len(encodings(record, frames)) != 1]
            sizes += [larger_share(record, frames) for record in group]
            for record, answers in baseline_answers(group, frames, embedders):
                _score(record, answers, scores.setdefault(record.level, {}))
        if progress is not None:
            progress(done, len(files))
    checks = [*position_checks(records), *_file_checks(records, looks, dates)]
    return {
        "puzzles": len(records),
        "looked_at": len(chosen),
        "checks": [{"name": c.name, "passed": c.passed, "told": c.told, "p": c.p} for c in checks],
        "passed": all(check.passed for check in checks),
        "truth_larger_on_disk": round(float(np.mean(sizes)), 4),
        "levels": {level: _summary(rows) for level, rows in sorted(scores.items())},
    }


def position_checks(records: Sequence[PuzzleRecord]) -> list[Check]:
    """Whether missing frames lie anywhere in the pool, the first in time anywhere, and any two in either order."""
    where, first = [0.0, 0], [0.0, 0]
    rising, pairs = 0, 0
    for pool, missing in sorted({(len(record.candidates), len(record.truth)) for record in records}):
        group = [r.truth for r in records if (len(r.candidates), len(r.truth)) == (pool, missing)]
        truth = np.array(group) - 1
        counts = np.bincount(truth.reshape(-1), minlength=pool)
        if missing < pool:
            _add(where, without_replacement(counts, len(group), missing), pool - 1)
        even = np.bincount(truth[:, 0], minlength=pool)
        _add(first, float((np.square(even - len(group) / pool) / (len(group) / pool)).sum()), pool - 1)
        one, other = np.triu_indices(missing, 1)
        rising += int((truth[:, one] < truth[:, other]).sum())
        pairs += int(len(group) * len(one))
    checks = []
    for name, (statistic, freedom) in (("truth anywhere in the pool", where), ("first in time anywhere", first)):
        p = chi_square_p(statistic, int(freedom))
        told = f"chi-square {statistic:.1f} with {int(freedom)} degrees of freedom"
        checks.append(Check(name=name, passed=p >= LEAST_P, told=told, p=p))
    if pairs:
        checks.append(_even("pool order says nothing of time", rising, pairs, [len(r.truth) for r in records]))
    return checks


def without_replacement(counts: NDArray[np.integer], puzzles: int, missing: int) -> float:
    """The statistic of how often each place of a pool holds a missing frame, chi-square with ``places - 1`` degrees.

    In a puzzle the missing frames lie at different places, so that counts vary less than those of free draws.
    """
    places = len(counts)
    share = missing / places
    variance = puzzles * share * (1 - share) * places / (places - 1)
    return float(np.square(counts - puzzles * share).sum() / variance)


def chi_square_p(statistic: float, freedom: int) -> float:
    """How likely a chi-square variable is at least this large."""
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def encodings(record: PuzzleRecord, frames: FrameFile) -> set[str]:
    """How the pictures of a puzzle are encoded: format, mode, size, tables, and what is written beside the pixels."""
    found = set()
    for name in (*record.context, *record.candidates):
        with Image.open(io.BytesIO(frames.picture_bytes(name))) as picture:
            tables = getattr(picture, "quantization", None)
            found.add(repr((picture.format, picture.mode, picture.size, tables, sorted(picture.info.items()))))
    return found


def larger_share(record: PuzzleRecord, frames: FrameFile) -> float:
    """How often a missing frame's file is larger than a distractor's; half for equal ones. About 0.5 if it says
    nothing."""
    sizes = np.array([len(frames.picture_bytes(name)) for name in record.candidates])
    is_truth = np.isin(np.arange(len(sizes)), np.array(record.truth) - 1)
    apart = sizes[is_truth][:, None] - sizes[~is_truth]
    return float(((apart > 0) + 0.5 * (apart == 0)).mean())


def embedders_of(backbone: Backbone) -> dict[str, Embed]:
    """The embedders by name: raw pixels, a tower with random weights, the model's own."""
    return {"pixels": pixel_features, "random tower": backbone.random_tower(0), "own tower": backbone.tower_features}


def table(result: Mapping[str, Any]) -> str:
    """The result as text: checks, a line each, and for each level baselines beside chance."""
    lines = []
    for check in result["checks"]:
        p = "" if check["p"] is None else f", p {check['p']:.3f}"
        lines.append(f"{'ok  ' if check['passed'] else 'LEAK'}  {check['name']}: {check['told']}{p}")
    share = result["truth_larger_on_disk"]
    lines.append(f"      a missing frame's file is larger than a distractor's in {share:.1%} of pairs")
    for level, rows in result["levels"].items():
        count = rows["chance"]["puzzles"]
        lines.append(f"\n{level + f', {count} puzzles':40}" + "".join(f"{name:>11}" for name in MEASURES))
        lines += [f"{name:40}" + "".join(f"{row[m]:11.3f}" for m in MEASURES) for name, row in rows.items()]
    return "\n".join(lines)


def baseline_answers(
    group: Sequence[PuzzleRecord], frames: FrameFile, embedders: Mapping[str, Embed]
) -> Iterator[tuple[PuzzleRecord, dict[str, list[int]]]]:
    """The puzzles of one video, each with every baseline's answer."""
    wanted = [[*record.candidates, *record.beside()] for record in group]
    names = list(dict.fromkeys(name for row in wanted for name in row if name is not None))
    found = {
        name: vectors(embed, (frames.pictures(names[some]) for some in stretches(len(names))))
        for name, embed in embedders.items()
    }
    row_of = {name: row for row, name in enumerate(names)}
    for record, used in zip(group, wanted, strict=True):
        missing = len(record.truth)
        answers = {"pool order": pool_order(np.empty((0, 0)), missing)}
        absent = [place for place, name in enumerate(used) if name is None]
        for embedder, embedded in found.items():
            apart = distances(embedded[[row_of.get(name or "", 0) for name in used]])
            apart[absent] = apart[:, absent] = np.nan
            answers |= {f"{name}, {embedder}": rule(apart, missing) for name, rule in BASELINES.items()}
        yield record, answers


def _score(record: PuzzleRecord, answers: Mapping[str, list[int]], rows: dict[str, list[PuzzleScore]]) -> None:
    pool = len(record.candidates)
    rows.setdefault("chance", []).append(chance(len(record.truth), pool))
    for name, answer in answers.items():
        rows.setdefault(name, []).append(score(answer, record.truth, pool))


def _summary(rows: Mapping[str, Sequence[PuzzleScore]]) -> dict[str, dict[str, float]]:
    """Mean scores by baseline, and the best of each measure among them."""
    means = {
        name: {"puzzles": len(found)} | {m: round(float(np.mean([getattr(s, m) for s in found])), 4) for m in MEASURES}
        for name, found in rows.items()
    }
    best = {m: max(row[m] for name, row in means.items() if name != "chance") for m in MEASURES}
    return means | {"best of these": {"puzzles": means["chance"]["puzzles"]} | best}


def _file_checks(records: Sequence[PuzzleRecord], looks: Sequence[str], dates: set[tuple[int, ...]]) -> list[Check]:
    shown = [r.id for r in records if set(r.candidates) & set(r.context) or len(set(r.candidates)) < len(r.candidates)]
    checks = [
        _none("all pictures of a puzzle are encoded alike", looks),
        Check(name="files have no dates", passed=len(dates) <= 1, told=f"{len(dates)} different ones"),
        _none("no candidate is context, or there twice", shown),
    ]
    rising, pairs, lengths = _name_order(records)
    if pairs:
        checks.append(_even("names of candidates say nothing of time", rising, pairs, lengths))
    return checks


def _name_order(records: Sequence[PuzzleRecord]) -> tuple[int, int, list[int]]:
    """How many pairs of missing frames, in the order of time, have rising names; all pairs; and frames by video."""
    known: dict[str, dict[str, float]] = {}
    for record in records:
        names = [record.candidates[number - 1] for number in record.truth]
        known.setdefault(record.identity, {}).update(zip(names, record.truth_seconds, strict=True))
    rising, pairs, lengths = 0, 0, []
    for seconds in known.values():
        names = sorted(seconds, key=seconds.__getitem__)[:MOST_NAMES]
        ranks = np.argsort(np.argsort(names))
        one, other = np.triu_indices(len(names), 1)
        rising += int((ranks[one] < ranks[other]).sum())
        pairs += len(one)
        lengths.append(len(names))
    return rising, pairs, lengths


def _none(name: str, wrong: Sequence[str]) -> Check:
    told = f"{len(wrong)} puzzles are wrong, the first {wrong[0]}" if wrong else "no puzzle is wrong"
    return Check(name=name, passed=not wrong, told=told)


def _even(name: str, rising: int, pairs: int, lengths: Sequence[int]) -> Check:
    """A check that about half of the pairs rise.

    Of a puzzle's n frames in random order the rising pairs vary by n (n - 1) (2n + 5) / 72 (Kendall's).
    """
    variance = sum(n * (n - 1) * (2 * n + 5) / 72 for n in lengths)
    p = math.erfc(abs(rising - pairs / 2) / math.sqrt(2 * variance))
    return Check(name=name, passed=p >= LEAST_P, told=f"{rising} of {pairs} pairs rise", p=p)


def _add(sums: list[Any], statistic: float, freedom: int) -> None:
    sums[0] += statistic
    sums[1] += freedom
