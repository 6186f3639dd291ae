"""The heat-map as a table: what each model found by depth and length, where the start stands, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtake.data.probe_world.questions import Question
from longtake.eval.ablation import difference, estimate
from longtake.eval.ablation_report import AblationTable, Finding, Row, TaskStart
from longtake.eval.plot import heat_maps
from longtake.eval.report import DEPTHS
from longtake.tables.ablations.tables import start_of

KINDS = {"single": ("what",), "chained": ("after",)}
RECOT, START, RANDOM, PACKAGED = "ReCoT", "as ReCoT starts", "random DTS", "packaged"
PAIRS = ((RECOT, START), (RECOT, RANDOM), (START, RANDOM))
WHOLE = "all lengths"
NOTES = (
    "One seed, exploratory. ReCoT, as ReCoT starts and random DTS: forks of the packaged decoder with a fresh "
    "projector, as many steps each, the DTS frozen. ReCoT goes on from a DTS that gives the mean of its frames, which "
    "is what the second has; the third has PyTorch's own weights. Packaged: as it is, for comparison; it "
    "was trained much longer.",
    "Single: what is on a card. Chained: what came right after a card. A video's number has the same cards at every "
    "length, so all its lengths are drawn again together for intervals.",
    "The starting model is the packaged one. By length, arms are compared where it is open; over all lengths they are "
    "wherever it stands, as forks begin with a projector that has learned nothing and a DTS that is not the start's: "
    "the start's ceiling is not theirs.",
)


def measures_of(lengths: Sequence[int], rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of questions by kind, of each length and of all, where there are any."""
    found = {
        f"{kind}, {frames:,} frames" if frames else f"{kind}, {WHOLE}": of_kind(rows, kind, frames)
        for kind in KINDS
        for frames in (*lengths, None)
    }
    return {measure: some for measure, some in found.items() if some}


def of_kind(rows: Sequence[dict[str, Any]], kind: str, frames: int | None = None) -> list[dict[str, Any]]:
    """Rows of one kind of question, of one length or all."""
    return [row for row in rows if row["task"] in KINDS[kind] and frames in (None, row["frames"])]


def right_of(rows: Sequence[dict[str, Any]], model: str) -> NDArray[np.float64]:
    """1 where a model was right, ``(1, questions)``."""
    return np.array([[row["right"][model] for row in rows]], np.float64)


def videos_of(rows: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
    """What is drawn again for intervals: a video's number, as it has the same cards at every length."""
    return np.array([row["video"] for row in rows])


def start_at(rows: Sequence[dict[str, Any]]) -> TaskStart:
    """Where the packaged model stands on questions of one kind."""
    asked = [Question(task=row["task"], text="", answer=row["truth"]) for row in rows]
    return start_of(asked, right_of(rows, PACKAGED)[0], np.array([row["blind"] for row in rows], np.float64))


def table_of(lengths: Sequence[int], rows: Sequence[dict[str, Any]], notes: Sequence[str] = ()) -> AblationTable:
    """A row a model, and the pairs of forks. rows: as ``heatmap.rows_of`` gives them."""
    asked = measures_of(lengths, rows)
    starts = {measure: start_at(some) for measure, some in asked.items()}
    names = list(rows[0]["right"])
    findings = [
        Finding(
            arm=one,
            against=other,
            measure=measure,
            found=difference(right_of(some, one), right_of(some, other), videos_of(some)),
        )
        for one, other in PAIRS
        for measure, some in asked.items()
        if measure.endswith(WHOLE) or starts[measure].standing == "open"
    ]
    cells = {
        name: {measure: estimate(right_of(some, name), videos_of(some)) for measure, some in asked.items()}
        for name in names
    }
    maps = {f"{name}, {kind}": depth_map(lengths, of_kind(rows, kind), name) for name in names for kind in KINDS}
    return AblationTable(
        name="heatmap",
        title="Needles by depth and length, with ReCoT and without",
        notes=(*NOTES, *notes),
        rows=tuple(Row(arm=name, cells=own) for name, own in cells.items()),
        findings=tuple(findings),
        tasks=starts,
        settings={"depth by length": maps},
    )


def depth_map(lengths: Sequence[int], rows: Sequence[dict[str, Any]], model: str) -> list[list[float | None]]:
    """Share of right answers by depth of the card asked about and length, ``(depths, lengths)``; None of none."""
    cells: list[list[float | None]] = []
    for depth in range(DEPTHS):
        here = [row for row in rows if min(DEPTHS - 1, int(row["depth"] * DEPTHS)) == depth]
        asked = [[row for row in here if row["frames"] == frames] for frames in lengths]
        cells.append([round(float(right_of(own, model).mean()), 3) if own else None for own in asked])
    return cells


def picture(table: AblationTable, lengths: Sequence[int], folder: Path) -> None:
    """A heat-map a model and kind of question."""
    panels = {name: np.array(cells, np.float64) for name, cells in table.settings["depth by length"].items()}
    heat_maps(table.title, panels, lengths, folder / f"{table.name}.png")
