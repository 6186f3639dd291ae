"""From a folder of footage to puzzles: frames are gathered once, a threshold is taken from them, puzzles are made.

Resumes: a video whose frame file is there is not read again. All that is written depends on videos, settings and seed,
not on the number of processes.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from longtake.data.puzzles.draws import seeds_of
from longtake.data.puzzles.footage import Footage, Gathered, Gatherer, frames_folder, source_of
from longtake.data.puzzles.framefile import FrameFile
from longtake.data.puzzles.likeness import Likeness, num_kept, threshold_at
from longtake.data.puzzles.mvp import LEVELS, Level, Mask, Rules, make_puzzles
from longtake.data.puzzles.puzzle_file import PUZZLES, records
from longtake.data.workers import Engine, work
from longtake.outputs import replaced, write_json
from longtake.types import LongtakeError

SETTINGS, STATISTICS, LOCK = "settings.json", "statistics.json", ".lock"
FORMAT = "longtake puzzles 1"
MOST_PER_MINUTE = 10_000.0  # tries; a minute has 60 frames, or 300 in short clips. Ours

MakeGatherer = Callable[[], Gatherer]  # picklable; called once in each process
Progress = Callable[[str, int, int], None]  # what is done, how many, of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesis:
    """What puzzles are made; all defaults are ours. per_minute: tries a minute of footage and level.

    kappa, near: thresholds of ``mvp.Rules``; kappa None takes the ``quantile`` of the cosines of neighbouring frames in
    the footage itself, near None takes kappa.
    """

    levels: tuple[Level, ...] = LEVELS
    frames: int = 16
    context: int = 2
    mask: Mask = "contiguous"
    per_minute: float = 6.0
    quantile: float = 0.7
    kappa: float | None = None
    near: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.per_minute <= MOST_PER_MINUTE:
            raise LongtakeError(
                f"per_minute is {self.per_minute:g}; it must be above 0 and up to {MOST_PER_MINUTE:g}, for example 6"
            )
        if not 0 <= self.quantile <= 1:
            raise LongtakeError(f"quantile is {self.quantile:g}; it must be a share, 0 to 1, for example 0.7")
        for level in self.levels:
            self.rules(0.0).check(level)

    def rules(self, calibrated: float) -> Rules:
        """The rules, with the threshold ``calibrated`` on the footage where none was given."""
        kappa = calibrated if self.kappa is None else self.kappa
        near = kappa if self.near is None else self.near
        return Rules(kappa=kappa, near=near, frames=self.frames, context=self.context, mask=self.mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A gathered video for the second pass."""

    footage: Footage
    path: Path  # of its frame file


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What one video gave: its lines by level, and counts."""

    source: Source
    lines: str
    frames: int
    kept: int
    minutes: float
    tried: Mapping[str, int]
    made: Mapping[str, int]
    rejects: Mapping[str, Mapping[str, int]]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a synthesis gave.

    statistics: as in the file. problems: videos without frames, by name; duplicates: copies, by name, of what.
    reused: videos whose frames were there. seconds: wall time as "all", and work of all processes by stage.
    """

    statistics: Mapping[str, Any]
    problems: Mapping[str, str]
    duplicates: Mapping[str, str]
    reused: int
    seconds: Mapping[str, float]


@dataclass(slots=True)
class _Sums:
    """What the videos gave together."""

    frames: int = 0
    kept: int = 0
    minutes: float = 0.0
    seconds: float = 0.0
    tried: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    rejects: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, one: Made) -> None:
        self.frames += one.frames
        self.kept += one.kept
        self.minutes += one.minutes
        self.seconds += one.seconds
        self.tried.update(one.tried)
        self.made.update(one.made)
        for level, reasons in one.rejects.items():
            self.rejects.setdefault(level, Counter()).update(reasons)


