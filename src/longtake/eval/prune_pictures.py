"""Pictures of a pruning: scores by subset with the line between kept and dropped, and a sheet of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtake import video
from longtake.data.pruning.prune import Pruning, beside
from longtake.data.pruning.samples import SUBSETS, Subset
from longtake.data.pruning.scorer import VideoPart, read_frames
from longtake.data.pruning.verdict import Verdict
from longtake.eval.plot import pyplot, save

KEPT, DROPPED = "#2b7a78", "#d1495b"
BINS = 40
NARROWEST = 0.001  # range of scores that a histogram spreads over
EXAMPLES = 4  # a subset and side
SHOWN_FRAMES = 4
CELL = (90, 160)  # height and width that a frame is fitted into
HEADING_INCHES, STRIP_INCHES = 0.4, 1.2
LONGEST_NAME = 60
SAVED: dict[str, Any] = {"dpi": 110, "bbox_inches": "tight", "pad_inches": 0.15}


def draw(done: Pruning, output: Path) -> None:
    """``.histogram.png`` and ``.examples.png`` beside a pruning's output; none where no sample has a score."""
    if any(verdict.score is not None for verdict in done.verdicts):
        histograms(done.verdicts, done.lines, beside(output, "histogram.png"))
        contact_sheet(done.verdicts, beside(output, "examples.png"))


def histograms(verdicts: Sequence[Verdict], lines: Mapping[Subset, float | None], file: Path) -> None:
    """One panel a subset: how many samples have which score, kept and dropped ones, and the line between them.

    At least one sample must have a score.
    """
    scored = _by_subset(verdicts)
    everything = [v.score for group in scored.values() for v in group if v.score is not None]
    low, high = min(everything), max(everything)
    edges = np.linspace(min(low, high - NARROWEST), high, BINS + 1)
    size = 9, 0.6 + 2.1 * len(scored)
    figure, panels = pyplot().subplots(len(scored), figsize=size, sharex=True, squeeze=False, layout="constrained")
    for axes, (subset, group) in zip(panels[:, 0], scored.items(), strict=True):
        sides = [[v.score for v in group if v.kept == kept] for kept in (True, False)]
        labels = [f"{len(sides[0])} kept", f"{len(sides[1])} dropped"]
        axes.hist(sides, edges, stacked=True, color=[KEPT, DROPPED], label=labels)
        if (line := lines[subset]) is not None:
            axes.axvline(line, color="black", linewidth=1.2, linestyle="--", label=f"dropped from {line:.6f}")
        axes.set_title(f"{subset}: {len(group)} samples", loc="left", fontsize=11)
        axes.set_ylabel("samples")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("similarity of a video's frames (1: all the same)")
    save(figure, file, **SAVED)


def contact_sheet(verdicts: Sequence[Verdict], file: Path) -> None:
    """A few frames of some kept and dropped samples of each subset, with their scores; kept left, dropped right."""
    rows: list[Subset | tuple[Verdict | None, ...]] = []  # a heading, or what stands left and right
    for subset, group in _by_subset(verdicts).items():
        sides = [_spread([v for v in group if v.kept == kept]) for kept in (True, False)]
        rows += [subset, *zip_longest(*sides)]
    heights = [HEADING_INCHES if isinstance(row, str) else STRIP_INCHES for row in rows]
    figure, grid = pyplot().subplots(
        len(heights), 2, figsize=(13, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for pair, row in zip(grid, rows, strict=True):
        for number, (axes, word, colour) in enumerate(zip(pair, ("kept", "dropped"), (KEPT, DROPPED), strict=True)):
            if isinstance(row, str):
                axes.text(0, 0, f"{row}, {word}", fontsize=12, color=colour, weight="bold")
            elif (verdict := row[number]) is not None:
                part = verdict.sample.parts[0]
                axes.imshow(strip(part), interpolation="antialiased")
                axes.set_title(f"{verdict.score:.6f}  {_short(part.name)}", loc="left", fontsize=9, parse_math=False)
    save(figure, file, **SAVED)


def strip(part: VideoPart) -> NDArray[np.uint8]:
    """Uniform frames side by side, each fitted whole into a cell: uint8 ``(height, width, 3)``."""
    info = video.open(part.path)
    scale = min(CELL[0] / info.height, CELL[1] / info.width)
    size = (max(1, round(info.height * scale)), max(1, round(info.width * scale)))
    frames, _ = read_frames(part, SHOWN_FRAMES, size)
    top, left = (CELL[0] - size[0]) // 2, (CELL[1] - size[1]) // 2
    sheet = np.full((CELL[0], SHOWN_FRAMES * (CELL[1] + 4) - 4, 3), 255, np.uint8)
    for number, picture in enumerate(frames.pixels):
        begin = number * (CELL[1] + 4)
        sheet[:, begin : begin + CELL[1]] = 235
        sheet[top : top + size[0], begin + left : begin + left + size[1]] = picture.transpose(1, 2, 0)
    return sheet


def _by_subset(verdicts: Sequence[Verdict]) -> dict[Subset, list[Verdict]]:
    """The scored samples of each subset that has some, by rising score."""
    groups: dict[Subset, list[Verdict]] = {}
    for subset in SUBSETS:
        group = [v for v in verdicts if v.score is not None and v.sample.subset == subset]
        if group:
            groups[subset] = sorted(group, key=lambda v: (v.score, v.sample.name))
    return groups


def _spread(group: Sequence[Verdict]) -> list[Verdict]:
    """A few samples, evenly from the lowest score to the highest, of different videos."""
    videos = list({verdict.sample.parts[0].key: verdict for verdict in group}.values())
    places = np.linspace(0, len(videos) - 1, min(EXAMPLES, len(videos)))
    return [videos[round(place)] for place in places.tolist()]


def _short(name: str) -> str:
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
