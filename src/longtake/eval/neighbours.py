"""Which embedding tells a video's frames apart: retrieval of temporal neighbours, with pixels and chance beside it.

Every source of footage counts once, whatever its length; intervals are 95%, from resampling sources, because frames of
one source are not independent. Differences are from raw pixels, over the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtake.data.probe_world.haystack import Clip, group_by_source
from longtake.data.puzzles.footage import Embed, stretches, vectors
from longtake.data.puzzles.neighbours import FEWEST_FRAMES, chance, hits, long_takes
from longtake.types import Frames, LongtakeError

RESAMPLES = 2000
PIXELS = "pixels"  # the embedder that the others are compared with

Hits = dict[str, list[NDArray[np.float64]]]  # by source, an array a clip


def evaluate(
    embedders: Mapping[str, Embed],
    clips: Sequence[Clip],
    *,
    fps: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Each embedder's share of frames whose nearest stands beside them in time, as one JSON-ready object.

    embedders: by name, frames to features ``(frames, rows, columns, dim)``; one is called "pixels". Takes of fewer than
    ``FEWEST_FRAMES`` frames are left out. Raises LongtakeError where none is left.
    """
    shown = long_enough(clips, fps)
    return told(look(embedders, shown, group_by_source([clip for clip, _ in shown]), progress), fps, seed)


def long_enough(clips: Sequence[Clip], fps: float) -> list[tuple[Clip, list[Frames]]]:
    """Clips with their takes at ``fps`` that have enough frames. Raises LongtakeError where no clip has one."""
    shown = [(clip, own) for clip in clips if (own := long_takes(clip, fps))]
    if not shown:
        raise LongtakeError(f"no clip has {FEWEST_FRAMES} frames at {fps:g} fps; give longer footage or a higher fps")
    return shown


def look(
    embedders: Mapping[str, Embed],
    shown: Sequence[tuple[Clip, Sequence[Frames]]],
    sources: Mapping[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Hits]:
    """Hits by embedder, and what chance has. sources: by a clip's name."""
    found: dict[str, Hits] = {name: {} for name in ("chance", *embedders)}
    for done, (clip, own) in enumerate(shown, start=1):
        rows = {"chance": [np.full(len(frames), chance(len(frames))) for frames in own]}
        parts = [[frames.pixels[some] for some in stretches(len(frames))] for frames in own]
        rows |= {name: [hits(vectors(embed, one)) for one in parts] for name, embed in embedders.items()}
        for name, row in rows.items():
            found[name].setdefault(sources[clip.name], []).append(np.concatenate(row))
        if progress is not None:
            progress(done, len(shown))
    return found


def told(found: Mapping[str, Hits], fps: float, seed: int) -> dict[str, Any]:
    """The object that ``evaluate`` returns, of ``look``'s hits."""
    clips = [row for rows in found[PIXELS].values() for row in rows]
    return {
        "fps": fps,
        "clips": len(clips),
        "sources": len(found[PIXELS]),
        "frames": sum(map(len, clips)),
        "rows": summary({name: [np.concatenate(rows) for rows in by.values()] for name, by in found.items()}, seed),
    }


def summary(found: Mapping[str, Sequence[NDArray[np.float64]]], seed: int) -> dict[str, dict[str, float]]:
    """The mean over sources by embedder, its interval, the same of its difference from pixels, and the mean by frame.

    found: by embedder, each source's hits, sources in one order.
    """
    by_source = {name: np.array([row.mean() for row in rows]) for name, rows in found.items()}
    count = len(by_source[PIXELS])
    drawn = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    table = {}
    for name, means in by_source.items():
        low, high = np.percentile(means[drawn].mean(axis=1), [2.5, 97.5])
        apart = means - by_source[PIXELS]
        apart_low, apart_high = np.percentile(apart[drawn].mean(axis=1), [2.5, 97.5])
        figures = {
            "mean": means.mean(),
            "low": low,
            "high": high,
            "over_pixels": apart.mean(),
            "over_pixels_low": apart_low,
            "over_pixels_high": apart_high,
            "by_frame": np.concatenate(found[name]).mean(),
        }
        table[name] = {key: round(float(value), 4) for key, value in figures.items()}
    return table


def table(result: Mapping[str, Any]) -> str:
    """The result as text, a line an embedder."""
    lines = [
        f"{result['frames']} frames at {result['fps']:g} fps of {result['clips']} clips ({result['sources']} sources)",
        f"{'nearest frame is a neighbour':32}{'mean over sources':>26}{'over pixels':>28}{'by frame':>10}",
    ]
    for name, row in result["rows"].items():
        mean = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        apart = f"{row['over_pixels']:+.3f} [{row['over_pixels_low']:+.3f}, {row['over_pixels_high']:+.3f}]"
        lines.append(f"{name:32}{mean:>26}{apart:>28}{row['by_frame']:10.3f}")
    return "\n".join(lines)