def synthesise(
    footage: Sequence[Footage],
    output: Path,
    settings: Synthesis,
    make: MakeGatherer,
    *,
    engine: Engine = "process",
    workers: int = 1,
    progress: Progress | None = None,
) -> Outcome:
    """Write ``puzzles.jsonl``, ``statistics.json``, ``settings.json`` and ``frames/`` into a folder.

    Raises LongtakeError for a folder that cannot be written, holds frames of other settings or is written by another
    process, a worker that was killed, and when no video at all could be read.
    """
    begun = time.perf_counter()
    tell = progress or (lambda what, done, planned: None)
    gatherer = make()
    with claimed(output):
        open_output(output, gatherer.settings)
        gathered = _gather(footage, gatherer, make, engine, workers, tell)
        return _make(gathered, output, settings, engine, workers, tell, begun)


def _make(
    gathered: Sequence[Gathered],
    output: Path,
    settings: Synthesis,
    engine: Engine,
    workers: int,
    tell: Progress,
    begun: float,
) -> Outcome:
    """Make puzzles and statistics of frames on disk. begun: when the whole was, for its wall time."""
    problems = {one.footage.name: one.problem for one in gathered if one.problem is not None}
    if len(problems) == len(gathered):
        first = next(iter(problems.values()))
        raise LongtakeError(f"none of the {len(gathered)} videos could be read, the first: {first}")
    sources, duplicates = _distinct(gathered)
    neighbours = [_neighbours(source.path) for source in sources]
    cosines = np.concatenate(neighbours)
    rules = settings.rules(threshold_at(cosines, settings.quantile))

    sums = _Sums()
    making = partial(_maker, settings, rules)
    with replaced(output / PUZZLES) as scratch, scratch.open("w") as sink:
        coming = work(sources, making, workers=workers, engine=engine)
        for number, one in enumerate(in_order(coming, sources), start=1):
            sink.write(one.lines)
            sums.add(one)
            tell("making puzzles", number, len(sources))
    statistics = _statistics(settings, rules, sums, len(cosines), problems, duplicates, len(sources))
    write_json(output / STATISTICS, statistics, indent=1)
    stages = {stage: sum(one.seconds[stage] for one in gathered) for stage in ("read", "embed", "store")}
    return Outcome(
        statistics=statistics,
        problems=problems,
        duplicates=duplicates,
        reused=sum(one.reused for one in gathered if one.footage.name not in duplicates),
        seconds={"all": time.perf_counter() - begun, **stages, "puzzles": sums.seconds},
    )


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Make the folder, and keep it for this process alone while the block runs.

    Raises LongtakeError where it cannot be made, and where another process has it.
    """
    try:
        frames_folder(output).mkdir(parents=True, exist_ok=True)
        lock = (output / LOCK).open("a")
    except OSError as error:
        raise LongtakeError(f"{output}: {error.strerror}; give another output folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system, however a process ends
        except BlockingIOError as error:
            told = f"{output} is written by another run now; wait for it, or give another output folder"
            raise LongtakeError(told) from error
        yield


def open_output(output: Path, settings: Mapping[str, Any]) -> None:
    """Check that a folder's frames are of these settings; drop what a killed run left half-written."""
    wanted = {"format": FORMAT, **settings}
    file = output / SETTINGS
    try:
        found = json.loads(file.read_text()) if file.exists() else None
        own = [output.glob(f".{name}.*.part") for name in (SETTINGS, PUZZLES, STATISTICS)]
        for left in chain(frames_folder(output).glob(".*.part"), *own):
            left.unlink()
    except OSError as error:
        raise LongtakeError(f"{output}: {error.strerror}; give another output folder") from error
    except ValueError as error:
        raise LongtakeError(f"{file} is there and holds no settings; give another output folder") from error
    if found is None:
        write_json(file, wanted, indent=1)
        return
    for name, value in wanted.items():
        if not isinstance(found, dict) or found.get(name) != value:
            held = found.get(name) if isinstance(found, dict) else found
            raise LongtakeError(
                f"{output} holds frames with {name} {held}, but now it is {value}; "
                "give the former, another output folder, or remove that folder"
            )


