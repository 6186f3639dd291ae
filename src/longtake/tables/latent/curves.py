"""Samples to equal accuracy: what the arms of a table about latents were right in while they learned, and what it took.

Arms are asked a few test questions that no table asks, before their first step and every so many; their logs have the
shares. What a step takes is counted and measured once an arm, and kept beside its weights.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longtake.eval.ablation import figure
from longtake.eval.ablation_report import AblationTable, Section
from longtake.eval.equal_accuracy import Curve, Reached, equal_accuracy
from longtake.eval.plot import curves
from longtake.outputs import write_json
from longtake.tables.latent.arms import folder_of
from longtake.tables.latent.cost import LatentCosts
from longtake.tables.latent.plans import LatentPlan
from longtake.tables.latent.tables import SEVERAL, SINGLE
from longtake.tables.latent.world import HopWorld, Setting
from longtake.tables.operations import Cost

NAME = "samples to equal accuracy"
ALL = "all questions"
FIGURES = {ALL: "right", SINGLE: "right_single", SEVERAL: "right_several"}  # of an arm's log
SAMPLES = "samples"

Curves = Mapping[str, Mapping[str, Sequence[Curve]]]  # by arm, then by what is asked: one a seed
Units = Mapping[str, Mapping[str, float]]  # by arm, then by denominator: what a step takes of it


def run_curves(
    table: AblationTable, world: HopWorld, setting: Setting, plan: LatentPlan, seeds: Sequence[int], costs: LatentCosts
) -> AblationTable:
    """A table of trained arms with what its pairs need to equal accuracy."""
    count = world.count("curve")
    asked = (
        f"Of {count} test questions that nothing else asks, every {world.curve_every} steps; the standard error of "
        f"such a share is up to {0.5 / math.sqrt(count):.3f}."
    )
    units = units_of(world, setting, plan, seeds, costs)
    return with_curves(table, curves_of(world, setting, plan, seeds), units, plan.pairs, asked)


def read_curve(folder: Path, name: str) -> Curve:
    """A figure of an arm's log; a run that was killed early may have told its beginning twice."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    points = {row["step"]: row[name] for row in rows if name in row}
    return Curve(steps=tuple(points), right=tuple(points.values()))


def curves_of(world: HopWorld, setting: Setting, plan: LatentPlan, seeds: Sequence[int]) -> Curves:
    """Curves of all trained arms of a table."""
    return {
        planned.name: {
            asked: [read_curve(folder_of(world, setting, planned.arm, seed), name) for seed in planned.seeds(seeds)]
            for asked, name in FIGURES.items()
        }
        for planned in plan.arms
    }


def units_of(world: HopWorld, setting: Setting, plan: LatentPlan, seeds: Sequence[int], costs: LatentCosts) -> Units:
    """What a step of each arm takes, by all that may be meant; with encoding, every sample's video is encoded anew."""
    encoding = cached_cost(world.folder("curve", setting.frames) / "cost.json", costs.encoding)
    found, samples = {}, float(world.size.batch)
    for planned in plan.arms:
        file, arm = folder_of(world, setting, planned.arm, seeds[0]) / "cost.json", planned.arm
        cost = cached_cost(file, lambda arm=arm: costs.arm(arm))  # type: ignore[misc]
        found[planned.name] = {
            SAMPLES: samples,
            "operations": cost.operations,
            "operations with encoding": cost.operations + samples * encoding.operations,
            "core-seconds": cost.seconds,
            "core-seconds with encoding": cost.seconds + samples * encoding.seconds,
        }
    return found


def cached_cost(file: Path, measure: Callable[[], Cost]) -> Cost:
    """A cost that is measured once."""
    if not file.exists():
        write_json(file, dataclasses.asdict(measure()))
    return Cost(**json.loads(file.read_text()))


def with_curves(
    table: AblationTable, found: Curves, units: Units, pairs: Sequence[tuple[str, str]], asked: str
) -> AblationTable:
    """A table with what each of a pair needs until both are equally often right. asked: what curves stand on."""
    lines: list[list[str]] = []
    rows: list[dict[str, Any]] = []
    for name, against in pairs:
        seeds = min(len(found[name][ALL]), len(found[against][ALL]))
        reached = equal_accuracy(found[name][ALL][:seeds], found[against][ALL][:seeds])
        own = [level_row(name, against, each, units) for each in reached]
        rows += own
        lines += [level_line(row) for row in own] or [[name, against, "none"]]
    curves_by_arm = {arm: curve_data(own, units[arm]) for arm, own in found.items()}
    data = {"a step takes": units, "curves": curves_by_arm, "levels": rows}
    head = ["arm", "against", "level", "right", "samples", "samples of the other", "times", "by seed", "over seeds"]
    head += [f"times, {unit}" for unit in next(iter(units.values())) if unit != SAMPLES]
    full = [head, *([*line, *["-"] * (len(head) - len(line))] for line in lines)]
    section = Section(name=NAME, title="Samples to equal accuracy", notes=(asked, *NOTES), lines=full, data=data)
    return dataclasses.replace(table, sections=(*table.sections, section))


