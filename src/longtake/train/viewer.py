"""Sampled groups of a run, to be read: one JSON line a group, shown as text or as one self-contained HTML page."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longtake.data.puzzles.puzzle_file import read_records
from longtake.data.puzzles.sheets import SHEET_STYLE, sheets_of
from longtake.outputs import replaced
from longtake.train.checkpoint import room_in
from longtake.train.rollouts import Group
from longtake.types import LongtakeError

FILE = "samples.jsonl"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1d1d1f }
h2 { font-size: 1rem; margin: 2rem 0 .3rem }
pre { white-space: pre-wrap; background: #f5f5f7; padding: .6rem; margin: 0 }
table { border-collapse: collapse; width: 100% } td, th { border-bottom: 1px solid #d2d2d7; padding: .3rem .6rem }
th { text-align: left; font-weight: 600 } td.n { text-align: right; font-variant-numeric: tabular-nums }
td.c { white-space: pre-wrap; font-family: ui-monospace, monospace; width: 60% } .cut { color: #b3261e }
""" + SHEET_STYLE


def row_of(step: int, question: str, group: Group, advantages: Sequence[float]) -> dict[str, Any]:
    """A sampled group as plain values, one row of the file."""
    return {
        "step": step,
        "puzzle": group.puzzle.name,
        "level": group.puzzle.level,
        "prompt": question,
        "completions": [
            {
                "text": rollout.text,
                "finished": rollout.finished,
                "tokens": len(rollout.ids),
                "rewards": dict(rollout.rewards),
                "advantage": advantage,
            }
            for rollout, advantage in zip(group.rollouts, advantages, strict=True)
        ],
    }


def keep(folder: Path, row: dict[str, Any]) -> None:
    """Append a group's row to the run's file."""
    with room_in(folder, "a sample"), (folder / FILE).open("a") as sink:
        sink.write(json.dumps(row) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """All groups that a run kept, but for one that it is writing now. Raises LongtakeError where there are none."""
    file = folder / FILE
    if not file.is_file():
        raise LongtakeError(f"{folder} holds no {FILE}; give the folder of a run that sampled, with samples_every set")
    *whole, _ = file.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise LongtakeError(f"{file}:{number}: no sample ({error}); remove the line, or the file") from error
    return rows


def as_text(rows: Iterable[dict[str, Any]]) -> str:
    """The groups as text, for a terminal."""
    lines = []
    for row in rows:
        lines += [f"step {row['step']}  {row['puzzle']} ({row['level']})", f"  {row['prompt']}"]
        for completion in row["completions"]:
            parts = " ".join(f"{name} {value:.2f}" for name, value in completion["rewards"].items())
            cut = "" if completion["finished"] else " [cut off]"
            lines.append(f"    {completion['advantage']:+.2f}  {parts}  | {completion['text']!r}{cut}")
        lines.append("")
    return "\n".join(lines)


def pictures_of(rows: Iterable[dict[str, Any]], puzzles: Path) -> dict[str, str]:
    """The pictures of the puzzles that were sampled, as HTML by a puzzle's name; others have none.

    puzzles: what ``longtake synth mvp`` wrote. Raises LongtakeError where it has none of them.
    """
    asked = {row["puzzle"] for row in rows}
    chosen = [record for record in read_records(puzzles) if record.id in asked]
    if not chosen:
        raise LongtakeError(f"{puzzles} has no puzzle that was sampled; give the folder that the run learned from")
    return sheets_of(puzzles, chosen)


def as_html(rows: Iterable[dict[str, Any]], pictures: Mapping[str, str] | None = None) -> str:
    """The groups as one HTML page that loads nothing from elsewhere; whatever a model wrote is shown as text.

    pictures: HTML by a puzzle's name, shown above what was answered.
    """
    body = "\n".join(_section(row, (pictures or {}).get(row["puzzle"], "")) for row in rows)
    return f"<!doctype html>\n<meta charset=utf-8><title>Samples</title><style>{STYLE}</style>\n{body}\n"


def write(rows: Iterable[dict[str, Any]], target: Path, pictures: Mapping[str, str] | None = None) -> None:
    """Write the page to a file, whole or not at all. Raises LongtakeError where it cannot be written."""
    with replaced(target) as scratch:
        scratch.write_text(as_html(rows, pictures), encoding="utf-8")


def _section(row: dict[str, Any], pictures: str) -> str:
    names = list(row["completions"][0]["rewards"])
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("advantage", *names, "tokens", "completion"))
    lines = []
    for completion in row["completions"]:
        values = [completion["advantage"], *completion["rewards"].values()]
        shown = [*(f"{value:.2f}" for value in values), str(completion["tokens"])]
        cells = "".join(f"<td class=n>{value}</td>" for value in shown)
        cut = "" if completion["finished"] else ' <span class=cut>[cut off]</span>'
        lines.append(f"<tr>{cells}<td class=c>{html.escape(completion['text'])}{cut}</td></tr>")
    title = html.escape(f"step {row['step']}: {row['puzzle']} ({row['level']})")
    table = f"<table><tr>{head}</tr>{''.join(lines)}</table>"
    return f"<h2>{title}</h2>{pictures}<pre>{html.escape(row['prompt'])}</pre>{table}"