def _gather(
    footage: Sequence[Footage],
    gatherer: Gatherer,
    make: MakeGatherer,
    engine: Engine,
    workers: int,
    tell: Progress,
) -> list[Gathered]:
    """All videos' frames on disk, in the order of the footage."""
    gpu = gatherer.settings["device"] == "cuda"
    found: dict[Footage, Gathered] = {}
    for one in work(footage, make, workers=workers, engine=engine, gpu=gpu, here=gatherer):
        found[one.footage] = one
        tell("reading videos", len(found), len(footage))
    return [found[one] for one in footage]


def _distinct(gathered: Iterable[Gathered]) -> tuple[list[Source], dict[str, str]]:
    """Each different video once, and the names of its copies."""
    first: dict[str, Gathered] = {}
    copies: dict[str, str] = {}
    for one in gathered:
        if one.problem is None and first.setdefault(one.identity, one) is not one:
            copies[one.footage.name] = first[one.identity].footage.name
    return [Source(footage=one.footage, path=one.file) for one in first.values()], copies


def _neighbours(file: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    with FrameFile(file) as held:
        return held.neighbours()


def _maker(settings: Synthesis, rules: Rules) -> Callable[[Source], Made]:
    return partial(make_of_source, settings, rules)


def make_of_source(settings: Synthesis, rules: Rules, source: Source) -> Made:
    """The puzzles of one video, level after level."""
    with FrameFile(source.path) as held:
        index, units = held.index, held.embeddings()
    begun = time.perf_counter()
    likeness = Likeness(units=units)
    minutes = len(units) / index.fps / 60
    tries = math.ceil(minutes * settings.per_minute)
    lines: list[str] = []
    made: dict[str, int] = {}
    rejects: dict[str, Mapping[str, int]] = {}
    for level in settings.levels:
        seeds = seeds_of(("mvp", settings.seed, index.identity, level.name, rules.mask), tries)
        puzzles, rejects[level.name] = make_puzzles(likeness, rules, level, seeds)
        made[level.name] = len(puzzles)
        named = {"source": source_of(index.identity), "video": source.footage.name}
        told = records(puzzles, index, level, rules.mask, path=source.footage.path, **named)
        lines += [record.line() for record in told]
    return Made(
        source=source,
        lines="".join(lines),
        frames=len(units),
        kept=num_kept(likeness.following(rules.kappa)),
        minutes=minutes,
        tried=dict.fromkeys(made, tries),
        made=made,
        rejects=rejects,
        seconds=time.perf_counter() - begun,
    )


def in_order(coming: Iterable[Made], sources: Sequence[Source]) -> Iterator[Made]:
    """Put results that come in any order into that of the sources."""
    early: dict[Path, Made] = {}
    left = iter(sources)
    following = next(left, None)
    for one in coming:
        early[one.source.path] = one
        while following is not None and following.path in early:
            yield early.pop(following.path)
            following = next(left, None)


def _statistics(
    settings: Synthesis,
    rules: Rules,
    sums: _Sums,
    neighbours: int,
    problems: Mapping[str, str],
    duplicates: Mapping[str, str],
    videos: int,
) -> dict[str, Any]:
    """The statistics, JSON-ready; equal for equal footage, settings and seed."""
    calibrated = settings.kappa is None
    return {
        "seed": settings.seed,
        "mask": rules.mask,
        "sequence": {"frames": rules.frames, "context": rules.context},
        "per_minute": settings.per_minute,
        "videos": videos,
        "minutes": round(sums.minutes, 3),
        "frames": sums.frames,
        "keep_rate": round(sums.kept / sums.frames, 4),
        "kappa": rules.kappa,
        "near": rules.near,
        "calibration": {"quantile": settings.quantile, "neighbours": neighbours} if calibrated else None,
        "puzzles": sums.made.total(),
        "levels": {
            level.name: {
                "masked": level.masked,
                "distractors": level.distractors,
                "pick": level.pick,
                "tried": sums.tried[level.name],
                "made": sums.made[level.name],
                "made_per_minute": round(sums.made[level.name] / sums.minutes, 3),
                "rejects": dict(sums.rejects[level.name]),
            }
            for level in settings.levels
        },
        "unreadable": dict(problems),
        "duplicates": dict(duplicates),
    }
