"""A puzzle as a line of JSON: whose video, what is shown, what is missing, the pool and the truth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.data.puzzles.framefile import FrameIndex
from longtake.data.puzzles.mvp import Level, Mask, Puzzles
from longtake.types import LongtakeError

PUZZLES = "puzzles.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class PuzzleRecord:
    """One puzzle. Pictures are named as in the frame file ``frames``, a path from the folder of the puzzles.

    video, path, identity: the source's name, where it was read, and ``longtake.video.identity``. seed: of this puzzle.
    fps: of the stream. context, context_seconds: shown frames, in the order of time. masked: places of the missing ones
    in the sequence of context and missing frames. gaps_seconds: for each run of missing frames the times of the context
    frames around it, None beyond an end. candidates: the pool, which has no times. truth: numbers of candidates, from
    1, in the order of time; truth_seconds: when those were, for whoever checks a puzzle.
    """

    id: str
    video: str
    path: str
    identity: str
    level: str
    mask: Mask
    seed: int
    fps: float
    frames: str
    context: tuple[str, ...]
    context_seconds: tuple[float, ...]
    masked: tuple[int, ...]
    gaps_seconds: tuple[tuple[float | None, float | None], ...]
    candidates: tuple[str, ...]
    truth: tuple[int, ...]
    truth_seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        places = len(self.context) + len(self.masked)
        if len(self.truth) != len(self.masked) or not all(0 <= place < places for place in self.masked):
            raise ValueError(f"{self.id}: {len(self.truth)} truths for the masked places {self.masked} of {places}")
        if not all(1 <= number <= len(self.candidates) for number in self.truth):
            raise ValueError(f"{self.id}: truth {self.truth} with {len(self.candidates)} candidates")

    def beside(self) -> tuple[str | None, str | None]:
        """The context frames before the first missing one and after the last; None beyond an end."""
        places = [place for place in range(len(self.context) + len(self.masked)) if place not in self.masked]
        before = [name for place, name in zip(places, self.context, strict=True) if place < self.masked[0]]
        after = [name for place, name in zip(places, self.context, strict=True) if place > self.masked[-1]]
        return (before[-1] if before else None), (after[0] if after else None)

    def line(self) -> str:
        """The record as JSON, with the line's end."""
        return json.dumps({field.name: getattr(self, field.name) for field in dataclasses.fields(self)}) + "\n"


def records(
    puzzles: Puzzles, index: FrameIndex, level: Level, mask: Mask, *, source: str, video: str, path: Path
) -> Iterator[PuzzleRecord]:
    """The records of the puzzles of one video and level."""
    for number in range(len(puzzles)):
        sequence = [frame for frame in puzzles.kept[number].tolist() if frame >= 0]
        masked: list[int] = puzzles.masked[number].tolist()
        hidden = set(masked)
        context = [frame for place, frame in enumerate(sequence) if place not in hidden]
        seed = int(puzzles.seeds[number])
        yield PuzzleRecord(
            id=f"{source}-{level.name}-{seed:016x}",
            video=video,
            path=path.as_posix(),
            identity=index.identity,
            level=level.name,
            mask=mask,
            seed=seed,
            fps=index.fps,
            frames=f"frames/{source}.zip",
            context=tuple(index.names[frame] for frame in context),
            context_seconds=tuple(index.seconds[frame] for frame in context),
            masked=tuple(masked),
            gaps_seconds=tuple(_gaps(sequence, masked, index.seconds)),
            candidates=tuple(index.names[frame] for frame in puzzles.candidates[number].tolist()),
            truth=tuple(place + 1 for place in puzzles.truth[number].tolist()),
            truth_seconds=tuple(index.seconds[sequence[place]] for place in masked),
        )


def _gaps(
    sequence: list[int], masked: list[int], seconds: tuple[float, ...]
) -> Iterator[tuple[float | None, float | None]]:
    hidden = set(masked)
    for place in masked:
        if place - 1 not in hidden:
            stop = place
            while stop in hidden:
                stop += 1
            before = seconds[sequence[place - 1]] if place else None
            yield before, (seconds[sequence[stop]] if stop < len(sequence) else None)


def read_records(folder: Path) -> Iterator[PuzzleRecord]:
    """The puzzles in the folder of a synthesis. Raises LongtakeError for what is none, naming the line."""
    file = folder / PUZZLES
    if not file.is_file():
        raise LongtakeError(f"{file}: no such file; give the folder that longtake synth mvp wrote")
    with file.open("rb") as lines:  # as bytes: what is no text is told of by its line too
        for number, line in enumerate(lines, start=1):
            try:
                yield _parsed(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise LongtakeError(f"{file}:{number}: no puzzle ({error}); run the synthesis again") from error


def by_file(records: Iterable[PuzzleRecord]) -> dict[str, list[PuzzleRecord]]:
    """The puzzles of each frame file, files by their name."""
    found: dict[str, list[PuzzleRecord]] = {}
    for record in records:
        found.setdefault(record.frames, []).append(record)
    return dict(sorted(found.items()))


def _parsed(row: dict[str, Any]) -> PuzzleRecord:
    lists = ("context", "context_seconds", "masked", "candidates", "truth", "truth_seconds")
    row |= {name: tuple(row[name]) for name in lists}
    row["gaps_seconds"] = tuple((begin, end) for begin, end in row["gaps_seconds"])
    return PuzzleRecord(**row)
