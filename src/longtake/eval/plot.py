"""Pictures of evaluation results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtake.eval.ablation import Estimate
from longtake.outputs import replaced
from longtake.types import LatentLooks, LongtakeError

PANELS_A_ROW = 3


def pyplot(otherwise: str = "") -> Any:
    """What draws, without a screen. otherwise: what a user who lacks it may do but install it.

    Raises LongtakeError where matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as missing:
        told = "a picture needs matplotlib: pip install -e '.[plot]' in longtake's checkout"
        raise LongtakeError(told + otherwise) from missing
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def depth_by_length(results: Sequence[dict[str, Any]], file: Path) -> None:
    """A heat-map of how often needles are found, by their depth in the video and the video's length."""
    cells = np.array([[d["mean"] if d["mean"] is not None else np.nan for d in r["by_depth"]] for r in results]).T
    figure, axes = pyplot().subplots(figsize=(2.6 + 1.1 * len(results), 4))
    shown = _heat(axes, cells, [r["run"]["num_frames"] for r in results])
    axes.set_title("share found of what is asked\nby “what is on” and “is there”")
    figure.colorbar(shown, ax=axes)
    figure.tight_layout()
    save(figure, file)


def heat_maps(title: str, panels: Mapping[str, NDArray[np.float64]], lengths: Sequence[int], file: Path) -> None:
    """A heat-map a panel, ``(depths, lengths)`` each, nan where nothing was asked."""
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    size = (1.2 + across * (1.6 + 0.9 * len(lengths)), 0.8 + 3.4 * down)
    figure, grid = pyplot().subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, cells) in zip(grid.flat, panels.items(), strict=False):
        shown = _heat(axes, cells, lengths)
        axes.set_title(name, fontsize=10)
        axes.label_outer()
    figure.suptitle(title)
    figure.colorbar(shown, ax=grid)
    save(figure, file)


def save(figure: Any, file: Path, *, dpi: int = 130, **more: Any) -> None:
    """A finished picture, of the kind that the file's ending names; more: as matplotlib's ``savefig`` takes it."""
    with replaced(file) as scratch:
        figure.savefig(scratch, dpi=dpi, format=file.suffix[1:], **more)
    pyplot().close(figure)


def _heat(axes: Any, cells: NDArray[np.float64], lengths: Sequence[int]) -> Any:
    """One heat-map ``(depths, lengths)`` of shares, with its numbers; returns what a colour bar needs."""
    shown = axes.imshow(cells, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    edges = [f"{100 * i // len(cells)}" for i in range(len(cells) + 1)]
    axes.set_yticks(range(len(cells)), [f"{low}-{high}%" for low, high in pairwise(edges)])
    axes.set_xlabel("frames (1 a second)")
    axes.set_ylabel("depth of the needle")
    for (row, column), value in np.ndenumerate(cells):
        axes.text(column, row, "-" if np.isnan(value) else f"{value:.2f}", ha="center", va="center")
    return shown


def bars(title: str, panels: Mapping[str, Mapping[str, Estimate]], file: Path) -> None:
    """A panel a measure with a bar and a 95% interval an arm; a point a seed where there is more than one.

    panels: estimates by measure, then by arm.
    """
    across = min(PANELS_A_ROW, len(panels))
    down = -(-len(panels) // across)
    arms = list(dict.fromkeys(arm for panel in panels.values() for arm in panel))
    size = (1.6 + 3.2 * across, 0.9 + down * (0.7 + 0.32 * len(arms)))
    figure, grid = pyplot().subplots(down, across, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (measure, panel) in zip(grid.flat, panels.items(), strict=False):
        for arm, cell in panel.items():
            place = arms.index(arm)
            reach = [[cell.mean - cell.low], [cell.high - cell.mean]] if math.isfinite(cell.low) else None
            axes.barh(place, cell.mean, height=0.7, color=f"C{place % 10}", alpha=0.6, xerr=reach, capsize=3)
            if len(cell.by_seed) > 1:
                axes.plot(cell.by_seed, [place] * len(cell.by_seed), "k.", markersize=4)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_title(measure, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    save(figure, file)


def curves(
    title: str,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, Estimate]]]],
    file: Path,
    *,
    across: str,
    up: str,
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> None:
    """A panel a measure with a line an arm, and its 95% intervals as a band. The second ten arms are dashed.

    panels: points (place, estimate) by measure, then by arm. across, up: what the axes are. log: places by logarithm,
    each with its tick.
    """
    columns = min(PANELS_A_ROW, len(panels))
    down = -(-len(panels) // columns)
    size = (1.2 + 3.6 * columns, 1.2 + 2.8 * down)
    figure, grid = pyplot().subplots(down, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    places = sorted({place for panel in panels.values() for line in panel.values() for place, _ in line})
    for axes, (measure, panel) in zip(grid.flat, panels.items(), strict=False):
        for number, (arm, points) in enumerate(panel.items()):
            xs, cells = zip(*points, strict=True)
            look = "o-" if number < 10 else "s--"
            (drawn,) = axes.plot(xs, [cell.mean for cell in cells], look, markersize=4, label=arm)
            if all(math.isfinite(cell.low) for cell in cells):
                ends = [cell.low for cell in cells], [cell.high for cell in cells]
                axes.fill_between(xs, *ends, color=drawn.get_color(), alpha=0.15)
        if log:
            axes.set_xscale("log")
            axes.set_xticks(places, [f"{place:g}" for place in places], fontsize=8)
            axes.minorticks_off()
        if limits is not None:
            axes.set_ylim(*limits)
        axes.set_title(measure, fontsize=10)
        axes.set_xlabel(across)
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel(up)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=9)
    figure.suptitle(title, x=0.02, ha="left")
    save(figure, file)


def latent_looks(title: str, looks: LatentLooks, file: Path) -> None:
    """Where each latent looked: a row a latent with its shares over time and, by kind of look, its shares by place.

    The map of places is of the moment it looked at most, whose time is above it.
    """
    kinds = {"attended": looks.attended} | ({} if looks.reread is None else {"read again": looks.reread})
    count = len(looks.attended)
    widths = [5.0] + [1.3] * len(kinds)
    figure, grid = pyplot().subplots(
        count, 1 + len(kinds), figsize=(sum(widths) + 1.2, 0.9 + 1.15 * count), squeeze=False,
        width_ratios=widths, layout="constrained",
    )  # fmt: skip
    middles = [(start + min(stop, start + 1e6)) / 2 for start, stop in looks.times]
    for number, row in enumerate(grid):
        for column, (name, shares) in enumerate(kinds.items()):
            by_time = shares[number].sum(dim=(1, 2))
            row[0].plot(middles, by_time.tolist(), color=f"C{column}", marker=".", markersize=3, label=name)
            best = int(by_time.argmax())
            row[1 + column].imshow(shares[number, best].numpy(), cmap="Greys", vmin=0.0)
            row[1 + column].set_title(f"{looks.times[best][0]:.1f} s", fontsize=8, color=f"C{column}")
            row[1 + column].set_xticks([])
            row[1 + column].set_yticks([])
        row[0].set_ylabel(f"latent {number + 1}", fontsize=9)
        row[0].set_ylim(bottom=0)
        row[0].tick_params(labelsize=7)
    grid[0, 0].legend(fontsize=8, loc="upper right")
    grid[-1, 0].set_xlabel("seconds", fontsize=9)
    head = f"{title}\nshare of the look at the video; gate open by {looks.openness:.2f}"
    figure.suptitle(head, fontsize=10, parse_math=False)
    save(figure, file)