NOTES = (
    '"Level": 100% is the lower of the two last accuracies, means over seeds; 25, 50 and 75% of the way to it from the '
    'higher of the two first ones; "none" where it is no higher than that. "Samples": where the mean over seeds first '
    'crosses the level, linear between evaluations. "Times": what the other needs, divided by what the arm needs: '
    'above 1 the arm is cheaper; by seed at the same level, "never" where one of the two does not reach it, "-" where '
    "one begins at it; over seeds the geometric mean, with Student's interval of the logarithms.",
    "Operations and core-seconds are those of the language model's steps after the bottleneck, one batch counted and "
    "measured; what the curve itself takes is left out. With encoding: every sample's video is encoded anew. An arm's "
    "rate falls to 0 by its own last step: arms of other lengths have other rates after as many samples.",
)


def curve_data(own: Mapping[str, Sequence[Curve]], units: Mapping[str, float]) -> dict[str, Any]:
    """An arm's curves, JSON-ready, one list a seed."""
    samples = [step * units[SAMPLES] for step in own[ALL][0].steps]
    return {SAMPLES: samples, **{name: [[round(r, 5) for r in c.right] for c in each] for name, each in own.items()}}


def level_row(name: str, against: str, reached: Reached, units: Units) -> dict[str, Any]:
    """What a pair needs to a level, by denominator, JSON-ready; None: never, or not defined."""
    row: dict[str, Any] = {"arm": name, "against": against, "share": reached.share, "right": round(reached.level, 5)}
    for unit, own in units[name].items():
        other = units[against][unit]
        row[unit] = {
            "arm": scaled(reached.arm, own),
            "against": scaled(reached.other, other),
            "times": reached.times(other / own),
            "times by seed": reached.times_by_seed(other / own),
            "over seeds": spread_of(reached, other / own),
            "by seed": [[scaled(arm, own), scaled(rival, other)] for arm, rival in reached.by_seed],
        }
    return row


def spread_of(reached: Reached, unit: float) -> list[float] | None:
    """The geometric mean over seeds and its interval; None where a seed has no ratio, or is the only one."""
    found = reached.spread(unit)
    if found is None or not math.isfinite(found.low):
        return None
    return [math.exp(end) for end in (found.mean, found.low, found.high)]


def scaled(steps: float | None, unit: float) -> float | None:
    """What so many steps take, by what one takes; None for never."""
    return None if steps is None else steps * unit


def level_line(row: Mapping[str, Any]) -> list[str]:
    """A level's row, to be read."""
    samples = row[SAMPLES]
    by_seed = zip(samples["times by seed"], samples["by seed"], strict=True)
    told = ["never" if None in both else "-" if times is None else f"{times:.2f}" for times, both in by_seed]
    spread = samples["over seeds"]
    shown = "-" if spread is None else "{:.2f} [{:.2f}, {:.2f}]".format(*spread)
    others = [f"{cell['times']:.2f}" for unit, cell in row.items() if isinstance(cell, dict) and unit != SAMPLES]
    counts = [f"{samples[own]:,.0f}" for own in ("arm", "against")]
    return [
        row["arm"], row["against"], f"{row['share']:.0%}", f"{row['right']:.3f}", *counts,
        f"{samples['times']:.2f}", " ".join(told), shown, *others,
    ]  # fmt: skip


def curve_picture(table: AblationTable, folder: Path) -> None:
    """Accuracy by samples, a line an arm, its seeds' interval as a band; ``folder/NAME-curves.png``."""
    (section,) = (own for own in table.sections if own.name == NAME)
    panels = {
        asked: {
            arm: [(samples, figure(np.array(at))) for samples, *at in zip(own[SAMPLES], *own[asked], strict=True)]
            for arm, own in section.data["curves"].items()
        }
        for asked in FIGURES
    }
    file = folder / f"{table.name}-curves.png"
    curves(section.title, panels, file, across="samples learned from", up="right answers", limits=(0, 1.02))
