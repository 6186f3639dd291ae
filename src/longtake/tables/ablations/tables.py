"""From arms to a table: which are trained, from which starting model, and what is compared with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtake.data.probe_world.questions import TASKS, Question, best_constant
from longtake.eval.ablation import standing
from longtake.eval.ablation_report import AblationTable, TaskStart
from longtake.tables.ablations.arms import Arm, run_arm, run_base
from longtake.tables.ablations.figures import figures_of
from longtake.tables.ablations.world import World
from longtake.tables.compare import Figures, Measured, Titled, table_of
from longtake.tables.planned import Planned
from longtake.tables.replies import Replies


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Titled):
    """One table before it is run. figures: measures of the compressors alone are taken, too.

    every: of a test video's frames the starting model sees one in so many.
    """

    arms: tuple[Planned[Arm], ...]
    frames: int = 16
    every: int = 1
    figures: bool = False


def run_plan(world: World, plan: Plan, seeds: Sequence[int]) -> AblationTable:
    """Train and ask what is missing, and put the table together."""
    exam = world.exam(plan.frames)
    tasks = task_starts(exam.asked, *run_base(world, plan.frames, plan.every, exam))
    runs = [(planned, seed) for planned in plan.arms for seed in planned.seeds(seeds)]
    replies = [run_arm(world, planned.arm, seed, exam) for planned, seed in runs]
    arms = [(planned.arm, seed) for planned, seed in runs]
    figures: list[Figures] = figures_of(world, arms) if plan.figures else [{} for _ in runs]
    measured = {planned.name: Measured(exam, {}, {}) for planned in plan.arms}
    for (planned, seed), answered, own in zip(runs, replies, figures, strict=True):
        measured[planned.name].replies[seed] = answered
        measured[planned.name].figures[seed] = own
    return table_of(plan, measured, tasks)


def task_starts(asked: Sequence[Question], seen: Replies, unseen: Replies) -> dict[str, TaskStart]:
    """Where the starting model stands on every task that was asked."""
    starts = {}
    right, blind = seen.right(asked), unseen.right(asked)
    for task in TASKS:
        own = np.array([question.task == task for question in asked])
        if own.any():
            chosen = [question for question, is_own in zip(asked, own, strict=True) if is_own]
            starts[task] = start_of(chosen, right[own], blind[own])
    return starts


def start_of(asked: Sequence[Question], right: NDArray[np.float64], blind: NDArray[np.float64]) -> TaskStart:
    """Where the starting model stands on questions of one task; right, blind: 1 where it is, ``(questions,)``."""
    start, guess, majority = float(right.mean()), float(blind.mean()), best_constant(asked)
    return TaskStart(start=start, blind=guess, majority=majority, standing=standing(start, guess, majority))
