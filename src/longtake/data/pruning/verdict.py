"""What becomes of each sample of a data set that is pruned."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longtake.data.pruning.redundancy import Cut
from longtake.data.pruning.samples import SUBSETS, Sample, Subset
from longtake.data.pruning.scorer import Key, Scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a sample. score: the mean over its videos; None without videos, and where one has a problem."""

    sample: Sample
    score: float | None
    kept: bool
    problem: str | None = None


def judge(
    samples: Sequence[Sample], scores: Mapping[Key, Scored], cuts: Mapping[Subset, Cut]
) -> tuple[list[Verdict], dict[Subset, float | None]]:
    """Every sample's verdict, in order, and the score at which each subset is cut.

    A sample without video stays; one with a video that could not be scored goes, and counts in no quantile.
    """
    scored: dict[int, float] = {}
    verdicts: dict[int, Verdict] = {}
    for number, sample in enumerate(samples):
        found = [scores[part.key] for part in sample.parts]
        values = [one.score for one in found if one.score is not None]
        if not found:
            verdicts[number] = Verdict(sample=sample, score=None, kept=True)
        elif len(values) < len(found):
            problem = next(one.problem for one in found if one.score is None)
            verdicts[number] = Verdict(sample=sample, score=None, kept=False, problem=problem)
        else:
            scored[number] = statistics.fmean(values)
    lines: dict[Subset, float | None] = {}
    for subset in SUBSETS:
        numbers = [number for number in scored if samples[number].subset == subset]
        values = [scored[number] for number in numbers]
        kept = cuts[subset].kept(values, [samples[number].name for number in numbers])
        lines[subset] = cuts[subset].line(values, kept)
        for number, stays in zip(numbers, kept, strict=True):
            verdicts[number] = Verdict(sample=samples[number], score=scored[number], kept=stays)
    return [verdicts[number] for number in range(len(samples))], lines
