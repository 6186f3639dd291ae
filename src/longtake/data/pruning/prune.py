"""Dataset pruning: of each kind of question, drop the samples whose videos repeat themselves most.

Paper: Video-XL-Pro, section 3.3, "Video Dataset Pruning". What it leaves unsaid is decided, as ours, in
``redundancy.py`` (scores and cuts) and ``samples.py`` (kinds of questions).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from longtake.data.pruning.redundancy import Cut
from longtake.data.pruning.samples import Subset, is_list, join_samples, read_samples
from longtake.data.pruning.scorefile import ScoreFile
from longtake.data.pruning.scorer import Key, Scored, Scorer, VideoPart
from longtake.data.pruning.verdict import Verdict, judge
from longtake.data.workers import Engine, work
from longtake.outputs import check_output, replaced
from longtake.types import LongtakeError

ENDINGS = ("scores.jsonl", "videos.jsonl", "histogram.png", "examples.png")  # beside the output, by its stem

MakeScorer = Callable[[], Scorer]  # picklable; called once in each process


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What a pruning did. lines: for each subset the score from which on its samples were dropped.

    problems: videos that could not be scored, by name; samples with one were left out. warnings: videos that were
    scored, but are odd.
    """

    verdicts: tuple[Verdict, ...]
    lines: Mapping[Subset, float | None]
    problems: Mapping[str, str]
    warnings: Mapping[str, str]
    videos: int
    scored_before: int
    seconds: float


def prune(
    data: Path,
    media: Path,
    output: Path,
    cuts: Mapping[Subset, Cut],
    make: MakeScorer,
    *,
    engine: Engine = "process",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Pruning:
    """Write the samples that stay to ``output`` as they stood; beside it scores. Resumes.

    progress: called with videos scored so far and all videos.

    Files beside ``output``, by its stem: ``.scores.jsonl`` (a line a sample: name, subset, score, kept, problem,
    videos), ``.videos.jsonl`` (a line a video as they are scored; the first line says with which settings, and another
    pruning may only go on from it with the same ones); ``.histogram.png`` and ``.examples.png`` are left to
    ``eval.prune_pictures``.

    Raises LongtakeError for data that cannot be read, an output that cannot be written or is read, scores of other
    settings, a worker that was killed, and when no video at all could be scored.
    """
    begun = time.perf_counter()
    samples = read_samples(data, media)
    reads = {path.resolve() for path in (data, *(file for sample in samples for file in sample.files))}
    check_output(output, endings=(".jsonl", ".json"), reads=reads)
    for ending in ENDINGS:
        check_output(beside(output, ending), reads=reads)
    parts = list({part.key: part for sample in samples for part in sample.parts}.values())
    scorer = make()
    with ScoreFile(beside(output, "videos.jsonl"), scorer.settings) as file:
        scores = file.done(parts)
        before = len(scores)
        left = [part for part in parts if part.key not in scores]
        gpu = scorer.settings["device"] == "cuda"
        scoring = partial(_scoring, make)
        for scored in work(left, scoring, workers=workers, engine=engine, gpu=gpu, here=scorer.score):
            file.add(scored)
            scores[scored.part.key] = scored
            if progress is not None:
                progress(len(scores), len(parts))
    _check_some(parts, scores)
    verdicts, lines = judge(samples, scores, cuts)
    write(output, verdicts, as_list=is_list(data.read_bytes()))
    return Pruning(
        verdicts=tuple(verdicts),
        lines=lines,
        problems={scored.part.name: scored.problem for scored in scores.values() if scored.problem},
        warnings={scored.part.name: scored.warning for scored in scores.values() if scored.warning},
        videos=len(parts),
        scored_before=before,
        seconds=time.perf_counter() - begun,
    )


def _scoring(make: MakeScorer) -> Callable[[VideoPart], Scored]:
    return make().score


def _check_some(parts: Sequence[VideoPart], scores: Mapping[Key, Scored]) -> None:
    problems = [scores[part.key].problem for part in parts if scores[part.key].score is None]
    if problems and len(problems) == len(parts):
        raise LongtakeError(
            f"none of the {len(parts)} videos could be scored, the first: {problems[0]}; "
            "is media (--media) their folder?"
        )


def write(output: Path, verdicts: Sequence[Verdict], *, as_list: bool) -> None:
    """The kept samples and every sample's score; each file whole or not at all."""
    with replaced(output) as scratch:
        scratch.write_bytes(join_samples([verdict.sample for verdict in verdicts if verdict.kept], as_list=as_list))
    with replaced(beside(output, "scores.jsonl")) as scratch:
        scratch.write_text("".join(json.dumps(row) + "\n" for row in score_rows(verdicts)))


def beside(output: Path, ending: str) -> Path:
    """``OUT.ending`` for ``OUT.jsonl`` or ``OUT.json``."""
    return output.with_name(f"{output.name.removesuffix('.jsonl').removesuffix('.json')}.{ending}")


def score_rows(verdicts: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
    """What ``.scores.jsonl`` says of each sample; the subset of one without video is None."""
    for verdict in verdicts:
        sample = verdict.sample
        yield {
            "name": sample.name,
            "subset": sample.subset if sample.parts else None,
            "score": verdict.score,
            "kept": verdict.kept,
            "problem": verdict.problem,
            "videos": [part.name for part in sample.parts],
        }
