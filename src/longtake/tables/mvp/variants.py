"""The same footage's puzzles under other rules, from the frames that ``longtake synth mvp`` kept: no video is read.

Ours. Only videos that have puzzles in the folder give any here, so that all arms stand on the same split by source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from longtake.data.puzzles.footage import Footage
from longtake.data.puzzles.mvp import Level, Rules
from longtake.data.puzzles.puzzle_file import PUZZLES, PuzzleRecord, read_records
from longtake.data.puzzles.synth import STATISTICS, Source, Synthesis, make_of_source
from longtake.outputs import replaced
from longtake.types import LongtakeError

Variant = Literal["own", "random", "near", "kept"]
# what each changes: which distractors all levels have, and the similarity above which a frame repeats the last
CHANGES: Mapping[Variant, Mapping[str, Any]] = {
    "own": {},
    "random": {"pick": "random"},
    "near": {"pick": "near"},
    "kept": {"kappa": 1.0},
}


def rules_of(folder: Path) -> tuple[Synthesis, Rules]:
    """What a folder's puzzles were made by. Raises LongtakeError where it does not say."""
    file = folder / STATISTICS
    told = json.loads(file.read_text()) if file.exists() else {}
    if "sequence" not in told:
        raise LongtakeError(
            f"{folder} does not say how long a puzzle's sequence is; run longtake synth mvp with this output and the "
            "same options again, which reads no video twice"
        )
    levels = tuple(
        Level(name=name, masked=own["masked"], distractors=own["distractors"], pick=own["pick"])
        for name, own in told["levels"].items()
    )
    settings = Synthesis(
        levels=levels,
        frames=told["sequence"]["frames"],
        context=told["sequence"]["context"],
        mask=told["mask"],
        per_minute=told["per_minute"],
        kappa=told["kappa"],
        near=told["near"],
        seed=told["seed"],
    )
    return settings, settings.rules(told["kappa"])


def variant_records(folder: Path, variant: Variant, output: Path) -> list[PuzzleRecord]:
    """A variant's puzzles, made once and kept in ``output``; their frames are those of ``folder``."""
    target = output / f"puzzles-{variant}"
    if not (target / PUZZLES).exists():
        settings, rules = rules_of(folder)
        change = CHANGES[variant]
        if "pick" in change:
            settings = replace(settings, levels=tuple(replace(level, **change) for level in settings.levels))
        else:
            rules = replace(rules, **change)
        videos = {record.frames: record for record in read_records(folder)}
        with replaced(target / PUZZLES, make_folder=True) as scratch, scratch.open("w") as sink:
            for file, record in videos.items():
                footage = Footage(name=record.video, path=Path(record.path))
                sink.write(make_of_source(settings, rules, Source(footage=footage, path=folder / file)).lines)
    return list(read_records(target))
