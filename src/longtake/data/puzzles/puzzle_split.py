"""Which puzzles are learned from and which are held out: by source, so that no frame stands on both sides.

Files that show the same pictures (re-encodes, cuts, turned copies) are one source, as in the probe world, and the same
sources are held out as there: those that the model in the package was not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longtake.data.probe_world.haystack import Clip, group_by_source, split_of_source
from longtake.data.puzzles.framefile import FrameFile
from longtake.data.puzzles.puzzle_file import PuzzleRecord
from longtake.types import LongtakeError

COMPARED = 120  # pictures of a video, at most, by which it is told from others


@dataclass(frozen=True, slots=True, kw_only=True)
class PuzzleSplit:
    """The sides of a folder of puzzles. sources: the name of each video's source, by the video's identity."""

    sources: dict[str, str]
    held: frozenset[str]

    def is_held(self, record: PuzzleRecord) -> bool:
        """Whether a puzzle is kept from training."""
        return self.sources[record.identity] in self.held


def split_by_source(folder: Path, records: Sequence[PuzzleRecord]) -> PuzzleSplit:
    """About one source in four is held out, at least one and never all.

    Raises LongtakeError where all videos show the same.
    """
    files = {record.identity: record for record in records}
    names = {identity: f"{Path(record.video).name} {identity}" for identity, record in files.items()}
    found = group_by_source([_clip(folder, record, names[identity]) for identity, record in files.items()])
    sources = {identity: found[names[identity]].rsplit(" ", 1)[0] for identity in files}
    known = sorted(set(sources.values()))
    if len(known) < 2:
        raise LongtakeError(
            f"{folder} holds puzzles of one source only, {', '.join(known)}; give footage of at least two, "
            "so that one can be held out"
        )
    held = [source for source in known if split_of_source(source) == "test"] or known[:1]
    return PuzzleSplit(sources=sources, held=frozenset(held if len(held) < len(known) else held[1:]))


def _clip(folder: Path, record: PuzzleRecord, name: str) -> Clip:
    """Some of a video's stored pictures, evenly spread, as what ``group_by_source`` compares."""
    with FrameFile(folder / record.frames) as frames:
        shown = frames.index.names
        chosen = np.unique(np.linspace(0, len(shown) - 1, min(COMPARED, len(shown))).astype(int))
        pixels = frames.pictures([shown[number] for number in chosen])
    return Clip(name=name, pixels=np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), fps=record.fps)
