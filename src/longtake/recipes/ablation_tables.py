"""From arms to a table: which are trained, from which starting model, and what is compared with what."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longtake.data.questions import TASKS, Question, normal
from longtake.eval.ablation import Estimate, difference, estimate, figure, figure_difference, standing
from longtake.eval.ablation_report import AblationTable, Finding, Row, TaskStart
from longtake.eval.measures import RECALLS
from longtake.eval.plot import bars
from longtake.recipes.ablation_arms import Arm, run_arm, run_base
from longtake.recipes.ablation_figures import Figures, figures_of
from longtake.recipes.ablation_replies import Replies
from longtake.recipes.ablation_world import World

TOGETHER = "open tasks together"
WHEN = "IoU of when"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """An arm of a table. starred: with every seed; else with the first one, exploratory."""

    name: str
    arm: Arm
    starred: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One table before it is run.

    pairs: (arm, the arm it is compared with), by name. figures: measures of the compressors alone are taken, too.
    every: of a test video's frames the starting model sees one in so many.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    arms: tuple[Planned, ...]
    pairs: tuple[tuple[str, str], ...]
    frames: int = 16
    every: int = 1
    figures: bool = False

    def seeds(self, planned: Planned, seeds: Sequence[int]) -> list[int]:
        """The seeds that an arm is trained with."""
        return list(seeds) if planned.starred else list(seeds[:1])


class Titled(Protocol):
    """What a table says of itself, and which of its arms it compares."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def pairs(self) -> tuple[tuple[str, str], ...]: ...


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
        """Of the best evidence with what is asked about, ``(seeds, questions)``."""
        return np.stack([replies.overlaps(self.exam.asked) for replies in self.replies.values()])

    def figure(self, name: str) -> NDArray[np.float64]:
        """One figure, ``(seeds,)``."""
        return np.array([figures[name] for figures in self.figures.values()])

    def first(self, seeds: int) -> Measured:
        """The same with fewer seeds, to be paired with an arm that has no more."""
        return Measured(self.exam, dict([*self.replies.items()][:seeds]), dict([*self.figures.items()][:seeds]))


def run_plan(world: World, plan: Plan, seeds: Sequence[int]) -> AblationTable:
    """Train and ask what is missing, and put the table together."""
    exam = world.exam(plan.frames)
    tasks = task_starts(exam.asked, *run_base(world, plan.frames, plan.every, exam))
    runs = [(planned, seed) for planned in plan.arms for seed in plan.seeds(planned, seeds)]
    replies = [run_arm(world, planned.arm, seed, exam) for planned, seed in runs]
    arms = [(planned.arm, seed) for planned, seed in runs]
    figures: list[Figures] = figures_of(world, arms) if plan.figures else [{} for _ in runs]
    measured = {planned.name: Measured(exam, {}, {}) for planned in plan.arms}
    for (planned, seed), answered, own in zip(runs, replies, figures, strict=True):
        measured[planned.name].replies[seed] = answered
        measured[planned.name].figures[seed] = own
    return table_of(plan, measured, tasks)


def table_of(plan: Titled, measured: Mapping[str, Measured], tasks: Mapping[str, TaskStart]) -> AblationTable:
    """Rows of all arms, and findings of the pairs on what may be compared."""
    rows = tuple(Row(arm=name, cells=cells(found, tasks)) for name, found in measured.items())
    findings = []
    for name, against in plan.pairs:
        paired = min(len(measured[name].replies), len(measured[against].replies))
        one, other = measured[name].first(paired), measured[against].first(paired)
        findings += [
            Finding(arm=name, against=against, measure=measure, found=found)
            for measure, found in differences(one, other, tasks).items()
        ]
    return AblationTable(
        name=plan.name, title=plan.title, notes=plan.notes, rows=rows, findings=tuple(findings), tasks=tasks
    )


def task_starts(asked: Sequence[Question], seen: Replies, unseen: Replies) -> dict[str, TaskStart]:
    """Where the starting model stands on every task that was asked."""
    starts = {}
    right, blind = seen.right(asked), unseen.right(asked)
    for task in TASKS:
        own = np.array([question.task == task for question in asked])
        if own.any():
            common = Counter(normal(q.answer) for q, is_own in zip(asked, own, strict=True) if is_own).most_common(1)
            majority = common[0][1] / int(own.sum())
            start, guess = float(right[own].mean()), float(blind[own].mean())
            verdict = standing(start, guess, majority)
            starts[task] = TaskStart(start=start, blind=guess, majority=majority, standing=verdict)
    return starts


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
    return shown | {name: figure(found.figure(name)) for name in _figures(found)}


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
    shared = [name for name in _figures(one) if name in _figures(other)]
    return shown | {name: figure_difference(one.figure(name), other.figure(name)) for name in shared}


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
    scratch = folder / f"{table.name}.tmp.png"
    bars(table.title, panels, scratch)
    scratch.replace(folder / f"{table.name}.png")


def _recalls() -> list[str]:
    return [f"R@{least} of when" for least in RECALLS]


def with_settings(table: AblationTable, **settings: Any) -> AblationTable:
    """The same with more of what it takes to run it again."""
    return dataclasses.replace(table, settings={**table.settings, **settings})
