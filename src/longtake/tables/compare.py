"""From replies to a table: what arms reached, and what is compared with what."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longtake.data.probe_world.questions import TASKS, Question
from longtake.eval.ablation import Estimate, difference, estimate
from longtake.eval.ablation_report import AblationTable, Finding, Row, TaskStart
from longtake.eval.measures import RECALLS
from longtake.eval.plot import bars
from longtake.tables.replies import Replies

TOGETHER = "open tasks together"
WHEN = "IoU of when"
MASKED = "error where masked"  # each arm's own tokens are masked, so that arms are not compared in it
Figures = dict[str, list[float]]  # a value for each test clip or video, the same ones for all arms and seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Titled:
    """What a table says of itself, and what it compares. pairs: (arm, the arm it is compared with), by name."""

    name: str
    title: str
    notes: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


class Questions(Protocol):
    """Questions in a row, and what is drawn again for intervals: each one's video."""

    @property
    def asked(self) -> list[Question]: ...
    @property
    def video_of(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Measured:
    """An arm's replies and figures by seed, and the questions that were asked."""

    exam: Questions
    replies: dict[int, Replies]
    figures: dict[int, Figures]

    @cached_property
    def right(self) -> NDArray[np.float64]:
        """1 where an answer is right, ``(seeds, questions)``."""
        return np.stack([replies.right(self.exam.asked) for replies in self.replies.values()])

    @cached_property
    def overlaps(self) -> NDArray[np.float64]:
        """How the best evidence overlaps what is asked about, ``(seeds, questions)``."""
        return np.stack([replies.overlaps(self.exam.asked) for replies in self.replies.values()])

    def figure(self, name: str) -> NDArray[np.float64]:
        """One figure, ``(seeds, clips)``; seeds see the same clips, which are drawn again for the error."""
        return np.array([figures[name] for figures in self.figures.values()])

    def first(self, seeds: int) -> Measured:
        """What the first seeds reached, to be paired with an arm that has no more."""
        return Measured(self.exam, dict([*self.replies.items()][:seeds]), dict([*self.figures.items()][:seeds]))


def table_of(told: Titled, measured: Mapping[str, Measured], tasks: Mapping[str, TaskStart]) -> AblationTable:
    """Rows of all arms, and findings of the pairs on what may be compared."""
    rows = tuple(Row(arm=name, cells=cells(found, tasks)) for name, found in measured.items())
    findings = []
    for name, against in told.pairs:
        paired = min(len(measured[name].replies), len(measured[against].replies))
        one, other = measured[name].first(paired), measured[against].first(paired)
        findings += [
            Finding(arm=name, against=against, measure=measure, found=found)
            for measure, found in differences(one, other, tasks).items()
        ]
    return AblationTable(
        name=told.name, title=told.title, notes=told.notes, rows=rows, findings=tuple(findings), tasks=tasks
    )


def questions_of(exam: Questions, tasks: Sequence[str]) -> NDArray[np.bool_]:
    """Which questions are of some tasks, ``(questions,)``."""
    return np.array([question.task in tasks for question in exam.asked])


def open_tasks(tasks: Mapping[str, TaskStart]) -> list[str]:
    """Tasks on which arms may be compared."""
    return [task for task, start in tasks.items() if start.standing == "open"]


def cells(found: Measured, tasks: Mapping[str, TaskStart]) -> dict[str, Estimate]:
    """What an arm reached, by measure."""
    videos, shown = found.exam.video_of, {}
    together = questions_of(found.exam, open_tasks(tasks))
    if together.any():
        shown[TOGETHER] = estimate(found.right[:, together], videos[together])
    for task in tasks:
        own = questions_of(found.exam, [task])
        shown[task] = estimate(found.right[:, own], videos[own])
    when = questions_of(found.exam, ["when"])
    if when.any():
        shown[WHEN] = estimate(found.overlaps[:, when], videos[when])
        for least in RECALLS:
            hits = (found.overlaps[:, when] >= least).astype(np.float64)
            shown[f"R@{least} of when"] = estimate(hits, videos[when])
    return shown | {name: estimate(found.figure(name)) for name in _figures(found)}


def differences(one: Measured, other: Measured, tasks: Mapping[str, TaskStart]) -> dict[str, Estimate]:
    """One arm against another on what may be compared."""
    videos, shown = one.exam.video_of, {}
    compared = open_tasks(tasks)
    for name, own in [(TOGETHER, compared), *((task, [task]) for task in compared)]:
        some = questions_of(one.exam, own)
        if some.any():
            shown[name] = difference(one.right[:, some], other.right[:, some], videos[some])
    if "when" in compared:
        some = questions_of(one.exam, ["when"])
        shown[WHEN] = difference(one.overlaps[:, some], other.overlaps[:, some], videos[some])
    shared = [name for name in _figures(one) if name in _figures(other) and name != MASKED]
    return shown | {name: estimate(one.figure(name) - other.figure(name)) for name in shared}


def _figures(found: Measured) -> list[str]:
    return [name for name in next(iter(found.figures.values())) if not math.isnan(found.figure(name).sum())]


def picture(table: AblationTable, folder: Path, measures: Sequence[str] = ()) -> None:
    """Bars of measures beside the table; of none: what may be compared, and the compressors' own figures."""
    compared = [TOGETHER, *open_tasks(table.tasks), WHEN]
    told = [name for name in table.measures if name in compared or name not in (*TASKS, *_recalls())]
    wanted = measures or told
    panels = {
        name: {row.arm: row.cells[name] for row in table.rows if name in row.cells}
        for name in (wanted or table.measures)
    }
    bars(table.title, panels, folder / f"{table.name}.png")


def _recalls() -> list[str]:
    return [f"R@{least} of when" for least in RECALLS]


def with_settings(table: AblationTable, **settings: Any) -> AblationTable:
    """A table with more of what it takes to run it again."""
    return dataclasses.replace(table, settings={**table.settings, **settings})
