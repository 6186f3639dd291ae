"""Pictures of evaluation results."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from longtake.types import LongtakeError


def depth_by_length(results: Sequence[dict[str, Any]], file: Path) -> None:
    """A heat-map of how often needles are found, by their depth in the video and the video's length."""
    try:
        import matplotlib
    except ModuleNotFoundError as missing:
        raise LongtakeError("--plot needs matplotlib: pip install 'longtake[plot]'") from missing
    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = np.array([[d["mean"] if d["mean"] is not None else np.nan for d in r["by_depth"]] for r in results]).T
    figure, axes = pyplot.subplots(figsize=(2.6 + 1.1 * len(results), 4))
    shown = axes.imshow(cells, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(results)), [f"{r['run']['num_frames']:,}" for r in results])
    edges = [f"{100 * i // len(cells)}" for i in range(len(cells) + 1)]
    axes.set_yticks(range(len(cells)), [f"{low}-{high}%" for low, high in pairwise(edges)])
    axes.set_xlabel("frames (1 a second)")
    axes.set_ylabel("depth of the needle")
    axes.set_title("share found of what is asked\nby “what is on” and “is there”")
    for (row, column), value in np.ndenumerate(cells):
        axes.text(column, row, "-" if np.isnan(value) else f"{value:.2f}", ha="center", va="center")
    figure.colorbar(shown, ax=axes)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
