"""An ablation's results as one table: text for the terminal, Markdown and JSON to be kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longtake.eval.ablation import Estimate, Standing
from longtake.outputs import replaced, write_json

EXPLAINED = (
    "Intervals are 95%: Student's t over the variance between seeds plus that of resampling whole videos (clips, for "
    'probes). "Holds": the same sign in at least three paired seeds and an interval without 0. "Undetermined": not so, '
    "with the difference that would have been found in 80% of such experiments. One or two seeds are exploratory."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one arm reached, by measure."""

    arm: str
    cells: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How an arm differs from another in one measure."""

    arm: str
    against: str
    measure: str
    found: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStart:
    """Where the starting model stands on a task, and so whether arms are compared on it."""

    start: float
    blind: float
    majority: float
    standing: Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A further part of a table. lines: to be read, a header first; data: to be kept, JSON-ready."""

    name: str
    title: str
    notes: tuple[str, ...]
    lines: Sequence[Sequence[str]]
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationTable:
    """One ablation: its arms, what may be said of them, and all it takes to run it again.

    tasks: where the starting model stands, by task. sections: what only some tables have; JSON has each under its name.
    settings: the command, sizes, versions and costs.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    tasks: Mapping[str, TaskStart] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measures(self) -> list[str]:
        """The columns, in the order in which arms first have them."""
        return list(dict.fromkeys(name for row in self.rows for name in row.cells))


def as_text(table: AblationTable) -> str:
    """The table in columns of equal width, for a terminal."""
    return "\n\n".join(
        part
        for part in (
            table.title,
            *table.notes,
            _columns(_task_lines(table)),
            _columns(_row_lines(table)),
            _columns(_finding_lines(table)),
            *(part for own in table.sections for part in (own.title, *own.notes, _columns(own.lines))),
        )
        if part
    )


def as_markdown(table: AblationTable) -> str:
    """The table as a page for ``docs/results``."""
    parts = [f"# {table.title}", *table.notes]
    if table.tasks:
        parts += ["## Where the starting model stands", _piped(_task_lines(table))]
    parts += ["## Arms", _piped(_row_lines(table)), "## Differences", EXPLAINED, _piped(_finding_lines(table))]
    for own in table.sections:
        parts += [f"## {own.title}", *own.notes, _piped(own.lines)]
    settings = "\n".join(f"- {name}: {_plain(value)}" for name, value in table.settings.items())
    return "\n\n".join([*parts, "## Settings", settings]) + "\n"


def as_json(table: AblationTable) -> dict[str, Any]:
    """The whole table, JSON-ready; what is not known of an error is None."""
    return {
        "name": table.name,
        "title": table.title,
        "notes": list(table.notes),
        "tasks": {
            task: {"start": s.start, "blind": s.blind, "majority": s.majority, "standing": s.standing}
            for task, s in table.tasks.items()
        },
        "arms": {row.arm: {name: _numbers(cell) for name, cell in row.cells.items()} for row in table.rows},
        "differences": [
            {"arm": f.arm, "against": f.against, "measure": f.measure, "verdict": f.found.verdict}
            | _numbers(f.found)
            | {"detectable": _finite(f.found.detectable)}
            for f in table.findings
        ],
        **{own.name: own.data for own in table.sections},
        "settings": dict(table.settings),
    }


def write(table: AblationTable, folder: Path) -> None:
    """Write ``folder/NAME.json`` and ``NAME.md``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{table.name}.json", as_json(table), indent=1)
    with replaced(folder / f"{table.name}.md") as scratch:
        scratch.write_text(as_markdown(table))


def _numbers(cell: Estimate) -> dict[str, Any]:
    return {
        "mean": round(cell.mean, 5),
        "low": _finite(cell.low),
        "high": _finite(cell.high),
        "by_seed": [round(value, 5) for value in cell.by_seed],
    }


def _finite(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def _task_lines(table: AblationTable) -> list[list[str]]:
    if not table.tasks:
        return []
    head = ["task", "start", "blind", "majority", "arms are compared"]
    said = {"open": "yes", "floor": "no: floor", "ceiling": "no: ceiling"}
    return [head] + [
        [task, f"{s.start:.3f}", f"{s.blind:.3f}", f"{s.majority:.3f}", said[s.standing]]
        for task, s in table.tasks.items()
    ]


def _row_lines(table: AblationTable) -> list[list[str]]:
    lines = [["arm", "seeds", *table.measures]]
    for row in table.rows:
        seeds = str(max(len(cell.by_seed) for cell in row.cells.values()))
        lines.append([row.arm, seeds, *(_shown(row.cells.get(name)) for name in table.measures)])
    return lines


def _finding_lines(table: AblationTable) -> list[list[str]]:
    if not table.findings:
        return []
    lines = [["arm", "against", "measure", "difference", "by seed", "verdict", "detectable"]]
    for f in table.findings:
        by_seed = " ".join(f"{value:+.3f}" for value in f.found.by_seed)
        known = math.isfinite(f.found.detectable)
        detectable = f"{f.found.detectable:.3f}" if known and f.found.verdict != "holds" else "-"
        lines.append([f.arm, f.against, f.measure, _shown(f.found, "+"), by_seed, f.found.verdict, detectable])
    return lines


def _shown(cell: Estimate | None, sign: str = "") -> str:
    if cell is None:
        return "-"
    ends = f" [{cell.low:{sign}.3f}, {cell.high:{sign}.3f}]" if math.isfinite(cell.low) else ""
    return f"{cell.mean:{sign}.3f}{ends}"


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))] if lines else []
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _piped(lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return "None."
    head, *rest = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|" + " --- |" * len(lines[0]), *rest])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(_plain(inner) for inner in value)
    return f"`{value}`" if isinstance(value, str) and " " in value else str(value)
